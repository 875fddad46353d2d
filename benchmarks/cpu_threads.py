"""ONNX Runtime's threads beside decoding, divided in several ways: `python -m benchmarks.cpu_threads --weights FILE`.

The ways take turns in short rounds. Two threads decode the example photo and pass a token for each image to the way's
own threads, which run the network.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.artifacts import open_served
from app.backends.onnx_sessions import session_options
from app.bench.pace import in_turns, spread
from app.images import DecodeLimits, decode
from app.progress import LogReporter
from app.resources import available_cpus
from app.settings import Settings
from benchmarks.report import heading, options_of, say, table

PHOTO = Path(__file__).parent.parent / "app" / "data" / "example.jpg"
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)


def session_of(graph: Any, threads: int, entries: dict[str, str]) -> Any:
    import onnxruntime

    options = session_options(threads)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])


def throughput(
    run: Callable[[], object], callers: int, batch: int, decode_one: Callable[[], object], seconds: float
) -> float:
    """Images a second of `callers` threads that each call `run` on `batch` decoded images at a time."""
    decoded: queue.Queue[None] = queue.Queue(2 * callers * batch)
    stop_at = time.perf_counter() + seconds
    counts = [0] * callers

    def decode_on() -> None:
        while time.perf_counter() < stop_at:
            decode_one()
            try:
                decoded.put(None, timeout=0.2)
            except queue.Full:
                continue

    def run_on(caller: int) -> None:
        taken = 0
        while time.perf_counter() < stop_at:
            try:
                decoded.get(timeout=0.2)
            except queue.Empty:
                continue
            taken += 1
            if taken == batch:
                run()
                counts[caller] += batch
                taken = 0

    threads = [threading.Thread(target=decode_on) for _ in range(2)]
    threads += [threading.Thread(target=run_on, args=(caller,)) for caller in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    parser = options_of(__doc__, rounds=9, seconds=3.0)
    parser.add_argument("--weights", default=None)
    options = parser.parse_args()
    checkpoint = open_served(Settings(weights=options.weights, backend="onnx"), LogReporter(), lambda: False)
    crop, graph = checkpoint.preprocessing.crop, checkpoint.graph
    assert graph is not None
    cpus = available_cpus()
    noise = np.random.default_rng(0).integers(0, 256, (4, *crop, 3), dtype=np.uint8)
    photo = PHOTO.read_bytes()
    spinning, blocks = "session.intra_op.allow_spinning", "session.dynamic_block_base"
    waiting = session_of(graph, cpus, {})
    # Name → session, calls at once, images a call.
    ways = {
        f"{cpus} threads, spinning": (session_of(graph, cpus, {spinning: "1"}), 1, 1),
        f"{cpus} threads": (waiting, 1, 1),
        f"{cpus} threads, small blocks": (session_of(graph, cpus, {blocks: "4"}), 1, 1),
        f"{cpus} threads, batches of 4": (waiting, 1, 4),
        f"{cpus} threads, 2 calls at once": (waiting, 2, 1),
        f"1 thread, {cpus} calls at once": (session_of(graph, 1, {}), cpus, 1),
    }
    busy: dict[str, list[float]] = {name: [] for name in ways}
    alone: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for name, (session, callers, batch) in ways.items():
            run = partial(session.run, None, {graph.input_name: noise[:batch]})
            alone[name] += [seconds / batch for seconds in in_turns({name: run}, rounds=5)[name]]
            decode_one = partial(decode, photo, checkpoint.preprocessing, LIMITS)
            busy[name].append(throughput(run, callers, batch, decode_one, options.seconds))
    print(heading(f"medians of {options.rounds} rounds of {options.seconds:g} s, lowest to highest in brackets"))
    columns = ("", "a call alone, ms an image", "beside decoding, images a second")
    milliseconds = {name: [each * 1e3 for each in taken] for name, taken in alone.items()}
    print(table(columns, [(name, spread(milliseconds[name], ".1f"), spread(busy[name], ".1f")) for name in ways]))


if __name__ == "__main__":
    main()
