"""The cost of the service itself: answers a second without a model, against decoding alone on the same cores.

    python -m benchmarks.ceiling [--photos FOLDER] [--pairs 7] [--seconds 4] [-- FLAGS OF serve]

The ceiling is a process for each CPU that only runs this service's exact decode, without HTTP. The other side is
`resnet-serve serve --backend null` with 16 closed-loop clients, the load generator on the same CPUs. The two take
turns, and each pair gives a ratio. Each turn starts its own service: one service keeps its pace, and two starts of the
same service differ by up to a tenth.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from app.bench.bodies import write_bodies
from app.bench.measuring import Rooflines
from app.bench.pace import ratios, spread
from app.bench.photos import Photos
from app.settings import Settings
from benchmarks.report import heading, options_of, photos_of, table
from benchmarks.turns import Load, Server, our_service

CLIENTS = 16


@asynccontextmanager
async def decoding(images: Sequence[bytes]) -> AsyncIterator[Rooflines]:
    """The decode roofline: a process for each CPU."""
    with tempfile.TemporaryDirectory() as name:
        write_bodies(Path(name) / "photos", images)
        async with Rooflines.start(Settings(backend="null"), Path(name)) as rooflines:
            yield rooflines


def null_service(name: str, images: Sequence[bytes], *flags: str) -> Server:
    return our_service(name, "--backend", "null", "--log-format", "json", *flags, bodies=images)


async def measure(photos: Photos, pairs: int, seconds: float, flags: Sequence[str]) -> str:
    service = null_service("service", photos.bodies, *flags)
    alone = []
    async with Load.start(CLIENTS) as load, decoding(photos.bodies) as rooflines:
        for _ in range(pairs):
            alone.append(await rooflines.decode(seconds))
            async with load.running(service) as running:
                await load.turn(running, seconds / 4, seconds)
    found = ratios(service.rates, [pace.rate for pace in alone])
    rows = [
        (
            f"{pace.rate:.1f}",
            f"{turn.step.throughput:.1f}",
            f"{ratio:.3f}",
            f"{pace.cpu_seconds_an_image * 1e3:.2f}",
            f"{cpu_ms:.2f}",
            f"{turn.step.generator_cpu_seconds / turn.step.good * 1e3:.2f}",
        )
        for pace, turn, ratio, cpu_ms in zip(alone, service.turns, found, service.cpu_ms, strict=True)
    ]
    costs = ("CPU ms an image: alone", "service", "load")
    columns = ("decoding alone, images/s", "the service, answers/s", "ratio", *costs)
    return f"{table(columns, rows)}\n\nMedian ratio of {pairs} pairs: {spread(found, '.3f')}"


def main() -> None:
    parser = options_of(__doc__, photos=True, pairs=7, seconds=4.0)
    parser.add_argument("flags", nargs="*", help="of serve")
    options = parser.parse_args()
    photos = photos_of(options.photos)
    size = statistics.mean(map(len, photos.bodies))
    print(heading(f"{photos.source}, {size:,.0f} bytes each"))
    print(asyncio.run(measure(photos, options.pairs, options.seconds, options.flags)))


if __name__ == "__main__":
    main()
