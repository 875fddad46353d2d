"""bytes → pixels: what is let in, how it looks, and that nothing hostile does more than be refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from app.checkpoints import published_resnet50_preprocessing
from app.errors import BadRequest, ImageCorrupt, ImageTooLarge, UnsupportedImageFormat
from app.images import DecodeLimits, decode, geometry
from app.types import Interpolation, Preprocessing
from tests import images_made as made
from tests.images_made import decoded, largest_difference, photo
from tests.photos import LIMITS, encode

# What the service does in production (app/images/decode.py): pytest's own filters replace those set at import.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

RESNET50 = published_resnet50_preprocessing()
PHOTO = photo("chelsea")
WHITE = np.full((224, 224, 3), 255, np.uint8)


def as_is(image: Image.Image) -> np.ndarray:
    """The pixels that decoding must give for an upright RGB image: geometry alone."""
    return np.asarray(geometry.resize_and_crop(image, RESNET50))


def mpo() -> bytes:
    """A phone's JPEG with a second picture behind the first."""
    return encode(PHOTO, "MPO", save_all=True, append_images=[Image.new("RGB", PHOTO.size, "red")], quality=95)


ACCEPTED = {
    "JPEG": encode(PHOTO, "JPEG", quality=95),
    "progressive JPEG": encode(PHOTO, "JPEG", quality=95, progressive=True),
    "MPO": mpo(),
    "PNG": encode(PHOTO, "PNG"),
    "lossless WebP": encode(PHOTO, "WEBP", lossless=True, method=0),
    "lossy WebP": encode(PHOTO, "WEBP", quality=95),
    "GIF": encode(PHOTO, "GIF"),
    "BMP": encode(PHOTO, "BMP"),
}
# Levels of 255 on average, of a lossy format at quality 95 and of GIF's 256 colours.
MEAN_ERROR = {"PNG": 0.0, "lossless WebP": 0.0, "BMP": 0.0, "GIF": 8.0}


@pytest.mark.parametrize("name", ACCEPTED)
def test_each_format_shows_the_photo(name: str) -> None:
    """Every format on the list gives the photo's own pixels, within what the format loses."""
    pixels = decoded(ACCEPTED[name])
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    error = np.abs(pixels.astype(float) - as_is(PHOTO)).mean()
    assert error <= MEAN_ERROR.get(name, 2.0)


REFUSED = {
    "TIFF": encode(PHOTO, "TIFF"),
    "ICO": encode(PHOTO.resize((64, 64)), "ICO"),
    "JPEG 2000": encode(PHOTO, "JPEG2000"),
    "PPM": encode(PHOTO, "PPM"),
    "TGA": encode(PHOTO, "TGA"),
    "PDF": encode(PHOTO, "PDF"),
    "EPS": encode(PHOTO, "EPS"),
    "text that begins as a BMP does": b"BMW is a maker of cars. " * 9,
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "HTML": b"<!doctype html><html><body><img src='cat.jpg'></body></html>",
    "JSON": b'{"image": "x"}',
    "RIFF that is sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(64),
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_refused_by_name(name: str) -> None:
    """Bytes that are none of the five formats are an unsupported format, also where Pillow could open them."""
    with pytest.raises(UnsupportedImageFormat) as refusal:
        decoded(REFUSED[name])
    assert refusal.value.status == 415
    assert "JPEG, PNG, WebP, GIF or BMP" in refusal.value.detail


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("name", ACCEPTED)
def test_truncated_files_are_corrupt(name: str, share: float) -> None:
    """A file that ends early is corrupt, wherever it ends."""
    data = ACCEPTED[name]
    if name == "MPO":
        # What is behind the first picture is never read.
        data = data[: data.index(b"\xff\xd8\xff", 2)]
    with pytest.raises(ImageCorrupt):
        decoded(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "signature",
    [b"\xff\xd8\xff", made.PNG_SIGNATURE, b"GIF89a", b"RIFF\x1a\0\0\0WEBP", b"BM\x1a\0\0\0\0\0\0\0"],
)
def test_a_signature_alone_is_corrupt_and_not_foreign(signature: bytes) -> None:
    """A file of one of our formats with a broken header is corrupt, not of an unsupported format."""
    with pytest.raises(ImageCorrupt):
        decoded(signature)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "JPEG"])
