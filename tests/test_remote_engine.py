"""An engine that is asked over a socket: every front-end gets its own answers, and what it leaves behind is freed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import errors
from app.batching import DeviceForecast, LatencyModel
from app.engine import EngineState, InProcessEngine, wire
from app.engine.board import Board, create_board
from app.engine.host import EngineHost
from app.engine.remote import RemoteEngine
from app.engine.segment import Segment, SlotLayout, create_segment
from app.errors import DeadlineExceeded, EngineUnavailable, Internal, Overloaded, ServiceError, Unavailable
from app.types import InputSpec, Outputs, Pixels, Want
from tests.pace import within
from tests.scripted import (
    CLASSES,
    KINDS,
    Kind,
    ScriptedBackend,
    answer,
    scripted_engine,
    too_few_classes,
    without_features,
)

pytestmark = pytest.mark.anyio

SIDE = 32


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def image(level: int, side: int = SIDE) -> Pixels:
    return np.full((side, side, 3), level, np.uint8)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Hosted:
    """One engine in this process, asked over sockets as from others."""

    def __init__(self, **options: Any) -> None:
        self.backend = ScriptedBackend()
        self.engine = InProcessEngine(self.backend, **({"max_batch_size": 8, "max_queue": 256} | options))
        descriptor = create_board()
        self.board = Board(descriptor)
        os.close(descriptor)
        self.host = EngineHost(self.engine, self.board)

    async def connect(self, slots: int = 64) -> RemoteEngine:
        ours, theirs = socket.socketpair()
        layout = SlotLayout(SIDE, SIDE, CLASSES, slots)
        memory = create_segment(layout)
        await self.host.attach(theirs, Segment(memory, layout))
        engine = RemoteEngine(ours, Segment(memory, layout), self.board)
        os.close(memory)
        await engine.start()
        return engine

    @property
    def waiting(self) -> int:
        return self.engine._batcher.waiting


@contextlib.asynccontextmanager
async def hosted(**options: Any) -> AsyncIterator[Hosted]:
    each = Hosted(**options)
    await each.engine.start()
    each.host.is_ready()
    each.backend.batches.clear()
    try:
        yield each
    finally:
        each.backend.may_run.set()
        await each.host.close()
        await each.engine.close()


async def ask(engine: RemoteEngine, level: int, seconds: float = 30) -> int:
    scored = await engine.run(image(level), Want.SCORES, time.monotonic() + seconds)
    assert scored.outputs.scores.shape == (CLASSES,)
    assert scored.outputs.scores[level] == 9.0
    assert np.count_nonzero(scored.outputs.scores) == 1
    return int(scored.outputs.scores.argmax())


async def test_many_images_get_their_own_answers(kind: Kind) -> None:
    """Five hundred at once, of either kind of engine: each is answered with its own level, none with another's."""

    async def one(number: int) -> int:
        scored = await engine.run(image(number % 250, 224), Want.SCORES, time.monotonic() + 30)
        assert 1 <= scored.batch_size <= 32
        assert scored.queue_seconds >= 0
        assert scored.inference_seconds > 0
        return int(scored.outputs.scores.argmax())

    async with scripted_engine(kind, max_queue=512) as (engine, _):
        assert await asyncio.gather(*[one(number) for number in range(500)]) == [n % 250 for n in range(500)]


KINDS_OF_WORK = [
    (spec, want)
    for spec in InputSpec
    for want in (Want.SCORES, Want.SCORES | Want.FEATURES, Want.SCORES | Want.FEATURE_MAPS, ~Want(0))
]


async def test_each_image_gets_what_it_wants_and_its_own(kind: Kind) -> None:
    """Pixels and tensors, with and without features and maps, all at once: each gets its own, and nothing else."""

    async def one(number: int) -> None:
        spec, want = KINDS_OF_WORK[number % len(KINDS_OF_WORK)]
        level = number % 250
        item = image(level, 224) if spec == InputSpec.PIXELS_U8 else np.full((3, 224, 224), level, np.float32)
        outputs = (await engine.run(item, want, time.monotonic() + 60)).outputs
        assert outputs.scores.argmax() == level
        assert (outputs.features is not None) == (Want.FEATURES in want)
        assert (outputs.feature_maps is not None) == (Want.FEATURE_MAPS in want)
        if outputs.features is not None:
            assert outputs.features.tolist() == [level] * 8
        if outputs.feature_maps is not None:
            assert outputs.feature_maps.shape == (8, 3, 3)
            assert (outputs.feature_maps == level).all()

    async with scripted_engine(kind, max_queue=512) as (engine, _):
        await asyncio.gather(*[one(number) for number in range(200)])


