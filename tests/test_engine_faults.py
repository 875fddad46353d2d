"""The engine on a backend that fails as it is told: alone, and behind the whole service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.backends import null_checkpoint
from app.backends.null import NullBackend
from app.engine import InProcessEngine
from app.errors import DeviceLost, EngineUnavailable, Internal, OutOfMemory
from app.metrics import Metrics
from app.settings import Settings
from app.types import Outputs, Pixels, Want
from tests.photos import make_jpeg
from tests.running import post_image, running_server, service_process

pytestmark = pytest.mark.anyio


def image(number: int) -> Pixels:
    return np.full((224, 224, 3), number, np.uint8)


class ScriptedBackend(NullBackend):
    """Answers with the image's own level as the best class, unless `script` does something else with a batch."""

    max_batch_size = 32

    def __init__(self) -> None:
        super().__init__(null_checkpoint())
        self.script: Callable[[Sequence[int]], Any] = lambda levels: None
        self.batches: list[list[int]] = []

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        levels = [int(each[0, 0, 0]) for each in batch]
        self.batches.append(levels)
        if (scripted := self.script(levels)) is not None:
            return Outputs(np.asarray(scripted, np.float32), "logits")
        scores = np.zeros((len(batch), 1000), np.float32)
        scores[np.arange(len(batch)), levels] = 9.0
        return Outputs(scores, "logits")

    def warm_up(self, batch_size: int) -> None:
        pass


async def ask(engine: InProcessEngine, numbers: Sequence[int]) -> list[Any]:
    """What each image is answered with: its best class, or its error."""
    import asyncio

    async def one(number: int) -> Any:
        try:
            scored = await engine.run(image(number), time.monotonic() + 30)
        except Exception as error:
            return error
        return int(scored.scores.argmax())

    return await asyncio.gather(*[one(number) for number in numbers])


async def started(backend: ScriptedBackend, metrics: Metrics | None = None, **options: Any) -> InProcessEngine:
    engine = InProcessEngine(backend, **({"max_batch_size": 32, "max_queue": 256} | options), metrics=metrics)
    await engine.start()
    backend.batches.clear()
    return engine


async def test_a_poison_fails_alone() -> None:
    """Of 32 images the one that the backend cannot take is an internal error, and all others are answered."""
    backend = ScriptedBackend()
    metrics = Metrics()
    engine = await started(backend, metrics)

    def poisoned(levels: Sequence[int]) -> None:
        if 17 in levels:
            raise ValueError("poison")

    backend.script = poisoned
    answers = await ask(engine, range(32))
    assert [answer for number, answer in enumerate(answers) if number != 17] == [n for n in range(32) if n != 17]
    assert isinstance(answers[17], Internal)
    assert len(backend.batches) <= 1 + 2 * 5
    assert b'resnet_batch_failures_total{kind="raised"}' in metrics.render()
    await engine.close()


async def test_a_wrong_number_of_rows_answers_nobody() -> None:
    """Rows that cannot be told apart are nobody's; single images are answered, since one row is theirs."""
    backend = ScriptedBackend()
    engine = await started(backend)
    backend.script = lambda levels: np.zeros((len(levels) + 1, 1000)) if len(levels) > 1 else None
    assert await ask(engine, range(4)) == [0, 1, 2, 3]
    backend.script = lambda levels: np.zeros((0, 1000))
    assert all(isinstance(answer, Internal) for answer in await ask(engine, range(4)))
    await engine.close()


async def test_out_of_memory_splits_lowers_the_cap_and_grows_back() -> None:
    """What does not fit is run in halves; batches are smaller from then on, and larger again after fifty that fit."""
    backend = ScriptedBackend()
    engine = await started(backend)
    most = 8

    def small_memory(levels: Sequence[int]) -> None:
        if len(levels) > most:
            raise OutOfMemory()

    backend.script = small_memory
    assert await ask(engine, range(32)) == list(range(32))
    assert engine.state().capacity == 8
    backend.batches.clear()
    assert await ask(engine, range(32)) == list(range(32))
    assert max(len(batch) for batch in backend.batches) == 8
    most = 32
    for _ in range(40):
        assert await ask(engine, range(32)) == list(range(32))
    assert engine.state().capacity == 32
    await engine.close()


async def test_out_of_memory_for_one_image_is_retryable() -> None:
    """Where not even one image fits it is told to come again; nothing else breaks."""
    backend = ScriptedBackend()
    engine = await started(backend)

    def no_memory(levels: Sequence[int]) -> None:
        raise OutOfMemory()

    backend.script = no_memory
    (answer,) = await ask(engine, [3])
    assert isinstance(answer, OutOfMemory)
    assert answer.status == 503
    assert answer.retryable
    backend.script = lambda levels: None
    assert await ask(engine, [3]) == [3]
    await engine.close()


async def test_a_lost_device_ends_the_engine() -> None:
    """An error that no later call survives: everybody is told, and so is whoever waits for it."""
    backend = ScriptedBackend()
    engine = await started(backend)

    def lost(levels: Sequence[int]) -> None:
        raise DeviceLost("cuda:0 failed")

    backend.script = lost
    answers = await ask(engine, range(8))
    assert all(isinstance(answer, EngineUnavailable) for answer in answers)
    assert len(backend.batches) == 1
    assert (engine.state().ready, engine.state().reason) == (False, "lost")
    assert "cuda:0 failed" in str(await engine.until_lost())
    await engine.close()


async def test_a_hung_call_is_noticed() -> None:
    """A batch that takes longer than it may ends the engine while the call still hangs, and closing does not wait."""
    backend = ScriptedBackend()
    engine = await started(backend, hang_seconds=0.2)
    let_go = threading.Event()
    backend.script = lambda levels: let_go.wait(60) and None
    try:
        began = time.monotonic()
        answers = await ask(engine, range(8))
        assert all(isinstance(answer, EngineUnavailable) for answer in answers)
        assert "has not come back" in str(await engine.until_lost())
        await engine.close()
        assert time.monotonic() - began < 10
    finally:
        let_go.set()


def test_a_lost_device_fails_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """/healthz and /readyz are 503 from that moment, and the process is told to end."""
    backend = ScriptedBackend()

    def lost(levels: Sequence[int]) -> None:
        raise DeviceLost("cuda:0 failed: an illegal memory access was encountered")

    monkeypatch.setattr("app.loading.create_backend", lambda *arguments: backend)
    settings = Settings(backend="null", port=0, log_level="error", max_batch_size=4)
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        assert post_image(client, make_jpeg(1)).status_code == 200
        backend.script = lost
        answer = post_image(client, make_jpeg(1))
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
        assert "illegal" not in answer.text
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
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 15
        asking.join(30)
        assert not asking.is_alive()
