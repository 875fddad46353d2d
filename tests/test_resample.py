"""The compiled resize: Pillow's own pixels, whatever the size, and Pillow itself where there is no compiler."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.checkpoints import published_resnet50_preprocessing
from app.images import decode, geometry, kernel_build, resample
from app.images.kernel import Axis, Kernel
from app.types import Interpolation, Preprocessing
from tests import images_made as made
from tests.images_made import photo
from tests.photos import LIMITS, encode

RESNET50 = published_resnet50_preprocessing()
FILTERS = [resampling for each, resampling in geometry.FILTERS.items() if each is not Interpolation.NEAREST]

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module", params=["resample", "resample_portable"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The kernel, built here; and the one for processors that are not known to it."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    library = kernel_build.build_library(tmp_path_factory.mktemp("library"))
    return Kernel(ctypes.CDLL(str(library)), request.param)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing is remembered of which kernel can be used, before or after."""
    resample.usable_kernel.cache_clear()
    yield
    resample.usable_kernel.cache_clear()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 65_537 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@needs_compiler
def test_the_installed_kernel_is_used() -> None:
    """Where there was a compiler, installing this package has built the kernel, and it gives Pillow's pixels."""
    assert kernel_build.library_path().exists()
    assert resample.usable_kernel() is not None


@contextmanager
def using(compiled: Kernel) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "usable_kernel", lambda: compiled)
        yield


def may_be_pillows(old: tuple[int, int], new: tuple[int, int], shown: tuple[float, float]) -> bool:
    """Whether resizing what is `shown` of an image may be left to Pillow: few pixels, or columns before rows."""
    is_tiny = min(old) < 2 * 3 * max(shown[0] / new[0], shown[1] / new[1], 1) + 6
    return is_tiny or old[1] - new[1] > 2 * (old[0] - new[0])


sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
new_sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))


@settings(deadline=None, max_examples=400)
@given(st.data(), sizes, new_sizes, st.sampled_from(FILTERS))
def test_any_part_of_any_resize_is_pillows(
    compiled: Kernel, data: st.DataObject, old: tuple[int, int], new: tuple[int, int], resampling: Image.Resampling
) -> None:
    """Of noise, which shows every weight: bit for bit what resizing everything and cropping gives."""
    left, top = (data.draw(st.integers(0, side - 1)) for side in new)
    box = left, top, data.draw(st.integers(left + 1, new[0])), data.draw(st.integers(top + 1, new[1]))
    image = noise(*old)
    with using(compiled):
        part = resample.resized_part(image, new, box, resampling)
    if part is None:
        assert old == new or may_be_pillows(old, new, old)
    else:
        assert np.array_equal(part, np.asarray(image.resize(new, resampling).crop(box)))


@settings(deadline=None, max_examples=400)
@given(st.data(), st.tuples(st.integers(20, 900), st.integers(20, 900)), new_sizes, st.sampled_from(FILTERS))
def test_a_window_between_pixels_is_pillows(
    compiled: Kernel, data: st.DataObject, old: tuple[int, int], new: tuple[int, int], resampling: Image.Resampling
) -> None:
    """What fast mode resizes: bit for bit what Pillow makes of the same `box`."""
    left, top = (data.draw(st.floats(0, side - 9)) for side in old)
    window = left, top, data.draw(st.floats(left + 5, old[0])), data.draw(st.floats(top + 5, old[1]))
    image = noise(*old)
    with using(compiled):
        part = resample.resized_window(image, new, window, resampling)
    if part is None:
        assert may_be_pillows(old, new, (window[2] - left, window[3] - top))
    else:
        assert np.array_equal(part, np.asarray(image.resize(new, resampling, box=window)))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1300, 1000), (1000, 1300), (2700, 2100), (5000, 600)])
