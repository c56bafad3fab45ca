"""Sets of images that are never all in memory: arrays read slice by slice, and iterables read chunk by chunk.

An estimator asks a set for its shape and for slices, one after the other, as often as it is called:

=================  ====================================================================================================
``ImageSet``       whatever has a ``shape`` (D, c, h, w), and slices that are tensors
``ArrayImages``    a numpy array, also one in a file (``numpy.memmap``), or what is read like one, as h5py's data sets
``ChunkedImages``  what gives tensors (k, c, h, w) when iterated over: a ``DataLoader``, a list, or a function that
                   makes an iterator
=================  ====================================================================================================
"""

import inspect
import os
import threading
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ._progress import progress

__all__ = [
    "CENTRE_SAMPLE",
    "ArrayImages",
    "ChunkedImages",
    "HeldImages",
    "ImageSet",
    "as_image_set",
    "checked_slice",
    "checked_values",
]

CENTRE_SAMPLE = 64
"""Queries and keys are centred on a mean over so many images, which spares digits (S13, precision budget)."""

IDLE_PASSES = 4
"""Passes that wait for their next slice, at most: as many streams or threads may take turns without starting anew."""


@runtime_checkable
class ImageSet(Protocol):
    """Images that may be made on demand: a ``shape`` (D, c, h, w), and slices that are tensors."""

    shape: tuple[int, int, int, int]

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return the images of a slice."""


def as_image_set(images: Any) -> Any:
    """Return a tensor or an ``ImageSet`` as it is, an array as ``ArrayImages``, chunks as ``ChunkedImages``.

    Raises ``ValueError`` for what is none of them and, with the first pass over chunks, for what ``ChunkedImages``
    does not take. What has a shape is left to ``checked_sample``.
    """
    if isinstance(images, Tensor):
        return images
    if hasattr(images, "shape"):
        return ArrayImages(images) if isinstance(getattr(images, "dtype", None), np.dtype) else images
    return ChunkedImages(images)


def checked_values(images: Any, first: int = 0) -> Float[Tensor, "k c h w"]:
    """Return the images, or raise ``ValueError`` unless they are a tensor of finite float32 or float64 numbers.

    They are numbered from ``first`` on.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor: got {type(images).__name__}. torch.from_numpy turns arrays.")
    if images.dtype not in (torch.float32, torch.float64):
        how = "images.float()" if images.is_floating_point() else "images.float() / 255 for 8-bit images"
        raise ValueError(f"images must be float32 or float64: got {images.dtype}. Convert them, with {how}.")
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"images must be finite: {len(bad)} of {len(images)} hold NaN or infinity, first image {first + bad[0]}."
        )
    return images


def checked_slice(images: Any, whole: ImageSet, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "k c h w"]:
    """Return a slice of a set made on demand, or raise ``ValueError`` unless it is what was asked for."""
    checked_values(images, start)
    wanted = (stop - start, *whole.shape[1:])
    if tuple(images.shape) != wanted or images.dtype != dtype:
        raise ValueError(
            f"images[{start}:{stop}] of {type(whole).__name__} must be {wanted} of {dtype}, as its shape and its first "
            f"images say: got {tuple(images.shape)} of {images.dtype}."
        )
    return images


