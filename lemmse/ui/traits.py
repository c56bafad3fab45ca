"""Traits that travel between Python and the page on ipywidgets 7 and 8 alike."""

from abc import ABCMeta
from typing import Any

import traitlets

__all__ = ["AbstractTraits", "Buffer"]


class _AbstractTraitsMeta(ABCMeta, type(traitlets.HasTraits)):
    """The metaclass of both: traits, and methods that a front end has to give."""


class AbstractTraits(traitlets.HasTraits, metaclass=_AbstractTraitsMeta):
    """State with traits that several front ends share, each of which shows it in its own way."""


class Buffer(traitlets.TraitType):
    """Raw bytes that Python sets and the page may send back; always read as ``bytes``.

    What comes from the page is a ``memoryview``, which `traitlets.Bytes` refuses inside the kernel, where nobody sees
    the error; ipywidgets has a trait for it, but not importable in version 7.
    """

    default_value = b""
    info_text = "bytes, a bytearray or a memoryview"

    def validate(self, obj: Any, value: Any) -> bytes:
        """Return the value as ``bytes``, or raise ``TraitError`` if it is no buffer of bytes."""
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        self.error(obj, value)
