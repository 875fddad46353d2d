"""Exact and fast decoding against decoding everything and then resizing: their speed, and how near fast is to exact.

    python -m benchmarks.decode [--photos FOLDER] [--rounds 15]

The three sides take turns on each file, on one thread; what is printed are medians, and the median of each round's own
ratio. So do exact decoding and the same with Pillow's resize in the compiled one's place, on the folder's photos as
they are. The large files are one photo, enlarged, with the noise that a sensor adds: without it they would be smoother
than a camera's. How near fast mode is says a real network, the offline demo's EfficientNet-Lite0. The photos are a
folder's, else those that scikit-image carries.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import skimage.data
from PIL import Image

from app.backends import BackendOptions, create_backend
from app.checkpoints import open_checkpoint, published_resnet50_preprocessing
from app.images import DecodeLimits, decode, resample
from app.progress import LogReporter
from app.settings import Settings
from app.types import DecodeMode, Pixels, Want
from benchmarks.machine import describe

RESNET50 = published_resnet50_preprocessing()
MODES: tuple[DecodeMode, DecodeMode] = ("exact", "fast")
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)
TWELVE_MEGAPIXELS = (4000, 3000)
SENSOR_NOISE = 4.0
_JPEGS = (".jpeg", ".jpg")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")


def photos(folder: Path | None) -> list[Image.Image]:
    if folder is None:
        return [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOS]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpeg", ".jpg", ".png"))
    return [Image.open(file).convert("RGB") for file in files]


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def from_a_camera(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    pixels += np.random.default_rng(0).normal(0, SENSOR_NOISE, pixels.shape).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def files(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    large = from_a_camera(photo, TWELVE_MEGAPIXELS)
    for quality in (80, 90, 95):
        yield f"JPEG, 12 megapixels, quality {quality}", encode(large, quality=quality)
        yield f"JPEG, 12 megapixels, quality {quality}, progressive", encode(large, quality=quality, progressive=True)
    yield "PNG, 12 megapixels", encode(large, "PNG", compress_level=1)
    yield "JPEG, 500×375", encode(photo.resize((500, 375), Image.Resampling.LANCZOS), quality=90)


def everything(data: bytes) -> Pixels:
    """What most services do: torchvision's road in Pillow's terms."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    size = (256, 256 * height // width) if width < height else (256 * width // height, 256)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    small = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(small.crop((left, top, left + 224, top + 224)))


SIDES: dict[str, Callable[[bytes], Pixels]] = {
    "everything": everything,
    "exact": lambda data: decode(data, RESNET50, LIMITS, "exact"),
    "fast": lambda data: decode(data, RESNET50, LIMITS, "fast"),
}


def seconds_of(data: bytes, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(rounds + 1):
        for name, side in SIDES.items():
            began = time.perf_counter()
            side(data)
            if number:  # the first round warms up
                found[name].append(time.perf_counter() - began)
    return found


def compiled_and_pillow(data: list[bytes], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds that an image takes in each round: exact mode as it is, and with Pillow's resize."""
    found: tuple[list[float], list[float]] = ([], [])
    pillows = patch.object(resample, "usable_kernel", lambda: None)
    for number in range(rounds + 1):
        for side, seconds in enumerate(found):
            if side:
                pillows.start()
            began = time.perf_counter()
            for each in data:
                decode(each, RESNET50, LIMITS)
            took = (time.perf_counter() - began) / len(data)
            if side:
                pillows.stop()
            if number:  # the first round warms up
                seconds.append(took)
    return found


class Nearness:
    """What of a real network's answers changes between the modes."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(Settings(weights="offline-demo"), LogReporter(), lambda: False)
        self._preprocessing = checkpoint.preprocessing
        self._backend = create_backend("auto", checkpoint, BackendOptions("cpu", "float32", 1))

    def row(self, data: list[bytes]) -> str:
        """Over many files: first classes that agree, and how far probabilities and pixels differ."""
        same, changes, differences = 0, [], []
        for each in data:
            exact, fast = (decode(each, self._preprocessing, LIMITS, mode) for mode in MODES)
            outputs = self._backend.infer(np.stack([exact, fast]), Want.SCORES)
            exponentials = np.exp(outputs.scores.astype(np.float64) - outputs.scores.max(axis=1, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
            same += int(probabilities[0].argmax() == probabilities[1].argmax())
            changes.append(float(np.abs(probabilities[0] - probabilities[1]).max()))
            differences.append(int(np.abs(exact.astype(int) - fast).max()))
        return (
            f"{same} of {len(data)} | {statistics.mean(changes):.4f} | {max(changes):.4f} | "
            f"{statistics.mean(differences):.1f} | {max(differences)}"
        )


def guises(pictures: list[Image.Image]) -> Iterator[tuple[str, list[bytes]]]:
    """The photos as they are, and as files that are decoded at 1/2, 1/4 and 1/8; of the largest only some."""
    yield f"{len(pictures)} as they are", [encode(each, quality=90) for each in pictures]
    for short, divisor, count in ((1300, 2, None), (2600, 4, None), (4800, 8, 8)):
        for progressive in (False, True):
            data = []
            for each in pictures[:count]:
                scale = short / min(each.size)
                large = from_a_camera(each, (round(each.width * scale), round(each.height * scale)))
                data.append(encode(large, quality=90, progressive=progressive))
            kind = ", progressive" if progressive else ""
            yield f"{len(data)} with a short side of {short}: decoded at 1/{divisor}{kind}", data


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, help="a folder; without it, scikit-image's photos")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    pictures = photos(options.photos)
    write(f"{describe('torch')}\nMedians of {options.rounds} rounds, on one thread.\n\n")
    write("| file | bytes | everything, ms | exact, ms | fast, ms | fast, times as fast as everything |\n")
    write("| --- | --- | --- | --- | --- | --- |\n")
    for name, data in files(pictures[0]):
        found = seconds_of(data, options.rounds)
        times = " | ".join(f"{statistics.median(each) * 1e3:.1f}" for each in found.values())
        ratios = [slow / quick for slow, quick in zip(found["everything"], found["fast"], strict=True)]
        low, high = min(ratios), max(ratios)
        write(f"| {name} | {len(data):,} | {times} | {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f}) |\n")
    if options.photos is not None and resample.usable_kernel() is not None:
        stored = [file.read_bytes() for file in sorted(options.photos.iterdir()) if file.suffix.lower() in _JPEGS]
        compiled, pillows = compiled_and_pillow(stored, options.rounds)
        ratios = [slow / quick for quick, slow in zip(compiled, pillows, strict=True)]
        write(
            f"\n{len(stored)} photos as they are stored, exact: {statistics.median(compiled) * 1e3:.2f} ms an image; "
            f"with Pillow's resize {statistics.median(pillows) * 1e3:.2f}: the compiled one makes decoding "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f}–{max(ratios):.2f}).\n"
        )
    nearness = Nearness()
    write(f"\nFast against exact, {len(pictures)} photos, the offline demo's EfficientNet-Lite0.\n\n")
    write("| photos | same first class | change of a probability, mean of the largest | largest |")
    write(" difference of a pixel, mean of the largest | largest |\n| --- | --- | --- | --- | --- | --- |\n")
    for name, data in guises(pictures):
        write(f"| {name} | {nearness.row(data)} |\n")


if __name__ == "__main__":
    main()