def test_an_image_without_pixels_is_corrupt(name: str) -> None:
    """A header that claims no width is an error of the file, not of the server."""
    forge = {"PNG": lambda: made.png(0, 9, 8, made.RGB), "BMP": lambda: made.forged_bmp(0, 9)}
    forge |= {"GIF": lambda: made.forged_gif(0, 9), "JPEG": lambda: made.forged_jpeg(0, 9)}
    with pytest.raises(ImageCorrupt):
        decoded(forge[name]())


# --- limits


@pytest.mark.parametrize(
    ("limits", "size", "allowed"),
    [
        (DecodeLimits(10_000, 10_000, 1000), (100, 100), True),
        (DecodeLimits(10_000, 10_000, 1000), (100, 101), False),
        (DecodeLimits(10_000, 10_000, 100), (100, 100), True),
        (DecodeLimits(10_000, 10_000, 99), (50, 100), False),
        (DecodeLimits(10_000, 10_000, 99), (100, 50), False),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_limits_hold_to_the_pixel(
    limits: DecodeLimits, size: tuple[int, int], allowed: bool, image_format: str
) -> None:
    """The largest area and the longest side that are allowed are decoded; one pixel more is refused with the size."""
    data = encode(Image.new("RGB", size, "white"), image_format)
    if allowed:
        assert (decode(data, RESNET50, limits) == 255).all()
        return
    with pytest.raises(ImageTooLarge, match=f"{size[0]}×{size[1]}"):
        decode(data, RESNET50, limits)


@pytest.mark.parametrize(("name", "allowed"), [("JPEG", True), ("MPO", True), ("PNG", False), ("BMP", False)])
def test_jpegs_have_a_limit_of_their_own(name: str, allowed: bool) -> None:
    """A JPEG, with or without pictures behind it, may be larger than an image of another format."""
    limits = DecodeLimits(max_pixels_jpeg=PHOTO.width * PHOTO.height, max_pixels=1000, max_side=1000)
    if allowed:
        assert decode(ACCEPTED[name], RESNET50, limits).shape == (224, 224, 3)
    else:
        with pytest.raises(ImageTooLarge):
            decode(ACCEPTED[name], RESNET50, limits)


FORGED = {
    "PNG": made.png(60_000, 60_000, 8, made.RGB, [bytes(64)]),
    "PNG within Pillow's own limit": made.png(10_000, 10_000, 16, made.RGB, [bytes(64)]),
    "GIF": made.forged_gif(60_000, 60_000),
    "BMP": made.forged_bmp(60_000, 60_000),
    "JPEG": made.forged_jpeg(60_000, 60_000),
    "WebP": made.forged_webp(12_000, 12_000),
}
EXTREME = {
    f"{width}×{height} {image_format}": encode(Image.new("RGB", (width, height), (10, 200, 30)), image_format)
    for width, height in [(1, 1), (3, 3), (1, 16_384), (16_384, 1), (2, 16_384), (16_384, 3)]
    for image_format in ("PNG", "BMP")
}
DECODES_EACH_FILE = """
import json, sys, time
from pathlib import Path
from app.checkpoints import published_resnet50_preprocessing
from app.images import decode
from tests.photos import LIMITS

def peak_kilobytes():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

outcomes = {}
for file in sys.argv[1:]:
    data = Path(file).read_bytes()
    peak, began = peak_kilobytes(), time.perf_counter()
    try:
        pixels = decode(data, published_resnet50_preprocessing(), LIMITS).reshape(-1, 3)
        outcome = [len(pixels), pixels.min(0).tolist(), pixels.max(0).tolist()]
    except Exception as error:
        outcome = type(error).__name__
    outcomes[Path(file).name] = [outcome, time.perf_counter() - began, (peak_kilobytes() - peak) / 1000]
print(json.dumps(outcomes))
"""
Cost = tuple[object, float, float]
LITTLE_MEGABYTES = 32


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    """What `decode` makes of each file in another process, the seconds, and the megabytes above the peak so far."""
    folder = tmp_path_factory.mktemp("images")
    # The ordinary image comes last, for the peak only grows.
    files = {**FORGED, **EXTREME, "24 megapixels": encode(Image.new("RGB", (6000, 4000)), "PNG")}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    finished = subprocess.run(
        [sys.executable, "-c", DECODES_EACH_FILE, *[str(folder / name) for name in files]],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_costs_nothing(name: str, costs: dict[str, Cost]) -> None:
    """A small file that claims gigapixels is refused by its header, at once and without memory for its pixels."""
    outcome, seconds, megabytes = costs[name]
    assert outcome == "ImageTooLarge"
    assert seconds < 1
    assert megabytes < LITTLE_MEGABYTES


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_shapes_cost_little(name: str, costs: dict[str, Cost]) -> None:
    """The thinnest images that are let in give a whole crop of their colour, fast and with no large intermediate."""
    outcome, seconds, megabytes = costs[name]
    assert outcome == [224 * 224, [10, 200, 30], [10, 200, 30]]
    assert seconds < 1
    assert megabytes < LITTLE_MEGABYTES


def test_these_tests_see_an_image_that_takes_memory(costs: dict[str, Cost]) -> None:
    """An ordinary large image takes more memory than the two tests above allow."""
    assert costs["24 megapixels"][2] > LITTLE_MEGABYTES


# --- upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_every_orientation_is_turned_upright(orientation: int, image_format: str) -> None:
    """The eight ways to store one photo decode to the same pixels."""
    stored = Image.fromarray(made.stored_turned(np.asarray(PHOTO), orientation))
    data = encode(stored, image_format, exif=made.exif_orientation(orientation), lossless=True, method=0)
    assert np.array_equal(decoded(data), as_is(PHOTO))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_jpeg_is_turned_upright(orientation: int) -> None:
    """A camera's JPEG decodes to the same pixels in each orientation, up to how its blocks were rounded."""
    whole_blocks = PHOTO.crop((0, 0, 448, 288))
    stored = Image.fromarray(made.stored_turned(np.asarray(whole_blocks), orientation))
    options = {"quality": 100, "subsampling": 0}
    pixels = decoded(encode(stored, "JPEG", exif=made.exif_orientation(orientation), **options))
    assert largest_difference(pixels, decoded(encode(whole_blocks, "JPEG", **options))) <= 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    """Orientations other than 1 to 8 leave the image as it is stored."""
    data = encode(PHOTO, "PNG", exif=made.exif_orientation(orientation))
    assert np.array_equal(decoded(data), as_is(PHOTO))


_ORIENTATION_6 = made.exif_orientation(6).removeprefix(b"Exif\0\0")


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"\0",
        b"not a TIFF header at all",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(10),
        _ORIENTATION_6[:14],
        _ORIENTATION_6.replace(b"\x00\x03\x00\x00\x00\x01", b"\x00\x02\x00\x00\x00\x01"),
    ],
    ids=["empty", "short", "text", "directory outside", "entries missing", "cut", "orientation as text"],
)
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_is_ignored(exif: bytes, image_format: str) -> None:
    """Damaged metadata says nothing about the pixels: the image is shown as it is stored."""
    if image_format == "PNG":
        chunks = made.chunks_of_png(ACCEPTED["PNG"])
        data = made.png_of_chunks([chunks[0], (b"eXIf", exif), *chunks[1:]])
    else:
        data = encode(PHOTO, image_format, exif=b"Exif\0\0" + exif, lossless=True, method=0, quality=95)
    name = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "lossless WebP"}[image_format]
    assert np.array_equal(decoded(data), decoded(ACCEPTED[name]))


