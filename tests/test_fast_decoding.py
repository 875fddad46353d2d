"""Fast mode: how near it is to exact mode, on real photos and a real network, and that nothing else differs."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from app.checkpoints import published_resnet50_preprocessing
from app.errors import BadRequest, ImageTooComplex, ImageTooLarge, ServiceError
from app.images import DecodeLimits, decode, fast, geometry
from app.images.jpeg_scans import count_scans, without_refinements
from app.ranking import rank
from app.types import Interpolation, Pixels, Preprocessing, Want
from tests import images_made as made
from tests.checkpoints_made import load
from tests.images_made import largest_difference, photo
from tests.photos import LIMITS, encode
from tests.test_images import SEEDS, SMALL, damaged

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

RESNET50 = published_resnet50_preprocessing()
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
# In levels of 255. At 1/8 each block of 8×8 is its mean alone, and the reference's bilinear filter sees what is in it.
LARGEST, MEAN = 24, 1.5
# Of small files: so small that these, too, are decoded smaller, and progressive ones without their last bits.
THUMBNAIL = Preprocessing(6, (4, 5), Interpolation.BILINEAR, RESNET50.mean, RESNET50.std)
SMALL_PROGRESSIVE = {
    "progressive": encode(SMALL, progressive=True),
    "restarts": encode(SMALL, progressive=True, restart_marker_blocks=1),
    "grey": encode(SMALL.convert("L"), progressive=True, quality=95),
    "4:4:4": encode(SMALL, progressive=True, quality=95, subsampling=0),
}


@cache
def large() -> Image.Image:
    return photo("coffee").resize((2404, 1601), Image.Resampling.LANCZOS)


def both(data: bytes, preprocessing: Preprocessing = RESNET50, limits: DecodeLimits = LIMITS) -> tuple[Pixels, Pixels]:
    return decode(data, preprocessing, limits, "exact"), decode(data, preprocessing, limits, "fast")


def squash(interpolation: Interpolation = Interpolation.BICUBIC, crop: tuple[int, int] = (96, 160)) -> Preprocessing:
    return Preprocessing(None, crop, interpolation, RESNET50.mean, RESNET50.std)


# As Keras prepares its models' images: a crop that shows all of the image.
SQUASHES = [squash(Interpolation.BILINEAR, (side, side)) for side in (224, 240, 331)]


# --- near


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Real photos, as they are and enlarged to 1.5 and 4 megapixels, baseline and progressive."""
    found = {}
    for name in PHOTOS:
        for width in (None, 1500, 2400):
            image = photo(name)
            if width is not None:
                image = image.resize((width, width * image.height // image.width), Image.Resampling.LANCZOS)
            for kind in ({}, {"progressive": True}):
                found[f"{name} {width} {kind}"] = encode(image, "JPEG", quality=92, **kind)
    return found


def test_a_real_network_answers_as_in_exact_mode(files: dict[str, bytes]) -> None:
    """No probability differs by more than 0.05, 0.01 on average, and a first class only where two are as near."""
    model = load(weights="offline-demo")
    network = model.engine.backend  # type: ignore[attr-defined]
    changes, differences, flips = [], [], []
    for name, data in files.items():
        pixels = both(data, model.preprocessing)
        outputs = network.infer(np.stack(pixels), Want.SCORES)
        exact, quick = (rank(row, outputs.activation, model.labels, model.class_count) for row in outputs.scores)
        changes.append(np.abs(by_class(exact) - by_class(quick)).max())
        differences.append(largest_difference(*pixels))
        if exact[0].class_id != quick[0].class_id:
            flips.append(name)
            assert exact[0].probability - by_class(exact)[quick[0].class_id] <= 0.05
    network.close()
    assert len(flips) <= len(files) // 10
    assert 0 < max(changes) <= 0.05
    assert np.mean(changes) <= 0.01
    assert max(differences) <= LARGEST


def by_class(ranking: tuple[object, ...]) -> NDArray[np.float64]:
    found = np.zeros(len(ranking))
    for prediction in ranking:
        found[prediction.class_id] = prediction.probability  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_that_is_not_reduced_differs_by_a_rounding(name: str) -> None:
    """Where nothing is decoded smaller, the one step from source to crop costs no more than a level or two."""
    data = encode(photo(name).resize((500, 375)), quality=90)
    exact, quick = both(data)
    assert largest_difference(exact, quick) <= 2


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encode(large(), quality=95),
    "progressive JPEG": lambda: encode(large(), quality=95, progressive=True),
    "JPEG with restarts": lambda: encode(large(), quality=95, progressive=True, restart_marker_blocks=5),
    "JPEG 4:4:4": lambda: encode(large(), quality=95, subsampling=0, progressive=True),
    "grey JPEG": lambda: encode(large().convert("L"), quality=95, progressive=True),
    "CMYK JPEG": lambda: encode(large().convert("CMYK"), quality=95),
    "MPO": lambda: encode(
        large(), "MPO", save_all=True, append_images=[Image.new("RGB", large().size, "red")], quality=95
    ),
    "PNG": lambda: encode(large(), "PNG", compress_level=1),
    "PNG with alpha": lambda: encode(large().convert("RGBA"), "PNG", compress_level=1),
    "palette PNG": lambda: encode(large().quantize(64), "PNG", compress_level=1),
    "WebP": lambda: encode(large(), "WEBP", method=0),
    "GIF": lambda: encode(large(), "GIF"),
    "BMP": lambda: encode(large(), "BMP"),
}


@cache
def file(name: str) -> bytes:
    return FILES[name]()


@pytest.mark.parametrize("preprocessing", [RESNET50, squash(), squash(Interpolation.LANCZOS)], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_every_format_shows_the_photo(name: str, preprocessing: Preprocessing) -> None:
    """Every kind of file gives nearly the pixels of exact mode, in the same place."""
    exact, quick = both(file(name), preprocessing)
    assert quick.shape == (*preprocessing.crop, 3)
    assert quick.dtype == np.uint8
    assert largest_difference(exact, quick) <= LARGEST
    assert np.abs(exact.astype(float) - quick).mean() <= MEAN


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "size"),
    [("JPEG", (2404, 1601)), ("JPEG", (1601, 2405)), ("JPEG", (503, 377)), ("PNG", (1201, 799)), ("PNG", (400, 256))],
)
def test_every_orientation_is_turned_upright(orientation: int, image_format: str, size: tuple[int, int]) -> None:
    """The eight ways to store one photo show it upright and in the same place, also where a side is odd."""
    stored = Image.fromarray(made.stored_turned(np.asarray(photo("astronaut").resize(size)), orientation))
    data = encode(stored, image_format, exif=made.exif_orientation(orientation), quality=95, compress_level=1)
    for preprocessing in (RESNET50, squash()):
        exact, quick = both(data, preprocessing)
        assert largest_difference(exact, quick) <= LARGEST
        assert np.abs(exact.astype(float) - quick).mean() <= MEAN


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_crop_that_covers_the_whole_image_is_inside_it(orientation: int, image_format: str) -> None:
    """A squash whose scale is no exact number shows the whole image, whichever way it is stored."""
    shown = photo("astronaut").resize((246, 300))
    stored = Image.fromarray(made.stored_turned(np.asarray(shown), orientation))
    data = encode(stored, image_format, exif=made.exif_orientation(orientation), quality=95, compress_level=1)
    for preprocessing in SQUASHES:
        assert largest_difference(*both(data, preprocessing)) <= 2


