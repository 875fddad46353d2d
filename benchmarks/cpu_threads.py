"""How ONNX Runtime's threads are best used beside decoding: `python -m benchmarks.cpu_threads --help`.

Each way runs in short rounds, one after another and again and again, so that what else the machine does meets all of
them. Two threads decode the example photo and hand a token for each to the ways' own threads, which run the network.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.artifacts import open_served
from app.backends.onnx_sessions import session_options
from app.images import DecodeLimits, decode
from app.progress import LogReporter
from app.resources import available_cpus
from app.settings import Settings

PHOTO = Path(__file__).parent.parent / "app" / "data" / "example.jpg"
LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)


def session_of(graph: Any, threads: int, entries: dict[str, str]) -> Any:
    import onnxruntime

    options = session_options(threads)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])


def throughput(
    run: Callable[[], None], callers: int, batch: int, decode_one: Callable[[], None], seconds: float
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round")
    arguments = parser.parse_args()
    checkpoint = open_served(Settings(weights=arguments.weights, backend="onnx"), LogReporter(), lambda: False)
    crop, graph = checkpoint.preprocessing.crop, checkpoint.graph
    assert graph is not None
    cpus = available_cpus()
    noise = np.random.default_rng(0).integers(0, 256, (4, *crop, 3), dtype=np.uint8)
    photo = PHOTO.read_bytes()
    # Name → session, calls at once, images a call.
    spinning, blocks = "session.intra_op.allow_spinning", "session.dynamic_block_base"
    waiting = session_of(graph, cpus, {})
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
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        for name, (session, callers, batch) in ways.items():

            def run(session: Any = session, batch: int = batch) -> None:
                session.run(None, {graph.input_name: noise[:batch]})

            run()
            for _ in range(5):
                began = time.perf_counter()
                run()
                alone[name].append((time.perf_counter() - began) / batch)
            decode_one = lambda: decode(photo, checkpoint.preprocessing, LIMITS)  # noqa: E731
            busy[name].append(throughput(run, callers, batch, decode_one, arguments.seconds))
    print(f"{'':36} a call alone, ms an image    beside decoding, images a second")
    for name in ways:
        calls, rates = sorted(alone[name]), busy[name]
        print(
            f"{name:36} least {calls[0] * 1e3:6.1f}  median {statistics.median(calls) * 1e3:6.1f}"
            f"    median {statistics.median(rates):5.1f}  best {max(rates):5.1f}"
        )


if __name__ == "__main__":
    main()
