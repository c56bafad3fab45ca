"""Progress of work that may take longer than a couple of seconds."""

import os
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["progress", "silence"]

PATIENCE = 2.0
"""Seconds before a bar appears: quick work, such as the answer to a slider, shows none and pays for none."""

_silent = ContextVar("silent", default=False)


def progress(items: Iterable[Any], *, description: str, unit: str = "it", total: int | None = None) -> Iterator[Any]:
    """Pass the items on, with a bar once they take longer than PATIENCE; ``TQDM_DISABLE=1`` silences it everywhere.

    ``total`` is their number, where they do not tell it themselves and it is known.
    """
    bar, started = None, time.monotonic()
    # tqdm's bars for notebooks do not ask for the variable
    silent = _silent.get() or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    total = len(items) if isinstance(items, Sized) else total
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - started > PATIENCE and not silent:
                from tqdm.auto import tqdm  # not at the top: `import lemmse` stays as light as torch

                bar = tqdm(total=total, initial=done, desc=description, unit=unit, leave=False)
            yield item
            if bar is not None:
                bar.update()
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def silence() -> Iterator[None]:
    """Show no bars in this thread: another one, of the whole, is shown elsewhere."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
