"""Make lemmse/embedded/*.webp: four freely licensed photographs that come inside scikit-image's wheel, see NOTICE.md.

Run ``python scripts/make_photos.py`` with the extra ``scripts`` installed. The photographs keep their full size: that
gives the most different windows. At quality 90 they come to 176 kB. Running it again gives the same bytes with the same
version of libwebp; a test holds a checksum of the decoded pixels, which must be renewed with the files.
"""

from pathlib import Path

import skimage.data
from PIL import Image

from lemmse import data

TARGET = Path(data.__file__).parent / "embedded"

if __name__ == "__main__":
    for name in data._PHOTOS:
        path = TARGET / f"{name}.webp"
        Image.fromarray(getattr(skimage.data, name)()).save(path, "WEBP", quality=90, method=6)
        print(f"{path}: {path.stat().st_size} bytes")