async def test_what_the_model_cannot_do_is_a_typed_error(kind: Kind) -> None:
    """Features and tensors that are not available are refused as such; scores for pixels are answered."""
    async with scripted_engine(kind) as (engine, device):
        device.follow(without_features)
        deadline = time.monotonic() + 60
        for _ in range(2):
            with pytest.raises(errors.FeaturesNotAvailable):
                await engine.run(image(1, 224), Want.SCORES | Want.FEATURES, deadline)
            with pytest.raises(errors.TensorsNotAvailable):
                await engine.run(np.zeros((3, 224, 224), np.float32), Want.SCORES, deadline)
        assert (await engine.run(image(7, 224), Want.SCORES, deadline)).outputs.scores.argmax() == 7


class SlowToPrepare(ScriptedBackend):
    def __init__(self) -> None:
        super().__init__()
        self.may_prepare = threading.Event()
        self.prepared = 0

    def prepare(self, spec: InputSpec, want: Want) -> None:
        self.may_prepare.wait()
        self.prepared += 1


async def test_plain_requests_do_not_wait_while_features_are_prepared() -> None:
    """The first request for features sets them up beside the batches; it ends at its deadline, and counts once."""
    backend = SlowToPrepare()
    engine = InProcessEngine(backend, max_batch_size=4, max_queue=16)
    await engine.start()
    far = time.monotonic() + 60
    with pytest.raises(DeadlineExceeded):
        await engine.run(image(1), Want.SCORES | Want.FEATURES, time.monotonic() + 0.01)
    waiting = [asyncio.ensure_future(engine.run(image(n), Want.SCORES | Want.FEATURES, far)) for n in range(3)]
    assert (await engine.run(image(5), Want.SCORES, far)).outputs.scores.argmax() == 5
    assert not any(each.done() for each in waiting)
    backend.may_prepare.set()
    assert [scored.outputs.scores.argmax() for scored in await asyncio.gather(*waiting)] == [0, 1, 2]
    assert backend.prepared == 1
    await engine.close()


def test_answers_are_taken_whole_however_they_arrive() -> None:
    """Records and the values behind them are read the same from any pieces of the stream."""
    maps = np.arange(8 * 3 * 3, dtype=np.float32).reshape(8, 3, 3)
    scores = np.zeros(2, np.float32)
    stream = b"".join(
        [
            wire.pack_scored(1, Outputs(scores, "softmax"), 1, 0.5, 0.25),
            wire.pack_scored(2, Outputs(scores, "none", maps[:, 0, 0], maps), 2, 0.5, 0.25),
            wire.pack_error(3, Overloaded(retry_after_seconds=1.5)),
            wire.pack_scored(4, Outputs(scores, "sigmoid", None, maps), 3, 0.5, 0.25),
            wire.pack_scored(5, Outputs(scores, "softmax", maps[:, 1, 1]), 4, 0.5, 0.25),
        ]
    )
    for size in (1, 7, 40, 333, len(stream)):
        received, answers = bytearray(), []
        for start in range(0, len(stream), size):
            received += stream[start : start + size]
            answers += wire.take_answers(received)
        assert not received
        assert [each.request_id for each in answers] == [1, 2, 3, 4, 5]
        assert [each.features is None for each in answers] == [True, False, True, True, False]
        assert answers[1].feature_maps is not None
        assert np.array_equal(answers[1].feature_maps, maps)
        assert answers[4].features is not None
        assert np.array_equal(answers[4].features, maps[:, 1, 1])


