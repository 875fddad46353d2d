"""One benchmark run: starts the processes, measures each stage and the whole in turn, and builds the report."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..backends import null_checkpoint
from ..backends.null import NullBackend
from ..decoding import decode_as_served
from ..errors import BodyTooLarge, StartError
from ..resources import available_cpus
from ..settings import Settings
from ..types import Pixels
from .bodies import write_bodies
from .costs import Round, costs_of
from .machine import this_machine, versions
from .measuring import Generator, Progress, Rooflines, measure_closed, measure_load, measure_round, telling
from .photos import Photos, facts_of, find_photos, smallest_image
from .plan import Plan
from .processes import MemorySample, memory_watch
from .report import Report, ServerFacts, steps_of, warnings_of
from .search import Highest
from .serving import Serving, given, null_settings, reached, started
from .soak import ENOUGH_TO_GROW, memory_of
from .steps import Step
from .target import Target

_ELSEWHERE = (
    "The server was not started by this run, so that its CPU time and its model cannot be measured from here. Give its "
    "settings after --, in place of --url, and the run starts one like it."
)


@dataclass
class _Found:
    """The results of a run so far."""

    serving: Serving
    loaded: dict[str, object] | None = None
    rounds: list[Round] = field(default_factory=list)
    closed: Step | None = None
    single: Step | None = None
    highest: Highest | None = None
    curve: list[Step] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)


async def run(
    plan: Plan, settings: Settings, target: Target | None, photos_folder: Path | None, progress: Progress, command: str
) -> Report:
    """Measure the service of `settings`, started for it, or the one at `target`.

    Raises `StartError` without photos, a reachable server or a model.
    """
    began, began_at = time.monotonic(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="resnet-serve-bench-") as name:
        folder = Path(name)
        with telling(progress, "Preparing photos") as told:
            photos = await asyncio.to_thread(prepare_photos, folder, settings, photos_folder)
            told.append(photos.source)
        found = await _measure(plan, settings, target, photos, folder, progress)
    assert found.closed is not None
    health, loaded = found.serving.health, found.loaded
    cpus = available_cpus()
    device = str(health["device"])
    on_device = device.startswith("cuda")
    steps = steps_of(found.rounds, found.closed, found.single, found.curve)
    missing = None if found.rounds else _ELSEWHERE if target else "A soak measures none."
    return Report(
        command=command,
        began_at=began_at.isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        kind=plan.kind,
        machine=this_machine(device if on_device and target is None else None),
        versions=versions(),
        server=ServerFacts(
            url=found.serving.target.url,
            was_started=target is None,
            settings={} if target else given(settings),
            version=str(health["version"]),
            model=str(health["model"]["name"]),
            model_version=str(health["model"]["version"]),
            backend=str(health["backend"]),
            device=device,
            planned_batch=int(str(loaded["planned_batch"])) if loaded else None,
            ready_seconds=found.serving.ready_seconds,
        ),
        photos=facts_of(photos),
        target_p99_ms=plan.p99_ms,
        arrivals=plan.arrivals,
        clients=plan.clients,
        rounds=tuple(found.rounds),
        rooflines_missing=missing,
        costs=costs_of(found.rounds, cpus, on_device) if found.rounds else None,
        closed=found.closed,
        single=found.single,
        curve=tuple(found.curve),
        highest=found.highest,
        memory=memory_of(found.memory, is_long=plan.soak_requests >= ENOUGH_TO_GROW),
        warnings=warnings_of(steps, found.rounds, cpus, photos.skipped),
    )


async def _measure(
    plan: Plan, settings: Settings, target: Target | None, photos: Photos, folder: Path, progress: Progress
) -> _Found:
    async with AsyncExitStack() as stack:
        with telling(progress, "Waiting for the service" if target else "Starting the service") as told:
            if target:
                serving = await reached(target, plan.wait_seconds)
            else:
                serving = await stack.enter_async_context(started(settings, "server", folder, plan.wait_seconds))
            told.append(f"{serving.health['model']['name']} on {serving.health['device']}")
        generator = await stack.enter_async_context(Generator.start(folder, plan.p99_ms, progress.done))
        if target and serving.health["backend"] == "null":
            # Under load each image must get the answer that it got alone.
            write_bodies(folder / "photos", photos.bodies, await generator.learn(target))
        found = _Found(serving)
        async with memory_watch(serving.pid) as found.memory:
            if plan.soak_requests:
                with telling(progress, f"{plan.soak_requests:,} requests", total=plan.soak_requests) as told:
                    found.closed = await generator.closed(
                        serving.target, clients=plan.clients, requests=plan.soak_requests
                    )
                    told.append(f"{found.closed.throughput:.1f} answers/s")
                if not found.closed.good:
                    raise _no_right_answer(serving, found.closed)
                return found
            if target:
                found.closed, found.single = await measure_closed(generator, serving, plan, progress, "Closed loop")
                peak = found.closed.throughput
            else:
                await _measure_rounds(plan, settings, generator, folder, progress, found)
                peak = statistics.median(each.served.throughput for each in found.rounds)
            if peak <= 0 and found.closed is not None:
                raise _no_right_answer(serving, found.closed)
            found.highest, found.curve = await measure_load(generator, serving, peak, plan, progress)
        return found


async def _measure_rounds(
    plan: Plan, settings: Settings, generator: Generator, folder: Path, progress: Progress, found: _Found
) -> None:
    async with AsyncExitStack() as stack:
        null = found.serving
        if null.health["backend"] != "null":
            with telling(progress, "Starting the same service without a model"):
                null = await stack.enter_async_context(
                    started(null_settings(settings), "null-server", folder, plan.wait_seconds)
                )
        with telling(progress, "Loading the model into a process of its own") as told:
            rooflines = await stack.enter_async_context(Rooflines.start(settings, folder))
            told.append(f"batches of {rooflines.loaded['planned_batch']}")
        found.loaded = rooflines.loaded
        for number in range(plan.rounds):
            name = f"Round {number + 1} of {plan.rounds}"
            found.rounds.append(await measure_round(generator, rooflines, found.serving, null, plan, progress, name))
        found.closed, found.single = found.rounds[-1].served, found.rounds[-1].single


def prepare_photos(folder: Path, settings: Settings, photos_folder: Path | None) -> Photos:
    """Write the photos to `folder`/photos, and one-pixel images of the same file sizes to `folder`/smallest."""
    checkpoint = null_checkpoint()
    null = NullBackend(checkpoint)
    decode = decode_as_served(settings)

    def as_served(body: bytes) -> Pixels:
        if len(body) > settings.max_body_bytes:
            raise BodyTooLarge(settings.max_body_bytes)
        return decode(body, checkpoint.preprocessing)

    photos = find_photos(photos_folder, as_served)
    smallest = [smallest_image(padded_to_bytes=len(body)) for body in photos.bodies]

    def classes(pixels: Pixels) -> list[int]:
        return list(dict.fromkeys(null.classes_of(pixels)))

    of_smallest = classes(as_served(smallest[0]))
    write_bodies(folder / "smallest", smallest, [of_smallest] * len(smallest))
    # Only the null backend's answers are known in advance.
    known = [classes(as_served(body)) for body in photos.bodies] if settings.backend == "null" else None
    write_bodies(folder / "photos", photos.bodies, known)
    return photos


def _no_right_answer(serving: Serving, step: Step) -> StartError:
    return StartError(f"{serving.target.url} gave no right answer in a closed loop: {step.outcomes}")
