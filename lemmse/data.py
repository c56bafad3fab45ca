"""Image sets: every loader returns float32 (D, c, h, w) in [0, 1], the same images in the same order every time.

``count=n`` is always the first n images of one fixed order, ``count=None`` all that can be had. What of Fashion-MNIST
and CIFAR-10 is not in the package is looked for in the folder that the environment variable ``LEMMSE_DATA`` names, then
(Fashion-MNIST) in Debian's package ``dataset-fashion-mnist``, then downloaded into the user's cache folder. All of it
is checked against a known SHA-256 before a pixel of it is used, and nothing is written anywhere else. A bar shows what
takes longer than two seconds; ``TQDM_DISABLE=1`` in the environment silences it.
"""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from jaxtyping import Float, Float32, Int64, UInt8, UInt64
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from ._progress import PATIENCE, progress
from .patches import shift_each

__all__ = ["FASHION_MNIST_CLASSES", "ShiftedImages", "cifar10", "fashion_mnist", "image_folder", "photo_crops"]

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the classes of Fashion-MNIST; image d of ``fashion_mnist`` is of class d % 10, in both splits."""


# ---- Augmentation ---------------------------------------------------------------------------------------------------


class ShiftedImages:
    """All circular shifts of images (D, c, h, w), as the D·h·w images of an augmented training set (S4.3).

    Image k is T_g x_d, with d = k // (h·w) and g the shift of row-major index k % (h·w). Shifts are made when a slice
    asks for them and never all at once: estimators take such a set in place of a tensor of images. Raises
    ``ValueError`` for images that are no (D, c, h, w) tensor.

    >>> images = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    >>> ShiftedImages(images)[1:3].flatten(1)
    tensor([[3., 1., 2.],
            [2., 3., 1.]])
    """

    def __init__(self, images: Float[Tensor, "D c h w"]):
        if not isinstance(images, Tensor) or images.ndim != 4:
            came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"ShiftedImages shifts a tensor of images (D, c, h, w): got {came}.")
        self.images = images
        d, c, h, w = images.shape
        self.shape = (d * h * w, c, h, w)

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return the shifted images of a slice; raises ``TypeError`` for anything else."""
        if not isinstance(index, slice):
            raise TypeError(f"ShiftedImages are made by slices: got {index!r}. One image alone is shifted[k : k + 1].")
        wanted = torch.tensor(range(*index.indices(len(self))), dtype=torch.int64, device=self.images.device)
        image, pixel = self.sources(wanted)
        return shift_each(self.images[image], pixel)

    def __len__(self) -> int:
        return self.shape[0]

    def sources(self, index: Int64[Tensor, "..."] | int) -> tuple[Int64[Tensor, "..."], Int64[Tensor, "..."]]:
        """Return the image d and the row-major index of the shift g that shifted images are made of."""
        index, shifts = torch.as_tensor(index), self.shape[2] * self.shape[3]
        return index.div(shifts, rounding_mode="floor"), index % shifts

    def __repr__(self) -> str:
        d, c, h, w = self.images.shape
        return f"ShiftedImages({d} images of {c}×{h}×{w}, {h * w} shifts each)"


# ---- Fashion-MNIST --------------------------------------------------------------------------------------------------


class _IdxFile(NamedTuple):
    name: str
    sha256: str
    """Of the .gz file that Zalando serves, which a download must equal."""
    content_sha256: str
    """Of what is in it: Debian ships the same content under another gzip header."""