# --- colour


def half_transparent() -> Image.Image:
    """The photo, whose left half is transparent and hides a colour that nobody must see."""
    image = PHOTO.convert("RGBA")
    image.paste((255, 0, 255, 0), (0, 0, image.width // 2, image.height))
    return image


def over_white() -> np.ndarray:
    image = PHOTO.copy()
    image.paste((255, 255, 255), (0, 0, image.width // 2, image.height))
    return as_is(image)


def test_black_and_white_becomes_black_and_white() -> None:
    """A 1-bit image decodes to levels 0 and 255."""
    image = PHOTO.convert("1")
    assert np.array_equal(decoded(encode(image, "PNG")), as_is(image.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "JPEG"])
def test_grey_becomes_three_equal_channels(image_format: str) -> None:
    """A grey image has its level in each channel."""
    grey = PHOTO.convert("L")
    pixels = decoded(encode(grey, image_format))
    assert np.array_equal(pixels, pixels[..., :1].repeat(3, axis=2))
    assert np.abs(pixels.astype(float) - as_is(grey.convert("RGB"))).mean() < (2 if image_format == "JPEG" else 1e-9)


def test_a_palette_shows_its_colours() -> None:
    """A palette image decodes to the colours of its palette."""
    image = PHOTO.quantize(64)
    assert image.mode == "P"
    assert np.array_equal(decoded(encode(image, "PNG")), as_is(image.convert("RGB")))


def test_cmyk_jpeg_shows_its_colours() -> None:
    """A printer's JPEG decodes to the photo and not to its negative."""
    data = encode(PHOTO.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(float) - as_is(PHOTO)).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_an_alpha_channel_lies_over_white(image_format: str) -> None:
    """Transparent pixels show white, whatever colour is stored under them."""
    data = encode(half_transparent(), image_format, lossless=True, method=0, exact=True)
    assert np.array_equal(decoded(data), over_white())


def test_alpha_mixes_with_white() -> None:
    """A pixel that is half transparent is halfway to white."""
    pixels = decoded(encode(Image.new("RGBA", (300, 300), (0, 100, 200, 128)), "PNG"))
    assert np.abs(pixels[0, 0].astype(int) - [127, 177, 227]).max() <= 1
    assert (pixels == pixels[0, 0]).all()


def test_grey_with_alpha_lies_over_white() -> None:
    """Transparent grey shows white."""
    image = half_transparent().convert("LA")
    expected = Image.fromarray(np.asarray(PHOTO.convert("L"))).convert("RGB")
    expected.paste((255, 255, 255), (0, 0, image.width // 2, image.height))
    assert np.array_equal(decoded(encode(image, "PNG")), as_is(expected))


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_lies_over_white(image_format: str) -> None:
    """Where the palette says that an entry is transparent, white shows."""
    image = PHOTO.quantize(64)
    hidden = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(hidden, int)
    shown = np.asarray(image.convert("RGB")).copy()
    shown[np.asarray(image) == hidden] = 255
    data = encode(image, image_format, transparency=hidden, optimize=False)
    assert np.array_equal(decoded(data), as_is(Image.fromarray(shown)))


def test_a_palette_with_levels_of_transparency_lies_over_white() -> None:
    """A palette with an alpha for each entry is mixed with white entry by entry."""
    image = Image.new("P", (300, 300), 1)
    image.putpalette([0, 0, 0, 0, 100, 200])
    pixels = decoded(encode(image, "PNG", transparency=bytes([255, 128])))
    assert np.abs(pixels[0, 0].astype(int) - [127, 177, 227]).max() <= 1


@pytest.mark.parametrize(
    ("depth", "colour", "hidden", "other", "transparent"),
    [
        (1, made.GREY, b"\x00", b"\xff", (0,)),
        (4, made.GREY, b"\x00", b"\xff", (0,)),
        (2, made.GREY, b"\x55", b"\xff", (1,)),
        (4, made.GREY, b"\x33", b"\xff", (3,)),
        (8, made.GREY, b"\x20", b"\xff", (32,)),
        (8, made.RGB, b"\x01\x02\x03", b"\xff\xff\xff", (1, 2, 3)),
        (16, made.GREY, b"\x10\x01", b"\xff\xff", (0x1001,)),
    ],
    ids=["1-bit grey", "4-bit black", "2-bit grey", "4-bit grey", "8-bit grey", "RGB", "16-bit grey"],
)
def test_a_colour_named_transparent_lies_over_white(
    depth: int, colour: int, hidden: bytes, other: bytes, transparent: tuple[int, ...]
) -> None:
    """Where a PNG names one colour as transparent, it shows white; without that mark the same pixels show dark."""
    times = 256 * depth * (3 if colour == made.RGB else 1) // 8 // len(hidden)
    rows = [hidden * times] * 128 + [other * times] * 128
    mark = (b"tRNS", b"".join(value.to_bytes(2, "big") for value in transparent))
    assert (decoded(made.png(256, 256, depth, colour, rows, [mark])) == WHITE).all()
    assert (decoded(made.png(256, 256, depth, colour, rows))[:90] < 100).all()


def test_sixteen_bit_grey_equals_its_eight_bit_twin() -> None:
    """16-bit grey is scaled, not clipped: it is within a level of the same picture in 8 bits."""
    levels = np.linspace(0, 65535, 300 * 300).reshape(300, 300).astype(np.uint16)
    deep = decoded(encode(Image.fromarray(levels), "PNG"))
    twin = decoded(encode(Image.fromarray(np.round(levels / 257).astype(np.uint8)), "PNG"))
    assert largest_difference(deep, twin) <= 1
    assert deep.max() < 255
    assert len(np.unique(deep)) > 150


def test_sixteen_bit_colour_equals_its_eight_bit_twin() -> None:
    """16-bit RGB is within a level of the same photo in 8 bits."""
    deep = np.asarray(PHOTO).astype(">u2") * 257
    data = made.png(PHOTO.width, PHOTO.height, 16, made.RGB, [row.astype(">u2").tobytes() for row in deep])
    assert largest_difference(decoded(data), as_is(PHOTO)) <= 1


@pytest.mark.parametrize(("image_format", "tolerance"), [("GIF", 0), ("PNG", 0), ("WEBP", 0)])
def test_only_the_first_frame_is_shown(image_format: str, tolerance: int) -> None:
    """Of an animation the first frame is classified."""
    first = Image.new("RGB", (300, 300), (0, 0, 255))
    ImageDraw.Draw(first).rectangle((60, 60, 200, 200), fill=(0, 255, 0))
    later = [Image.new("RGB", (300, 300), colour) for colour in ((255, 0, 0), (255, 255, 0))]
    data = encode(first, image_format, save_all=True, append_images=later, duration=100, lossless=True, method=0)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
    assert largest_difference(decoded(data), as_is(first)) <= tolerance


def test_of_a_phones_jpeg_the_first_picture_is_shown() -> None:
    """What an MPO file holds behind its first picture is not looked at."""
    assert np.array_equal(decoded(ACCEPTED["MPO"]), decoded(ACCEPTED["JPEG"]))


# --- geometry


@pytest.mark.parametrize("crop", [(224, 224), (300, 400)])
@pytest.mark.parametrize("interpolation", [Interpolation.BILINEAR, Interpolation.BICUBIC])
@pytest.mark.parametrize(
    "size",
    [(451, 300), (300, 451), (224, 224), (640, 480), (1023, 767), (97, 61), (31, 200), (256, 300), (999, 256), (5, 7)],
)
def test_the_window_equals_the_whole(
    size: tuple[int, int], interpolation: Interpolation, crop: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resizing only what the crop shows gives what resizing everything gives, within one level; black outside of it."""
    preprocessing = Preprocessing(256, crop, interpolation, RESNET50.mean, RESNET50.std)
    image = photo("astronaut").resize(size)
    whole = np.asarray(geometry.resize_and_crop(image, preprocessing))
    monkeypatch.setattr(geometry, "_MAX_INTERMEDIATE_PIXELS", 0)
    window = np.asarray(geometry.resize_and_crop(image, preprocessing))
    assert largest_difference(window, whole) <= 1


@pytest.mark.parametrize("size", [(9000, 60), (60, 9000)])
def test_a_panorama_shows_its_middle(size: tuple[int, int]) -> None:
    """Of an image too long to be resized whole, the crop shows the middle and not another part."""
    width, height = size
    along = np.linspace(0, 255, max(size)).astype(np.uint8)
    strip = np.broadcast_to(along[:, None] if height > width else along, (height, width))
    pixels = decoded(encode(Image.fromarray(np.ascontiguousarray(strip)), "PNG"))
    assert pixels.min() >= 126
    assert pixels.max() <= 129


# --- hostile bytes

SMALL = photo("chelsea").resize((64, 48))
SEEDS = [
    encode(SMALL, "JPEG", exif=made.exif_orientation(6)),
    encode(SMALL, "JPEG", progressive=True),
    encode(SMALL.convert("CMYK"), "JPEG"),
    encode(SMALL, "MPO", save_all=True, append_images=[SMALL]),
    encode(SMALL, "PNG", exif=made.exif_orientation(3)),
    encode(SMALL.quantize(16), "PNG", transparency=3),
    encode(SMALL, "PNG", save_all=True, append_images=[SMALL.rotate(90)]),
    encode(Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * 257), "PNG"),
    encode(SMALL, "WEBP"),
    encode(SMALL.convert("RGBA"), "WEBP", lossless=True, method=0, exif=made.exif_orientation(8)),
    encode(SMALL, "WEBP", save_all=True, append_images=[SMALL.rotate(90)]),
    encode(SMALL, "GIF"),
    encode(SMALL, "GIF", save_all=True, append_images=[SMALL.rotate(90)], transparency=2),
    encode(SMALL, "BMP"),
    encode(SMALL.quantize(16), "BMP"),
]
SMALL_LIMITS = DecodeLimits(4_000_000, 4_000_000, LIMITS.max_side)
fuzzing = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def pixels_or_refusal(data: bytes) -> None:
    try:
        pixels = decode(data, RESNET50, SMALL_LIMITS)
    except BadRequest:
        return
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Some bytes replaced, put in or taken out, and perhaps the end cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["replace", "replace", "insert", "remove", "cut"])):
            case "replace":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "cut":
                del data[at:]
    return bytes(data)


@fuzzing
@given(st.sampled_from([b"", *{seed[:n] for seed in SEEDS for n in (4, 12, 30)}]), st.binary(max_size=300))
def test_any_bytes_give_pixels_or_a_refusal(head: bytes, rest: bytes) -> None:
    """Arbitrary bytes, also behind a real file's beginning, give pixels or an error that is the client's."""
    pixels_or_refusal(head + rest)


@fuzzing
@given(st.sampled_from(SEEDS).flatmap(damaged))
def test_damaged_files_give_pixels_or_a_refusal(data: bytes) -> None:
    """A valid file with damage anywhere gives pixels or an error that is the client's."""
    pixels_or_refusal(data)


@st.composite
def damaged_png(draw: st.DrawFn) -> bytes:
    chunks = made.chunks_of_png(draw(st.sampled_from([seed for seed in SEEDS if seed.startswith(made.PNG_SIGNATURE)])))
    at = draw(st.integers(0, len(chunks) - 1))
    kind, body = chunks[at]
    match draw(st.sampled_from(["damage", "damage", "repeat", "drop", "rename"])):
        case "damage":
            chunks[at] = kind, draw(damaged(body))
        case "repeat":
            chunks.insert(draw(st.integers(0, len(chunks))), chunks[at])
        case "drop":
            del chunks[at]
        case "rename":
            chunks[at] = draw(st.sampled_from([b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"zTXt", b"iCCP"])), body
    return made.png_of_chunks(chunks)


@fuzzing
@given(damaged_png())
def test_damaged_png_chunks_give_pixels_or_a_refusal(data: bytes) -> None:
    """Damage that PNG's checksums do not catch gives pixels or an error that is the client's."""
    pixels_or_refusal(data)
