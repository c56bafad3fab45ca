"""Progress of work that may take longer than a couple of seconds."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Iterable[T], *, description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Pass the items on, with a bar that appears after two seconds; ``TQDM_DISABLE=1`` in the environment silences
    it.
    """
    from tqdm.auto import tqdm  # not at the top: `import lemmse` stays as light as torch

    yield from tqdm(items, desc=description, total=total, unit=unit, delay=2.0, leave=False)