@final
class ArrayImages:
    """A numpy array (D, c, h, w) as an ``ImageSet``: slices are read as they are asked for, the whole never.

    float32 and float64 stay what they are; uint8, 0 to 255, becomes float32 in [0, 1]. Anything with ``shape``,
    ``dtype`` and slices that are arrays will do. Raises ``ValueError`` for other dtypes.
    """

    def __init__(self, images: Any):
        self.array, self.shape = images, tuple(images.shape)
        if images.dtype.kind + str(images.dtype.itemsize) not in ("f4", "f8", "u1"):
            raise ValueError(
                f"images must be float32, float64, or uint8 (0 to 255, read as float32 in [0, 1]): got an array of "
                f"{images.dtype}. Convert it, with images.astype('float32'), or part by part, with a function: "
                "lambda: (images[d : d + 100].astype('float32') for d in range(0, len(images), 100))."
            )

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return a copy of a slice."""
        start, stop = _bounds(index, self.shape[0])
        return _intensities(self.array[start:stop])

    def __repr__(self) -> str:
        return f"ArrayImages({type(self.array).__name__} of {self.shape}, {self.array.dtype})"


@final
class ChunkedImages:
    """Images that come in chunks (k, c, h, w), the same in every pass, as an ``ImageSet``: one chunk at a time is held.

    ``source`` is iterated over once a pass. It is a ``DataLoader`` (``shuffle=False``), a list, any other iterable that
    can be begun anew, or a function without arguments that returns an iterator, such as a generator function. A chunk
    is a tensor or an array, or a tuple or list that begins with one, as those of a loader with labels do. Chunks have
    as many images as they like, of one shape, dtype and device; uint8, 0 to 255, becomes float32 in [0, 1].

    The constructor makes a first pass, with a bar, to count the images; a checksum of every chunk tells later whether
    they are still the same. Slices that follow each other share a pass, also where a few threads or streams take turns;
    a slice from further ahead passes over those between, one from further back begins anew.

    Raises ``ValueError`` for a source that can be iterated over only once, is empty, or has chunks that are no images,
    of different shapes or not finite; ``RuntimeError`` where a later pass is not like the first.
    """

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]]):
        self.source = _checked_source(source)
        self._lock, self._idle = threading.Lock(), []
        self._counts, self._checksums = array("Q"), array("L")
        first = next(_chunks_of(self.source), None)
        if first is None:
            raise ValueError(f"images must hold at least one image: {_name_of(self.source)} gave no chunk.")
        self._image_shape, self.dtype, self.device = tuple(first.shape[1:]), first.dtype, first.device
        head, checksum, count = first[:CENTRE_SAMPLE].clone(), _checksum(first), 0
        for chunk in progress(_chunks_of(self.source), description="First pass", unit="chunk", total=_length(source)):
            self._check_like_the_first(checked_values(chunk, count))
            self._counts.append(len(chunk))
            count += len(chunk)
            self._checksums.append(_checksum(chunk))
            if len(self._counts) == 1 and self._checksums[0] != checksum:  # soon seen, before a long pass
                self._refuse("its first chunk was another when it was asked for again")
            if len(self._counts) > 1 and len(head) < CENTRE_SAMPLE:
                head = torch.cat([head, chunk[: CENTRE_SAMPLE - len(head)]])
        if not self._counts:
            self._refuse("it gave a chunk, and none when it was asked again")
        self.shape, self.head = (count, *self._image_shape), head

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return the images of a slice, read from where the last slice ended where that is before it."""
        start, stop = _bounds(index, self.shape[0])
        if start >= stop:
            return self.head[:0]
        reading = self._resumed(start)
        found = reading.read(self, start, stop)
        self._keep(reading)  # not where reading raised
        return found

    def __repr__(self) -> str:
        return f"ChunkedImages({_name_of(self.source)} of {len(self._counts)} chunks, {self.shape})"

    def __getstate__(self) -> dict:
        """Return what travels: a pass that has begun and a lock do not."""
        return {**vars(self), "_lock": None, "_idle": []}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    def _resumed(self, start: int) -> "_Pass":
        """Return the pass that is nearest before an image, which now is the caller's alone, or a new one."""
        with self._lock:
            able = [each for each in self._idle if each.at <= start]
            if able:
                nearest = max(able, key=lambda each: each.at)
                self._idle.remove(nearest)
                return nearest
        return _Pass(self.source)

    def _keep(self, reading: "_Pass") -> None:
        """Let a pass wait for its next slice, unless it has ended."""
        if reading.at < self.shape[0]:
            with self._lock:
                dropped, self._idle = self._idle[: 1 - IDLE_PASSES], [*self._idle[1 - IDLE_PASSES :], reading]
            del dropped  # may end processes or close files: not while others wait

    def _check_like_the_first(self, chunk: Tensor) -> None:
        found = tuple(chunk.shape[1:]), chunk.dtype, chunk.device
        wanted = self._image_shape, self.dtype, self.device
        if found != wanted:
            raise ValueError(
                f"Chunks of images must have one shape, dtype and device: chunk {len(self._counts)} of "
                f"{_name_of(self.source)} is (k, {', '.join(map(str, found[0]))}) of {found[1]} on {found[2]}, chunk "
                f"0 was (k, {', '.join(map(str, wanted[0]))}) of {wanted[1]} on {wanted[2]}."
            )

    def _check_again(self, i: int, chunk: Tensor) -> None:
        """Raise ``RuntimeError`` unless a chunk is that of the first pass."""
        if i == len(self._counts):
            self._refuse(f"it goes on after its {self.shape[0]} images")
        if len(chunk) != self._counts[i]:
            self._refuse(f"its chunk {i} has {len(chunk)} images, and had {self._counts[i]}")
        if _checksum(chunk) != self._checksums[i]:
            self._refuse(f"its chunk {i}, of {len(chunk)} images, holds others than before")

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"images must be the same in every pass, and {_name_of(self.source)} is not: {what}. A DataLoader needs "
            "shuffle=False and a data set without random changes; a function must return a new iterator "
            "each time it is called."
        )


