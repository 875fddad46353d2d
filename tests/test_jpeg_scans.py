"""JPEGs that cost more than their size says: counted by their markers, refused before a pixel is decoded."""

from __future__ import annotations

import time

import pytest

from app.checkpoints import published_resnet50_preprocessing
from app.errors import ImageCorrupt, ImageTooComplex
from app.images import DecodeLimits, decode
from app.images.jpeg_markers import MAX_SEGMENTS
from app.images.jpeg_scans import count_scans
from tests import images_made as made
from tests.images_made import decoded, noise, photo
from tests.photos import LIMITS, encode

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

RESNET50 = published_resnet50_preprocessing()
MANY = 1_000_000
PHOTO = photo()
PROGRESSIVE = encode(PHOTO, "JPEG", progressive=True)
BASELINE = encode(PHOTO, "JPEG")


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """49 megapixels in 1,000 scans: half a minute of decoding."""
    return made.scan_bomb((7000, 7000), 1000)


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body


def best_seconds(data: bytes) -> float:
    """The shortest of a few counts: other work on the machine only ever makes it longer."""
    times = []
    for _ in range(5):
        began = time.process_time()
        count_scans(data, LIMITS.max_jpeg_scans)
        times.append(time.process_time() - began)
    return min(times)


@pytest.mark.parametrize(
    ("data", "scans"),
    [
        (BASELINE, 1),
        (encode(PHOTO.convert("CMYK"), "JPEG"), 1),
        (encode(PHOTO, "JPEG", restart_marker_blocks=2), 1),
        (encode(noise((300, 300)), "JPEG", quality=100), 1),
        (PROGRESSIVE, 10),
        (encode(PHOTO.convert("L"), "JPEG", progressive=True), 6),
        (encode(PHOTO, "JPEG", progressive=True, restart_marker_blocks=3), 10),
        (made.scan_bomb((64, 64), 77), 77),
        (b"", 0),
        (b"\xff\xd8\xff", 0),
    ],
    ids=["baseline", "CMYK", "restarts", "noise", "progressive", "grey", "both", "bomb", "empty", "signature"],
)
def test_scans_are_counted(data: bytes, scans: int) -> None:
    """Each kind of JPEG has the scans that its encoder wrote, restart markers and levels of 255 notwithstanding."""
    assert count_scans(data, MANY) == scans


def scans_of(data: bytes) -> tuple[bytes, bytes]:
    """What is in front of the one scan of a JPEG, and the scan."""
    begins = data.rindex(b"\xff\xda")
    return data[:begins], data[begins:-2]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("cut", [None, 40])
def test_behind_a_scan_of_everything_nothing_is_decoded(mode: str, cut: int | None) -> None:
    """A sequential file whose first scan has all components counts as one, for libjpeg gives up at a second."""
    head, scan = scans_of(encode(PHOTO.convert(mode), "JPEG"))
    data = head + scan[:cut] + scan * 100 + b"\xff\xd9"
    assert count_scans(data, MANY) == 1
    with pytest.raises(ImageCorrupt):
        decode(data, RESNET50, LIMITS)


@pytest.mark.parametrize("progressive", [False, True])
def test_scans_of_a_part_are_all_counted(progressive: bool) -> None:
    """A sequential file of a scan for each component is decoded in as many passes, and a progressive one in all."""
    head, scan = scans_of(encode(PHOTO, "JPEG"))
    frame = head.index(b"\xff\xc0")
    if progressive:
        head = head[: frame + 1] + b"\xc2" + head[frame + 2 :]
    else:
        # A fourth component, which the scan does not have.
        length = int.from_bytes(head[frame + 2 : frame + 4], "big")
        ends = frame + 2 + length
        more = (length + 3).to_bytes(2, "big") + head[frame + 4 : frame + 9] + b"\x04"
        head = head[: frame + 2] + more + head[frame + 10 : ends] + b"\x04\x11\x00" + head[ends:]
    assert count_scans(head + scan * 70 + b"\xff\xd9", MANY) == 70
    with pytest.raises(ImageTooComplex):
        decode(head + scan * 70 + b"\xff\xd9", RESNET50, LIMITS)


def test_a_second_frame_is_not_believed() -> None:
    """Where a sequential frame and another precede the scans, all of them count."""
    head, scan = scans_of(BASELINE)
    frame = head.index(b"\xff\xc0")
    length = int.from_bytes(head[frame + 2 : frame + 4], "big")
    twice = head[: frame + 2 + length] + head[frame:]
    assert count_scans(twice + scan * 70, MANY) == 70


def test_pictures_in_metadata_do_not_count() -> None:
    """A thumbnail, or anything that looks like a scan, inside a segment is skipped with it."""
    thumbnail = encode(PHOTO.resize((64, 48)), "JPEG", progressive=True)
    inside = segment(0xE1, thumbnail) + segment(0xFE, b"\xff\xda" * 1000) + segment(0xE2, b"\xff\xd9")
    data = BASELINE[:2] + inside + BASELINE[2:]
    assert count_scans(data, MANY) == 1
    assert decoded(data).shape == (224, 224, 3)


def test_only_the_first_picture_of_an_mpo_counts() -> None:
    """What a phone put behind the first picture is never decoded, and never counted."""
    data = encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(90)], progressive=True)
    assert count_scans(data, MANY) == 10
    assert count_scans(PROGRESSIVE + made.scan_bomb((64, 64), 500), MANY) == 10