def test_an_image_that_needs_no_resizing_is_only_cut() -> None:
    """Where the short side has its final length already, both modes cut the same pixels out."""
    for data in (encode(photo().resize((300, 256)), "PNG"), encode(photo().resize((256, 700)))):
        assert np.array_equal(*both(data))


@pytest.mark.parametrize("size", [(640, 480), (90, 300), (1700, 1201)])
def test_what_a_crop_has_outside_is_black(size: tuple[int, int]) -> None:
    """A crop larger than the resized image is filled up with black on the same sides in both modes."""
    preprocessing = Preprocessing(100, (131, 120), Interpolation.BILINEAR, RESNET50.mean, RESNET50.std)
    exact, quick = both(encode(photo().resize(size), exif=made.exif_orientation(6)), preprocessing)
    assert np.array_equal(exact.any(axis=2), quick.any(axis=2))
    assert largest_difference(exact, quick) <= LARGEST


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 16_384), (16_384, 1), (2, 16_384), (16_384, 3)])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_extreme_shapes_show_their_colour(size: tuple[int, int], image_format: str) -> None:
    """The thinnest images give a whole crop of their colour."""
    quick = decode(encode(Image.new("RGB", size, (10, 200, 30)), image_format), RESNET50, LIMITS, "fast")
    assert quick.shape == (224, 224, 3)
    assert np.abs(quick.astype(int) - (10, 200, 30)).max() <= 2


def test_a_large_jpeg_is_decoded_smaller() -> None:
    """A photo of 12 megapixels is decoded at a quarter of its width and height, and one of half a megapixel whole."""
    for size, divisor in (((4000, 3000), 4), ((3000, 4000), 4), ((800, 600), 1), ((9000, 8200), 8)):
        with JpegImageFile(io.BytesIO(made.forged_jpeg(*size))) as image:
            assert fast.shrink_jpeg(image, 1, RESNET50) == divisor


