"""Progress of work that may take longer than a couple of seconds."""

import time
from collections.abc import Iterator, Sized
from typing import Any

__all__ = ["progress"]

PATIENCE = 2.0
"""Seconds before a bar appears: quick work, such as the answer to a slider, shows none and pays for none."""


def progress(items: Sized, *, description: str, unit: str = "it") -> Iterator[Any]:
    """Pass the items on, with a bar once they take longer than PATIENCE; ``TQDM_DISABLE=1`` silences it."""
    bar, started = None, time.monotonic()
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - started > PATIENCE:
                from tqdm.auto import tqdm  # not at the top: `import lemmse` stays as light as torch

                bar = tqdm(total=len(items), initial=done, desc=description, unit=unit, leave=False)
            yield item
            if bar is not None:
                bar.update()
    finally:
        if bar is not None:
            bar.close()
