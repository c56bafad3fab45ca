"""The image sets: fixed values and order, whichever way they came; downloads and files that go wrong.

Nothing here reaches the network: where a download is the subject, the test serves the file itself on 127.0.0.1.
"""

import gzip
import hashlib
import http.server
import io
import re
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

import lemmse as le
from lemmse import data

ROOT = Path(__file__).parents[1]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not all((DEBIAN / file.name).is_file() for files in data._FASHION_MNIST_FILES.values() for file in files),
    reason="Debian's package dataset-fashion-mnist is not installed",
)


@pytest.fixture(autouse=True)
def cut_off(monkeypatch, tmp_path):
    """No folder of one's own, an empty cache, and nobody at the other end of the line."""
    monkeypatch.delenv("LEMMSE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(data, "_FASHION_MNIST_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(data, "_CIFAR10_URL", "http://127.0.0.1:9/" + data._CIFAR10_NAME)


def sha256(content) -> str:
    return hashlib.sha256(content).hexdigest()


def pixels(images: torch.Tensor) -> np.ndarray:
    """Return images as the bytes that they were loaded from."""
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    stored = (images * 255).round().to(torch.uint8)
    assert torch.equal(stored.float() / 255, images)
    return stored.numpy()


# ---- Fashion-MNIST: what comes with the package ---------------------------------------------------------------------

EMBEDDED = {
    "train": (2000, "cd83daeed49c7110c533da4e04ad21f8a6ab728e7cb50f8723d0fc0501b814f8"),
    "test": (200, "46d79f7a7b6b2c4623a647ff495e377d11a9e205e6d6df3d20ee7b764cf62e98"),
}
ORDER = {
    "train": "a538d4a4583116a45000669f19f9f1d8fc2ac64d4860fa57b257db81f48e828b",
    "test": "88a0b94a0e48b6873ecf064038024c4b6d704ab96874425ad6c19c282c326747",
}


@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_images(split):
    count, checksum = EMBEDDED[split]
    images = data.fashion_mnist(split, count=count)
    assert images.shape == (count, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    assert sha256(pixels(images).tobytes()) == checksum
    for fewer in (1, 7, count - 1):
        assert torch.equal(data.fashion_mnist(split, count=fewer), images[:fewer])


def test_embedded_files_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "lemmse" / "embedded").iterdir()}
    assert sizes.pop("fashion_mnist.npz") < 1_100_000
    assert sum(sizes.values()) < 200_000
    assert sizes.keys() == {f"{name}.webp" for name in data._PHOTOS}


def test_embedded_images_need_no_other_source(monkeypatch):
    monkeypatch.setattr(data, "_FASHION_MNIST_DEBIAN", "/nowhere")
    assert len(data.fashion_mnist("train", count=2000)) == 2000
    with pytest.raises(FileNotFoundError):
        data.fashion_mnist("train", count=2001)


def test_notices_are_kept():
    notice = (ROOT / "NOTICE.md").read_text()
    assert "Copyright © [2017] Zalando SE" in notice
    assert "Permission is hereby granted, free of charge" in notice
    assert "OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE." in notice
    for path in (ROOT / "lemmse" / "embedded").iterdir():
        assert f"`{path.name}`" in notice


# ---- Fashion-MNIST: the order ---------------------------------------------------------------------------------------


def test_split_mix(monkeypatch):
    """The published stream from seed 0, and from our seed the same sum in Python's integers."""
    monkeypatch.setattr(data, "_SEED", 0)
    assert data._scramble(3).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    monkeypatch.undo()

    def mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    expected = [mixed((data._SEED + k * 0x9E3779B97F4A7C15) % 2**64) for k in range(1, 12)]
    assert data._scramble(11).tolist() == expected


