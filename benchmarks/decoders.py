"""Decoding threads against decoding processes: throughput, latency and memory, and the cost of a bad image.

    python -m benchmarks.decoders [--pairs 5] [--seconds 4]

Each side runs in a process of its own, in turns; figures are medians. The photos are scikit-image's, at 500×375, and
the decoder is used as the service uses it, under uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress

import uvloop
from PIL import Image

from app.bench.pace import spread
from app.bench.photos import as_sent, carried_pictures, encoded
from app.bench.processes import proportional_kilobytes
from app.checkpoints import published_resnet50_preprocessing
from app.decoding import plan_decoding
from app.errors import ImageTooComplex, ServiceError
from app.images import DecodeLimits, Decoder
from app.images.process_decoder import ProcessDecoder
from app.images.threads import ThreadDecoder
from app.settings import Settings
from benchmarks.report import heading, options_of, table

CALLERS = 16
TIME_LIMIT_SECONDS = 1.0
RESNET50 = published_resnet50_preprocessing()
# The defaults but for the scans: a bomb must be decoded, to show its cost.
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384, max_jpeg_scans=10**6, max_jpeg_megapixel_scans=1e12)
ROWS = {
    "images_a_second": "images/s, 16 callers",
    "median_ms": "median of one caller, ms",
    "lag_ms": "event loop's lag under 16 callers, 99th percentile, ms",
    "memory_mb": "memory after that, all processes, MB (PSS)",
    "start_ms": "start, ms",
    "while_hung": "images/s until a hanging image's time limit",
    "after_hung": "images/s in as long after it",
    "lost_after_hung": "slots lost after it",
    "after_crash": "images/s in the second after a crash",
    "failed_by_crash": "images that failed with the crash",
}


def scan_bomb(scans: int) -> bytes:
    """16 megapixels of which 1,000 scans take about 10 s, longer than any of these measurements; 2,000 at the most."""
    data = encoded(Image.new("L", (4000, 4000), 90), progressive=True)[:-2]
    last_scan = [found.start() for found in re.finditer(rb"\xff[\xc4\xda]", data)][-2]
    return data + data[last_scan:] * scans + b"\xff\xd9"


class Traffic:
    """Callers that decode one good photo after the other."""

    def __init__(self, decoder: Decoder, images: list[bytes], callers: int) -> None:
        self.finished: list[float] = []
        self.seconds: list[float] = []
        self.failed = 0
        self._decoder = decoder
        self._images = itertools.cycle(images)
        self._callers = [asyncio.create_task(self._send()) for _ in range(callers)]

    async def _send(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._decoder.decode(next(self._images), RESNET50, began + 60)
            except ServiceError:
                self.failed += 1
            else:
                self.finished.append(time.monotonic())
                self.seconds.append(self.finished[-1] - began)

    def rate(self, since: float, until: float) -> float:
        return sum(since < moment <= until for moment in self.finished) / (until - since)

    async def stop(self) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.wait(self._callers)


async def measure(side: str, seconds: float) -> dict[str, float]:
    plan = plan_decoding(Settings())

    def build() -> ThreadDecoder | ProcessDecoder:
        common = {"slots": plan.slots, "max_waiting": 256, "timeout_seconds": TIME_LIMIT_SECONDS}
        if side == "threads":
            return ThreadDecoder(LIMITS, spare=plan.spare, **common)  # type: ignore[arg-type]
        return ProcessDecoder(LIMITS, memory_bytes=plan.slot_bytes, **common)  # type: ignore[arg-type]

    images = [as_sent(picture, quality=90) for picture in carried_pictures()]
    found: dict[str, float] = {}
    decoder = build()
    began = time.monotonic()
    await decoder.start()
    found["start_ms"] = (time.monotonic() - began) * 1e3
    await _steady(decoder, images, seconds, found)
    if isinstance(decoder, ProcessDecoder):
        await _crash(decoder, images, found)
    await _hang(decoder, images, found)
    await decoder.close()
    return found


async def _steady(decoder: Decoder, images: list[bytes], seconds: float, found: dict[str, float]) -> None:
    await _warm_up(decoder, images)
    alone = Traffic(decoder, images, 1)
    await asyncio.sleep(seconds / 2)
    await alone.stop()
    found["median_ms"] = statistics.median(alone.seconds) * 1e3
    crowd = Traffic(decoder, images, CALLERS)
    lags: list[float] = []
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        before = time.monotonic()
        await asyncio.sleep(0.005)
        lags.append(time.monotonic() - before - 0.005)
    found["images_a_second"] = crowd.rate(began, time.monotonic())
    await crowd.stop()
    found["lag_ms"] = statistics.quantiles(lags, n=100)[98] * 1e3
    found["memory_mb"] = proportional_kilobytes(os.getpid()) / 1e3


async def _crash(decoder: ProcessDecoder, images: list[bytes], found: dict[str, float]) -> None:
    traffic = Traffic(decoder, images, CALLERS)
    await asyncio.sleep(0.5)
    began = time.monotonic()
    os.kill(decoder.process_ids[0], signal.SIGSEGV)
    await asyncio.sleep(1)
    found["after_crash"] = traffic.rate(began, time.monotonic())
    found["failed_by_crash"] = traffic.failed
    await traffic.stop()


async def _hang(decoder: Decoder, images: list[bytes], found: dict[str, float]) -> None:
    bomb = scan_bomb(1900)
    traffic = Traffic(decoder, images, CALLERS)
    await asyncio.sleep(0.5)
    with suppress(ImageTooComplex):
        await decoder.decode(bomb, RESNET50, time.monotonic() + 60)
    limit = time.monotonic()
    await asyncio.sleep(TIME_LIMIT_SECONDS)
    found["while_hung"] = traffic.rate(limit - TIME_LIMIT_SECONDS, limit)
    found["after_hung"] = traffic.rate(limit, time.monotonic())
    found["lost_after_hung"] = decoder.lost
    await traffic.stop()


async def _warm_up(decoder: Decoder, images: list[bytes]) -> None:
    for image in images * 4:
        await decoder.decode(image, RESNET50, time.monotonic() + 60)


def main() -> None:
    parser = options_of(__doc__, pairs=5, seconds=4.0)
    parser.add_argument("--side", choices=("threads", "processes"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(uvloop.run(measure(options.side, options.seconds))), flush=True)
        os._exit(0)  # a hanging thread is not waited for
    results: dict[str, list[dict[str, float]]] = {"threads": [], "processes": []}
    for _ in range(options.pairs):
        for side, found in results.items():
            command = [sys.executable, "-m", "benchmarks.decoders", "--side", side, "--seconds", str(options.seconds)]
            found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    slots = plan_decoding(Settings()).slots
    print(heading(f"Medians of {options.pairs} pairs; {slots} slots, time limit {TIME_LIMIT_SECONDS:g} s."))
    rows = [
        (title, *(spread([each[name] for each in found if name in each], ".4g") for found in results.values()))
        for name, title in ROWS.items()
    ]
    print(table(("", "threads", "processes"), rows))


if __name__ == "__main__":
    main()