@final
class HeldImages:
    """Some images of a set, in memory and under their numbers there, for a while."""

    def __init__(self, images: Float[Tensor, "k c h w"], first: int, shape: tuple[int, int, int, int]):
        self.images, self.first, self.shape = images, first, shape

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return the images of a slice, which must be among them."""
        return self.images[index.start - self.first : index.stop - self.first]


class _Pass:
    """A pass over chunks: ``at`` counts the images behind it, and ``rest`` is what is left of a chunk.

    It does not know its set, which may wait for it: so both go when the set does, with files and processes they opened.
    """

    def __init__(self, source: Any):
        self.chunks = _chunks_of(source)
        self.at, self.taken, self.rest = 0, 0, None

    def read(self, images: ChunkedImages, start: int, stop: int) -> Float[Tensor, "k c h w"]:
        """Return images from where the pass is, or further ahead; one chunk at a time is held beside them."""
        while self.at < start:
            self._next(images, start - self.at)
        found = self._next(images, stop - start)
        if len(found) < stop - start:
            whole, filled = found.new_empty(stop - start, *found.shape[1:]), len(found)
            whole[:filled] = found
            while self.at < stop:
                found = self._next(images, stop - self.at)
                whole[filled : filled + len(found)] = found
                filled += len(found)
            found = whole
        if self.at == images.shape[0] and (more := next(self.chunks, None)) is not None:
            images._check_again(self.taken, more)
        return found

    def _next(self, images: ChunkedImages, most: int) -> Tensor:
        """Return the next images, at most so many: those that are left of a chunk, or some of the next one."""
        if self.rest is None:
            self.rest = next(self.chunks, None)
            if self.rest is None:
                images._refuse(f"it ended after {self.at} of its {images.shape[0]} images")
            images._check_again(self.taken, self.rest)
            self.taken += 1
        found, rest = self.rest[:most], self.rest[most:]
        self.rest = rest if len(rest) else None  # an empty rest would hold on to its chunk
        self.at += len(found)
        return found


def _chunks_of(source: Any) -> Iterator[Tensor]:
    """Yield the chunks of a new pass as tensors."""
    chunks = source if isinstance(source, Iterable) else source()
    if not isinstance(chunks, Iterable):
        raise ValueError(
            f"images() must return an iterator of chunks: {_name_of(source)} gave {type(chunks).__name__}."
        )
    for i, chunk in enumerate(chunks):
        images = chunk[0] if isinstance(chunk, tuple | list) and len(chunk) else chunk
        if not isinstance(images, Tensor | np.ndarray) or images.ndim != 4 or min(images.shape[1:]) < 1:
            came = tuple(images.shape) if isinstance(images, Tensor | np.ndarray) else type(images).__name__
            raise ValueError(
                f"A chunk of images must be a tensor (k, c, h, w), or a tuple that begins with one: chunk {i} of "
                f"{_name_of(source)} is {came}.{_advice(images)}"
            )
        if len(images):
            yield _intensities(images)


def _name_of(source: Any) -> str:
    """Return what errors call a source."""
    return getattr(source, "__name__", type(source).__name__)


def _bounds(index: Any, count: int) -> tuple[int, int]:
    """Return where a slice begins and ends; raises ``TypeError`` for other indices, and steps."""
    if not isinstance(index, slice) or index.step not in (None, 1):
        raise TypeError(f"An image set is read in slices images[start:stop]: got {index!r}.")
    start, stop, _ = index.indices(count)
    return start, stop


def _intensities(images: Tensor | np.ndarray) -> Tensor:
    """Return images as a tensor: arrays copied, bytes as float32 in [0, 1]."""
    if not isinstance(images, Tensor):
        images = np.asarray(images)
        images = torch.from_numpy(np.array(images, dtype=images.dtype.newbyteorder("="), order="C"))
    return images.float().div_(255) if images.dtype == torch.uint8 else images.detach()


def _checksum(images: Tensor) -> int:
    """Return a checksum of the numbers of images, in their order."""
    return zlib.crc32(images.cpu().contiguous().numpy())


def _length(source: Any) -> int | None:
    """Return how many chunks a source says that it has."""
    try:
        return len(source)
    except TypeError:
        return None


def _checked_source(source: Any) -> Any:
    """Return what gives chunks, or raise ``ValueError`` where it cannot, or only once."""
    if isinstance(source, Iterator):
        raise ValueError(
            f"images are read in more than one pass, and a {type(source).__name__} gives its chunks only once. Hand in "
            "a function that makes it, such as lambda: (load(file) for file in files)."
        )
    if isinstance(source, str | os.PathLike):
        raise ValueError(
            f"images must be images, not a name: got {source!r}. numpy.load(name, mmap_mode='r') opens it."
        )
    if isinstance(source, Iterable):
        return source
    if not callable(source):
        raise ValueError(
            "images must be (D, c, h, w) with at least one image, a set of such a shape, an iterable of chunks "
            f"(k, c, h, w), or a function that makes one: got {type(source).__name__}.{_advice(source)}"
        )
    if not _takes_no_arguments(source):
        raise ValueError(f"images may be a function without arguments that returns an iterator: got {source!r}.")
    return source


def _takes_no_arguments(function: Callable) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


def _advice(found: Any) -> str:
    """Return what would make chunks of something similar."""
    if isinstance(found, Tensor | np.ndarray) and found.ndim == 3:
        return " One image is a chunk of one, image[None]; grey images (k, h, w) are images[:, None]."
    if hasattr(found, "__getitem__") and hasattr(found, "__len__") and not isinstance(found, str | dict | list):
        return " torch.utils.data.DataLoader(images, batch_size=100) makes chunks of a data set."
    return ""