@pytest.mark.parametrize("hiding_place", [b"\xff\x02\xff\xff", b"\xff\x01\xff\xff", b"\xff\xd0\xff\xff", b"\xff\xff"])
def test_scans_cannot_hide_behind_bytes_that_decoders_skip(hiding_place: bytes) -> None:
    """Where libjpeg looks for a restart it passes over odd markers without their segment; so does the count."""
    bomb = made.scan_bomb((64, 64), 200)
    first_scan = bomb.index(b"\xff\xda")
    hidden = bomb[: first_scan + 14] + hiding_place + bomb[first_scan + 14 :]
    assert count_scans(hidden, MANY) >= 199


def test_a_scan_bomb_is_refused_at_once(bomb: bytes) -> None:
    """A thousand scans in a few hundred kilobytes are refused by name, without decoding one."""
    assert len(bomb) < 300_000
    assert count_scans(bomb, MANY) == 1000
    assert best_seconds(bomb) < 0.05
    began = time.process_time()
    with pytest.raises(ImageTooComplex, match="64") as refusal:
        decoded(bomb)
    assert time.process_time() - began < 1
    assert (refusal.value.status, refusal.value.code) == (422, "image_too_complex")


def test_without_the_limit_the_scans_cost_seconds() -> None:
    """The bomb is a real one: with the limits raised, 300 scans of 4 megapixels take ten times what 6 scans take."""
    raised = DecodeLimits(10**8, 10**8, 10**5, max_jpeg_scans=MANY, max_jpeg_megapixel_scans=1e9)
    seconds = []
    for scans in (6, 300):
        began = time.process_time()
        decode(made.scan_bomb((2000, 2000), scans), RESNET50, raised)
        seconds.append(time.process_time() - began)
    assert seconds[1] > 5 * seconds[0]
    assert seconds[1] > 0.3


@pytest.mark.parametrize(("scans", "allowed"), [(12, True), (13, False)])
def test_area_times_scans_has_a_limit(scans: int, allowed: bool) -> None:
    """A picture may have as many scans as its area leaves, and not one more."""
    limits = DecodeLimits(10**6, 10**6, 10**4, max_jpeg_scans=64, max_jpeg_megapixel_scans=0.12)
    data = made.scan_bomb((100, 100), scans)
    if allowed:
        assert decode(data, RESNET50, limits).shape == (224, 224, 3)
    else:
        with pytest.raises(ImageTooComplex, match=r"100×100 in 13 scans.*0\.12"):
            decode(data, RESNET50, limits)


@pytest.mark.parametrize(("scans", "allowed"), [(64, True), (65, False)])
def test_the_number_of_scans_has_a_limit(scans: int, allowed: bool) -> None:
    """64 scans are decoded and 65 are not, however small the picture is."""
    data = made.scan_bomb((16, 16), scans)
    if allowed:
        assert decoded(data).shape == (224, 224, 3)
    else:
        with pytest.raises(ImageTooComplex):
            decoded(data)


def test_a_large_progressive_photo_is_decoded() -> None:
    """The largest photo that is let in may be progressive, with the ten scans that encoders write."""
    data = encode(PHOTO.resize((8160, 6120)), "JPEG", progressive=True, quality=75)
    assert count_scans(data, MANY) == 10
    assert decoded(data).shape == (224, 224, 3)


def test_counting_costs_little() -> None:
    """Ten megabytes of picture are searched in milliseconds, and so are bytes that are made to be slow."""
    quarter = encode(noise((1500, 1500)), "JPEG", quality=95)
    photo_of_10_mb = quarter + quarter[len(BASELINE) : -2] * (10_000_000 // len(quarter))
    assert best_seconds(photo_of_10_mb.replace(b"\xff\xd9", b"\xff\x00")) < 0.05
    assert best_seconds(b"\xff\xd8" + b"\xff\x01" * 5_000_000) < 1
    assert best_seconds(b"\xff" * 10_000_000) < 1


@pytest.mark.parametrize("piece", [b"\xff\xe1\0\2", b"\xff\xd8", b"\xff\xe1\0\0"])
def test_millions_of_segments_are_refused(piece: bytes) -> None:
    """A file of segments and nothing else, which would keep Pillow's reader busy for seconds, is refused."""
    data = b"\xff\xd8\xff\xe0\0\2" + piece * 2_000_000
    began = time.process_time()
    with pytest.raises(ImageTooComplex, match="segments"):
        decoded(data)
    assert time.process_time() - began < 1


def test_ordinary_metadata_is_far_below_the_limit() -> None:
    """A photo with as many segments as an ICC profile may have is decoded."""
    data = BASELINE[:2] + segment(0xED, b"x" * 100) * 300 + BASELINE[2:]
    assert MAX_SEGMENTS > 300
    assert decoded(data).shape == (224, 224, 3)


def test_a_bomb_behind_a_truncated_head_is_no_jpeg() -> None:
    """Half a bomb is refused too, as too complex or as corrupt, and not as a fault of the server."""
    bomb = made.scan_bomb((64, 64), 500)
    with pytest.raises(ImageTooComplex):
        decoded(bomb[: len(bomb) // 2])


def test_other_formats_have_no_scans() -> None:
    """Bytes that look like scans in a PNG's pixels are pixels."""
    rows = [b"\xff\xda" * 150] * 300
    assert decoded(made.png(100, 300, 8, made.RGB, rows)).shape == (224, 224, 3)
