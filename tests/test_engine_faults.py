"""The engine on a backend that fails as it is told: alone, and behind the whole service."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine import Engine
from app.errors import DeviceLost, EngineUnavailable, Internal, OutOfMemory
from app.settings import Settings
from app.types import Pixels, Want
from tests.pace import within
from tests.photos import make_jpeg
from tests.running import post_image, running_server, service_process, wait_until
from tests.scripted import (
    KINDS,
    Device,
    Kind,
    ScriptedBackend,
    a_row_too_many,
    answer,
    lost,
    no_rows,
    out_of_memory_above,
    poisoned,
    scripted_engine,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def image(number: int) -> Pixels:
    return np.full((224, 224, 3), number, np.uint8)


async def ask(engine: Engine, numbers: Sequence[int], seconds: float = 30) -> list[Any]:
    """What each image is answered with: its best class, or its error."""

    async def one(number: int) -> Any:
        try:
            scored = await engine.run(image(number), Want.SCORES, time.monotonic() + seconds)
        except Exception as error:
            return error
        return int(scored.outputs.scores.argmax())

    return await asyncio.gather(*[one(number) for number in numbers])


async def test_a_poison_fails_alone(kind: Kind) -> None:
    """Of 32 images the one that the backend cannot take is an internal error, and all others are answered."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(partial(poisoned, 17))
        answers = await ask(engine, range(32))
        assert [answer for number, answer in enumerate(answers) if number != 17] == [n for n in range(32) if n != 17]
        assert isinstance(answers[17], Internal)
        assert sum(17 in batch for batch in device.batches()) <= 1 + 5
        assert 'resnet_batch_failures_total{kind="raised",model="null",version="00000000"}' in device.metrics()


async def test_a_wrong_number_of_rows_answers_nobody(kind: Kind) -> None:
    """Rows that cannot be told apart are nobody's; single images are answered, since one row is theirs."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(a_row_too_many)
        assert await ask(engine, range(4)) == [0, 1, 2, 3]
        device.follow(no_rows)
        assert all(isinstance(answer, Internal) for answer in await ask(engine, range(4)))


async def test_out_of_memory_splits_lowers_the_cap_and_grows_back(kind: Kind) -> None:
    """What does not fit is run in halves; batches are smaller from then on, and larger again after fifty that fit."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(partial(out_of_memory_above, 8))
        assert await sizes_of_full_batches(engine, device) == [32, 16, 8, 8, 16, 8, 8, *[8] * 4]
        assert await sizes_of_full_batches(engine, device) == [8] * 8
        device.follow(answer)
        sizes: list[int] = []
        while engine.state().device.batch_size < 32:
            sizes += await sizes_of_full_batches(engine, device)
        # Fourteen had fitted since the last that did not.
        assert (sizes.count(8), sizes.count(16)) == (50 - 14, 50)


async def sizes_of_full_batches(engine: Engine, device: Device) -> list[int]:
    """Of those that 64 images are run in, all of which wait before the first of them is."""
    device.hold()
    alone = asyncio.create_task(ask(engine, [0]))
    await asyncio.to_thread(device.wait_until_entered)
    before = len(device.batches())
    asking = asyncio.create_task(ask(engine, range(64)))
    await asyncio.to_thread(wait_until, lambda: 'resnet_queue_depth{stage="device"} 64.0' in device.metrics())
    device.release()
    assert (await alone, await asking) == ([0], list(range(64)))
    return [len(batch) for batch in device.batches()[before:]]


async def test_out_of_memory_for_one_image_is_retryable(kind: Kind) -> None:
    """Where not even one image fits it is told to come again; nothing else breaks."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(partial(out_of_memory_above, 0))
        (refused,) = await ask(engine, [3])
        assert isinstance(refused, OutOfMemory)
        assert refused.status == 503
        assert refused.retryable
        device.follow(answer)
        assert await ask(engine, [3]) == [3]


async def test_a_lost_device_ends_the_engine(kind: Kind) -> None:
    """An error that no later call survives: everybody is told, and so is whoever waits for it."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(partial(lost, "cuda:0 failed"))
        answers = await ask(engine, range(8))
        assert all(isinstance(answer, EngineUnavailable) for answer in answers)
        assert isinstance(await engine.until_lost(), DeviceLost)
        assert "cuda:0 failed" in await device.why_lost()
        # In a process of its own the engine is started again; here only a restart of this one helps.
        state = engine.state()
        assert (state.ready, state.reason) == (False, "lost" if kind == "in process" else "restarting")
        assert isinstance((await ask(engine, [1]))[0], EngineUnavailable)