sides = st.integers(1, 16_384)
preprocessings = st.builds(
    Preprocessing,
    st.one_of(st.none(), st.integers(1, 600)),
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.sampled_from(Interpolation),
    st.just(RESNET50.mean),
    st.just(RESNET50.std),
    floor_crop=st.booleans(),
)


@settings(deadline=None, max_examples=300)
@given(sides, sides, preprocessings, st.integers(1, 8))
def test_no_jpeg_is_decoded_below_twice_its_final_size(
    width: int, height: int, preprocessing: Preprocessing, orientation: int
) -> None:
    """Whatever its size, crop and orientation, what is decoded smaller is at least twice what it is resized to, and
    could not be one step smaller."""
    upright = (width, height) if orientation < 5 else (height, width)
    final, _ = geometry.resized_and_crop_box(upright, preprocessing)
    if orientation >= 5:
        final = (final[1], final[0])
    data = bytearray(encode(Image.new("L", (8, 8)), exif=made.exif_orientation(orientation)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    with JpegImageFile(io.BytesIO(bytes(data))) as image:
        divisor = fast.shrink_jpeg(image, orientation, preprocessing)
        assert divisor in (1, 2, 4, 8)
        assert image.size == (-(-width // divisor), -(-height // divisor))
    least = min(width / final[0], height / final[1])
    assert divisor == 1 or least / divisor >= 2
    assert divisor == 8 or least / divisor < 4


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from([RESNET50, THUMBNAIL, squash(), squash(Interpolation.NEAREST), *SQUASHES]),
    st.integers(1, 8),
    st.sampled_from(["JPEG", "PNG"]),
)
def test_any_size_gives_a_whole_crop(
    width: int, height: int, preprocessing: Preprocessing, orientation: int, image_format: str
) -> None:
    """An image of one colour gives a whole crop of that colour, whatever its size, crop and orientation."""
    image = Image.new("RGB", (width, height), (200, 40, 90))
    data = encode(image, image_format, exif=made.exif_orientation(orientation), compress_level=1)
    exact, quick = both(data, preprocessing)
    assert quick.shape == exact.shape
    assert largest_difference(exact, quick) <= 2


# --- what is left out


def refined(data: bytes) -> bytes:
    """What is left of a file in one piece."""
    return b"".join(without_refinements(data))


def refinements(data: bytes) -> list[int]:
    """Where the scans begin that bring a bit more of what lies behind a block's mean; their heads are 10 bytes long."""
    heads = [at for at in range(len(data)) if data[at : at + 4] == b"\xff\xda\x00\x08"]
    return [at for at in heads if data[at + 9] >> 4 and data[at + 7]]


def test_what_is_left_out_of_a_progressive_jpeg() -> None:
    """Of a progressive file the data of the last scans goes, and no scan's head; any other file stays as it is."""
    progressive = file("progressive JPEG")
    shorter = refined(progressive)
    assert len(shorter) < 0.7 * len(progressive)
    assert count_scans(shorter, 99) == count_scans(progressive, 99) == 10
    assert refined(file("JPEG")) == file("JPEG")
    assert refined(b"") == b""


def test_a_scan_that_has_no_end_is_not_left_out() -> None:
    """Of a file that ends in the middle of a scan, the end is kept: it must be seen to be missing."""
    cut = file("progressive JPEG")[:-2000]
    assert refined(cut)[-1000:] == cut[-1000:]


def test_coarse_bits_are_not_left_out() -> None:
    """A scan that brings a bit worth more than two steps of the table stays, and so does one of a block's mean."""
    data = file("progressive JPEG")
    refining = refinements(data)
    assert len(refining) == 4
    at = refining[0]
    coarse = data[: at + 9] + b"\x32" + data[at + 10 :]
    mean = data[: at + 7] + b"\x00" + data[at + 8 :]
    assert len(data) > len(refined(coarse)) > len(refined(data))
    assert len(refined(mean)) == len(refined(coarse))


# --- hostile bytes


def part(name: str, share: float) -> bytes:
    """The beginning of a file."""
    return file(name)[: int(len(file(name)) * share)]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"%PDF-1.7 ",
    "signature": lambda: b"\xff\xd8\xff",
    "pixel bomb": lambda: made.forged_jpeg(60_000, 60_000),
    "scan bomb": lambda: made.scan_bomb((64, 64), 100),
    "large PNG": lambda: made.png(60_000, 60_000, 8, made.RGB, [bytes(64)]),
} | {f"{name} to {share}": partial(part, name, share) for name in FILES if name != "MPO" for share in (0.01, 0.5, 0.97)}


def outcome(data: bytes, mode: str, preprocessing: Preprocessing, limits: DecodeLimits) -> str:
    """The error and what it says, or the shape."""
    try:
        return str(decode(data, preprocessing, limits, mode).shape)  # type: ignore[arg-type]
    except ServiceError as error:
        return f"{type(error).__name__}: {error.detail}"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_have_the_same_errors(name: str) -> None:
    """What exact mode refuses, fast mode refuses in the same words."""
    data = HOSTILE[name]()
    for preprocessing in (RESNET50, THUMBNAIL):
        with pytest.raises(BadRequest) as refusal:
            decode(data, preprocessing, LIMITS)
        said = f"{type(refusal.value).__name__}: {refusal.value.detail}"
        assert outcome(data, "fast", preprocessing, LIMITS) == said


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (DecodeLimits(1_000_000, 25_000_000, 16_384), ImageTooLarge),
        (DecodeLimits(50_000_000, 25_000_000, 2000), ImageTooLarge),
        (DecodeLimits(50_000_000, 25_000_000, 16_384, max_jpeg_scans=9), ImageTooComplex),
        (DecodeLimits(50_000_000, 25_000_000, 16_384, max_jpeg_megapixel_scans=38), ImageTooComplex),
    ],
)
def test_limits_hold(limits: DecodeLimits, error: type[ServiceError]) -> None:
    """An image over a limit by the size that its file says is refused, however small it would be decoded."""
    with pytest.raises(error):
        decode(file("progressive JPEG"), RESNET50, limits, "fast")


