"""Structures of every format, grown to the largest body, and what decoding them costs: `make hostile` prints it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings
from tests import images_made as made
from tests import odd_images as odd
from tests.photos import encode

MOST_BYTES: int = Settings(max_batch_body_bytes=64_000_000).max_batch_body_bytes
# What is measured on a quiet machine is a tenth of these.
MOST_CPU_SECONDS = 2.0
MOST_MEGABYTES = 64
MOST_HELD_MILLISECONDS = 60


def _filled(front: bytes, piece: bytes, behind: bytes) -> bytes:
    """As many of `piece` as a body holds."""
    return front + piece * ((MOST_BYTES - len(front) - len(behind)) // len(piece)) + behind


def _png(piece: bytes) -> bytes:
    whole = encode(odd.picture(), "PNG")
    return _filled(whole[:33], piece, whole[33:])


def _png_with_more(body: bytes) -> bytes:
    """More IDAT behind those that have all pixels."""
    whole = encode(odd.picture(), "PNG")
    return _filled(whole[:-12], odd.png_chunk(b"IDAT", body), whole[-12:])


def _jpeg(piece: bytes, at: int = 20) -> bytes:
    whole = encode(odd.picture(), quality=90)
    at = whole.index(b"\xff\xda") if at < 0 else at
    return _filled(whole[:at], piece, whole[at:])


def _gif(piece: bytes, opens: bytes = b"\x21\xfe", ends: bytes = b"\0") -> bytes:
    whole = odd.gif_of(odd.SIZE, (0, 0), odd.picture().quantize(64))
    at = 13 + (6 << (whole[10] & 7))
    return _filled(whole[:at] + opens, piece, ends + whole[at:])


def _webp(piece: bytes) -> bytes:
    canvas = struct.pack("<I", 0x0C) + b"\xc7\0\0\x77\0\0"
    pixels = encode(odd.picture(), "WEBP")[12:]
    body = _filled(b"WEBP" + odd.webp_chunk(b"VP8X", canvas), piece, pixels)[: MOST_BYTES - 8]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _interleaved_frames(data: bytes) -> bytes:
    last = data[data.rindex(b"\x21\xf9") : -1]
    return _filled(data[:-1], last, b";")


def _bmp_runs(piece: bytes, compression: int) -> bytes:
    """Runs for a picture of 4 megapixels with long rows."""
    depth = 8 if compression == 1 else 4
    return odd.bmp_of(depth, _filled(b"", piece, b""), size=(16_000, 250), compression=compression, palette=bytes(1024))


_INFLATES = odd.png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_040_000), 9))
_TEXT = odd.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_040_000), 9))

STRUCTURES: dict[str, Callable[[], bytes]] = {
    "png, empty chunks": lambda: _png(odd.png_chunk(b"prVt", b"")),
    "png, profiles that inflate": lambda: _png(_INFLATES),
    "png, texts that inflate": lambda: _png(_TEXT),
    "png, one large text": lambda: odd.png_with(odd.png_chunk(b"tEXt", bytes(MOST_BYTES - 200_000))),
    "png, eXIf": lambda: _png(odd.png_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000))),
    "png, large tRNS": lambda: _png(odd.png_chunk(b"tRNS", bytes(6))),
    "png, palettes": lambda: _png(odd.png_chunk(b"PLTE", bytes(768))),
    "png, empty IDAT": lambda: _png(odd.png_chunk(b"IDAT", b"")),
    "png, IDAT of one byte": lambda: _png(odd.png_chunk(b"IDAT", b"a")),
    "png, IDAT of all sizes": lambda: _png(b"".join(odd.png_chunk(b"IDAT", bytes(size)) for size in range(999))),
    "png, IDAT of 600 bytes": lambda: _png(odd.png_chunk(b"IDAT", bytes(600))),
    "png, runs of small IDAT": lambda: _png(odd.png_chunk(b"IDAT", b"a") * 34 + odd.png_chunk(b"IDAT", b"bc")),
    "png, data behind its pixels": lambda: _png_with_more(bytes(60_000)),
    "png, much data behind its pixels": lambda: _png_with_more(bytes(63_000_000)),
    "png, frame controls": lambda: _png(
        odd.png_chunk(b"acTL", struct.pack(">II", 9, 0)) + odd.png_chunk(b"fcTL", bytes(26))
    ),
    "gif, comment of two-byte blocks": lambda: _gif(b"\2ab"),
    "gif, comment of blocks of all sizes": lambda: _gif(b"\1a\2bc\3def"),
    "gif, comment of one-byte blocks, now and then two": lambda: _gif(b"\1a" * 33 + b"\2ab"),
    "gif, comment of full blocks": lambda: _gif(b"\xff" + b"c" * 255),
    "gif, comments": lambda: _gif(b"\x21\xfe\0", opens=b"", ends=b""),
    "gif, controls": lambda: _gif(b"\x21\xf9\4\1\0\0\3\0", opens=b"", ends=b""),
    "gif, bytes between its blocks": lambda: _gif(b"\0", opens=b"", ends=b""),
    "gif, frames": lambda: _interleaved_frames(odd.gif_files()["gif, animated"]),
    "jpeg, fill bytes": lambda: _jpeg(b"\xff"),
    "jpeg, fill bytes in front of its scan": lambda: _jpeg(b"\xff", -1),
    "jpeg, empty comments": lambda: _jpeg(odd.segment(0xFE, b"")),
    "jpeg, full comments": lambda: _jpeg(odd.segment(0xFE, bytes(65_000))),
    "jpeg, EXIF": lambda: _jpeg(odd.segment(0xE1, made.exif_orientation(6))),
    "jpeg, profiles": lambda: _jpeg(odd.segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(60_000))),
    "jpeg, tables": lambda: _jpeg(odd.segment(0xDB, bytes([0, *range(1, 65)]))),
    "jpeg, bytes between its segments": lambda: _jpeg(b"\0"),
    "jpeg, odd markers between its segments": lambda: _jpeg(b"\xff\1"),
    "jpeg, starts": lambda: _jpeg(b"\xff\xd8"),
    "jpeg, restarts": lambda: _jpeg(b"\xff\xd0"),
    "jpeg, fill bytes and no end": lambda: _filled(encode(odd.picture(), quality=90)[:-2], b"\xff", b""),
    "jpeg, data and no end": lambda: _filled(encode(odd.picture(), quality=90)[:-2], b"\x55", b""),
    "webp, empty chunks": lambda: _webp(odd.webp_chunk(b"abcd", b"")),
    "webp, EXIF": lambda: _webp(odd.webp_chunk(b"EXIF", bytes(40))),
    "webp, one large chunk": lambda: _webp(odd.webp_chunk(b"XMP ", bytes(60_000_000))),
    "bmp, runs of 8 bits": lambda: _bmp_runs(b"\1\1", 1),
    "bmp, runs of 4 bits": lambda: _bmp_runs(b"\xff\1", 2),
    "bmp, ends of rows": lambda: _bmp_runs(b"\0\0", 1),
    "bmp, jumps of nothing": lambda: _bmp_runs(b"\0\2\0\0", 1),
    "bmp, single pixels": lambda: _bmp_runs(b"\0\3abc\0", 1),
    "bmp, long runs in long rows": lambda: _bmp_runs(b"\xff\1" * 16_000 + b"\0\0", 2),
    "bmp, a gap": lambda: odd.bmp_of(24, bytes(200 * 120 * 3), gap=bytes(MOST_BYTES - 100_000)),
    "bmp, a large palette": lambda: odd.bmp_of(
        8, bytes(200 * 120), palette=bytes(MOST_BYTES - 100_000), colours=(MOST_BYTES - 100_000) // 4
    ),
}
MEASURES_EACH_FILE = """
import json, os, sys, threading, time
from pathlib import Path
from app.checkpoints import published_resnet50_preprocessing
from app.images import decode
from tests.mutations import corpus
from tests.photos import LIMITS

