"""The largest bodies of every kind, and what each does to the service's event loop: `python -m tests.large_bodies`.

The service runs in a process of its own, with a clock on its event loop that ticks each millisecond and keeps the
longest that it did not tick. A skip counts as far as both clocks agree on it: the wall's, and the CPU time that the
process used meanwhile. Whatever holds the loop or the interpreter's lock uses the CPU for as long, while a machine
that does other things lets time pass in which this process uses none. A skip that the body causes comes with every
sending of it, so the shortest of a few sendings is what counts.
"""

from __future__ import annotations

import io
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tests.process_costs import MEGABYTE, growth
from tests.raw_http import Answer, answers_in, connect, receive_all
from tests.running import ServiceProcess, service_process

MAX_SKIP_SECONDS = 0.05
SENDINGS = 5
ONE, MANY = "/predict", "/predict/batch"
ONE_BYTES, MANY_BYTES = 10_000_000, 64_000_000

# The command, with the clock. SIGUSR1 has it say what it kept, and begin anew.
PROGRAM = """
import asyncio, signal, sys, time
from app.server.lifecycle import Server
from app.cli import main as command

worst, reports = 0.0, 0

async def tick():
    global worst
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(0.001)
        worst = max(worst, min(time.perf_counter() - wall, time.process_time() - cpu))

def report():
    global worst, reports
    reports += 1
    print(f"clock {reports}: {worst:.6f}", flush=True)
    worst = 0.0

start = Server.startup

async def startup(server, sockets=None):
    loop = asyncio.get_running_loop()
    server.clock = loop.create_task(tick())
    loop.add_signal_handler(signal.SIGUSR1, report)
    await start(server, sockets)

Server.startup = startup
command()
"""


@dataclass
class ClockedService:
    """A service with a clock on its event loop."""

    service: ServiceProcess
    reports: int = 0

    def longest_skip(self) -> float:
        """Seconds, since this was asked last."""
        self.reports += 1
        self.service.process.send_signal(signal.SIGUSR1)
        line = self.service.wait_for(f"clock {self.reports}:")
        # The log's thread may write into the same line.
        return float(line.partition(f"clock {self.reports}: ")[2][:8])


@contextmanager
def clocked_service(folder: Path, before: str = "") -> Iterator[ClockedService]:
    """The service with the null backend and the clock, ready; `before` is a program that runs first in its process."""
    with service_process("--backend", "null", folder=folder, program=before + PROGRAM) as service:
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        service.address = found[0]
        yield ClockedService(service)


@dataclass(frozen=True)
class Case:
    """A body at its largest, and the codes that it may be answered with."""

    path: str
    kind: str
    body: Callable[[], bytes]
    codes: tuple[str, ...]
    chunk_bytes: int | None = None

    def request(self) -> bytes:
        body = self.body()
        head = f"POST {self.path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: {self.kind}\r\n".encode()
        if self.chunk_bytes is None:
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        size = self.chunk_bytes
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def filled(begin: bytes, unit: bytes, end: bytes, size: int = MANY_BYTES) -> Callable[[], bytes]:
    """`begin`, then `unit` as often as `size` allows, then `end`."""
    return lambda: begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def json_case(
    unit: bytes, *codes: str, end: bytes = b'"]}', begin: bytes = b'{"images": ["', size: int = MANY_BYTES
) -> Case:
    return Case(MANY, "application/json", filled(begin, unit, end, size), codes)


def form_case(
    unit: bytes, *codes: str, head: bytes = b"", begin: bytes | None = None, end: bytes | None = None
) -> Case:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n' + head + b"\r\n"
    body = filled(part if begin is None else begin, unit, b"\r\n--b--\r\n" if end is None else end)
    return Case(MANY, "multipart/form-data; boundary=b", body, codes)