def rounds(groups: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """Return the groups in this order, cut into rounds, the slow way: each round takes one of every group left."""
    left, cut, drawn = np.bincount(groups), [], groups[order].tolist()
    while drawn:
        players = np.flatnonzero(left)
        cut.append(drawn[: len(players)])
        drawn = drawn[len(players) :]
        left[players] -= 1
    return cut


def test_order_goes_round_the_groups():
    groups = np.repeat([0, 1, 2], [7, 2, 4])[[3, 12, 0, 8, 5, 9, 1, 7, 10, 2, 11, 4, 6]]
    order = data._round_robin(groups)
    assert sorted(order) == list(range(len(groups)))
    assert rounds(groups, order) == [[0, 1, 2]] * 2 + [[0, 2]] * 2 + [[0]] * 3
    for group in range(3):
        keys = data._scramble(len(groups))[order[groups[order] == group]]
        assert (keys[:-1] < keys[1:]).all()
    assert rounds(groups, np.argsort(data._scramble(len(groups)))) != rounds(groups, order), "a test that cannot fail"


def test_order_is_fixed_for_ever():
    order = data._round_robin(np.arange(60_000) % 10)
    assert sha256(order.astype("<i8").tobytes()) == "1ae585317aa764b9e8005453acab12c07266b5f9073f7dd74f0b3989929a9b75"


@needs_debian
@pytest.mark.parametrize("split", ["train", "test"])
def test_debian_files(split):
    """All images, read here in another way: each once, classes in turn, and the embedded ones are the first."""
    of, prefix = data._FASHION_MNIST_SIZE[split], {"train": "train", "test": "t10k"}[split]
    with gzip.open(DEBIAN / f"{prefix}-images-idx3-ubyte.gz") as file:
        stored = np.frombuffer(file.read()[16:], np.uint8).reshape(of, 1, 28, 28)
    with gzip.open(DEBIAN / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    order = data._round_robin(labels)
    assert sha256(order.astype("<i8").tobytes()) == ORDER[split]
    assert (np.bincount(order, minlength=of) == 1).all()
    assert (labels[order] == np.arange(of) % len(data.FASHION_MNIST_CLASSES)).all()

    images = data.fashion_mnist(split)
    assert images.shape == (of, 1, 28, 28)
    assert np.array_equal(pixels(images), stored[order])
    for count in (EMBEDDED[split][0], EMBEDDED[split][0] + 1):
        assert torch.equal(data.fashion_mnist(split, count=count), images[:count])


# ---- Fashion-MNIST: three ways to more ------------------------------------------------------------------------------

SMALL = 23
LABELS = (np.arange(SMALL) * 7 % 10).astype(np.uint8)
IMAGES = (np.arange(SMALL * 28 * 28) % 251).astype(np.uint8).reshape(SMALL, 28, 28)


def idx(array: np.ndarray) -> bytes:
    """Return an array in the IDX format: magic number, lengths, data."""
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small_set(monkeypatch) -> dict[str, bytes]:
    """Make the loader expect a training set of 23 images, none of them embedded; return its two files by name."""
    files, content = {}, {}
    for known, array in zip(data._FASHION_MNIST_FILES["train"], (IMAGES, LABELS), strict=True):
        content[known.name] = gzip.compress(idx(array), mtime=0)
        files[known.name] = data._IdxFile(known.name, sha256(content[known.name]), sha256(idx(array)))
    monkeypatch.setattr(data, "_FASHION_MNIST_FILES", {"train": tuple(files.values())})
    monkeypatch.setattr(data, "_FASHION_MNIST_SIZE", {"train": SMALL})
    monkeypatch.setattr(data, "_FASHION_MNIST_EMBEDDED", {"train": 0})
    monkeypatch.setattr(data, "_FASHION_MNIST_DEBIAN", "/nowhere")
    return content


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class Server:
    """A server on 127.0.0.1 that sends, for each path, the replies queued for it, the last one for ever."""

    def __init__(self):
        self.replies: dict[str, list[bytes | tuple[bytes, int]]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                queue = outer.replies[self.path]
                reply = queue.pop(0) if len(queue) > 1 else queue[0]
                body, length = reply if isinstance(reply, tuple) else (reply, len(reply))
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setattr(data, "_FASHION_MNIST_URL", server.url)
        monkeypatch.setattr(data, "_CIFAR10_URL", server.url + data._CIFAR10_NAME)
        yield server


def test_every_way_gives_the_same(small_set, server, monkeypatch, tmp_path):
    server.replies = {f"/{name}": [content] for name, content in small_set.items()}
    downloaded = data.fashion_mnist("train")
    monkeypatch.setattr(data, "_FASHION_MNIST_URL", "http://127.0.0.1:9/")

    # other bytes around the same content, as Debian's are
    recompressed = {name: gzip.compress(gzip.decompress(content), 1) for name, content in small_set.items()}
    assert recompressed != small_set
    folder = write(tmp_path / "files", recompressed)
    monkeypatch.setattr(data, "_FASHION_MNIST_DEBIAN", str(folder))
    installed = data.fashion_mnist("train")
    monkeypatch.setattr(data, "_FASHION_MNIST_DEBIAN", "/nowhere")
    monkeypatch.setenv("LEMMSE_DATA", str(folder))
    own = data.fashion_mnist("train")

    assert np.array_equal(pixels(own), IMAGES[data._round_robin(LABELS)][:, None])
    assert torch.equal(downloaded, own)
    assert torch.equal(installed, own)
    assert torch.equal(data.fashion_mnist("train", count=5), own[:5])


def test_none_of_the_three_ways(small_set, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.fashion_mnist("train", count=SMALL)
    message = str(caught.value)
    assert message.startswith("fashion_mnist('train', count=23) needs more than")
    for part in ("LEMMSE_DATA (it is not set)", "dataset-fashion-mnist", "http://127.0.0.1:9/", "ConnectionError"):
        assert part in message
    assert str(pooch.os_cache("lemmse")) in message

    name, content = next(iter(small_set.items()))  # images without labels are not a way
    monkeypatch.setenv("LEMMSE_DATA", str(write(tmp_path / "half", {name: content})))
    with pytest.raises(FileNotFoundError, match=re.escape(f"it names {tmp_path / 'half'}, in vain")):
        data.fashion_mnist("train", count=SMALL)


def test_folder_that_is_not_there(monkeypatch, tmp_path):
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("LEMMSE_DATA", str(tmp_path / "dta"))
    with pytest.raises(FileNotFoundError, match=rf"LEMMSE_DATA=.*no folder {tmp_path}/dta.*holds photos/"):
        data.fashion_mnist("train", count=2001)
    with pytest.raises(FileNotFoundError, match="LEMMSE_DATA"):
        data.cifar10("train", count=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-100], "damaged"),
        (lambda content: b"<html>not found</html>", "damaged"),
        (lambda content: b"", "SHA-256"),
        (lambda content: gzip.compress(idx(IMAGES + 1)), "SHA-256"),
    ],
    ids=["truncated", "a page", "empty", "other images"],
)
def test_damaged_file_is_never_used(small_set, monkeypatch, tmp_path, damage, message):
    name = next(iter(small_set))
    folder = write(tmp_path / "files", small_set | {name: damage(small_set[name])})
    monkeypatch.setenv("LEMMSE_DATA", str(folder))
    with pytest.raises(ValueError, match=message) as caught:
        data.fashion_mnist("train")
    assert str(folder / name) in str(caught.value)


def test_interrupted_and_wrong_downloads_are_never_used(small_set, server, monkeypatch, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (images, good), (labels, good_labels) = small_set.items()
    other = gzip.compress(idx(IMAGES + 1))
    server.replies = {f"/{images}": [(good[:200], len(good)), other, good], f"/{labels}": [good_labels]}
    cache = Path(pooch.os_cache("lemmse"))

    for reason in ("broken|read", "hash"):
        with pytest.raises(FileNotFoundError, match=f"(?i)tried just now: .*({reason})"):
            data.fashion_mnist("train")
        assert list(cache.iterdir()) == [], "something half-finished was kept"

    fetched = data.fashion_mnist("train")
    assert np.array_equal(pixels(fetched), IMAGES[data._round_robin(LABELS)][:, None])
    assert server.asked == [f"/{images}"] * 3 + [f"/{labels}"]
    assert torch.equal(data.fashion_mnist("train"), fetched)
    assert len(server.asked) == 4, "what lies whole in the cache is not fetched again"

    (cache / images).write_bytes(good[:200])  # as if the machine had stopped in the middle of writing it
    assert torch.equal(data.fashion_mnist("train"), fetched)
    assert server.asked[4:] == [f"/{images}"]
    assert {path.name for path in cache.iterdir()} == set(small_set)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {cache / name for name in small_set}, "written outside the cache folder"


def test_a_bar_shows_long_downloads_only(small_set, server, monkeypatch, tmp_path, capfd):
    server.replies = {f"/{name}": [content] for name, content in small_set.items()}
    level = pooch.get_logger().level
    data.fashion_mnist("train")
    assert capfd.readouterr() == ("", "")
    assert pooch.get_logger().level == level

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    monkeypatch.setattr(data, "PATIENCE", 0)
    data.fashion_mnist("train")
    out, err = capfd.readouterr()
    assert out == ""
    assert "train-images-idx3-ubyte.gz" in err


# ---- Crops of the photographs ---------------------------------------------------------------------------------------

PHOTO_SHAPES = {"chelsea": (300, 451), "coffee": (400, 600), "astronaut": (512, 512), "rocket": (427, 640)}
PHOTO_CHECKSUMS = {
    "chelsea": "f78eb597377f026cecf71f5141a9bf57a9a64a8fdb24c74c71db241109f24ace",
    "coffee": "787005b3972d1f4862ed4ef5d1d4e1b034d64a5e5acd4a41bd19b9755e3e0e4b",
    "astronaut": "6f7ecf11a85bbb5f4683d8ba0d463ff2c4fe9c11c3bff05792ecd3d27f28eec2",
    "rocket": "74c35383ce71036cf764fc2b3d420daecd19c37251efb799212a343e3b11bbd5",
}


@pytest.mark.parametrize("name", PHOTO_SHAPES)
def test_photographs_decode_to_the_same_pixels(name):
    photo = data._photo(name)
    assert photo.shape == (3, *PHOTO_SHAPES[name])
    assert sha256(photo.contiguous().numpy().tobytes()) == PHOTO_CHECKSUMS[name]


@pytest.mark.parametrize(
    ("split", "size", "available"),
    [("train", 32, 5000), ("train", 64, 1500), ("test", 32, 200), ("test", 64, 200), ("train", 9, 5000)],
)
def test_crops(split, size, available):
    crops = data.photo_crops(split, size=size)
    assert crops.shape == (available, 3, size, size)
    assert 0 <= crops.min() < crops.max() <= 1
    assert torch.equal(data.photo_crops(split, size=size, count=6), crops[:6])
    stored = pixels(crops)
    corners = data._crop_corners(split, size, list(PHOTO_SHAPES.values()))
    assert len({tuple(corner) for corner in corners.tolist()}) == available
    for d in (0, 1, 2, 3, available - 1):
        photo, row, column = corners[d]
        with Image.open(ROOT / "lemmse" / "embedded" / f"{list(PHOTO_SHAPES)[photo]}.webp") as image:
            cut = np.asarray(image.convert("RGB").crop((column, row, column + size, row + size)))
        assert np.array_equal(stored[d], cut.transpose(2, 0, 1))


def test_a_prefix_of_the_crops_is_diverse():
    for split in ("train", "test"):
        corners = data._crop_corners(split, 32, list(PHOTO_SHAPES.values()))
        assert (corners[:200, 0] == np.arange(200) % 4).all()
    corners = data._crop_corners("train", 32, list(PHOTO_SHAPES.values()))
    for photo, (h, w) in enumerate(PHOTO_SHAPES.values()):
        first = corners[corners[:, 0] == photo][:25, 1:]
        assert (np.ptp(first, axis=0) > 0.5 * np.array([h - 128, w - 128])).all(), "the first crops are neighbours"


def touched(split: str, sizes: range | tuple[int, ...]) -> list[np.ndarray]:
    """Return, for each photograph, which pixels any crop of a split and of these sizes contains."""
    seen = [np.zeros(shape, bool) for shape in PHOTO_SHAPES.values()]
    for size in sizes:
        for photo, row, column in data._crop_corners(split, size, list(PHOTO_SHAPES.values())):
            assert row >= 0
            assert column >= 0
            part = seen[photo][row : row + size, column : column + size]
            assert part.shape == (size, size), "a crop reaches over the edge"
            part[...] = True
    return seen


def shared_pixels() -> int:
    sizes = (1, 31, 32, 64, 96)
    train, test = touched("train", sizes), touched("test", sizes)
    assert all(seen.any() for seen in train + test)
    return sum(int((a & b).sum()) for a, b in zip(train, test, strict=True))


def test_test_crops_share_no_pixel_with_training_crops_of_any_size(monkeypatch):
    assert shared_pixels() == 0
    honest = data._region

    def one_row_too_many(split, h, w, edge):
        top, left, bottom, right = honest(split, h, w, edge)
        return (top, left, bottom + (split == "train" and edge == "bottom"), right)

    monkeypatch.setattr(data, "_region", one_row_too_many)
    assert shared_pixels() > 0, "a test that cannot fail"


# ---- CIFAR-10 -------------------------------------------------------------------------------------------------------

BATCH = 3


def record(label: int, image: np.ndarray) -> bytes:
    """Return a record of the binary distribution: the label, then the red, green and blue plane, row by row."""
    return bytes([label]) + image[0].tobytes() + image[1].tobytes() + image[2].tobytes()


@pytest.fixture
def small_cifar10(monkeypatch) -> tuple[bytes, np.ndarray]:
    """Make the loader expect batches of three images; return the archive and its 18 images, the last 3 for the test."""
    images = np.random.default_rng(0).integers(0, 256, (6 * BATCH, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{batch}.bin" for batch in range(1, 6)] + ["test_batch.bin"]
    members = {
        name: b"".join(record(d % 10, images[d]) for d in range(BATCH * batch, BATCH * (batch + 1)))
        for batch, name in enumerate(names)
    }
    members |= {"readme.html": b"<html></html>", "batches.meta.txt": b"airplane\n"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.addfile(directory := tarfile.TarInfo("cifar-10-batches-bin"))
        directory.type = tarfile.DIRTYPE
        for name in sorted(members, key=lambda name: hashlib.md5(name.encode()).digest()):  # any order but ours
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    monkeypatch.setattr(data, "_CIFAR10_BATCH", BATCH)
    monkeypatch.setattr(data, "_CIFAR10_SHA256", sha256(file.getvalue()))
    return file.getvalue(), images


def test_cifar10_from_own_folder(small_cifar10, monkeypatch, tmp_path):
    archive, images = small_cifar10
    folder = write(tmp_path / "files", {data._CIFAR10_NAME: archive})
    monkeypatch.setenv("LEMMSE_DATA", str(folder))
    assert np.array_equal(pixels(data.cifar10("train")), images[:15])
    assert np.array_equal(pixels(data.cifar10("test")), images[15:])
    for count in (1, 3, 4, 14):
        assert np.array_equal(pixels(data.cifar10("train", count)), images[:count])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [data._CIFAR10_NAME], "unpacked to disk"
    with pytest.raises(ValueError, match="between 1 and 15"):
        data.cifar10("train", 16)

    monkeypatch.setattr(data, "_CIFAR10_BATCHES", {"test": ("another.bin",)})
    with pytest.raises(ValueError, match=r"does not hold another\.bin"):
        data.cifar10("test", 1)

    (folder / data._CIFAR10_NAME).write_bytes(archive[:-1])
    with pytest.raises(ValueError, match="SHA-256"):
        data.cifar10("test", 1)


def test_cifar10_by_download(small_cifar10, server):
    archive, images = small_cifar10
    server.replies = {f"/{data._CIFAR10_NAME}": [(archive[:1000], len(archive)), b"something else", archive]}
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"LEMMSE_DATA \(it is not set\).*tried just now"):
            data.cifar10("test")
    for _ in range(2):
        assert np.array_equal(pixels(data.cifar10("test")), images[15:])
    assert len(server.asked) == 3


# ---- A folder of images ---------------------------------------------------------------------------------------------


def gradient(h: int, w: int) -> np.ndarray:
    """Return a colour picture in which no two rows, columns or channels are alike."""
    row, column = np.mgrid[:h, :w]
    return np.stack([row * 200 // h, column * 200 // w, 55 + (row + column) * 200 // (h + w)], axis=-1).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def grey(level: int) -> np.ndarray:
    return np.full((5, 5), level, np.uint8)


def test_folder_is_sorted_and_searched_through(tmp_path):
    for level, name in enumerate(["B.PNG", "a.png", "a/10.png", "a/9.bmp", "b.tif", "z.webp"], start=1):
        save(tmp_path / name, grey(40 * level), **({"lossless": True} if name == "z.webp" else {}))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"what one system leaves beside the files of another")
    images = data.image_folder(tmp_path, 4)
    assert images.shape == (6, 3, 4, 4)
    assert (pixels(images)[:, 0, 0, 0] // 40).tolist() == [1, 3, 4, 2, 5, 6], "sorted by path, capitals first"
    assert torch.equal(data.image_folder(str(tmp_path), 4, 2), images[:2])


def test_crop_is_central_and_in_place(tmp_path):
    array = gradient(6, 11)
    save(tmp_path / "wide.png", array)
    save(tmp_path / "high.png", array.transpose(1, 0, 2))
    high, wide = pixels(data.image_folder(tmp_path, 6)).transpose(0, 2, 3, 1)
    assert np.array_equal(wide, array[:, 2:8])
    assert np.array_equal(high, array.transpose(1, 0, 2)[2:8])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_resize_is_antialiased(tmp_path, suffix):
    """Stripes one pixel wide become their mean; taking every eighth pixel would give black or white."""
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 240
    save(tmp_path / f"stripes.{suffix}", stripes, **({"quality": 100} if suffix == "jpg" else {}))
    images = data.image_folder(tmp_path, 32)
    assert torch.allclose(images, torch.tensor(120 / 255), atol=8 / 255)


def test_camera_held_upright(tmp_path):
    array = gradient(7, 7)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        save(tmp_path / f"{orientation}.png", array, exif=exif)
    found = pixels(data.image_folder(tmp_path, 7)).transpose(0, 2, 3, 1)
    flip, turn = np.flipud, np.rot90
    upright = [array, np.fliplr(array), turn(array, 2), flip(array), turn(flip(array), -1), turn(array, -1)]
    upright += [turn(flip(array), 1), turn(array, 1)]
    for orientation, (image, expected) in enumerate(zip(found, upright, strict=True), start=1):
        assert np.array_equal(image, expected), f"EXIF orientation {orientation}"


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    save(tmp_path / "1-deep.png", np.full((4, 4), 128 * 257, np.uint16))
    save(tmp_path / "2-grey.png", np.full((4, 4), 128, np.uint8))
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (128, 128, 128, 255)
    save(tmp_path / "3-clear.png", clear)
    Image.fromarray(np.full((4, 4, 3), 128, np.uint8)).quantize(4).save(tmp_path / "4-palette.gif")
    Image.new("CMYK", (4, 4), (0, 0, 0, 127)).save(tmp_path / "5-print.tif")
    Image.new("1", (4, 4), 1).save(tmp_path / "6-bits.png")
    deep, plain, clear, palette, printed, bits = pixels(data.image_folder(tmp_path, 4))
    for image in (deep, plain, clear[:, :2], palette, printed):
        assert (image == 128).all()
    assert (clear[:, 2:] == 255).all(), "what is transparent lies on white"
    assert (bits == 255).all()


@pytest.mark.parametrize("content", [b"not a picture", b"", None, "float"], ids=["text", "empty", "half", "float"])
def test_unreadable_file_is_named(tmp_path, content):
    save(tmp_path / "good.png", gradient(64, 64))
    broken = tmp_path / "with some name.tiff"
    if content == "float":
        Image.fromarray(np.ones((4, 4), np.float32)).save(broken)
    else:
        whole = (tmp_path / "good.png").read_bytes()
        broken.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(OSError, match=r"image_folder\(.*cannot read .*with some name\.tiff"):
        data.image_folder(tmp_path, 8)


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images\. .* holds nothing; .*\.png"):
        data.image_folder(tmp_path, 8)
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"holds notes\.txt"):
        data.image_folder(tmp_path, 8)
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is a file"):
        data.image_folder(tmp_path / "notes.txt", 8)
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"no folder {tmp_path}/photo/june\. {tmp_path} holds notes\.txt, photos/"
    ):
        data.image_folder(tmp_path / "photo" / "june", 8)


# ---- Augmentation ---------------------------------------------------------------------------------------------------


def test_shifted_images_are_all_shifts_of_all_images():
    images = torch.rand(3, 2, 4, 5)
    shifted = data.ShiftedImages(images)
    wanted = torch.cat([torch.roll(x, (i, j), (1, 2))[None] for x in images for i in range(4) for j in range(5)])
    assert shifted.shape == (60, 2, 4, 5)
    assert len(shifted) == 60
    assert torch.equal(shifted[:], wanted)
    for part in (slice(7, 31), slice(-9, None), slice(50, 99), slice(0, 60, 7), slice(5, 5)):
        assert torch.equal(shifted[part], wanted[part])
    image, pixel = shifted.sources(torch.tensor([[0, 19], [20, 59]]))
    assert image.tolist() == [[0, 0], [1, 2]]
    assert pixel.tolist() == [[0, 19], [0, 19]]
    assert repr(shifted) == "ShiftedImages(3 images of 2×4×5, 20 shifts each)"


def test_shifted_images_are_never_all_in_memory(monkeypatch):
    """An estimator asks for slices, and a slice makes no more than itself."""
    made = []
    original = data.shift_each
    monkeypatch.setattr(data, "shift_each", lambda x, g: made.append(len(x)) or original(x, g))
    images = torch.rand(3, 1, 8, 8)
    le.MMSE(data.ShiftedImages(images), le.Denoising(), chunk_size=50)(images[:1], sigma=1.0)
    assert made == [64, 50, 50, 50, 42]


def test_shifted_images_are_made_by_slices(unchecked_shapes):
    shifted = data.ShiftedImages(torch.rand(2, 1, 3, 4))
    assert shifted[5:2].shape == (0, 1, 3, 4)
    assert torch.equal(shifted[::-1], shifted[:].flip(0))
    assert [int(part) for part in shifted.sources(23)] == [1, 11]
    with pytest.raises(TypeError, match=r"shifted\[k : k \+ 1\]"):
        shifted[3]
    with pytest.raises(TypeError, match="slices"):
        iter(shifted).__next__()


@pytest.mark.parametrize(
    ("images", "says"), [(torch.rand(3, 4, 5), r"\(3, 4, 5\)"), (np.zeros((1, 1, 2, 2)), "ndarray")]
)
def test_shifts_of_something_else(images, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        data.ShiftedImages(images)


# ---- Counts, splits, sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 10_001, 60_001])
@pytest.mark.parametrize(
    ("load", "most"),
    [
        (lambda count: data.fashion_mnist("test", count), 10_000),
        (lambda count: data.cifar10("test", count), 10_000),
        (lambda count: data.photo_crops("train", size=32, count=count), 5000),
        (lambda count: data.photo_crops("test", size=64, count=count), 200),
    ],
    ids=["fashion_mnist", "cifar10", "photo_crops 32", "photo_crops 64"],
)
def test_count_that_cannot_be_had(load, most, count):
    with pytest.raises(ValueError, match=rf"count={count}\): count must be between 1 and {most}, .* got {count}\."):
        load(count)


@pytest.mark.parametrize("count", [0, -1, 2])
def test_folder_count_that_cannot_be_had(tmp_path, count):
    save(tmp_path / "only.png", gradient(4, 4))
    with pytest.raises(ValueError, match=f"between 1 and 1, .* got {count}"):
        data.image_folder(tmp_path, 4, count)


@pytest.mark.parametrize(
    "load",
    [data.fashion_mnist, data.cifar10, lambda split: data.photo_crops(split, size=32)],
    ids=["fashion_mnist", "cifar10", "photo_crops"],
)
def test_split_that_does_not_exist(load):
    with pytest.raises(ValueError, match='must be "train" or "test", got \'validation\''):
        load("validation")


@pytest.mark.parametrize("size", [0, -8, 97])
def test_size_that_cannot_be_had(tmp_path, size):
    with pytest.raises(ValueError, match=f"between 1 and 96 pixels, got {size}"):
        data.photo_crops("train", size=size)
    if size < 1:
        with pytest.raises(ValueError, match=f"at least 1 pixel, got {size}"):
            data.image_folder(tmp_path, size)
