"""The batcher, driven directly: no server, no images, no clock but the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import Batched, Batcher, Events
from app.errors import DeadlineExceeded, DeviceLost, Draining, Internal, Overloaded

pytestmark = pytest.mark.anyio

FAR = 1e9


@dataclass
class GatedModel:
    """Answers each item with ten times itself, once the test lets the batch go; items below zero make it fail."""

    batches: list[list[int]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    concurrent: int = 0
    most_concurrent: int = 0

    async def run(self, items: Sequence[int]) -> list[int]:
        gate = asyncio.Event()
        self.batches.append(list(items))
        self.gates.append(gate)
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        try:
            await gate.wait()
        finally:
            self.concurrent -= 1
        if any(item < 0 for item in items):
            raise ValueError("an item below zero")
        return [item * 10 for item in items]

    def release_all(self) -> None:
        for gate in self.gates:
            gate.set()


@dataclass
class Told(Events):
    """What the batcher told."""

    drops: list[str] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)
    errors: list[DeviceLost] = field(default_factory=list)

    def dropped(self, reason: str) -> None:
        self.drops.append(reason)

    def batch_failed(self, kind: str, batch_size: int) -> None:
        self.failures.append((kind, batch_size))

    def lost(self, error: DeviceLost) -> None:
        self.errors.append(error)


async def settle() -> None:
    """Let everything that can run, run: tasks, and the callbacks that they scheduled."""
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()
        await anyio.lowlevel.checkpoint()


def ask(group: TaskGroup, batcher: Batcher[int, int], item: int, answers: dict[int, object], **options: float) -> None:
    """Submit `item` in a task of its own; its result or error lands in `answers`."""

    async def one() -> None:
        try:
            answers[item] = await batcher.submit(item, deadline=options.get("deadline", FAR), key=options.get("key"))
        except Exception as error:
            answers[item] = error

    group.start_soon(one)


async def test_a_free_slot_starts_at_once() -> None:
    """One item on an idle batcher is a batch of one, without waiting for company."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=8, max_waiting=10)
    async with anyio.create_task_group() as group:
        answers: dict[int, object] = {}
        ask(group, batcher, 1, answers)
        await settle()
        assert model.batches == [[1]]
        model.release_all()
    assert isinstance(answers[1], Batched)
    assert (answers[1].value, answers[1].batch_size) == (10, 1)


async def test_the_next_batch_forms_while_one_runs() -> None:
    """What comes while the only slot is busy waits together and goes together, up to the maximum."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=3, max_waiting=10)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, answers)
        await settle()
        for item in (2, 3, 4, 5):
            ask(group, batcher, item, answers)
        await settle()
        assert (model.batches, batcher.waiting, batcher.running) == ([[1]], 4, 1)
        model.gates[0].set()
        await settle()
        assert (model.batches, batcher.waiting) == ([[1], [2, 3, 4]], 1)
        model.gates[1].set()
        await settle()
        assert model.batches == [[1], [2, 3, 4], [5]]
        model.gates[2].set()
    assert {item: answer.value for item, answer in answers.items() if isinstance(answer, Batched)} == {
        1: 10, 2: 20, 3: 30, 4: 40, 5: 50
    }  # fmt: skip


async def test_as_many_batches_run_as_there_are_slots() -> None:
    """With two slots two batches are outstanding, and never three."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=1, max_waiting=10, concurrency=2)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        for item in range(5):
            ask(group, batcher, item, answers)
        await settle()
        assert batcher.running == 2
        while batcher.running:
            model.release_all()
            await settle()
    assert (model.most_concurrent, len(answers)) == (2, 5)


async def test_a_delay_is_ended_by_a_full_batch() -> None:
    """With a delay of a thousand seconds only a full batch starts."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=3, max_waiting=10, max_delay_seconds=1000)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, answers)
        ask(group, batcher, 2, answers)
        await settle()
        assert model.batches == []
        ask(group, batcher, 3, answers)
        await settle()
        assert model.batches == [[1, 2, 3]]
        model.release_all()


async def test_a_delay_ends_by_itself() -> None:
    """A batch that does not fill starts once its oldest item has waited as long as it may."""
    model = GatedModel()
    model_was_asked = asyncio.Event()

    async def run_and_tell(items: Sequence[int]) -> list[int]:
        model_was_asked.set()
        return await model.run(items)

    batcher = Batcher(run_and_tell, max_batch_size=3, max_waiting=10, max_delay_seconds=0.01)
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, {})
        await asyncio.wait_for(model_was_asked.wait(), 10)
        model.release_all()
        await settle()
        model.release_all()
    assert model.batches == [[1]]


async def test_the_bound_refuses_and_a_leaver_makes_room() -> None:
    """A full queue refuses at once; a caller that leaves gives its place to the next."""
    model = GatedModel()
    events = Told()
    batcher = Batcher(model.run, max_batch_size=1, max_waiting=2, events=events)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, answers)
        await settle()
        leaver = asyncio.ensure_future(batcher.submit(2, deadline=FAR))
        ask(group, batcher, 3, answers)
        await settle()
        with pytest.raises(Overloaded):
            await batcher.submit(4, deadline=FAR)
        leaver.cancel()
        await settle()
        assert batcher.waiting == 1
        ask(group, batcher, 5, answers)
        await settle()
        while batcher.running:
            model.release_all()
            await settle()
    assert model.batches == [[1], [3], [5]]
    assert events.drops == ["overloaded", "client_gone"]


async def test_the_bound_in_bytes_refuses_and_a_batch_that_starts_makes_room() -> None:
    """Images are counted by their pixels too, for as long as they wait and no longer."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=1, max_waiting=10, max_waiting_bytes=20, size_of=lambda item: 10)
    async with anyio.create_task_group() as group:
        answers: dict[int, object] = {}
        for item in (1, 2, 3, 4):
            ask(group, batcher, item, answers)
            await settle()
        assert isinstance(answers[4], Overloaded)
        model.gates[0].set()
        await settle()
        ask(group, batcher, 5, answers)
        await settle()
        assert batcher.waiting == 2
        for number in range(1, 4):
            model.gates[number].set()
            await settle()
    assert model.batches == [[1], [2], [3], [5]]