_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MNIST_DEBIAN = "/usr/share/datasets/fashion-mnist"
_FASHION_MNIST_SIZE = {"train": 60_000, "test": 10_000}
_FASHION_MNIST_EMBEDDED = {"train": 2000, "test": 200}
_FASHION_MNIST_FILES = {
    "train": (
        _IdxFile(
            "train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        _IdxFile(
            "train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": (
        _IdxFile(
            "t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        _IdxFile(
            "t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def fashion_mnist(split: str = "train", count: int | None = None) -> Float32[Tensor, "D 1 28 28"]:
    """Load images of clothes (Xiao, Rasul, Vollgraf, arXiv 1708.07747) and return them, (count, 1, 28, 28) in [0, 1].

    The order goes round the ten classes, so that image d is of class d % 10 (``FASHION_MNIST_CLASSES``) and every
    prefix is as balanced as it can be; within a class it is a fixed permutation. The first 2000 (200 of ``"test"``)
    come with the package. More of the 60 000 (10 000) come from the four gzipped IDX files in the folder that
    ``LEMMSE_DATA`` names, in Debian's package ``dataset-fashion-mnist``, or downloaded into the user's cache folder;
    the images and their order are the same whichever way they came.

    Raises ``ValueError`` for another split, a count that cannot be had or a damaged file, and ``FileNotFoundError``
    where none of the three ways leads to more than the embedded images.

    >>> fashion_mnist("train", count=10).shape
    torch.Size([10, 1, 28, 28])
    """
    call = f"fashion_mnist({split!r}, count={count})"
    _check_split(split, call)
    count = _check_count(count, _FASHION_MNIST_SIZE[split], call)
    if count <= _FASHION_MNIST_EMBEDDED[split]:
        with _embedded("fashion_mnist.npz").open("rb") as file, np.load(file, allow_pickle=False) as held:
            images = held[split][:count]
    else:
        images, labels = (_read_idx(path, file) for path, file in _find_fashion_mnist(split, call))
        images = images[_round_robin(labels)[:count]]
    return _unit_interval(torch.from_numpy(images)[:, None])


def _find_fashion_mnist(split: str, call: str) -> list[tuple[Path, _IdxFile]]:
    """Return where the images and the labels of a split lie, after a download if need be."""
    files = _FASHION_MNIST_FILES[split]
    own_folder = _own_folder(call)
    for folder in (own_folder, Path(_FASHION_MNIST_DEBIAN)):
        if folder is not None and all((folder / file.name).is_file() for file in files):
            return [(folder / file.name, file) for file in files]
    try:
        return [(_download(file.name, _FASHION_MNIST_URL + file.name, file.sha256), file) for file in files]
    except (OSError, ValueError) as error:
        names = " and ".join(file.name for file in files)
        raise FileNotFoundError(
            f"{call} needs more than the {_FASHION_MNIST_EMBEDDED[split]} images that come with the package, and "
            f"found no others. Three ways to have them: (1) put {names} in a folder and name it in LEMMSE_DATA "
            f"({_own_folder_state(own_folder)}); (2) install Debian's package dataset-fashion-mnist, which puts them "
            f"in {_FASHION_MNIST_DEBIAN} (they are not there); (3) let them be downloaded from {_FASHION_MNIST_URL} "
            f"into {_cache_folder()} (tried just now: {_one_line(error)})."
        ) from error


def _read_idx(path: Path, expected: _IdxFile) -> UInt8[np.ndarray, "..."]:
    """Read a gzipped IDX file (two zero bytes, the type, the number of axes, their lengths, the data), once checked."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({_one_line(error)}): replace it with a whole copy.") from error
    _check_sha256(hashlib.sha256(content).hexdigest(), expected.content_sha256, f"the content of {path}")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)


# ---- One fixed order ------------------------------------------------------------------------------------------------

_SEED = 28
"""Chosen by eye: the first test crop of ``photo_crops``, at 32×32 and at 64×64, is a cat's nose and not a bare wall."""


def _round_robin(groups: Int64[np.ndarray, " D"] | UInt8[np.ndarray, " D"]) -> Int64[np.ndarray, " D"]:
    """Return the order that takes one of each group in turn, by number, and within a group follows a fixed permutation.

    An exhausted group is passed over. Integer arithmetic throughout: no library's random stream can change it.
    """
    shuffled = np.argsort(_scramble(len(groups)))
    turn = np.empty(len(groups), np.int64)
    for group in np.unique(groups):
        members = shuffled[groups[shuffled] == group]
        turn[members] = np.arange(len(members))
    return np.lexsort((groups, turn))


def _scramble(count: int) -> UInt64[np.ndarray, " D"]:
    """Return the first numbers of the SplitMix64 stream (Steele, Lea, Flood 2014): all distinct, modulo 2⁶⁴."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_SEED)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# ---- Crops of four photographs --------------------------------------------------------------------------------------

_TEST_BAND = 96
"""Rows or columns along one edge of each photograph that only test crops see; no crop is larger."""

_PHOTOS = {"chelsea": "bottom", "coffee": "bottom", "astronaut": "bottom", "rocket": "right"}
"""The photographs, in order, and the edge along which the band for the test lies: it shows what the rest shows too."""


def photo_crops(split: str = "train", *, size: int, count: int | None = None) -> Float32[Tensor, "D 3 {size} {size}"]:
    """Cut squares from four colour photographs and return them, (count, 3, size, size) in [0, 1].

    The crops lie on a grid with a stride of a quarter of their size, and are taken from the photographs in turn, in a
    fixed scattered order, so that every prefix is diverse. A band of each photograph is kept for ``"test"``: no test
    crop shares a pixel with a training crop, whatever their sizes. For training there are 5000 at 32×32 and 1500 at
    64×64, for the test 200 of each; of other sizes (up to 96) as many as the grid holds, up to 5000 (1500 above 32×32)
    and 200. The photographs are scikit-image's chelsea, coffee, astronaut and rocket; see NOTICE.md.

    Raises ``ValueError`` for another split, or a size or a count that cannot be had.

    >>> photo_crops("test", size=32, count=4).shape
    torch.Size([4, 3, 32, 32])
    """
    call = f"photo_crops({split!r}, size={size}, count={count})"
    _check_split(split, call)
    if not 1 <= size <= _TEST_BAND:
        raise ValueError(f"{call}: size must be between 1 and {_TEST_BAND} pixels, got {size}.")
    photos = [_photo(name) for name in _PHOTOS]
    corners = _crop_corners(split, size, [(photo.shape[1], photo.shape[2]) for photo in photos])
    count = _check_count(count, len(corners), call)
    crops = [
        photos[photo][:, row : row + size, column : column + size] for photo, row, column in corners[:count].tolist()
    ]
    return _unit_interval(torch.stack(crops))


def _photo(name: str) -> UInt8[Tensor, "3 h w"]:
    with _embedded(f"{name}.webp").open("rb") as file, Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _crop_corners(split: str, size: int, shapes: list[tuple[int, int]]) -> Int64[np.ndarray, "D 3"]:
    """Return (photo, top row, left column) of every crop of a split, in order, for photographs of the given shapes."""
    stride = max(1, size // 4)
    corners = []
    for photo, ((h, w), edge) in enumerate(zip(shapes, _PHOTOS.values(), strict=True)):
        top, left, bottom, right = _region(split, h, w, edge)
        grid = np.mgrid[top : bottom - size + 1 : stride, left : right - size + 1 : stride].reshape(2, -1).T
        corners.append(np.insert(grid, 0, photo, axis=1))
    corners = np.concatenate(corners)
    limit = 200 if split == "test" else 5000 if size <= 32 else 1500
    return corners[_round_robin(corners[:, 0])[:limit]]


def _region(split: str, h: int, w: int, edge: str) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of what a split may see of a photograph; the two splits share no pixel."""
    if edge == "bottom":
        cut = h - _TEST_BAND
        return (0, 0, cut, w) if split == "train" else (cut, 0, h, w)
    cut = w - _TEST_BAND
    return (0, 0, h, cut) if split == "train" else (0, cut, h, w)


# ---- CIFAR-10 -------------------------------------------------------------------------------------------------------

_CIFAR10_NAME = "cifar-10-binary.tar.gz"
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/" + _CIFAR10_NAME
_CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR10_BATCH = 10_000
_CIFAR10_BATCHES = {
    "train": tuple(f"data_batch_{batch}.bin" for batch in range(1, 6)),
    "test": ("test_batch.bin",),
}


def cifar10(split: str = "train", count: int | None = None) -> Float32[Tensor, "D 3 32 32"]:
    """Load CIFAR-10 (Krizhevsky 2009), 50 000 + 10 000 photographs, and return them, (count, 3, 32, 32) in [0, 1].

    The order is that of the binary distribution, ``cifar-10-binary.tar.gz``, which is taken from the folder that
    ``LEMMSE_DATA`` names, or downloaded once (162 MB) into the user's cache folder, and read without unpacking it.

    Raises ``ValueError`` for another split, a count that cannot be had or a damaged file, and ``FileNotFoundError``
    where the file is in neither place and cannot be downloaded.
    """
    call = f"cifar10({split!r}, count={count})"
    _check_split(split, call)
    count = _check_count(count, _CIFAR10_BATCH * len(_CIFAR10_BATCHES[split]), call)
    batches = _CIFAR10_BATCHES[split][: -(-count // _CIFAR10_BATCH)]
    images = torch.empty(count, 3, 32, 32)
    path = _find_cifar10(call)
    for name, records in progress(_TarMembers(path, batches), description="reading CIFAR-10", unit="file"):
        start = batches.index(name) * _CIFAR10_BATCH
        block = records[: count - start, 1:].copy()  # the first byte of a record is its label
        images[start : start + len(block)] = _unit_interval(torch.from_numpy(block).reshape(-1, 3, 32, 32))
    return images


class _TarMembers:
    """The records of some members of a gzipped tar file, as they come: going back would unpack it all again."""

    def __init__(self, path: Path, names: tuple[str, ...]):
        self.path, self.names = path, names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, UInt8[np.ndarray, "n 3073"]]]:
        missing = set(self.names)
        with tarfile.open(self.path, "r|gz") as tar:
            for member in tar:
                name = Path(member.name).name
                if name in missing:
                    missing.remove(name)
                    yield name, np.frombuffer(tar.extractfile(member).read(), np.uint8).reshape(-1, 3073)
                if not missing:
                    return
        raise ValueError(f"{self.path} does not hold {', '.join(sorted(missing))}: it is not the binary CIFAR-10.")


def _find_cifar10(call: str) -> Path:
    """Return where the binary distribution lies, after a download if need be."""
    own_folder = _own_folder(call)
    if own_folder is not None and (path := own_folder / _CIFAR10_NAME).is_file():
        _check_sha256(pooch.file_hash(str(path)), _CIFAR10_SHA256, str(path))
        return path
    try:
        return _download(_CIFAR10_NAME, _CIFAR10_URL, _CIFAR10_SHA256)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{call} found no {_CIFAR10_NAME}. Two ways to have it: (1) put it in a folder and name it in LEMMSE_DATA "
            f"({_own_folder_state(own_folder)}); (2) let it be downloaded from {_CIFAR10_URL} into {_cache_folder()} "
            f"(tried just now: {_one_line(error)})."
        ) from error


# ---- Any folder of images -------------------------------------------------------------------------------------------

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def image_folder(
    path: str | os.PathLike[str], size: int, count: int | None = None
) -> Float32[Tensor, "D 3 {size} {size}"]:
    """Read the images of a folder and of the folders in it, and return them, (count, 3, size, size) in [0, 1].

    Images are sorted by their path, turned upright as their EXIF data say, laid on white where transparent, made RGB,
    cropped to the central square and resized with an antialiasing filter (Lanczos). Hidden files, and files without the
    suffix of an image, are passed over.

    Raises ``FileNotFoundError`` for a folder that is not there or holds no image, ``NotADirectoryError`` for a file,
    ``ValueError`` for a size or count that cannot be had, and ``OSError`` for a file that cannot be read, naming it.
    """
    call = f"image_folder({str(path)!r}, size={size}, count={count})"
    if size < 1:
        raise ValueError(f"{call}: size must be at least 1 pixel, got {size}.")
    folder = Path(path).expanduser()
    _check_folder(folder, call)
    paths = _images_in(folder)
    if not paths:
        raise FileNotFoundError(
            f"{call}: no images. {_contents(folder)}; a file whose name ends in {', '.join(_SUFFIXES)} would do."
        )
    paths = paths[: _check_count(count, len(paths), call)]
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for square, file in zip(images, progress(paths, description="reading images", unit="image"), strict=True):
        square[...] = _read_square(file, size, call)
    return _unit_interval(torch.from_numpy(images).permute(0, 3, 1, 2))


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and below, in the same order on every file system and in every locale."""
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
    ]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _read_square(file: Path, size: int, call: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    try:
        with Image.open(file) as image:
            image.draft(None, (2 * size, 2 * size))  # a JPEG is decoded no larger than needed
            square = _as_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise OSError(
            f"{call}: cannot read {file} ({_one_line(error)}); repair it, or take it out of the folder."
        ) from error
    side = min(square.size)
    left, top = (square.width - side) // 2, (square.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS, box=box))


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: 16-bit grey keeps its range, and what is transparent lies on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of Pillow's mode {image.mode} have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# ---- What the loaders share -----------------------------------------------------------------------------------------


def _unit_interval(pixels: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _embedded(name: str) -> resources.abc.Traversable:
    return resources.files(__package__) / "embedded" / name


def _check_split(split: str, call: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f'{call}: split must be "train" or "test", got {split!r}.')


def _check_count(count: int | None, available: int, call: str) -> int:
    if count is None:
        return available
    if not 1 <= count <= available:
        raise ValueError(f"{call}: count must be between 1 and {available}, or None for all of them, got {count}.")
    return count


def _check_sha256(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise ValueError(
            f"{what} has SHA-256 {found} where the published one has {expected}: it is damaged or something else. "
            "Replace it with a whole copy, or take it away."
        )


def _check_folder(folder: Path, call: str) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(f"{call}: {folder.absolute()} is a file; name the folder that holds the images.")
    nearest = next(parent for parent in folder.absolute().parents if parent.is_dir())
    raise FileNotFoundError(f"{call}: there is no folder {folder.absolute()}. {_contents(nearest)}.")


def _contents(folder: Path, shown: int = 6) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{folder} holds {', '.join(names[:shown]) + rest if names else 'nothing'}"


def _own_folder(call: str) -> Path | None:
    """Return the folder that ``LEMMSE_DATA`` names, or ``None`` where it is unset; raise where it names none."""
    if not (name := os.environ.get("LEMMSE_DATA")):
        return None
    _check_folder(folder := Path(name).expanduser(), f"{call}, with LEMMSE_DATA={name}")
    return folder


def _own_folder_state(own_folder: Path | None) -> str:
    return "it is not set" if own_folder is None else f"it names {own_folder}, in vain"


def _cache_folder() -> Path:
    return pooch.os_cache("lemmse")


def _download(name: str, url: str, sha256: str) -> Path:
    """Return the file in the cache folder, fetched anew unless it is there whole.

    pooch downloads under another name and renames once the checksum agrees: nothing half-finished is ever used.
    """
    bar = _PatientBar(
        total=1, desc=name, unit="B", unit_scale=True, leave=False, delay=PATIENCE
    )  # pooch sets the total
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16)
    try:
        with _quiet_pooch():
            return Path(pooch.retrieve(url, f"sha256:{sha256}", name, _cache_folder(), downloader=downloader))
    finally:
        bar.close()


class _PatientBar(tqdm):
    """A bar that a quick download does not show: pooch ends on ``reset``, and tqdm's own draws it at once."""

    def reset(self, total: float | None = None) -> None:
        self.n = self.last_print_n = 0


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from writing to the terminal where it downloads to: the bar says enough."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
