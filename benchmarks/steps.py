"""What each step of an answer costs beside its decoding: the service without a model, taken apart.

    python -m benchmarks.steps [--photos FOLDER] [--rounds 7] [--seconds 3] [--decoder threads|processes]

Four servers, started anew for each turn, against decoding alone (`benchmarks.ceiling`); 16 closed-loop clients run on
the same CPUs:

    decode      uvicorn with an app that reads the body, has it decoded by the service's decoder, and answers with a
                constant: what anything that is served by uvicorn costs at the least
    engine      that, and the pixels run through the batcher and the `null` backend
    classify    that, and what else the classifier does: admission, metrics, ranking
    service     `serve --backend null`: that, and limits, deadlines, JSON, headers, the log
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from app.interpreter import spare_requests_from_collection
from app.loading import load_model
from app.metrics import Metrics
from app.opening import LogReporter
from app.server.app import build_classifier
from app.settings import Settings
from benchmarks.ceiling import Done, Parts, answered_by, photos, serve_null, started
from benchmarks.machine import describe

STEPS = ("decode", "engine", "classify")
_ANSWER = b'{"predictions":[' + b",".join([b'{"class_id":1,"label":"a label","probability":0.123456}'] * 5) + b"]}"
_SECONDS = 30.0

Step = Callable[[bytes], Awaitable[object]]


async def _prepared(step: str, settings: Settings) -> Step:
    """The step as a call, once its model is warm."""
    metrics = Metrics()
    classifier = build_classifier(settings, metrics)
    model = await asyncio.to_thread(load_model, settings, metrics, LogReporter())
    await classifier.decoder.start()
    await model.engine.start()
    classifier.model = model

    async def decode(data: bytes) -> object:
        return await classifier.decoder.decode(data, model.preprocessing, time.monotonic() + _SECONDS)

    async def engine(data: bytes) -> object:
        deadline = time.monotonic() + _SECONDS
        return await model.engine.run(await classifier.decoder.decode(data, model.preprocessing, deadline), deadline)

    async def classify(data: bytes) -> object:
        return await classifier.classify(model, data, 5, time.monotonic() + _SECONDS)

    return {"decode": decode, "engine": engine, "classify": classify}[step]


async def serve_step(step: str, settings: Settings) -> None:
    """As little of an ASGI app as can be around the step."""
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

    opened = socket.create_server(("127.0.0.1", 0), backlog=2048)
    sys.stdout.write(f"Try: http://127.0.0.1:{opened.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_config=None, log_level="error"
    )
    await uvicorn.Server(config).serve(sockets=[opened])


def measure(options: argparse.Namespace, write: Callable[[str], object]) -> None:
    common = ["--seconds", str(options.seconds), *(["--photos", str(options.photos)] if options.photos else [])]
    commands = {step: ["benchmarks.steps", "--step", step, "--decoder", options.decoder] for step in STEPS}
    commands["service"] = serve_null(["--decoder", options.decoder])
    rates: dict[str, list[float]] = {name: [] for name in ("alone", *commands)}
    costs: dict[str, list[float]] = {name: [] for name in ("alone", *commands)}

    def note(name: str, done: Done, cpu_seconds: float, images: int) -> None:
        rates[name].append(done.images / options.seconds)
        costs[name].append(cpu_seconds / images * 1e3)

    for number in range(options.rounds):
        sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
        alone = Parts(len(os.sched_getaffinity(0)), "--part", "decode", *common).run()
        note("alone", alone, alone.cpu_seconds, alone.images)
        turn = list(commands.items())
        for name, command in turn if number % 2 else reversed(turn):
            with started(command) as (pid, address):
                done, cpu = answered_by(pid, address, common)
            note(name, done, cpu, done.with_warm_up)
    write("| step | images/s | of decoding alone | CPU ms an image |\n| --- | --- | --- | --- |\n")
    for name, found in rates.items():
        ratios = [rate / alone_rate for rate, alone_rate in zip(found, rates["alone"], strict=True)]
        write(
            f"| {name} | {statistics.median(found):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) | {statistics.median(costs[name]):.2f} |\n"
        )


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; without it, scikit-image's photos")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--decoder", choices=("threads", "processes"), default="threads", help="RESNET_DECODER")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        spare_requests_from_collection()
        uvloop.run(serve_step(options.step, Settings(backend="null", decoder=options.decoder)))
        return
    images = photos(options.photos)
    size = statistics.mean(len(data) for data in images)
    write(f"{describe('uvicorn', 'uvloop', 'httptools')}\n{len(images)} photos, {size:,.0f} bytes each; ")
    write(f"decoded by {options.decoder}.\n\n")
    measure(options, write)


if __name__ == "__main__":
    main()
