"""Decoding JPEGs on the card against the CPU: images a second, and how far the answers agree.

    python -m benchmarks.gpu_decode [--device cuda] [--photos FOLDER] [--seconds 3]

The card alone, by the length of its lists; then both decoders as the service uses them, with 64 callers, in turns. How
far answers agree says a real network, the offline demo's EfficientNet-Lite0, which runs on the CPU for both. The photos
are a folder's, else those that scikit-image carries. With --device cpu it runs the same road with libjpeg in nvJPEG's
place, to try the program and not the speed: pixels and answers are then equal.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchvision.io  # noqa: F401  loads the operators
from PIL import Image

from app.agreement import compare, probabilities
from app.backends import BackendOptions, create_backend, open_jpeg_device
from app.backends.torch.devices import CpuDevice
from app.backends.torch.jpeg import TorchJpegs
from app.checkpoints import published_resnet50_preprocessing
from app.errors import StartError
from app.images import Decoder, decode
from app.images.device_images import DeviceImage, JpegDevice, device_image
from app.images.on_device import DeviceDecoder
from app.images.threads import ThreadDecoder
from app.loading import plan_decoding
from app.opening import LogReporter, open_checkpoint
from app.settings import Settings
from app.types import Pixels, Preprocessing, Want
from benchmarks.decode import LIMITS, TWELVE_MEGAPIXELS, encode, from_a_camera, photos

RESNET50 = published_resnet50_preprocessing()
LISTS = (1, 2, 4, 8, 16, 32)
CALLERS = 64
ROUNDS = 5
_RGB = 3


@dataclass
class DecodeReport:
    """Rates in images a second."""

    device: str = ""
    by_list: dict[str, dict[int, float]] = field(default_factory=dict)
    """By kind of file, of the card alone, by the length of the list."""
    by_decoder: dict[str, dict[str, float]] = field(default_factory=dict)
    """By kind of file, of each decoder with all callers."""
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    """By kind of file, how far pixels are apart."""
    agreement: dict[str, str] = field(default_factory=dict)


def open_device(name: str) -> JpegDevice:
    if name != "cpu":
        return open_jpeg_device(name)

    def read(files: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.ops.image.decode_jpeg(file, _RGB, False) for file in files]

    return TorchJpegs(CpuDevice(), read, "cpu (libjpeg)")


def kinds(folder: Path | None) -> dict[str, list[bytes]]:
    """Kind → files: photos as a client sends them, and as a camera keeps them."""
    some = photos(folder)
    return {
        "500×375": [encode(each.resize((500, 375), Image.Resampling.LANCZOS), quality=90) for each in some],
        "12 megapixels": [encode(from_a_camera(each, TWELVE_MEGAPIXELS), quality=90) for each in some[:4]],
    }


def wanted(files: list[bytes], preprocessing: Preprocessing) -> list[DeviceImage]:
    images = [device_image(data, preprocessing, LIMITS) for data in files]
    return [image for image in images if image is not None]


def rate_of_lists(device: JpegDevice, files: list[bytes], length: int, seconds: float) -> float:
    """The median of the rounds."""
    images = wanted(files, RESNET50)
    chosen = [images[number % len(images)] for number in range(length)]
    device.decode(chosen)
    found = []
    for _ in range(ROUNDS):
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() < began + seconds / ROUNDS:
            device.decode(chosen)
            count += length
        found.append(count / (time.perf_counter() - began))
    return statistics.median(found)


async def rate_of_decoder(decoder: Decoder, files: list[bytes], seconds: float) -> float:
    """With callers that each send one photo after the other."""
    counts = [0] * CALLERS
    until = time.monotonic() + seconds

    async def call(number: int) -> None:
        while time.monotonic() < until:
            await decoder.decode(files[(number + counts[number]) % len(files)], RESNET50, until + 60)
            counts[number] += 1

    began = time.monotonic()
    await asyncio.gather(*[call(number) for number in range(CALLERS)])
    return sum(counts) / (time.monotonic() - began)


async def rates_of_decoders(device: str, files: dict[str, list[bytes]], seconds: float) -> dict[str, dict[str, float]]:
    plan = plan_decoding(Settings())
    common = {"slots": plan.slots, "max_waiting": CALLERS, "timeout_seconds": 60.0}
    decoders: dict[str, Decoder] = {
        f"threads ({plan.slots})": ThreadDecoder(LIMITS, **common),  # type: ignore[arg-type]
        "gpu": DeviceDecoder(LIMITS, lambda: open_device(device), **common),  # type: ignore[arg-type]
    }
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in decoders} for kind in files}
    for decoder in decoders.values():
        await decoder.start()
    for kind, some in files.items():
        for decoder in decoders.values():
            await rate_of_decoder(decoder, some, 0.2)
        for _ in range(ROUNDS):
            for name, decoder in decoders.items():
                found[kind][name].append(await rate_of_decoder(decoder, some, seconds / ROUNDS))
    for decoder in decoders.values():
        await decoder.close()
    return {kind: {name: statistics.median(each) for name, each in row.items()} for kind, row in found.items()}


def compared(report: DecodeReport, device: JpegDevice, files: dict[str, list[bytes]]) -> None:
    """Pixels, and a real network's answers to them: the card's against the CPU's exact decode."""
    checkpoint = open_checkpoint(Settings(weights="offline-demo"), LogReporter(), lambda: False)
    network = create_backend("torch", checkpoint, BackendOptions("cpu", "float32"))

    def answers(pixels: list[Pixels]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        outputs = [network.infer(each[None], Want.SCORES) for each in pixels]
        return np.concatenate([probabilities(each.scores, each.kind) for each in outputs])

    for kind, some in files.items():
        exact = [decode(data, checkpoint.preprocessing, LIMITS) for data in some]
        found = [device.decode([image])[0] for image in wanted(some, checkpoint.preprocessing)]
        pairs = [(there, here) for there, here in zip(found, exact, strict=True) if there is not None]
        apart = [np.abs(there.astype(np.int16) - here) for there, here in pairs]
        report.levels[kind] = {
            "decoded": len(pairs),
            "of": len(some),
            "mean": float(np.mean([each.mean() for each in apart])),
            "most": float(max(each.max() for each in apart)),
        }
        there, here = (answers([pair[side] for pair in pairs]) for side in (0, 1))
        report.agreement[kind] = compare(here, there).describe()
    network.close()


def measure_decoding(device: str, folder: Path | None, seconds: float, say: Callable[[str], None]) -> DecodeReport:
    """Raises `StartError` where the device cannot decode."""
    files = kinds(folder)
    opened = open_device(device)
    report = DecodeReport(opened.name)
    say("Decoding: agreement")
    compared(report, opened, files)
    for kind, some in files.items():
        say(f"Decoding: lists, {kind}")
        report.by_list[kind] = {length: rate_of_lists(opened, some, length, seconds) for length in LISTS}
    opened.close()
    say("Decoding: decoders")
    report.by_decoder = asyncio.run(rates_of_decoders(device, files, seconds))
    return report


def write_decoding(report: DecodeReport, write: Callable[[str], object]) -> None:
    if not report.by_list:
        write(f"\nJPEGs decoded on the card: {report.device}\n")
        return
    write(f"\nJPEGs decoded on {report.device}, images a second by the length of the list\n")
    write(f"\n| file | {' | '.join(str(length) for length in LISTS)} |\n| --- |{' --- |' * len(LISTS)}\n")
    for kind, row in report.by_list.items():
        write(f"| {kind} | {' | '.join(f'{row[length]:,.0f}' for length in LISTS)} |\n")
    names = list(next(iter(report.by_decoder.values())))
    write(f"\nDecoders, images a second with {CALLERS} callers\n")
    write(f"\n| file | {' | '.join(names)} | {names[1]} to {names[0]} |\n| --- |{' --- |' * (len(names) + 1)}\n")
    for kind, rates in report.by_decoder.items():
        ratio = rates[names[1]] / rates[names[0]]
        write(f"| {kind} | {' | '.join(f'{rates[name]:,.0f}' for name in names)} | {ratio:.2f} |\n")
    write("\nAgainst the CPU's exact decode\n\n")
    for kind, levels in report.levels.items():
        write(
            f"{kind}: {levels['decoded']:.0f} of {levels['of']:.0f} photos decoded; pixels {levels['mean']:.2f} levels "
            f"apart on average and {levels['most']:.0f} at the most; {report.agreement[kind]}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=Path, help="a folder of photos, in place of scikit-image's")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    options = parser.parse_args()
    try:
        report = measure_decoding(options.device, options.photos, options.seconds, lambda text: None)
    except StartError as error:
        sys.exit(str(error))
    with suppress(BrokenPipeError):
        write_decoding(report, sys.stdout.write)


if __name__ == "__main__":
    main()
