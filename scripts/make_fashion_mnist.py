"""Make lemmse/embedded/fashion_mnist.npz: the first 2000 training and 200 test images of the package's order.

Run ``python scripts/make_fashion_mnist.py`` where Debian's package ``dataset-fashion-mnist`` is installed (or
``LEMMSE_DATA`` names a folder with its files). The pixels depend on nothing else; the bytes of the file also on zlib.
"""

from pathlib import Path

import numpy as np

from lemmse import data

TARGET = Path(data.__file__).parent / "embedded" / "fashion_mnist.npz"


def first_images(split: str) -> np.ndarray:
    """Return the images to embed, uint8 (D, 28, 28), read from the IDX files."""
    found = data._find_fashion_mnist(split, f"make_fashion_mnist, {split}")
    images, labels = (data._read_idx(path, file) for path, file in found)
    return images[data._round_robin(labels)[: data._FASHION_MNIST_EMBEDDED[split]]]


if __name__ == "__main__":
    np.savez_compressed(TARGET, train=first_images("train"), test=first_images("test"))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