@pytest.mark.parametrize("code", [0x00, 0x01, 0x02, 0x7F, 0xBF, 0xC0, 0xC8, 0xD0, 0xD8, 0xD9, 0xDD, 0xF0])
@pytest.mark.parametrize("name", SMALL_PROGRESSIVE)
def test_a_marker_in_what_is_left_out_has_the_same_outcome(name: str, code: int) -> None:
    """A marker, or what is none, in the data of a scan that would be left out is met as in exact mode."""
    data = SMALL_PROGRESSIVE[name]
    assert refinements(data)
    for head in refinements(data):
        marked = data[: head + 12] + bytes([0xFF, code]) + data[head + 12 :]
        assert outcome(marked, "fast", THUMBNAIL, LIMITS) == outcome(marked, "exact", THUMBNAIL, LIMITS)


def test_wrong_codes_in_what_is_left_out_do_not_show() -> None:
    """Damage that libjpeg takes for other pixels changes exact mode's, and not those of a file whose scan is left
    out."""
    data = SMALL_PROGRESSIVE["4:4:4"]
    at = refinements(data)[-1] + 12
    wrong = data[:at] + bytes(byte ^ 0x2A for byte in data[at : at + 40]) + data[at + 40 :]
    assert refined(wrong) == refined(data)
    whole = Preprocessing(None, (48, 64), Interpolation.BILINEAR, RESNET50.mean, RESNET50.std)
    assert largest_difference(decode(data, whole, LIMITS), decode(wrong, whole, LIMITS)) > 0
    assert np.array_equal(decode(data, THUMBNAIL, LIMITS, "fast"), decode(wrong, THUMBNAIL, LIMITS, "fast"))


@st.composite
def marked(draw: st.DrawFn, original: bytes) -> bytes:
    """A marker, or what is none, put into a scan of `original` or over what is there, and other damage or none."""
    at = draw(st.integers(original.index(b"\xff\xda"), len(original)))
    code = bytes([0xFF, draw(st.integers(0, 255))])
    data = original[:at] + code + original[at + draw(st.sampled_from([0, 2])) :]
    return draw(damaged(data)) if draw(st.booleans()) else data


def has_the_same_outcome(data: bytes) -> None:
    limits = DecodeLimits(4_000_000, 4_000_000, LIMITS.max_side)
    assert outcome(data, "fast", THUMBNAIL, limits) == outcome(data, "exact", THUMBNAIL, limits)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SEEDS).flatmap(damaged))
def test_damaged_files_have_the_same_errors(data: bytes) -> None:
    """A valid file with damage anywhere gives pixels in both modes, or the same error."""
    has_the_same_outcome(data)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SMALL_PROGRESSIVE.values())).flatmap(lambda data: st.one_of(damaged(data), marked(data))))
def test_damaged_progressive_files_have_the_same_errors(data: bytes) -> None:
    """And so does a progressive one, whether or not the damage is where data is left out."""
    has_the_same_outcome(data)


@pytest.mark.parametrize("name", SMALL_PROGRESSIVE)
def test_what_is_damaged_here_would_be_left_out(name: str) -> None:
    """The small files are decoded so much smaller that data is left out of them."""
    data = SMALL_PROGRESSIVE[name]
    with JpegImageFile(io.BytesIO(data)) as image:
        assert fast.shrink_jpeg(image, 1, THUMBNAIL) >= fast.REFINED_BELOW
    assert len(refined(data)) < len(data)
