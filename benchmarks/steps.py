"""The service without a model against decoding alone on the same cores, whole or taken apart into steps.

    python -m benchmarks.steps [--steps STEP ...] [--photos FOLDER] [--rounds 7] [--seconds 3]
                                [--decoder threads|processes] [-- FLAGS OF THE SERVICE]

Decoding alone is a process for each CPU that only runs this service's exact decode, without HTTP. It takes turns with
four servers, each with 16 closed-loop clients on the same CPUs:

    decode      uvicorn with an app that reads the body, decodes it with the service's decoder, and answers with a
                constant: the least that anything served by uvicorn costs
    engine      the same, and the pixels run through the batcher and the `null` backend
    classify    the same, and the rest of the classifier: admission, metrics, ranking
    service     `serve --backend null`: the same, and limits, deadlines, JSON, headers, the log

With `--steps service` it measures the service as a whole. Each turn starts its own server: one server keeps its pace,
and two starts of the same server differ by up to a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from app.bench.bodies import write_bodies
from app.bench.children import NEEDS
from app.bench.measuring import Rooflines
from app.bench.pace import ratios, spread
from app.classifier import Classifier
from app.decoding import build_decoder
from app.interpreter import spare_requests_from_collection
from app.loading import load_model
from app.metrics import Metrics
from app.processes import child_environment
from app.progress import LogReporter
from app.settings import Settings
from app.types import Want
from benchmarks.report import heading, median, options_of, photos_of, say, table
from benchmarks.turns import Load, Server, our_service

CLIENTS = 16
STEPS = ("decode", "engine", "classify")
_ANSWER = b'{"predictions":[' + b",".join([b'{"class_id":1,"label":"a label","probability":0.123456}'] * 5) + b"]}"
_SECONDS = 30.0
_ROOT = Path(__file__).parent.parent

Step = Callable[[bytes], Awaitable[object]]


async def _prepared(step: str, settings: Settings) -> Step:
    """The step as a call, with a warm model."""
    metrics = Metrics()
    classifier = Classifier(build_decoder(settings, metrics), metrics, settings.longest_request_seconds)
    await classifier.decoder.start()
    pooled = await classifier.pool.load(lambda: asyncio.to_thread(load_model, settings, metrics, LogReporter()))
    model = pooled.model

    async def decode(data: bytes) -> object:
        return await classifier.decoder.decode(data, model.preprocessing, time.monotonic() + _SECONDS)

    async def engine(data: bytes) -> object:
        deadline = time.monotonic() + _SECONDS
        pixels = await classifier.decoder.decode(data, model.preprocessing, deadline)
        return await model.engine.run(pixels, Want.SCORES, deadline)

    async def classify(data: bytes) -> object:
        return await classifier.classify(model, data, 5, time.monotonic() + _SECONDS)

    return {"decode": decode, "engine": engine, "classify": classify}[step]


async def serve_step(step: str, settings: Settings, port: int) -> None:
    """The smallest ASGI app around the step."""
    call = await _prepared(step, settings)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pieces = []
        has_more = True
        while has_more:
            message = await receive()
            pieces.append(message["body"])
            has_more = message["more_body"]
        await call(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _ANSWER})

    config = uvicorn.Config(
        app,
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="error",
    )
    await uvicorn.Server(config).serve()


@asynccontextmanager
async def decoding(images: Sequence[bytes]) -> AsyncIterator[Rooflines]:
    """The decode roofline: a process for each CPU."""
    with tempfile.TemporaryDirectory() as name:
        write_bodies(Path(name) / "photos", images)
        # The defaults, whatever this process's environment says: the servers get none of its settings.
        settings = Settings.model_construct(backend="null", _fields_set={"backend"})
        async with Rooflines.start(settings, Path(name)) as rooflines:
            yield rooflines


def servers_of(options: argparse.Namespace, images: Sequence[bytes]) -> list[Server]:
    servers = []
    for step in options.steps:
        if step == "service":
            flags = ("--backend", "null", "--log-format", "json", "--decoder", options.decoder, *options.flags)
            servers.append(our_service(step, *flags, bodies=images))
        else:
            flags = ("--step", step, "--port", "{port}", "--decoder", options.decoder)
            command = [sys.executable, "-m", "benchmarks.steps", *flags]
            servers.append(Server(step, command, images, child_environment(NEEDS), folder=_ROOT))
    return servers


async def measure(images: Sequence[bytes], options: argparse.Namespace) -> str:
    servers = servers_of(options, images)
    alone = []
    async with Load.start(CLIENTS) as load, decoding(images) as rooflines:
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            alone.append(await rooflines.decode(options.seconds))
            for server in servers if number % 2 else reversed(servers):
                async with load.running(server) as running:
                    await load.turn(running, options.seconds / 4, options.seconds)
    rates = [pace.rate for pace in alone]
    cpu_ms = median([pace.cpu_seconds_an_image * 1e3 for pace in alone])
    rows = [("alone", median(rates, ".0f"), "1", cpu_ms, "0")]
    for each in servers:
        found = spread(ratios(each.rates, rates))
        rows.append((each.name, median(each.rates, ".0f"), found, median(each.cpu_ms), median(each.load_cpu_ms)))
    return table(("step", "images/s", "of decoding alone", "CPU ms an image", "of the load generator"), rows)


def main() -> None:
    names = (*STEPS, "service")
    parser = options_of(__doc__, photos=True, rounds=7, seconds=3.0)
    parser.add_argument(
        "--steps", nargs="+", choices=names, default=names, metavar="STEP", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--decoder", choices=("threads", "processes"), default="threads", help="RESNET_DECODER")
    parser.add_argument("flags", nargs="*", help="of serve, for the service alone")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        spare_requests_from_collection()
        uvloop.run(serve_step(options.step, Settings(backend="null", decoder=options.decoder), options.port))
        return
    photos = photos_of(options.photos)
    size = statistics.mean(map(len, photos.bodies))
    print(heading(f"{photos.source}, {size:,.0f} bytes each; decoded by {options.decoder}"))
    print(asyncio.run(measure(photos.bodies, options)))


if __name__ == "__main__":
    main()