NOISE = bytes(range(256)) * 64
BASE64 = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5eg==".rstrip(b"=")[:64]
IMAGE_ANSWERS = ("unsupported_image_format",)
NOT_BASE64, MALFORMED = "invalid_base64", "malformed_request"
CASES: dict[str, Case] = {
    "JSON, one image": Case(
        ONE, "application/json", filled(b'{"image": "', BASE64, b'"}', ONE_BYTES), ("unsupported_image_format",)
    ),
    "JSON, one image in a batch": json_case(BASE64, *IMAGE_ANSWERS),
    "JSON, 64 images": json_case(BASE64 * 16_000 + b'","', MALFORMED, *IMAGE_ANSWERS),
    "JSON, escaped slashes": json_case(b"\\/", *IMAGE_ANSWERS),
    "JSON, letters by their numbers": json_case(b"\\u0041" * 4, *IMAGE_ANSWERS),
    "JSON, line breaks": json_case(b"\\r\\n", MALFORMED),
    "JSON, a line break behind each letter": json_case(b"Q\\nU\\nJ\\nD\\n", *IMAGE_ANSWERS),
    "JSON, escaped quotes": json_case(b'\\"', NOT_BASE64),
    "JSON, escaped backslashes": json_case(b"\\\\", NOT_BASE64),
    "JSON, pairs of surrogates": json_case(b"\\ud83d\\ude00", NOT_BASE64),
    "JSON, spaces in the string": json_case(b" ", MALFORMED),
    "JSON, spaces between": json_case(b" ", *IMAGE_ANSWERS, begin=b'{"images": ["QUJD"', end=b"]}"),
    "JSON, spaces and line breaks between": json_case(b" \n", *IMAGE_ANSWERS, begin=b'{"images": ["QUJD"', end=b"]}"),
    "JSON, letters of two bytes": json_case("é".encode(), NOT_BASE64),
    "JSON, no UTF-8": json_case(b"\xff", MALFORMED),
    "JSON, no end": json_case(BASE64, MALFORMED, end=b""),
    "JSON, base64 that ends wrong": json_case(BASE64, NOT_BASE64, end=b'!"]}'),
    "JSON, padding all along": json_case(b"====", NOT_BASE64),
    "JSON, percent-encoded": json_case(b"%41" * 4, *IMAGE_ANSWERS, begin=b'{"images": ["data:image/png;base64,'),
    "JSON, a data: URL of parameters": json_case(b";a", NOT_BASE64, begin=b'{"images": ["data:'),
    "JSON, depth": json_case(b"[", MALFORMED, begin=b"", end=b""),
    "JSON, members": json_case(b'"a":1,', MALFORMED, begin=b"{", end=b"}"),
    "JSON, members twice": json_case(b'"images":[],', "too_many_images", begin=b"{", end=b"}"),
    "JSON, digits": json_case(b"9", MALFORMED, begin=b'{"images": ["QUJD"], "top_k": ', end=b"}"),
    "JSON, empty strings": json_case(b'"",', "too_many_images", begin=b'{"images": [', end=b'""]}'),
    "JSON, a long name": json_case(b"a", MALFORMED, begin=b'{"', end=b'":1}'),
    "JSON under no name": Case(
        ONE, "text/plain", filled(b'{"image": "', BASE64, b'"}', ONE_BYTES), ("unsupported_media_type",)
    ),
    "a form of one file": form_case(NOISE, *IMAGE_ANSWERS),
    "a form of 64 files": form_case(
        b"\r\n".join([b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n', NOISE * 64, b""]),
        *IMAGE_ANSWERS,
        begin=b"",
        end=b"--b--\r\n",
    ),
    "a form of tiny parts": form_case(b"\r\n--b\r\n\r\n", MALFORMED, begin=b"--b\r\n\r\n", end=b"--b--\r\n"),
    "a form of line breaks": form_case(b"\r\n", *IMAGE_ANSWERS),
    "a form of half boundaries": form_case(b"\r\n--", *IMAGE_ANSWERS),
    "a form of what is like its boundary": form_case(b"\r\n--bb", MALFORMED),
    "a form of boundaries and spaces": form_case(b"\r\n--b ", MALFORMED),
    "a form of text before it": form_case(
        NOISE,
        *IMAGE_ANSWERS,
        begin=b"",
        end=b'\r\n--b\r\nX: y; filename=""\r\nContent-Type: image/png\r\n\r\na\r\n--b--',
    ),
    "a form of text behind it": form_case(NOISE, MALFORMED, begin=b"--b--\r\n", end=b""),
    "a form of one header": form_case(b"a", MALFORMED, begin=b"--b\r\nX: "),
    "a form of headers": form_case(b"X: y\r\n", MALFORMED, begin=b"--b\r\n"),
    "a form of a name": form_case(b"\\", MALFORMED, begin=b'--b\r\nContent-Disposition: form-data; name="'),
    "a form of base64": form_case(BASE64 + b"\r\n", *IMAGE_ANSWERS, head=b"Content-Transfer-Encoding: base64\r\n"),
    "a form of quoted-printable": form_case(
        b"=41=\r\n", *IMAGE_ANSWERS, head=b"Content-Transfer-Encoding: quoted-printable\r\n"
    ),
    "a form of one field": form_case(b"a", MALFORMED, begin=b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'),
    "a form without an end": form_case(NOISE, MALFORMED, end=b""),
    "a long boundary, nearly": Case(
        MANY,
        "multipart/form-data; boundary=" + "a" * 70,
        filled(b"--" + b"a" * 70 + b"\r\n\r\n", b"\r\n--" + b"a" * 69, b""),
        (MALFORMED,),
    ),
    "raw bytes": Case(ONE, "image/png", filled(b"", NOISE, b"", ONE_BYTES), IMAGE_ANSWERS),
    "raw spaces": Case(ONE, "image/png", filled(b"", b" ", b"", ONE_BYTES), IMAGE_ANSWERS),
    "raw bytes for a batch": Case(MANY, "image/png", filled(b"", NOISE, b""), ("unsupported_media_type",)),
    "a urlencoded form": Case(
        ONE, "application/x-www-form-urlencoded", filled(b"image=", b"%41&a=", b"", ONE_BYTES), IMAGE_ANSWERS
    ),
    "chunks": Case(
        MANY, "application/json", filled(b'{"images": ["', BASE64, b'"]}'), IMAGE_ANSWERS, chunk_bytes=60_000
    ),
    "chunks of a few bytes": Case(
        MANY, "application/json", filled(b'{"images": ["', BASE64, b'"]}', 3_000_000), IMAGE_ANSWERS, chunk_bytes=3
    ),
    "chunks of one byte": Case(ONE, "image/png", filled(b"", NOISE, b"", 1_000_000), IMAGE_ANSWERS, chunk_bytes=1),
}


def image_case(mode: str, megapixels: float, image_format: str, **options: Any) -> Case:
    """One image of one colour, as large as its format may be."""

    def body() -> bytes:
        side = int((megapixels * 1e6) ** 0.5)
        return encoded(Image.new(mode, (side, side), "teal" if mode != "P" else 5), image_format, **options)

    return Case(ONE, f"image/{image_format.lower()}", body, ("answered",))


def noise_case(megapixels: float, image_format: str, **options: Any) -> Case:
    """One image of noise in a batch, as large as the body may be."""

    def body() -> bytes:
        side = int((megapixels * 1e6) ** 0.5)
        noise = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side))
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        return head + encoded(noise, image_format, **options) + b"\r\n--b--\r\n"

    return Case(MANY, "multipart/form-data; boundary=b", body, ("answered",))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


IMAGES: dict[str, Case] = {
    "a JPEG": image_case("RGB", 64, "JPEG"),
    "a progressive JPEG": image_case("RGB", 64, "JPEG", progressive=True),
    "a CMYK JPEG": image_case("CMYK", 64, "JPEG"),
    "a PNG": image_case("RGB", 25, "PNG"),
    "a PNG with alpha": image_case("RGBA", 25, "PNG"),
    "a PNG with a palette": image_case("P", 25, "PNG"),
    "a WebP": image_case("RGB", 25, "WEBP", method=0),
    "a WebP with alpha": image_case("RGBA", 25, "WEBP", method=0),
    "a lossless WebP": image_case("RGB", 25, "WEBP", method=0, lossless=True),
    "a GIF": image_case("P", 25, "GIF"),
    "a BMP of noise": noise_case(20, "BMP"),
    "a PNG of noise": noise_case(20, "PNG", compress_level=0),
}


def send(clocked: ClockedService, request: bytes, codes: tuple[str, ...]) -> None:
    """Send it, and see that it is answered with these codes and no others."""
    with connect(clocked.service.address) as connection:
        connection.settimeout(120)
        connection.sendall(request)
        (answer,) = answers_in(receive_all(connection))
    assert codes_of(answer) <= set(codes), f"{answer.status} {answer.body[:300]!r}"


def codes_of(answer: Answer) -> set[str]:
    """The codes of an answer, or of a batch's results."""
    document = answer.json()
    if answer.status != 200:
        return {document["code"]}
    return {result.get("code", "answered") for result in document.get("results", [{}])}


def shortest_skip(clocked: ClockedService, work: Callable[[], object]) -> float:
    """The longest skip of the clock while `work` is done, in the best of a few times."""
    skips: list[float] = []
    while len(skips) < SENDINGS and (not skips or min(skips) > MAX_SKIP_SECONDS):
        clocked.longest_skip()
        work()
        skips.append(clocked.longest_skip())
    return min(skips)


def main() -> int:
    """A line for each case; 1 where one stops the loop for too long."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder, clocked_service(Path(folder)) as clocked:
        print(f"{'body':40} {'seconds':>8} {'skip ms':>8} {'memory MB':>10}")
        for name, case in (CASES | IMAGES).items():
            sending = partial(send, clocked, case.request(), case.codes)
            began = time.perf_counter()
            grown = growth(clocked.service, sending)
            seconds = time.perf_counter() - began
            skip = shortest_skip(clocked, sending)
            failed += skip > MAX_SKIP_SECONDS
            print(f"{name:40} {seconds:8.2f} {skip * 1e3:8.1f} {grown / MEGABYTE:10.0f}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
