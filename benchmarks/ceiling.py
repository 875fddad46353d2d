"""What the service itself costs: answers a second without a model, against decoding alone on the same cores.

    python -m benchmarks.ceiling [--photos FOLDER] [--pairs 7] [--seconds 4] [-- FLAGS OF serve]

The ceiling is a process for each CPU that does nothing but this service's own exact decode, without HTTP. Against it
stands `resnet-serve serve --backend null` with 16 closed-loop clients, the load generator on the same CPUs. The two
take turns; a pair's ratio is what counts, for a slow minute of the machine meets both. Each turn has a service of its
own: one keeps its pace, and two starts of the same service differ by up to a tenth. Beside it stands the CPU time of an
image, which other work on the machine changes less. The photos are a folder's, as they are, else scikit-image's.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import skimage.data
import uvloop
from PIL import Image

from app.bench.processes import cpu_seconds
from app.checkpoints import published_resnet50_preprocessing
from app.images import DecodeLimits, decode
from benchmarks.machine import describe
from tests.running import clean_environment, wait_until

CLIENTS = 16
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
# Of scikit-image's photos at 500×375: about 106 kB each, as ImageNet's are.
QUALITY = 96
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)
RESNET50 = published_resnet50_preprocessing()


def photos(folder: Path | None) -> list[bytes]:
    if folder is not None:
        return [file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix.lower() in (".jpeg", ".jpg")]
    images = (Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOS)
    return [_encode(image.resize((500, 375), Image.Resampling.LANCZOS)) for image in images]


def _encode(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=QUALITY)
    return target.getvalue()


def decode_alone(images: list[bytes], seconds: float) -> int:
    """Images that this process decodes in `seconds`."""
    ends_at = time.perf_counter() + seconds
    for count, data in enumerate(itertools.cycle(images)):
        if time.perf_counter() >= ends_at:
            return count
        decode(data, RESNET50, LIMITS)
    return 0


class Client(asyncio.Protocol):
    """One connection that sends the next prepared request as soon as it is answered; it reads no more than it must."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.answers = 0
        self._requests = requests
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        if len(body) < int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        assert head.startswith(b"HTTP/1.1 200 "), self._received
        self.answers += 1
        self._received = b""
        assert self._transport is not None
        self._transport.write(next(self._requests))


async def send(host: str, port: int, images: list[bytes], seconds: float) -> tuple[int, int]:
    """Answers that closed-loop clients get in `seconds`, after a quarter as long to warm up, and with those of that."""
    head = "POST /predict HTTP/1.1\r\nHost: load\r\nContent-Length: {}\r\n\r\n"
    requests = itertools.cycle([head.format(len(data)).encode() + data for data in images])
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(lambda: Client(requests), host, port))[1] for _ in range(CLIENTS)]
    await asyncio.sleep(seconds / 4)
    before = sum(client.answers for client in clients)
    await asyncio.sleep(seconds)
    after = sum(client.answers for client in clients)
    return after - before, after


class Done(NamedTuple):
    """What a side did in the time that counts, and what each of its images cost over the whole."""

    images: int
    with_warm_up: int
    cpu_seconds: float


class Parts:
    """The processes of one side: started, then told to begin in one moment."""

    def __init__(self, count: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.ceiling", *arguments]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def run(self) -> Done:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(process.communicate()[0]) for process in self._processes]
        return Done(*(sum(each) for each in zip(*answers, strict=True)))


@contextmanager
def started(command: list[str]) -> Iterator[tuple[int, str]]:
    """The process of `python -m COMMAND` and the address that it prints behind "Try:".

    Its log goes into a file: one that reads along would have a CPU's time.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = Path(folder, "log")
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={"RESNET_HTTP_WORKERS": "1"} | clean_environment(),
            stdout=output,
            stderr=output,
        )
        try:
            wait_until(lambda: "Try:" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            address = re.search(r"http://[\d.]+:\d+", log.read_text().partition("Try:")[2])
            assert address is not None
            yield process.pid, address[0]
        finally:
            process.terminate()
            process.wait()


def serve_null(flags: list[str]) -> list[str]:
    """The service without a model, as a command of `started`."""
    return ["app", "serve", "--port", "0", "--backend", "null", "--log-format", "json", *flags]


def answered_by(pid: int, address: str, common: list[str]) -> tuple[Done, float]:
    """What the clients got of a server, and the CPU seconds that this cost it."""
    load = Parts(1, "--part", "send", "--address", address, *common)
    before = cpu_seconds(pid)
    done = load.run()
    return done, cpu_seconds(pid) - before


def run_part(options: argparse.Namespace, write: Callable[[str], object]) -> None:
    images = photos(options.photos)
    for data in images[:20]:
        decode(data, RESNET50, LIMITS)
    write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    began = time.process_time()
    if options.part == "decode":
        count = total = decode_alone(images, options.seconds)
    else:
        host, _, port = options.address.removeprefix("http://").partition(":")
        count, total = uvloop.run(send(host, int(port), images, options.seconds))
    write(json.dumps([count, total, time.process_time() - began]))


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; without it, scikit-image's photos")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--part", choices=("decode", "send"), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="of serve")
    options = parser.parse_args()
    if options.part:
        run_part(options, write)
        return
    cpus = len(os.sched_getaffinity(0))
    common = ["--seconds", str(options.seconds), *(["--photos", str(options.photos)] if options.photos else [])]
    images = photos(options.photos)
    size = statistics.mean(len(data) for data in images)
    write(f"{describe('uvicorn', 'uvloop', 'httptools', 'fastapi')}\n{len(images)} photos, {size:,.0f} bytes each.\n\n")
    write("| decoding alone, images/s | the service, answers/s | ratio | CPU ms an image: alone | service | load |\n")
    write("| --- | --- | --- | --- | --- | --- |\n")
    ratios = []
    for _ in range(options.pairs):
        alone = Parts(cpus, "--part", "decode", *common).run()
        with started(serve_null(options.flags)) as (pid, address):
            answered, service_cpu = answered_by(pid, address, common)
        ratios.append(answered.images / alone.images)
        rates = [each.images / options.seconds for each in (alone, answered)]
        write(
            f"| {rates[0]:.1f} | {rates[1]:.1f} | {ratios[-1]:.3f} | "
            f"{alone.cpu_seconds / alone.images * 1e3:.2f} | {service_cpu / answered.with_warm_up * 1e3:.2f} | "
            f"{answered.cpu_seconds / answered.with_warm_up * 1e3:.2f} |\n"
        )
        sys.stdout.flush()
    write(f"\nMedian ratio of {options.pairs} pairs: {statistics.median(ratios):.3f}")
    write(f" ({min(ratios):.3f}–{max(ratios):.3f})\n")


if __name__ == "__main__":
    main()
