"""Exact and fast decoding against decoding the whole image: speed, and how close fast is to exact.

    python -m benchmarks.decode [--photos FOLDER] [--rounds 15]

The three sides take turns on each file, on one thread; figures are medians, and a ratio is the median of the rounds'
ratios. In the same way exact decoding with the compiled resize is compared with Pillow's, on the folder's photos as
they are. The large files are one photo, enlarged, with a sensor's noise: without it they would be smoother than a
camera's. The answers of the offline demo's EfficientNet-Lite0 show how close fast mode is. The photos are a folder's,
else those that scikit-image carries.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from app.backends import BackendOptions, create_backend
from app.bench.pace import in_turns, ratios, spread
from app.bench.photos import as_sent, carried_pictures, encoded
from app.checkpoints import open_checkpoint, published_resnet50_preprocessing
from app.images import DecodeLimits, decode, resample
from app.progress import LogReporter
from app.settings import Settings
from app.types import DecodeMode, Pixels, Want
from benchmarks.report import heading, options_of, photos_of, table

RESNET50 = published_resnet50_preprocessing()
MODES: tuple[DecodeMode, DecodeMode] = ("exact", "fast")
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)
TWELVE_MEGAPIXELS = (4000, 3000)
SENSOR_NOISE = 4.0


def pictures_of(folder: Path | None) -> list[Image.Image]:
    if folder is None:
        return carried_pictures()
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in photos_of(folder).bodies]


def from_a_camera(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    pixels += np.random.default_rng(0).normal(0, SENSOR_NOISE, pixels.shape).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def files(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    large = from_a_camera(photo, TWELVE_MEGAPIXELS)
    for quality in (80, 90, 95):
        yield f"JPEG, 12 megapixels, quality {quality}", encoded(large, quality=quality)
        yield f"JPEG, 12 megapixels, quality {quality}, progressive", encoded(large, quality=quality, progressive=True)
    yield "PNG, 12 megapixels", encoded(large, "PNG", compress_level=1)
    yield "JPEG, 500×375", as_sent(photo, quality=90)


def everything(data: bytes) -> Pixels:
    """The whole image, as most services decode it: torchvision's transforms with Pillow."""
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


def compiled_and_pillow(data: list[bytes], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds an image in each round: exact mode with the compiled resize, and with Pillow's."""

    def exact() -> None:
        for each in data:
            decode(each, RESNET50, LIMITS)

    def with_pillow() -> None:
        with patch.object(resample, "usable_kernel", lambda: None):
            exact()

    taken = in_turns({"compiled": exact, "Pillow": with_pillow}, rounds)
    compiled, pillow = ([seconds / len(data) for seconds in side] for side in taken.values())
    return compiled, pillow


class Nearness:
    """The difference between the modes in the answers of a real network."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(Settings(weights="offline-demo"), LogReporter(), lambda: False)
        self._preprocessing = checkpoint.preprocessing
        self._backend = create_backend("auto", checkpoint, BackendOptions("cpu", "float32", 1))

    def row(self, data: list[bytes]) -> tuple[str, ...]:
        """Over many files: how many first classes agree, and how far probabilities and pixels differ."""
        same, changes, differences = 0, [], []
        for each in data:
            exact, fast = (decode(each, self._preprocessing, LIMITS, mode) for mode in MODES)
            outputs = self._backend.infer(np.stack([exact, fast]), Want.SCORES)
            exponentials = np.exp(outputs.scores.astype(np.float64) - outputs.scores.max(axis=1, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
            same += int(probabilities[0].argmax() == probabilities[1].argmax())
            changes.append(float(np.abs(probabilities[0] - probabilities[1]).max()))
            differences.append(int(np.abs(exact.astype(int) - fast).max()))
        probability = f"{statistics.mean(changes):.4f}", f"{max(changes):.4f}"
        return f"{same} of {len(data)}", *probability, f"{statistics.mean(differences):.1f}", str(max(differences))


def guises(pictures: list[Image.Image]) -> Iterator[tuple[str, list[bytes]]]:
    """The photos as they are, and as files that are decoded at 1/2, 1/4 and 1/8 (of the largest only some)."""
    yield f"{len(pictures)} as they are", [encoded(each, quality=90) for each in pictures]
    for short, divisor, count in ((1300, 2, None), (2600, 4, None), (4800, 8, 8)):
        for progressive in (False, True):
            data = []
            for each in pictures[:count]:
                scale = short / min(each.size)
                large = from_a_camera(each, (round(each.width * scale), round(each.height * scale)))
                data.append(encoded(large, quality=90, progressive=progressive))
            kind = ", progressive" if progressive else ""
            yield f"{len(data)} with a short side of {short}: decoded at 1/{divisor}{kind}", data


def speeds(picture: Image.Image, rounds: int) -> str:
    rows = []
    for name, data in files(picture):
        taken = in_turns({side: partial(decoded, data) for side, decoded in SIDES.items()}, rounds)
        times = [f"{statistics.median(each) * 1e3:.1f}" for each in taken.values()]
        rows.append((name, f"{len(data):,}", *times, spread(ratios(taken["everything"], taken["fast"]))))
    columns = ("file", "bytes", "everything, ms", "exact, ms", "fast, ms", "fast, times as fast as everything")
    return table(columns, rows)


def resizes(folder: Path, rounds: int) -> str:
    stored = photos_of(folder).bodies
    compiled, pillow = compiled_and_pillow(list(stored), rounds)
    return (
        f"{len(stored)} photos as they are stored, exact: {statistics.median(compiled) * 1e3:.2f} ms an image; with "
        f"Pillow's resize {statistics.median(pillow) * 1e3:.2f}: the compiled one makes decoding "
        f"{spread(ratios(pillow, compiled))} times as fast."
    )


def main() -> None:
    options = options_of(__doc__, photos=True, rounds=15).parse_args()
    pictures = pictures_of(options.photos)
    print(heading(f"Medians of {options.rounds} rounds, on one thread."))
    print(speeds(pictures[0], options.rounds))
    if options.photos is not None and resample.usable_kernel() is not None:
        print(f"\n{resizes(options.photos, options.rounds)}")
    nearness = Nearness()
    print(f"\nFast against exact, {len(pictures)} photos, the offline demo's EfficientNet-Lite0.\n")
    changes = ("change of a probability, mean of the largest", "largest")
    columns = ("photos", "same first class", *changes, "difference of a pixel, mean of the largest", "largest")
    print(table(columns, [(name, *nearness.row(data)) for name, data in guises(pictures)]))


if __name__ == "__main__":
    main()