def test_a_photo_decoded_smaller_has_the_same_pixels_without_the_kernel(
    size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fast mode too, where a JPEG is decoded at a part of its size."""
    data = encode(photo("coffee").resize(size), "JPEG", quality=90, exif=made.exif_orientation(orientation))
    pixels = decode(data, RESNET50, LIMITS, "fast")
    monkeypatch.setattr(resample, "usable_kernel", lambda: None)
    assert np.array_equal(decode(data, RESNET50, LIMITS, "fast"), pixels)


@settings(deadline=None, max_examples=150)
@given(st.integers(30, 2000), st.integers(30, 2000), st.sampled_from([224, 256, 232, 64]), st.sampled_from([224, 64]))
def test_every_crop_is_the_references(compiled: Kernel, width: int, height: int, short: int, crop: int) -> None:
    """Whoever resizes: the short side to a size, then the centre, for photos of any shape."""
    preprocessing = Preprocessing(short, (crop, crop), RESNET50.interpolation, RESNET50.mean, RESNET50.std)
    image = noise(width, height)
    with using(compiled):
        pixels = geometry.cropped_pixels(image, preprocessing)
    assert np.array_equal(pixels, np.asarray(geometry.resize_and_crop(image, preprocessing)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 480), (300, 900), (900, 300), (224, 224), (256, 400)])
def test_a_photo_has_the_same_pixels_without_the_kernel(
    size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was installed without a compiler answers the same."""
    data = encode(photo("chelsea").resize(size), "JPEG", quality=90, exif=made.exif_orientation(orientation))
    pixels = decode(data, RESNET50, LIMITS)
    monkeypatch.setattr(resample, "usable_kernel", lambda: None)
    assert np.array_equal(decode(data, RESNET50, LIMITS), pixels)


@needs_compiler
@pytest.mark.parametrize("size", [(500, 375), (480, 640), (1080, 1920), (4000, 3000), (640, 480), (1, 5000)])
def test_photos_are_resized_by_the_kernel(size: tuple[int, int]) -> None:
    """Of every usual shape, also of one that Pillow would keep in more than one block; not of a line."""
    preprocessing = RESNET50
    resized, box = geometry.resized_and_crop_box(size, preprocessing)
    part = resample.resized_part(Image.new("RGB", size), resized, box, Image.Resampling.BILINEAR)
    assert (part is None) == (size == (1, 5000))


def test_fast_is_exact_where_nothing_is_decoded_smaller() -> None:
    """A JPEG that is less than twice as large as its crop needs has the exact pixels in fast mode too."""
    if resample.usable_kernel() is None:
        pytest.skip("there is no C compiler")
    data = encode(photo("coffee").resize((500, 375)), "JPEG", quality=90)
    assert np.array_equal(decode(data, RESNET50, LIMITS, "fast"), decode(data, RESNET50, LIMITS, "exact"))


# Source and result each end where the process's memory does: one byte more, and it is ended by a signal.
EDGES = """
import ctypes, mmap, sys
import numpy as np
from PIL import Image
from app.images.kernel import _Axis
from app.images.resample import axis_of
library, name = sys.argv[1:]
call = ctypes.CDLL(library)[name]
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def ending_where_memory_ends(size):
    page = mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + pages * page), ctypes.c_size_t(page), 0) == 0
    return start + pages * page - size
for filter in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
    sizes = (67, 53, 40, 31), (67, 53, 66, 53), (64, 64, 17, 15), (40, 40, 99, 98)
    for width, height, new_width, new_height in sizes:
        for first in (0, 3):
            x = axis_of(width, (0, width), new_width, first, new_width, filter)
            y = axis_of(height, (0, height), new_height, 0, new_height, filter)
            source = ending_where_memory_ends(width * height * 4)
            pixels = np.random.default_rng(1).integers(0, 256, (height, width, 4), np.uint8)
            ctypes.memmove(source, pixels.ctypes.data, pixels.nbytes)
            size = (new_width - first) * new_height * 3
            result = ending_where_memory_ends(size)
            rest = ctypes.c_void_p(source), ctypes.c_ssize_t(4 * width)
            assert call(*rest, ctypes.byref(_Axis.of(x)), ctypes.byref(_Axis.of(y)), ctypes.c_void_p(result)) == 0
            whole = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).resize((new_width, new_height), filter)
            assert ctypes.string_at(result, size) == whole.crop((first, 0, new_width, new_height)).tobytes()
"""


@needs_compiler
@pytest.mark.parametrize("function", ["resample", "resample_portable"])
def test_not_a_byte_beyond_is_touched(function: str, tmp_path: Path) -> None:
    """Neither behind the source's last pixel nor behind the result's."""
    library = kernel_build.build_library(tmp_path)
    done = subprocess.run([sys.executable, "-c", EDGES, str(library), function], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_a_kernel_that_is_wrong_is_not_used(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that rounds otherwise than this Pillow (here: down) is found out before the first photo, and said."""
    other = tmp_path / "resample.c"
    other.write_text(kernel_build.SOURCE.read_text().replace("#define HALF (1 << (WEIGHT_BITS - 1))", "#define HALF 0"))
    monkeypatch.setattr(kernel_build, "SOURCE", other)
    assert kernel_build.library_path(tmp_path) == kernel_build.build_library(tmp_path)
    monkeypatch.setattr(kernel_build, "library_path", lambda: next(tmp_path.glob("resample-*.so")))
    with caplog.at_level(logging.WARNING):
        assert resample.usable_kernel() is None
    assert "does not give this Pillow's pixels" in caplog.text


def test_a_library_of_another_machine_is_not_used(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be loaded is said, and Pillow resizes."""
    library = tmp_path / "resample-0.so"
    library.write_bytes(b"\x7fELF of another kind")
    monkeypatch.setattr(kernel_build, "library_path", lambda: library)
    with caplog.at_level(logging.WARNING):
        assert resample.usable_kernel() is None
    assert "Pillow resizes images" in caplog.text


def test_a_library_of_an_older_source_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Its name is that of its source: after an update that was not installed, Pillow resizes."""
    (tmp_path / "resample-000000000000.so").touch()
    assert not kernel_build.library_path(tmp_path).exists()


@needs_compiler
def test_a_new_library_replaces_the_old(tmp_path: Path) -> None:
    """What an older source left goes, and nothing else stays."""
    (tmp_path / "resample-000000000000.so").touch()
    assert kernel_build.build_library(tmp_path) == kernel_build.library_path(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [kernel_build.library_path(tmp_path).name]


@pytest.mark.parametrize("compiler", ["false", "/nowhere/cc --fast"])
def test_without_a_compiler_nothing_is_left_behind(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building says why it could not, and leaves no file."""
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(kernel_build.NoCompiler, match=compiler.split()[0]):
        kernel_build.build_library(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_reach_outside_are_refused() -> None:
    """The kernel checks nothing, so what it is given is checked before."""
    weights = np.ones((2, 3), np.int32)
    for starts in ([-1, 0], [0, 8], [1, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="outside"):
            Axis(10, np.array(starts, np.int32), weights)


def test_an_image_of_another_size_is_refused(compiled: Kernel) -> None:
    """Weights are for one size and for RGB."""
    x, y = (resample.axis_of(64, (0, 64), 32, 0, 32, Image.Resampling.BILINEAR) for _ in range(2))
    assert x is not None
    assert y is not None
    for image in (Image.new("RGB", (64, 63)), Image.new("RGB", (63, 64)), Image.new("L", (64, 64))):
        with pytest.raises(ValueError, match="another image"):
            compiled.resample(image, x, y)


def test_an_image_in_several_pieces_is_left_to_pillow(compiled: Kernel) -> None:
    """What Pillow keeps in blocks that do not follow each other is not read."""
    before = Image.core.get_block_size()  # type: ignore[attr-defined]
    try:
        Image.core.set_block_size(65_536)  # type: ignore[attr-defined]
        image = Image.new("RGB", (500, 375))
    finally:
        Image.core.set_block_size(before)  # type: ignore[attr-defined]
    x = resample.axis_of(500, (0, 500), 341, 58, 282, Image.Resampling.BILINEAR)
    y = resample.axis_of(375, (0, 375), 256, 16, 240, Image.Resampling.BILINEAR)
    assert x is not None
    assert y is not None
    assert compiled.resample(image, x, y) is None


def test_building_needs_the_standard_library_alone() -> None:
    """It runs before anything is installed, by its path, as hatch_build.py runs it, and names the same library."""
    code = f"import runpy; print(runpy.run_path({str(kernel_build.__file__)!r})['library_path']())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == kernel_build.library_path()
