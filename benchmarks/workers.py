"""The service as one process and as several, on the same load in turn: `python -m benchmarks.workers [COUNT ...]`.

All of them run throughout, and the load goes from one to the next. CPU time is that of all processes of the service for
each answer; memory is proportional (PSS), so that shared pages count once.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack

from app.bench.pace import ratios, spread
from app.bench.photos import as_sent, carried_pictures
from benchmarks.report import heading, median, options_of, say, table
from benchmarks.turns import Load, Server, our_service

_WARM_UP_SECONDS = 2.0


async def measure(servers: list[Server], options: argparse.Namespace) -> None:
    async with Load.start(options.clients) as load, AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(load.running(server)) for server in servers]
        for run in runs:
            await load.turn(run, 0.0, _WARM_UP_SECONDS)
            run.server.turns.clear()
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds} …")
            for run in runs:
                await load.turn(run, 0.0, options.seconds)


def report(servers: list[Server]) -> str:
    columns = ("front-ends", "answers/s", "to the first", "p50 ms", "p99 ms", "CPU ms an answer", "memory MB (PSS)")
    rows = [
        (
            each.name,
            median(each.rates, ".0f"),
            spread(ratios(each.rates, servers[0].rates)),
            median(each.latencies_ms("p50"), ".1f"),
            median(each.latencies_ms("p99"), ".1f"),
            median(each.cpu_ms),
            f"{each.turns[-1].memory_kilobytes / 1e3:.0f}",
        )
        for each in servers
    ]
    lost = [
        f"others with {each.name}: {step.outcomes}"
        for each in servers
        for step in (turn.step for turn in each.turns)
        if step.good < step.requests
    ]
    return "\n".join([table(columns, rows), *lost])


def main() -> None:
    parser = options_of(__doc__, rounds=8, seconds=4.0, clients=16)
    parser.add_argument("counts", nargs="*", default=["1", "2"], metavar="COUNT", help="of front-ends; 1 2")
    parser.add_argument("--weights", help="a model to run; without, the null backend answers at once")
    options = parser.parse_args()
    model = ("--weights", options.weights) if options.weights else ("--backend", "null")
    images = [as_sent(picture) for picture in carried_pictures()[:4]]
    servers = [our_service(count, *model, bodies=images, http_workers=count) for count in options.counts]
    asyncio.run(measure(servers, options))
    print(
        heading(
            f"{options.clients} closed-loop clients, medians of {options.rounds} rounds of {options.seconds:g} s",
        )
    )
    print(report(servers))


if __name__ == "__main__":
    main()
