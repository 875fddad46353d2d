"""The load generator's process: runs the loops that its parent requests, one after the other."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvloop

from ..errors import StartError
from .answers import classes_of, read_answer, read_status
from .bodies import read_bodies
from .children import answer_commands
from .clients import Clients, ConnectionFailed, Request, prepare
from .loops import closed_loop, open_loop
from .steps import Step
from .target import Target

_GIVE_UP_SECONDS = 60.0
# One lost answer is tolerated. Waiting for each lost answer would hold the run for too long.
_MOST_LOST = 3


def run_step(told: dict[str, Any], on_done: Callable[[int], None]) -> dict[str, Any]:
    """One loop: {"loop": "open" or "closed", "target": …, "bodies": folder, "request": …, "status_alone": bool, and the
    loop's own arguments}.
    """
    target, requests = _requests(told)
    read = read_status if told.pop("status_alone", False) else read_answer
    loop = told.pop("loop")
    began = time.process_time()
    step = uvloop.run(_step(loop, Clients(target, requests, read=read), told, on_done))
    return asdict(replace(step, generator_cpu_seconds=time.process_time() - began))


async def _step(loop: str, clients: Clients, told: dict[str, Any], on_done: Callable[[int], None]) -> Step:
    # Wait for one answer before the loop begins: by then the server's queue is empty.
    with suppress(TimeoutError):
        async with asyncio.timeout(told.get("give_up_seconds", _GIVE_UP_SECONDS)):
            await clients.ask(0)
    try:
        return await (closed_loop if loop == "closed" else open_loop)(clients.ask, on_done=on_done, **told)
    finally:
        clients.close()


def learn(told: dict[str, Any], on_done: Callable[[int], None]) -> list[list[int]]:
    """The two best classes of each image, requested one at a time; [] if the server gave no prediction."""
    target, requests = _requests(told)
    return uvloop.run(_learn(Clients(target, requests), requests, told.get("give_up_seconds", _GIVE_UP_SECONDS)))


async def _learn(clients: Clients, requests: list[Request], give_up_seconds: float) -> list[list[int]]:
    found: list[list[int]] = []
    lost = 0
    for number in range(len(requests)):
        try:
            async with asyncio.timeout(give_up_seconds):
                found.append(classes_of(await clients.body_of(number))[:2])
        except TimeoutError:
            found.append([])
            lost += 1
            if lost == _MOST_LOST:
                raise StartError(f"{lost} images were not answered within {give_up_seconds:g} s each.") from None
        except (ConnectionFailed, OSError, ValueError):
            found.append([])
    clients.close()
    return found


def _requests(told: dict[str, Any]) -> tuple[Target, list[Request]]:
    target = Target(**told.pop("target"))
    folder, request = Path(told.pop("bodies")), told.pop("request", {})
    return target, [prepare(target, body, expected, **request) for body, expected in read_bodies(folder)]


if __name__ == "__main__":
    # The generator makes no reference cycles, and each collection would pause all clients.
    gc.disable()
    answer_commands({"step": run_step, "learn": learn})