def peak_kilobytes():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

def held():
    # The CPU time that other threads used while this one had no turn, at the most.
    global longest
    last = time.process_time()
    while True:
        time.sleep(0.0005)
        now = time.process_time()
        longest, last = max(longest, now - last), now

def measure(file):
    global longest
    longest = 0.0
    threading.Thread(target=held, daemon=True).start()
    data = Path(file).read_bytes()
    costs = []
    for _ in range(3):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_kilobytes()
        time.sleep(0.01)
        longest, began = 0.0, time.process_time()
        try:
            decode(data, preprocessing, LIMITS)
            outcome = "pixels"
        except Exception as error:
            outcome = type(error).__name__
        costs.append((time.process_time() - began, peak_kilobytes() - before, longest))
    return [outcome, *map(min, zip(*costs))]

sys.setswitchinterval(0.0005)
preprocessing = published_resnet50_preprocessing()
for data in corpus().values():
    decode(data, preprocessing, LIMITS)
# A process for each file, as it is after the first images: what one leaves in memory, the next does not find.
for line in sys.stdin:
    if (child := os.fork()) == 0:
        print(json.dumps(measure(line.rstrip("\\n"))), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{line}: the process that decoded it failed")
"""
Cost = tuple[str, float, int, float]
Measure = Callable[[Callable[[], bytes]], Cost]


@contextmanager
def measuring(folder: Path) -> Iterator[Measure]:
    """Of a file, decoded in another process: the outcome, CPU seconds, kilobytes above what it held, and the longest
    CPU time for which another thread had no turn. Of each cost, the least of three times.
    """
    path = folder / "structure"
    with subprocess.Popen(
        [sys.executable, "-c", MEASURES_EACH_FILE],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def measure(make: Callable[[], bytes]) -> Cost:
            path.write_bytes(make())
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            path.unlink()
            assert line, "the process that measures has ended"
            outcome, seconds, kilobytes, held = json.loads(line)
            return outcome, seconds, kilobytes, held

        yield measure


def main() -> int:
    """What `make hostile` prints: the costs of each structure."""
    import tempfile

    wrong = 0
    with tempfile.TemporaryDirectory() as folder, measuring(Path(folder)) as measure:
        for name, make in STRUCTURES.items():
            outcome, seconds, kilobytes, held = measure(make)
            costs = f"{seconds * 1e3:.0f} ms of CPU, {kilobytes / 1e3:.0f} MB, {held * 1e3:.0f} ms held"
            print(f"{name}: {outcome}, {costs}", flush=True)
            wrong += seconds > MOST_CPU_SECONDS or kilobytes / 1000 > MOST_MEGABYTES
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
