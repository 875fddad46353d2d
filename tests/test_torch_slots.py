"""Slots: what is put onto which stream and in what order, buckets, captures that break, and memory that runs out.

The device writes down what it is asked and computes on the torch.device("cpu"), so that every answer is checked too.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from app.backends.torch import DevicePlan, TorchBackend
from app.backends.torch.forward import Forward
from app.backends.torch.slots import Slot
from app.checkpoints import published_resnet50_preprocessing
from app.engine import InProcessEngine
from app.errors import DeviceLost, OutOfMemory, SettingError
from app.types import Outputs, Pixels, Preprocessing, Scores, Want
from tests.lazy import torch
from tests.recording_device import RecordingDevice, Step

SIZE = (6, 8)
CLASSES = 5
NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def preprocessing() -> Preprocessing:
    published = published_resnet50_preprocessing()
    return Preprocessing(None, SIZE, published.interpolation, published.mean, published.std)


def network() -> torch.nn.Module:
    """Small, and any pixel of its image changes its answer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE[0] * SIZE[1], CLASSES))


def images(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def expected(batch: Pixels) -> Scores:
    """What the network says without any slot."""
    with torch.inference_mode():
        return Forward(network(), preprocessing(), torch.device("cpu"), torch.float32)(torch.from_numpy(batch)).numpy()


def assert_answers(outputs: Outputs | Scores, batch: Pixels) -> None:
    scores = outputs.scores if isinstance(outputs, Outputs) else outputs
    assert scores.shape == (len(batch), CLASSES)
    assert np.abs(scores - expected(batch)).max() < 1e-5


def slot_on(
    device: RecordingDevice, capacity: int = 16, seconds: dict[int, float] | None = None, graphs: bool = True
) -> Slot:
    forward = Forward(device.watched(network()), preprocessing(), torch.device("cpu"), torch.float32)
    return Slot(device, forward, SIZE, CLASSES, capacity, graphs=graphs, seconds=seconds, clock=lambda: 0.0)


def backend_on(device: RecordingDevice, graphs: bool = True) -> TorchBackend:
    """Two slots for up to 32 images."""
    plan = DevicePlan(torch.device("cpu"), torch.float32, 2, staged=True, graphs=graphs)
    return TorchBackend(device.watched(network()), preprocessing(), plan, device)


def proportional(*buckets: int, fixed: float = 0.0) -> dict[int, float]:
    return {bucket: fixed + bucket for bucket in buckets}


def out_of_memory_from(bucket: int, error: Callable[[], Exception] | None = None) -> Callable[[int], None]:
    def check(size: int) -> None:
        if size >= bucket:
            raise (error or (lambda: torch.OutOfMemoryError(NO_MEMORY)))()

    return check


# --- order


def test_a_batch_goes_in_runs_and_comes_out_on_one_stream() -> None:
    """Copy in, replay, copy out, and one wait at the end, all on the slot's own stream."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16, fixed=100.0))
    slot.prepare(16)
    device.steps.clear()
    batch = images(8)
    assert_answers(slot.run(batch), batch)
    assert device.steps == [Step(1, "in", 8), Step(1, "run", 8), Step(1, "out", 8), Step(1, "wait")]


def test_a_padded_batch_moves_only_its_own_rows() -> None:
    """A batch of 5 in a bucket of 8 copies 5 rows in and 5 rows out."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16, fixed=100.0))
    slot.prepare(16)
    device.steps.clear()
    batch = images(5)
    assert_answers(slot.run(batch), batch)
    assert device.steps == [Step(1, "in", 5), Step(1, "run", 8), Step(1, "out", 5), Step(1, "wait")]


def test_a_split_batch_waits_once() -> None:
    """Where padding costs more, a batch of 5 is run as 4 and 1, without a wait between them."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16))
    slot.prepare(16)
    device.steps.clear()
    batch = images(5)
    assert_answers(slot.run(batch), batch)
    kinds = [(step.kind, step.size) for step in device.steps]
    assert kinds == [("in", 4), ("run", 4), ("out", 4), ("in", 1), ("run", 1), ("out", 1), ("wait", 0)]


def test_every_size_in_every_order_gets_its_own_answers() -> None:
    """Whatever was in the buffers before, each batch gets its own answers and no more rows."""
    device = RecordingDevice()
    for seconds in (proportional(1, 2, 4, 8, 16), proportional(1, 2, 4, 8, 16, fixed=3.0)):
        slot = slot_on(device, seconds=seconds)
        slot.prepare(16)
        order = np.random.default_rng(1).permutation(np.repeat(np.arange(1, 17), 3))
        for number, count in enumerate(order):
            batch = images(int(count), seed=number)
            assert_answers(slot.run(batch), batch)


def test_answers_outlive_the_next_batch() -> None:
    """What was answered lies in memory of its own."""
    slot = slot_on(RecordingDevice())
    slot.prepare(4)
    first = slot.run(images(4, seed=1))
    kept = first.copy()
    slot.run(images(4, seed=2))
    assert np.array_equal(first, kept)


# --- two slots


def test_two_slots_share_the_weights_and_nothing_else() -> None:
    """Each slot has a stream and a pool for all its buckets; every program runs on the stream it was captured for."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(8)
    assert backend.concurrency == 2
    assert {(capture.stream, capture.pool) for capture in device.captures} == {(1, 100), (2, 101)}
    for stream in (1, 2):
        assert [capture.bucket for capture in device.captures if capture.stream == stream] == [8, 4, 2, 1]


def test_two_batches_in_flight_do_not_meet() -> None:
    """While one slot is in the middle of its batch the other runs a whole one, and both answers are right."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(8)
    first, second = images(8, seed=1), images(6, seed=2)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def hold(bucket: int) -> None:
        if threading.current_thread().name == "first":
            is_inside.set()
            assert may_go_on.wait(30)

    device.on_work = hold
    device.steps.clear()
    answers: list[Outputs] = []
    thread = threading.Thread(target=lambda: answers.append(backend.infer(first, Want.SCORES)), name="first")
    thread.start()
    assert is_inside.wait(30)
    assert_answers(backend.infer(second, Want.SCORES), second)
    may_go_on.set()
    thread.join()
    assert_answers(answers[0], first)
    assert {step.stream for step in device.steps} == {1, 2}


def test_a_slot_has_one_batch_at_a_time() -> None:
    """With more callers than slots, no batch's steps on a stream are mixed with another's."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(4)
    batches = [images(4, seed=number) for number in range(24)]
    answers: dict[int, Outputs] = {}

    def ask(number: int) -> None:
        answers[number] = backend.infer(batches[number], Want.SCORES)

    device.steps.clear()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, batch in enumerate(batches):
        assert_answers(answers[number], batch)
    for stream in (1, 2):
        kinds = "".join(step.kind + " " for step in device.steps if step.stream == stream)
        assert re.fullmatch(r"((in run out )+wait )*", kinds)


def test_warming_up_prepares_every_slot_once() -> None:
    """A size that is prepared is not captured again, whichever thread asks."""
    device = RecordingDevice()
    backend = backend_on(device)
    threads = [threading.Thread(target=backend.warm_up, args=(8,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.captures) == 2 * len([1, 2, 4, 8])
    backend.warm_up(12)
    assert [capture.bucket for capture in device.captures[8:]] == [12, 12]
    batch = images(12)
    assert_answers(backend.infer(batch, Want.SCORES), batch)


def test_a_slot_that_nobody_prepared_answers_all_the_same() -> None:
    """Without a warm-up a batch runs as it is, and nothing is captured on a request's time."""
    device = RecordingDevice()
    backend = backend_on(device)
    batch = images(7)
    assert_answers(backend.infer(batch, Want.SCORES), batch)
    assert device.captures == []


def test_a_bucket_takes_the_least_of_what_was_measured() -> None:
    """Of three tries of several runs each, one that the machine disturbed does not count."""
    device = RecordingDevice()
    device.timed_runs = 2
    forward = Forward(device.watched(network()), preprocessing(), torch.device("cpu"), torch.float32)
    moments = iter([0.0, 90.0, 100.0, 106.0, 200.0, 208.0])
    seconds: dict[int, float] = {}
    slot = Slot(device, forward, SIZE, CLASSES, 4, seconds=seconds, clock=lambda: next(moments))
    slot.prepare(1)
    assert seconds == {1: 3.0}


def test_the_weights_are_there_before_a_slot_reads_them() -> None:
    """They come on a stream that the slots' do not wait for: the device is waited for before any slot works."""
    device = RecordingDevice()
    backend_on(device)
    assert device.drained_before == 0


def test_what_a_bucket_takes_is_measured_by_one_slot() -> None:
    """The second slot believes the first, and its plans are the same."""
    device = RecordingDevice()
    seconds: dict[int, float] = {}
    first, second = slot_on(device, seconds=seconds), slot_on(device, seconds=seconds)
    first.prepare(4)
    assert seconds.keys() == {1, 2, 4}
    device.steps.clear()
    second.prepare(4)
    assert {step.kind for step in device.steps} == {"wait"}


def test_the_backend_s_slots_share_what_was_measured() -> None:
    """Both slots of a backend run the same batch in the same buckets."""
    device = RecordingDevice()
    backend = backend_on(device)
    for runner in backend._runners:
        runner.prepare(8)
    assert {step.kind for step in device.steps if step.stream == 1} == {"in", "run", "out", "wait"}
    assert {step.kind for step in device.steps if step.stream == 2} == {"wait"}


# --- captures that break


def test_a_broken_capture_runs_without_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be captured is run as it is, in the same buckets, after one warning with the reason."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16))

    def refuse(bucket: int) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")

    device.on_capture = refuse
    with caplog.at_level(logging.WARNING):
        slot.prepare(16)
    (record,) = caplog.records
    assert "16 could not be captured" in record.getMessage()
    assert record.getMessage().endswith("CUDA error: operation not permitted when stream is capturing")
    assert slot.buckets == [1, 2, 4, 8, 16]
    batch = images(5)
    assert_answers(slot.run(batch), batch)


def test_what_was_captured_before_stays_captured() -> None:
    """A capture that breaks at a later warm-up leaves the earlier programs alone."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16))
    slot.prepare(2)
    device.on_capture = out_of_memory_from(0, lambda: RuntimeError("a synchronising operation"))
    slot.prepare(4)
    device.steps.clear()
    for count in (1, 2, 4):
        batch = images(count)
        assert_answers(slot.run(batch), batch)
    assert [step.size for step in device.steps if step.kind == "run"] == [1, 2]


def test_a_capture_that_broke_with_the_device_is_a_lost_device() -> None:
    """Where the same work fails without a capture too, it was not the capture."""
    device = RecordingDevice()
    backend = backend_on(device)

    def break_down(bucket: int) -> None:
        def fail(bucket: int) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        device.on_work = fail
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    device.on_capture = break_down
    with pytest.raises(DeviceLost, match="illegal memory access"):
        backend.warm_up(4)
    device.on_work = lambda bucket: None
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        slot_on(device, seconds={1: 1.0}).prepare(1)


def test_graphs_can_be_left_out() -> None:
    """Without graphs the same buckets run as they are."""
    device = RecordingDevice()
    backend = backend_on(device, graphs=False)
    backend.warm_up(4)
    batch = images(3)
    assert_answers(backend.infer(batch, Want.SCORES), batch)
    assert device.captures == []


# --- memory that runs out


@pytest.mark.parametrize("where", ["on_work", "on_capture"])
def test_a_bucket_that_does_not_fit_is_left_out(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Out of memory while a bucket runs or is captured: it is dropped, memory freed, and such batches are split."""
    device = RecordingDevice()
    slot = slot_on(device, seconds=proportional(1, 2, 4, 8, 16, fixed=1.0))
    setattr(device, where, out_of_memory_from(8))
    with caplog.at_level(logging.WARNING):
        slot.prepare(16)
    assert slot.buckets == [1, 2, 4]
    # Memory of a pool in which a capture broke is not relied upon.
    pools = {capture.pool for capture in device.captures}
    assert pools == ({100} if where == "on_work" else {102})
    assert device.freed == 3  # after each bucket that did not fit, and what preparing held, at the end
    assert "does not hold a batch of 16" in caplog.records[0].getMessage()
    device.steps.clear()
    batch = images(16)
    assert_answers(slot.run(batch), batch)
    assert [step.size for step in device.steps if step.kind == "run"] == [4, 4, 4, 4]


def test_a_capture_that_hides_its_out_of_memory_is_one_all_the_same() -> None:
    """The end of a broken capture reports an error of its own; what broke it decides."""
    device = RecordingDevice()
    slot = slot_on(device)

    def refuse(bucket: int) -> None:
        if bucket > 2:
            try:
                raise torch.OutOfMemoryError(NO_MEMORY)
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    device.on_capture = refuse
    slot.prepare(4)
    assert slot.buckets == [1, 2]


def test_a_bucket_that_did_not_fit_is_not_tried_again() -> None:
    """The climb to the best batch size asks for each size several times; what failed once is not paid for again."""
    device = RecordingDevice()
    slot = slot_on(device)
    device.on_work = out_of_memory_from(8)
    slot.prepare(16)
    device.on_work = out_of_memory_from(0, lambda: AssertionError("tried again"))
    slot.prepare(16)
    assert slot.buckets == [1, 2, 4]


def test_where_not_one_image_fits_the_start_fails() -> None:
    """The person who starts it is told in one line what does not fit and what to do."""
    device = RecordingDevice()
    backend = backend_on(device)
    device.on_work = out_of_memory_from(1)
    with pytest.raises(SettingError, match=r"no memory for this network and one image.*RESNET_DEVICE"):
        backend.warm_up(4)


def test_buffers_that_do_not_fit_are_halved() -> None:
    """A slot takes as large batches as it has buffers for, and the backend says so."""
    device = RecordingDevice()
    tried: list[int] = []

    def refuse(shape: tuple[int, ...]) -> None:
        tried.append(shape[0])
        if shape[0] > 8:
            raise torch.OutOfMemoryError(NO_MEMORY)

    device.on_buffer = refuse
    backend = backend_on(device)
    assert backend.max_batch_size == 8
    assert tried == [32, 16, 8, 8, 8, 8]  # of each slot, pixels and scores; the second begins where the first ended
    backend.warm_up(8)
    batch = images(8)
    assert_answers(backend.infer(batch, Want.SCORES), batch)


def test_no_buffers_at_all_is_told_at_the_start() -> None:
    """A device that is full refuses the start with what to do."""
    device = RecordingDevice()
    device.on_buffer = lambda shape: out_of_memory_from(0)(1)
    with pytest.raises(SettingError, match="no memory for this network"):
        backend_on(device)


def test_out_of_memory_on_a_request_frees_and_is_retryable() -> None:
    """The batcher is told to come with less; memory that is held for later has been given back, and the slot works."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(4)
    device.on_work = out_of_memory_from(1)
    freed = device.freed
    with pytest.raises(OutOfMemory):
        backend.infer(images(4), Want.SCORES)
    assert device.freed == freed + 1
    device.on_work = lambda bucket: None
    for seed in range(4):
        batch = images(4, seed)
        assert_answers(backend.infer(batch, Want.SCORES), batch)


@pytest.mark.parametrize("when", ["warming up", "a request"])
def test_memory_is_freed_when_nothing_holds_it(when: str) -> None:
    """What had been computed when the memory ran out is let go before memory is given back; else none comes free."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(1)
    computed: list[weakref.ref[torch.Tensor]] = []
    is_gone: list[bool] = []

    def fail(bucket: int) -> None:
        activations = torch.zeros(1000)
        computed.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(NO_MEMORY)

    device.on_work = fail
    device.free_memory = lambda: is_gone.append(computed[-1]() is None)  # type: ignore[method-assign]
    if when == "warming up":
        with pytest.raises(OutOfMemory):
            backend.warm_up(4)  # 2 and 4 are left out, and a batch of 4 in parts of 1 fails as a request does
    else:
        with pytest.raises(OutOfMemory):
            backend.infer(images(1), Want.SCORES)
    assert is_gone
    assert all(is_gone)


@pytest.mark.anyio
async def test_the_engine_splits_what_does_not_fit() -> None:
    """Warm-up, batcher and slots together: memory that others take meanwhile costs size, and no image its answer."""
    device = RecordingDevice()
    backend = backend_on(device)
    engine = InProcessEngine(backend, max_batch_size=16, max_queue=100)
    await engine.start()
    ran_out: list[int] = []

    def check(size: int) -> None:
        if len(ran_out) < 3:
            ran_out.append(size)
            raise torch.OutOfMemoryError(NO_MEMORY)

    device.on_work = check
    batch = images(48)
    deadline = time.monotonic() + 60
    scored = await asyncio.gather(*[engine.run(image, Want.SCORES, deadline) for image in batch])
    assert_answers(np.stack([each.outputs.scores for each in scored]), batch)
    assert len(ran_out) == 3
    assert min(each.batch_size for each in scored) < 16
    assert engine.state().device.batch_size < 16
    await engine.close()


# --- errors on the way


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"),
        lambda: RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        lambda: RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_a_device_beyond_repair_is_told(error: Callable[[], RuntimeError]) -> None:
    """An error that every later call repeats is no failure of a batch."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(2)
    device.on_work = out_of_memory_from(0, error)
    with pytest.raises(DeviceLost, match=r"^cpu .* failed: CUDA error: "):
        backend.infer(images(2), Want.SCORES)


def test_an_error_that_only_the_wait_sees_is_told() -> None:
    """Kernels fail when the host has long gone on: the wait at the end says so."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(2)

    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: misaligned address")

    device.on_wait = fail
    with pytest.raises(DeviceLost, match="misaligned address"):
        backend.infer(images(2), Want.SCORES)


@pytest.mark.parametrize(("is_well", "kind"), [(True, RuntimeError), (False, DeviceLost)])
def test_an_error_that_says_nothing_is_decided_by_the_device(is_well: bool, kind: type[Exception]) -> None:
    """A library's own failure costs a batch where the device still answers, and the process where it does not."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(2)
    device.on_work = out_of_memory_from(0, lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    device.well = is_well
    with pytest.raises(kind) as raised:
        backend.infer(images(2), Want.SCORES)
    assert type(raised.value) is kind


def test_a_failed_batch_leaves_the_slots_usable() -> None:
    """After a batch that failed half-way the stream is waited for, and whoever comes next gets their own answers."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(4)
    device.on_work = out_of_memory_from(0, lambda: ValueError("poison"))
    for _ in range(3):
        device.steps.clear()
        with pytest.raises(ValueError, match="poison"):
            backend.infer(images(4), Want.SCORES)
        assert device.steps[-1].kind == "wait"
    device.on_work = lambda bucket: None
    for seed in range(4):
        batch = images(4, seed)
        assert_answers(backend.infer(batch, Want.SCORES), batch)


def test_a_batch_over_the_capacity_is_refused() -> None:
    """More than the buffers hold is the caller's mistake and is said, not truncated."""
    slot = slot_on(RecordingDevice(), capacity=4)
    with pytest.raises(ValueError, match="A batch of 5 in a slot for 4"):
        slot.run(images(5))


def test_closing_waits_then_frees() -> None:
    """What runs ends before its buffers go; then the device's memory is given back, and nobody is answered."""
    device = RecordingDevice()
    backend = backend_on(device)
    backend.warm_up(2)
    device.steps.clear()
    freed = device.freed
    backend.close()
    assert device.steps == [Step(1, "wait"), Step(2, "wait")] or device.steps == [Step(2, "wait"), Step(1, "wait")]
    assert device.freed == freed + 1
    with pytest.raises(RuntimeError, match="closed"):
        backend.infer(images(1), Want.SCORES)