async def test_a_hung_call_is_noticed(kind: Kind) -> None:
    """A batch that takes longer than it may ends the engine while the call still hangs, and closing does not wait."""
    async with scripted_engine(kind, model_timeout_seconds=0.2) as (engine, device):
        device.hold()
        with within(10):
            answers = await ask(engine, range(8))
            assert all(isinstance(answer, EngineUnavailable) for answer in answers)
            assert "has not come back" in await device.why_lost()
            await engine.close()


def test_a_lost_device_fails_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """/healthz and /readyz are 503 from that moment, and the process is told to end."""
    backend = ScriptedBackend()
    monkeypatch.setattr("app.loading.create_backend", lambda *arguments: backend)
    settings = Settings(backend="null", port=0, log_level="error", max_batch_size=4)
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        assert post_image(client, make_jpeg(1)).status_code == 200
        backend.script = partial(lost, "cuda:0 failed: an illegal memory access was encountered")
        failed = post_image(client, make_jpeg(1))
        assert (failed.status_code, failed.json()["code"]) == (503, "engine_unavailable")
        assert "illegal" not in failed.text
        for path in ("/healthz", "/readyz"):
            assert (client.get(path).status_code, client.get(path).json()["state"]) == (503, "failed")
        refused = post_image(client, make_jpeg(1))
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")
        error = server.events.get(timeout=30)
        assert isinstance(error, DeviceLost)


HANGS = """
import sys, threading
from app.backends import null
from app.cli import main

sent = []
infer = null.NullBackend.infer

def hang(backend, batch, want):
    sent.append(len(batch))
    if len(sent) > 20 and batch.any():
        print("now it hangs", file=sys.stderr, flush=True)
        threading.Event().wait()
    return infer(backend, batch, want)

null.NullBackend.infer = hang
main()
"""


def test_a_model_call_that_hangs_ends_the_process(tmp_path: Path) -> None:
    """Its waiters get 503, and the process ends by itself with a status that is not 0, the call still hanging."""
    flags = ("--backend", "null", "--model-timeout-seconds", "0.5", "--max-batch-size", "1")
    with service_process(*flags, folder=tmp_path, program=HANGS) as service:
        address = service.wait_for("Ready:").split("http://")[1].split("/")[0]
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            statuses = [post_image(client, make_jpeg(1)).status_code for _ in range(2)]
            while statuses[-1] == 200 and len(statuses) < 40:
                statuses.append(post_image(client, make_jpeg(1)).status_code)
        assert statuses[-1] == 503
        assert service.process.wait(30) == 1
        assert "has not come back" in service.wait_for("has not come back")


def test_sigterm_is_not_held_by_a_call_that_hangs(tmp_path: Path) -> None:
    """A stop while the model hangs, before that is noticed, still ends the process, with what waited answered."""
    flags = ("--backend", "null", "--max-batch-size", "1", "--shutdown-linger-seconds", "0")
    grace = ("--shutdown-grace-seconds", "1")
    with service_process(*flags, *grace, folder=tmp_path, program=HANGS) as service:
        address = service.wait_for("Ready:").split("http://")[1].split("/")[0]

        def ask_until_it_ends() -> None:
            with httpx.Client(base_url=f"http://{address}", timeout=30) as client, suppress(httpx.HTTPError):
                while True:
                    post_image(client, make_jpeg(1))

        asking = threading.Thread(target=ask_until_it_ends)
        asking.start()
        service.wait_for("now it hangs")
        with within(15):
            service.stop()
        asking.join(30)
        assert not asking.is_alive()