def test_slots_that_carry_pixels_take_the_memory_of_pixels() -> None:
    """The rest of a slot, for tensors, is memory that nobody touches and the system does not give."""
    layout = SlotLayout(224, 224, CLASSES, 16)
    memory = create_segment(layout)
    segment = Segment(memory, layout)
    for slot in range(16):
        segment.pixels(slot)[:] = slot
        segment.scores(slot)[:] = slot
    pages = -(-224 * 224 * 3 // mmap.PAGESIZE)
    assert os.fstat(memory).st_blocks * 512 <= 16 * (pages + 1) * mmap.PAGESIZE
    os.close(memory)


async def test_who_leaves_never_reaches_the_device(kind: Kind) -> None:
    """Callers that are cancelled while the device is busy leave the queue; the device sees only who stayed."""
    async with scripted_engine(kind) as (engine, device):
        device.hold()
        first = asyncio.ensure_future(engine.run(image(1, 224), Want.SCORES, time.monotonic() + 30))
        await asyncio.to_thread(device.wait_until_entered)
        others = [
            asyncio.ensure_future(engine.run(image(2 + n, 224), Want.SCORES, time.monotonic() + 30)) for n in range(10)
        ]
        await asyncio.sleep(0)
        for leaver in others[::2]:
            leaver.cancel()
        await asyncio.wait(others[::2])
        if isinstance(engine, RemoteEngine):
            # The engine has said that it let go of each.
            await until(lambda: engine.asked == 6)
        device.release()
        assert (await first).outputs.scores.argmax() == 1
        stayed = [int((await other).outputs.scores.argmax()) for other in others[1::2]]
        assert stayed == [3, 5, 7, 9, 11]
        assert sorted(level for batch in device.batches() for level in batch if level) == [1, *stayed]


async def test_a_deadline_passes_in_the_queue(kind: Kind) -> None:
    """What waits past its deadline is told so then, while the device is still busy."""
    async with scripted_engine(kind) as (engine, device):
        device.hold()
        first = asyncio.ensure_future(engine.run(image(1, 224), Want.SCORES, time.monotonic() + 30))
        await asyncio.to_thread(device.wait_until_entered)
        began = time.monotonic()
        with within(1), pytest.raises(DeadlineExceeded):
            await engine.run(image(2, 224), Want.SCORES, began + 0.1)
        assert time.monotonic() - began > 0.09
        device.release()
        await first
        assert [2] not in device.batches()


async def test_the_queue_is_bounded(kind: Kind) -> None:
    """With the device busy, what comes beyond the bound is refused at once, and told when to come again."""
    async with scripted_engine(kind, max_queue=4, max_batch_size=2) as (engine, device):
        device.hold()
        asking = [asyncio.ensure_future(engine.run(image(1, 224), Want.SCORES, time.monotonic() + 30))]
        await asyncio.to_thread(device.wait_until_entered)
        asking += [
            asyncio.ensure_future(engine.run(image(2 + n, 224), Want.SCORES, time.monotonic() + 30)) for n in range(20)
        ]
        # Twenty less a queue of four and a batch of two.
        for outcome in itertools.islice(asyncio.as_completed(asking[1:]), 14):
            with pytest.raises(Overloaded) as caught:
                await outcome
            assert caught.value.retry_after_seconds > 0
        device.release()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(not isinstance(each, Exception) for each in answers) == 7


async def test_two_front_ends_in_any_order_of_arrivals_and_cancellations() -> None:
    """Whatever comes and leaves in whatever order, every answer is its own image's, and every slot is free again."""
    chance = random.Random(5)
    async with hosted() as engine:
        front_ends = [await engine.connect(slots=16) for _ in range(2)]
        answered = refused = left = 0

        async def one(front_end: RemoteEngine) -> None:
            nonlocal answered, refused, left
            level = chance.randrange(250)
            task = asyncio.ensure_future(ask(front_end, level))
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            if chance.random() < 0.4:
                task.cancel()
            try:
                assert await task == level
                answered += 1
            except Overloaded:
                refused += 1
            except asyncio.CancelledError:
                left += 1

        for _ in range(60):
            await asyncio.gather(*[one(front_ends[chance.randrange(2)]) for _ in range(chance.randrange(1, 40))])
        assert min(answered, refused, left) > 20
        await until(lambda: engine.host.pending == 0 and all(each.asked == 0 for each in front_ends))
        # All sixteen of each can be had at once.
        for front_end in front_ends:
            assert await asyncio.gather(*[ask(front_end, level) for level in range(16)]) == list(range(16))


async def test_every_front_end_sees_what_the_device_does() -> None:
    """What runs, how fast the device is and when it is free is told to every front-end, and ages by itself."""
    async with hosted() as engine:
        busy, idle = await engine.connect(), await engine.connect()
        engine.engine._batcher.cap.plan(1)
        engine.engine._batcher.expect(LatencyModel({1: 2.0}))
        await until(lambda: idle.state().device.batch_size == 1)
        assert (idle.state().device.running, idle.state().device.free_in_seconds) == ([], 0)
        engine.backend.may_run.clear()
        asking = [asyncio.ensure_future(ask(busy, level)) for level in range(5)]
        await until(lambda: len(idle.state().device.running) == 1)
        device = idle.state().device
        assert 0 < device.free_in_seconds <= 2
        # A batch is planned with a tenth more than the half of all that take longer.
        assert device.batch_seconds == device.single_seconds == pytest.approx(2.2)
        # Behind four that wait, an image that comes now would wait for the one that runs and four more.
        assert 8 < device.starts_in(4) <= 2 + 4 * 2.2
        engine.backend.may_run.set()
        assert await asyncio.gather(*asking) == list(range(5))
        await until(lambda: not idle.state().device.running and idle.state().device.free_in_seconds == 0)


async def test_a_front_end_that_dies_takes_its_images_along() -> None:
    """Its images leave the queue, those on the device are nobody's, and the other front-end is served."""
    async with hosted() as engine:
        dying, living = await engine.connect(), await engine.connect()
        engine.backend.may_run.clear()
        lost = [asyncio.ensure_future(ask(dying, 1))]
        await until(engine.backend.has_entered.is_set)
        lost += [asyncio.ensure_future(ask(dying, 2 + n)) for n in range(20)]
        kept = asyncio.ensure_future(ask(living, 200))
        await until(lambda: engine.waiting == 21)
        assert dying._transport is not None
        dying._transport.abort()
        await until(lambda: engine.waiting == 1)
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert all(isinstance(outcome, EngineUnavailable) for outcome in outcomes)
        engine.backend.may_run.set()
        assert await kept == 200
        assert engine.backend.batches == [[1], [200]]
        assert engine.host.pending == 0


async def test_a_slot_is_not_used_again_before_the_engine_lets_go_of_it() -> None:
    """With one slot, whose image is on the device when its caller leaves, the next image is not mixed up with it."""
    async with hosted() as engine:
        front_end = await engine.connect(slots=1)
        for level in range(1, 40):
            engine.backend.has_entered.clear()
            engine.backend.may_run.clear()
            leaver = asyncio.ensure_future(ask(front_end, level))
            await until(engine.backend.has_entered.is_set)
            leaver.cancel()
            await asyncio.wait([leaver])
            with pytest.raises(Overloaded):
                await ask(front_end, 250)
            engine.backend.may_run.set()
            await until(lambda: front_end.asked == 0)
            assert await ask(front_end, 100 + level) == 100 + level


async def test_an_engine_that_does_not_answer_is_not_waited_for() -> None:
    """Where the engine's process stands still, a request ends at its deadline all the same."""
    ours, theirs = socket.socketpair()
    layout = SlotLayout(SIDE, SIDE, CLASSES, 2)
    memory, descriptor = create_segment(layout), create_board()
    front_end = RemoteEngine(ours, Segment(memory, layout), Board(descriptor))
    os.close(memory)
    os.close(descriptor)
    theirs.send(wire.ANSWER.pack(wire.READY, 0, 0, 0, 0.0, 0.0))
    await front_end.start()
    with within(1), pytest.raises(DeadlineExceeded):
        await ask(front_end, 1, seconds=0.1)
    kinds = [record[0] for record in wire.REQUEST.iter_unpack(theirs.recv(4096))]
    assert kinds == [wire.SUBMIT, wire.CANCEL]
    await front_end.close()
    theirs.close()


@pytest.mark.parametrize(
    "record",
    [
        wire.REQUEST.pack(99, 0, 1, 0, 1, 0.0),
        wire.REQUEST.pack(wire.SUBMIT, 9, 1, 0, 1, 1e9),
        wire.REQUEST.pack(wire.SUBMIT, 0, 0, 0, 1, 1e9),
        wire.REQUEST.pack(wire.SUBMIT, 0, 8, 0, 1, 1e9),
        wire.REQUEST.pack(wire.SUBMIT, 0, 1, 4_000_000, 1, 1e9),
        wire.REQUEST.pack(wire.SUBMIT, 0, 1, 1, 1, 1e9) * 2,
        wire.REQUEST.pack(wire.SUBMIT, 0, 1, 1, 1, 1e9) + wire.REQUEST.pack(wire.SUBMIT, 0, 1, 1, 2, 1e9),
    ],
    ids=[
        "unknown",
        "unknown input",
        "nothing wanted",
        "unknown want",
        "no such slot",
        "the same twice",
        "a slot in use",
    ],
)
async def test_what_makes_no_sense_costs_its_sender_the_connection(record: bytes) -> None:
    """The engine leaves a front-end that sends what none would; the others are served on."""
    async with hosted() as engine:
        other = await engine.connect()
        engine.backend.may_run.clear()
        ours, theirs = socket.socketpair()
        layout = SlotLayout(SIDE, SIDE, CLASSES, 4)
        memory = create_segment(layout)
        await engine.host.attach(theirs, Segment(memory, layout))
        os.close(memory)
        ours.sendall(record)
        ours.settimeout(30)
        await asyncio.to_thread(_read_to_the_end, ours)
        engine.backend.may_run.set()
        assert await ask(other, 7) == 7
        ours.close()


def _read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


async def test_scores_of_another_shape_are_nobodys() -> None:
    """A model that answers with too few classes is an internal error, and never a part of an answer."""
    async with hosted() as engine:
        front_end = await engine.connect()
        engine.backend.script = too_few_classes
        with pytest.raises(Internal):
            await ask(front_end, 1)
        engine.backend.script = answer
        assert await ask(front_end, 1) == 1


async def test_memory_and_descriptors_are_given_back() -> None:
    """Ten front-ends that came, asked and went leave no descriptor and no shared memory in either process."""
    async with hosted() as engine:
        await (await engine.connect()).close()
        await until(lambda: not engine.host._front_ends)
        before = _held()
        for number in range(10):
            front_end = await engine.connect()
            assert await ask(front_end, number) == number
            await front_end.close()
            with pytest.raises(EngineUnavailable):
                await ask(front_end, number)
        await until(lambda: not engine.host._front_ends)
        await until(lambda: _held() == before)


def _held() -> tuple[int, int]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(os.listdir("/proc/self/fd")), maps.count("resnet-slots")


@pytest.mark.parametrize(
    "error",
    [
        Internal(),
        Overloaded(retry_after_seconds=1.25),
        DeadlineExceeded(),
        errors.OutOfMemory(retry_after_seconds=1.0),
        EngineUnavailable(),
        errors.Draining(),
    ],
    ids=lambda error: error.code,
)
def test_errors_arrive_as_what_they_were(error: ServiceError) -> None:
    """An error has its code, its status and its Retry-After also in the other process."""
    kind, number, _, request_id, seconds, _ = wire.ANSWER.unpack(wire.pack_error(2**40, error))
    assert (kind, request_id) == (wire.FAILED, 2**40)
    arrived = wire.unpack_error(number, seconds)
    assert type(arrived) is type(error)
    if isinstance(error, Unavailable):
        assert isinstance(arrived, Unavailable)
        assert arrived.retry_after_seconds == error.retry_after_seconds


def test_what_is_no_error_of_the_engine_arrives_as_internal() -> None:
    """Any other exception says nothing of itself to a client."""
    _, number, _, _, seconds, _ = wire.ANSWER.unpack(wire.pack_error(1, ValueError("secret")))
    assert type(wire.unpack_error(number, seconds)) is Internal


def test_shared_memory_cannot_be_cut_short() -> None:
    """No process can make the memory smaller under another, which would be killed by reading it."""
    memory = create_segment(SlotLayout(SIDE, SIDE, CLASSES, 4))
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    os.close(memory)


@pytest.mark.parametrize(("height", "width", "classes"), [(224, 224, 1000), (8, 8, 21_841), (1, 1, 1), (299, 299, 10)])
def test_slots_hold_an_image_and_its_scores_and_do_not_overlap(height: int, width: int, classes: int) -> None:
    """Whatever the sizes, what is written into one slot, pixels or scores, changes no other."""
    layout = SlotLayout(height, width, classes, 3)
    memory = create_segment(layout)
    segment = Segment(memory, layout)
    os.close(memory)
    for slot in range(3):
        segment.pixels(slot)[:] = slot + 1
    assert [set(np.unique(segment.pixels(slot))) for slot in range(3)] == [{1}, {2}, {3}]
    segment.scores(1)[:] = 0.5
    assert (segment.scores(1) == 0.5).all()
    assert [set(np.unique(segment.pixels(slot))) for slot in (0, 2)] == [{1}, {3}]


def test_the_board_adds_up_and_its_prediction_ages() -> None:
    """Reservations are summed over front-ends; what the device does is read whole, and is nearer to its end a moment
    later; each process's last sign is its own."""
    descriptor = create_board()
    here, there = Board(descriptor), Board(descriptor)
    os.close(descriptor)
    here.hold(0, 3)
    there.hold(63, 4)
    assert here.held() == there.held() == 7
    here.hold(0, 0)
    assert there.held() == 4
    before = there.state(None, now=100.0).device
    assert (before.capacity, before.running, before.starts_in(5)) == (1, [], 0)
    device = DeviceForecast(
        free_in_seconds=2.0, running=[101.0, 101.5, 102.0], slots=2, batch_size=8, batch_seconds=0.5, single_seconds=0.1
    )
    here.publish(EngineState(True, None, device), now=100.0)
    assert there.state(None, now=101.5) == EngineState(True, None, replace(device, free_in_seconds=0.5))
    restarting = EngineState(False, "restarting", replace(device, free_in_seconds=0.0))
    assert there.state("restarting", now=103.0) == restarting
    here.beat(0, 104.0)
    there.beat(63, 105.0)
    assert (there.engine_beat, there.front_end_beat(0), here.front_end_beat(63)) == (100.0, 104.0, 105.0)
    assert here.held() == 4
