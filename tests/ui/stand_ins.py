"""A folder of small networks that stands for those that ship."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lemmse import pretrained
from lemmse.ui import shipped


def shipped_from(folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Callable) -> Iterator[None]:
    """Let the folder stand for what ships until resumed; nothing is remembered before or after, in ``cache`` either."""
    cards, load = pretrained.cards, pretrained.load
    monkeypatch.setattr(pretrained, "cards", lambda: cards(folder))
    monkeypatch.setattr(pretrained, "load", lambda name: load(name, folder))
    _forget(cache)
    yield
    _forget(cache)


def _forget(cache: Callable) -> None:
    cache.cache_clear()
    shipped.forget()
