"""The child processes of a run (load generator, decoders, model), and the measurements made with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ..resources import available_cpus
from ..settings import Settings
from .children import Child
from .costs import Round
from .pace import Pace, together
from .plan import Plan
from .processes import cpu_seconds
from .search import Highest, find_highest
from .serving import Serving, environment_of
from .steps import Latency, Step
from .target import Target


class Progress(Protocol):
    """Receives the progress of a run."""

    def begin(self, text: str, seconds: float | None = None, total: int | None = None) -> None:
        """A measurement starts, with its expected length or number of requests where known."""
        ...

    def done(self, requests: int) -> None:
        """So many requests of the current measurement are done."""
        ...

    def end(self, found: str) -> None:
        """The current measurement is done; `found` is its result as text."""
        ...


class Generator:
    """The load generator's process and its images."""

    def __init__(self, child: Child, folder: Path, target_ms: float, on_done: Callable[[int], None]) -> None:
        self._child = child
        self._folder = folder
        self._target_ms = target_ms
        self._on_done = on_done
        self._steps = 0

    @classmethod
    @asynccontextmanager
    async def start(
        cls, folder: Path, target_ms: float, on_done: Callable[[int], None] = lambda done: None
    ) -> AsyncIterator[Generator]:
        """Bodies are read from folders in `folder`; `on_done` is called with the number of answers so far."""
        child = await Child.start("generator", ".bench.generator", folder)
        try:
            yield cls(child, folder, target_ms, on_done)
        finally:
            await child.close()

    async def closed(self, target: Target, *, clients: int, bodies: str = "photos", **values: Any) -> Step:
        """A closed loop of so many `seconds` or `requests`; further values are those of `generator.run_step`."""
        return await self._step(target, bodies, loop="closed", clients=clients, **values)

    async def open(self, target: Target, rate: float, plan: Plan) -> Step:
        """Requests due at `rate`; each step has its own arrival times."""
        self._steps += 1
        return await self._step(
            target,
            "photos",
            loop="open",
            rate=rate,
            requests=plan.requests_at(rate),
            arrivals=plan.arrivals,
            seed=self._steps,
            give_up_seconds=plan.give_up_seconds,
        )

    async def learn(self, target: Target, bodies: str = "photos") -> list[list[int]]:
        """The two best classes of each image, sent one at a time."""
        found: list[list[int]] = await self._child.ask(
            "learn", target=asdict(target), bodies=str(self._folder / bodies)
        )
        return found

    async def _step(self, target: Target, bodies: str, **values: Any) -> Step:
        told = {"target": asdict(target), "bodies": str(self._folder / bodies), "target_ms": self._target_ms}
        return _step_of(await self._child.ask("step", self._on_done, **told, **values))


def _step_of(document: dict[str, Any]) -> Step:
    latency = document.pop("latency_ms")
    return Step(**document, latency_ms=None if latency is None else Latency(**latency))


class Rooflines:
    """A decoding process for each CPU, and one process with the model."""

    def __init__(self, decoders: list[Child], model: Child, folder: Path, loaded: dict[str, Any]) -> None:
        self._decoders = decoders
        self._model = model
        self._folder = folder
        self.loaded = loaded
        """The model's facts, from its process."""

    @classmethod
    @asynccontextmanager
    async def start(cls, settings: Settings, folder: Path) -> AsyncIterator[Rooflines]:
        environment = environment_of(settings)
        children: list[Child] = []
        try:
            for name in ("model", *(f"decoder-{number}" for number in range(available_cpus()))):
                children.append(await Child.start(name, ".bench.rooflines", folder, environment))
            model, *decoders = children
            loaded = await model.ask("load", bodies=str(folder / "photos"))
            yield cls(decoders, model, folder, loaded)
        finally:
            await asyncio.gather(*[child.close() for child in children])

    async def decode(self, seconds: float, bodies: str = "photos", alone: bool = False) -> Pace:
        told = {"bodies": str(self._folder / bodies), "preprocessing": self.loaded["preprocessing"]}
        children = self._decoders[:1] if alone else self._decoders
        found = await asyncio.gather(*[child.ask("decode", seconds=seconds, **told) for child in children])
        return together([Pace(**each) for each in found])

    async def model(self, seconds: float, batch: int, alone: bool = False) -> Pace:
        return Pace(**await self._model.ask("model", batch=batch, seconds=seconds, alone=alone))

    async def transfer(self, seconds: float) -> Pace:
        return Pace(**await self._model.ask("transfer", batch=self.loaded["planned_batch"], seconds=seconds))


