"""Files with damage or excess beside their pixels are shown as in a browser; missing pixels are an error."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from app.errors import ImageCorrupt, ServiceError, UnsupportedImageFormat
from app.images import decode
from app.images.gif_parts import gif_picture
from app.types import DecodeMode, Interpolation, Pixels, Preprocessing
from tests import images_made as made
from tests import odd_images as odd
from tests.photos import LIMITS, encode
from tests.test_docs_page import CHROMIUM, needs_browser

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

# Levels of 255 on average: half a level is how transparency and colours of 5 bits are rounded.
_MOST_MEAN = 0.6
# Chromium's decoder stops in front of the last row of blocks of such a file, which is all there, and the row above
# takes its colours from both.
_WITHOUT_LAST_BLOCKS = frozenset(
    {
        "jpeg, without its end",
        "jpeg, without its last byte",
        "jpeg, fill bytes for an end",
        "jpeg, with restarts without its end",
        "jpeg, grey without its end",
    }
)
_BLOCK_ROWS = 32
# Chromium refuses these, whose pixels are whole.
_NOT_SHOWN = frozenset(
    {
        "png, animated, damaged fcTL",
        "gif, damaged control",
        "webp, cut-off metadata",
        "webp, an odd size without its padding",
    }
)
# Chromium reads EXIF only in front of a PNG's pixels and not in a WebP. Other viewers and this service do; see
# docs/decoding.md. Of pixels without a palette entry the standard says nothing.
_SHOWN_OTHERWISE = frozenset(
    {
        "png, eXIf behind the pixels",
        "png, a palette shorter than its pixels ask for",
        "webp, EXIF",
        "webp, EXIF with a JPEG's prefix",
    }
)
_SHOW = """async (address) => {
    const image = new Image();
    image.src = address;
    await image.decode().catch(() => {});
    if (!image.complete || !image.naturalWidth) return null;
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    return canvas.toDataURL("image/png");
}"""


def whole(data: bytes, size: tuple[int, int], mode: DecodeMode = "exact") -> Pixels:
    """All pixels of an image of `size` when it is upright."""
    preprocessing = Preprocessing(None, (size[1], size[0]), Interpolation.BILINEAR, (0.0,) * 3, (1.0,) * 3)
    return decode(data, preprocessing, LIMITS, mode)


@pytest.fixture(scope="module")
def shown() -> dict[str, Image.Image | None]:
    """What Chromium shows of each odd file, over white; None where it shows nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        )
        page = browser.new_page()
        pictures: dict[str, Image.Image | None] = {}
        for name, data in odd.odd_files().items():
            text = base64.b64encode(data).decode()
            address = page.evaluate(_SHOW, f"data:image/{name.split(',')[0]};base64,{text}")
            pictures[name] = address and Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert(
                "RGB"
            )
        browser.close()
    return pictures


@needs_browser
@pytest.mark.parametrize("name", sorted(odd.odd_files().keys() - _SHOWN_OTHERWISE - _NOT_SHOWN))
def test_files_look_as_in_a_browser(name: str, shown: dict[str, Image.Image | None]) -> None:
    """The pixels are those that headless Chromium shows, within what rounding makes of them."""
    picture = shown[name]
    assert picture is not None
    ours = whole(odd.odd_files()[name], picture.size).astype(float)
    rows = picture.height - (_BLOCK_ROWS if name in _WITHOUT_LAST_BLOCKS else 0)
    assert np.abs(ours - np.asarray(picture))[:rows].mean() < _MOST_MEAN


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("name", sorted(odd.odd_files()))
def test_whole_pictures_are_decoded(name: str, mode: DecodeMode) -> None:
    """Every odd file whose pixels are whole gives pixels, in both modes."""
    assert whole(odd.odd_files()[name], (224, 224), mode).shape == (224, 224, 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("size", [(200, 120), (1600, 1200)])
def test_a_jpeg_without_its_end_is_the_same_picture(progressive: bool, mode: DecodeMode, size: tuple[int, int]) -> None:
    """Without the last byte, or the last two, a JPEG has the pixels that it has with them."""
    data = encode(made.photo().resize(size), quality=90, progressive=progressive)
    expected = whole(data, (224, 224), mode)
    for cut in (data[:-1], data[:-2], data[:-2] + b"\xff" * 3_000_000):
        assert np.abs(whole(cut, (224, 224), mode).astype(int) - expected).max() <= (0 if mode == "exact" else 8)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("missing", [12, 40, 200, 1000])
def test_a_jpeg_without_its_last_pixels_is_corrupt(progressive: bool, mode: DecodeMode, missing: int) -> None:
    """Where picture data is missing too, the file is damaged."""
    data = encode(made.photo(), quality=90, progressive=progressive)
    with pytest.raises(ImageCorrupt):
        whole(data[:-missing], (224, 224), mode)


def test_a_flat_jpeg_without_its_last_pixels_is_corrupt() -> None:
    """Missing data is seen also in a picture of one colour, whose every block is a few bits."""
    data = encode(Image.new("RGB", (800, 600), (200, 30, 60)), optimize=True)
    assert whole(data[:-2], (224, 224)).shape == (224, 224, 3)
    with pytest.raises(ImageCorrupt):
        whole(data[:-80], (224, 224))


@pytest.mark.parametrize(
    ("frame", "precision", "name"),
    [
        (0xC1, 12, "12 bits"),
        (0xC3, 8, "lossless JPEG"),
        (0xF7, 8, "JPEG-LS"),
        (0xC5, 8, "hierarchical JPEG"),
    ],
)
def test_other_kinds_of_jpeg_are_unsupported_by_name(frame: int, precision: int, name: str) -> None:
    """A kind of JPEG that is not decoded is called by its name, and not damaged."""
    data = bytearray(encode(made.photo(), quality=90))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = frame, precision
    with pytest.raises(UnsupportedImageFormat, match=name) as refusal:
        whole(bytes(data), (224, 224))
    assert refusal.value.status == 415


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", sorted(odd.odd_files()))
def test_missing_pixels_are_corrupt(name: str, share: float) -> None:
    """A file that ends in the middle of its pixels is an error, whatever is odd about it."""
    data = odd.odd_files()[name]
    begin, end = pixels_of(name, data)
    with pytest.raises(ServiceError):
        whole(data[: begin + int((end - begin) * share)], (224, 224))


def pixels_of(name: str, data: bytes) -> tuple[int, int]:
    """About where the pixels of an odd file lie: behind the metadata, and in front of what follows."""
    if name.startswith("jpeg"):
        begin = data.index(b"\xff\xda")
        end = data.find(b"\xff\xd9", begin)
        return begin, end if end > 0 else len(data.rstrip(b"\xff"))
    if name.startswith("png"):
        kind = b"fdAT" if "another first" in name or "a small first" in name else b"IDAT"
        chunks = [at for at in range(len(data)) if data.startswith(kind, at)]
        chunks = [at for at in chunks if int.from_bytes(data[at - 4 : at], "big")]
        last = chunks[-1] if kind == b"IDAT" else chunks[0]
        return chunks[0] + 4, last + 4 + int.from_bytes(data[last - 4 : last], "big")
    if name.startswith("gif"):
        pixels = gif_picture(data, LIMITS).pieces[-1]
        begin = len(data) - len(pixels)
        at = begin + 1
        while data[at]:
            at += data[at] + 1
        return begin, at
    if name.startswith("webp"):
        at = next(at for at in range(12, len(data)) if data[at : at + 4] in (b"VP8 ", b"VP8L"))
        return at + 8, at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    begin = int.from_bytes(data[10:14], "little")
    return begin, len(data.removesuffix(b"some text"))