async def test_the_earliest_deadline_goes_first() -> None:
    """Of what waits, the next batch takes the most urgent, not the oldest."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=2, max_waiting=10)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 0, answers)
        await settle()
        for item, deadline in ((1, FAR + 3), (2, FAR + 1), (3, FAR + 2)):
            ask(group, batcher, item, answers, deadline=deadline)
        await settle()
        while batcher.running:
            model.release_all()
            await settle()
    assert model.batches == [[0], [2, 3], [1]]


async def test_an_expired_item_never_reaches_the_device() -> None:
    """An item whose deadline passes while it waits is answered then, and left out of the batch."""
    model = GatedModel()
    events = Told()
    now = asyncio.get_running_loop().time
    batcher = Batcher(model.run, max_batch_size=4, max_waiting=10, clock=now, events=events)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, answers)
        await settle()
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(2, deadline=now() + 0.01)
        assert batcher.waiting == 0
        ask(group, batcher, 3, answers)
        await settle()
        while batcher.running:
            model.release_all()
            await settle()
    assert (model.batches, events.drops) == ([[1], [3]], ["deadline"])


async def test_a_batch_has_one_key() -> None:
    """Items of different keys never share a batch."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=8, max_waiting=10)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 0, answers)
        await settle()
        for item in range(1, 7):
            ask(group, batcher, item, answers, key=item % 2)
        await settle()
        while batcher.running:
            model.release_all()
            await settle()
    assert model.batches == [[0], [1, 3, 5], [2, 4, 6]]


async def test_a_wrong_number_of_results_fails_the_batch() -> None:
    """A model that answers with too few or too many results has answered nobody."""

    async def short(items: Sequence[int]) -> list[int]:
        return [0] * (len(items) + 1)

    batcher: Batcher[int, int] = Batcher(short, max_batch_size=2, max_waiting=2)
    with pytest.raises(Internal):
        await batcher.submit(1, deadline=FAR)


async def test_close_fails_what_waits_and_ends_what_runs() -> None:
    """Closing lets the running batch answer, fails the queue, and refuses what comes."""
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=1, max_waiting=10)
    answers: dict[int, object] = {}
    async with anyio.create_task_group() as group:
        ask(group, batcher, 1, answers)
        await settle()
        ask(group, batcher, 2, answers)
        await settle()
        group.start_soon(batcher.close)
        await settle()
        assert isinstance(answers[2], Draining)
        model.release_all()
    assert isinstance(answers[1], Batched)
    with pytest.raises(Draining):
        await batcher.submit(3, deadline=FAR)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 40)),
        st.tuples(st.just("arrive_bad"), st.integers(0, 40)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, size=st.integers(1, 5), slots=st.integers(1, 3), bound=st.integers(1, 12))
def test_every_caller_gets_its_own_answer_or_its_own_error(
    actions: list[tuple[str, int]], size: int, slots: int, bound: int
) -> None:
    """Whatever the order of arrivals, departures and failures, each caller ends once, with what is its own."""
    asyncio.run(_play(actions, size, slots, bound))


async def _play(actions: list[tuple[str, int]], size: int, slots: int, bound: int) -> None:
    model = GatedModel()
    batcher = Batcher(model.run, max_batch_size=size, max_waiting=bound, concurrency=slots)
    callers: dict[int, asyncio.Future[Batched[int]]] = {}
    cancelled_while_waiting: set[int] = set()
    next_item = 1
    for action, number in actions:
        if action.startswith("arrive"):
            item = next_item if action == "arrive" else -next_item
            next_item += 1
            callers[item] = asyncio.ensure_future(batcher.submit(item, deadline=FAR + number))
        elif action == "cancel" and callers:
            item = list(callers)[number % len(callers)]
            if not callers[item].done() and not any(item in batch for batch in model.batches):
                cancelled_while_waiting.add(item)
            callers[item].cancel()
        elif action == "release" and model.gates:
            model.gates[number % len(model.gates)].set()
        else:
            await _rounds()
        assert batcher.waiting <= bound
        assert batcher.running <= slots
    while batcher.running or any(not caller.done() for caller in callers.values()):
        model.release_all()
        await _rounds()
    for item, caller in callers.items():
        if caller.cancelled():
            continue
        error = caller.exception()
        if error is None:
            assert caller.result().value == item * 10
            assert item > 0
        else:
            # A bad item fails alone: what shared its batch was run again without it.
            assert isinstance(error, Overloaded) or (isinstance(error, ValueError) and item < 0)
    seen = [item for batch in model.batches for item in batch]
    good = [item for batch in model.batches if all(each > 0 for each in batch) for item in batch]
    assert len(good) == len(set(good)), "an item was answered twice"
    assert all(len(batch) <= size for batch in model.batches)
    assert model.most_concurrent <= slots
    assert (batcher.waiting, batcher.running) == (0, 0)
    never_ran = {item for item in cancelled_while_waiting if callers[item].cancelled()}
    assert not never_ran & set(seen)


async def _rounds() -> None:
    for _ in range(8):
        await anyio.lowlevel.checkpoint()