@contextmanager
def telling(
    progress: Progress, text: str, seconds: float | None = None, total: int | None = None
) -> Iterator[list[str]]:
    """Report the start and the end of a measurement; its results go into the list."""
    found: list[str] = []
    progress.begin(text, seconds, total)
    try:
        yield found
    finally:
        progress.end(", ".join(found))


async def measure_round(
    generator: Generator,
    rooflines: Rooflines,
    serving: Serving,
    null: Serving,
    plan: Plan,
    progress: Progress,
    name: str,
) -> Round:
    """Each measurement once, one after the other."""
    seconds, half = plan.seconds, plan.seconds / 2
    planned = rooflines.loaded["planned_batch"]
    with telling(progress, f"{name}: decode only", seconds + 2 * half) as found:
        decoded = await rooflines.decode(seconds)
        alone = await rooflines.decode(half, alone=True)
        smallest = await rooflines.decode(half, "smallest", alone=True)
        found.append(f"{decoded.rate:.1f} images/s")
    with telling(progress, f"{name}: model only", seconds + 2 * half) as found:
        model = await rooflines.model(seconds, planned)
        model_alone = await rooflines.model(half, 1, alone=True)
        transfer = await rooflines.transfer(half)
        found.append(f"{model.rate:.1f} images/s at batch {planned}")
    with telling(progress, f"{name}: HTTP only", seconds) as found:
        assert null.pid is not None
        cpu = cpu_seconds(null.pid)
        http = await generator.closed(null.target, clients=plan.clients, seconds=seconds, bodies="smallest")
        cpu = cpu_seconds(null.pid) - cpu
        found.append(f"{http.throughput:.1f} answers/s")
    served, single = await measure_closed(generator, serving, plan, progress, name)
    return Round(decoded, alone, smallest, model, model_alone, transfer, http, cpu, served, single)


async def measure_closed(
    generator: Generator, serving: Serving, plan: Plan, progress: Progress, name: str
) -> tuple[Step, Step]:
    """The closed loop, and one client alone."""
    with telling(progress, f"{name}: the service, {plan.clients} clients", plan.seconds) as found:
        served = await generator.closed(serving.target, clients=plan.clients, seconds=plan.seconds)
        found.append(f"{served.throughput:.1f} answers/s")
    with telling(progress, f"{name}: the service, one client", plan.seconds) as found:
        single = await generator.closed(serving.target, clients=1, seconds=plan.seconds)
        found.append(f"{single.latency_ms.p50:.1f} ms" if single.latency_ms else "no answer")
    return served, single


async def measure_load(
    generator: Generator, serving: Serving, peak: float, plan: Plan, progress: Progress
) -> tuple[Highest, list[Step]]:
    """The highest rate that keeps the target, and every open-loop step, by rate."""

    async def step(rate: float) -> Step:
        expected = plan.requests_at(rate) / rate
        with telling(progress, f"Open loop at {rate:.1f}/s", expected, plan.requests_at(rate)) as found:
            taken = await generator.open(serving.target, rate, plan)
            p99 = f"p99 {taken.latency_ms.p99:.0f} ms" if taken.latency_ms else "no answer"
            share = taken.in_time / max(taken.requests, 1)
            found.append(f"{p99}, {share:.1%} within {plan.p99_ms:g} ms")
        return taken

    highest = await find_highest(
        step, start=0.8 * peak, lowest=peak / 20, tolerance=plan.tolerance, most_steps=plan.most_steps
    )
    beside = [await step(part * peak) for part in plan.curve]
    return highest, sorted((*highest.steps, *beside), key=lambda each: each.offered_rate or 0.0)
