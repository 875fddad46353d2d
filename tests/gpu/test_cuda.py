"""On a real GPU: answers as float32 eager on CPU gives them, graphs, streams, memory and errors. `make gpu` runs it.

What decides (buckets, order, splits, meanings of errors) is tested without a GPU in tests/test_torch_*.py; here is
what only a GPU can show. Without one every test is skipped.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from app.backends.torch import DevicePlan, TorchBackend, plan_device
from app.backends.torch.cuda import CudaDevice
from app.backends.torch.precision import formats_for
from app.backends.torch.slots import Slot
from app.engine import InProcessEngine
from app.errors import OutOfMemory
from app.types import Pixels, Scores, Want
from tests.checkpoints_made import make_network, photos, pixels_of, resnet50_v1
from tests.images_made import noise, photo
from tests.lazy import Lazy, torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
]

own = Lazy("tests.own_modules")
# Largest change of a probability against float32 eager on CPU. float16 and bfloat16: what they moved on CPU, doubled.
TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.03}


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return make_network("resnet50")


@pytest.fixture(scope="module")
def batch() -> Pixels:
    """Forty different images: five, turned and mirrored."""
    some = pixels_of([*photos(), photo("astronaut"), photo("rocket"), noise((300, 300))])
    turned = np.concatenate([np.rot90(some, turns, axes=(1, 2)) for turns in range(4)])
    return np.ascontiguousarray(np.concatenate([turned, turned[:, :, ::-1]]))


@pytest.fixture(scope="module")
def reference(network: torch.nn.Module, batch: Pixels) -> Scores:
    """Float32 eager on CPU: what every backend is held to."""
    plan = DevicePlan(torch.device("cpu"), torch.float32, 1, staged=False)
    backend = TorchBackend(copy.deepcopy(network), resnet50_v1(), plan)
    return np.concatenate([backend.infer(batch[n : n + 8], Want.SCORES).scores for n in range(0, len(batch), 8)])


def on_the_card(network: torch.nn.Module, precision: str = "auto", graphs: bool = True) -> TorchBackend:
    plan = plan_device("cuda", precision)
    return TorchBackend(network, resnet50_v1(), replace(plan, graphs=graphs))


def slots_of(backend: TorchBackend) -> list[Slot]:
    return [runner for runner in backend._runners if isinstance(runner, Slot)]


def softmax(scores: Scores) -> Scores:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True), np.float32)


def distance(scores: Scores, expected: Scores) -> float:
    return float(np.abs(softmax(scores) - softmax(expected)).max())


def assert_agrees(scores: Scores, expected: Scores, tolerance: float) -> None:
    """Probabilities within the tolerance, and the same best class but where two are a near-tie within it."""
    assert scores.shape == expected.shape
    assert scores.dtype == np.float32
    assert distance(scores, expected) <= tolerance
    probabilities = softmax(expected)
    rows = np.arange(len(expected))
    lost = probabilities.max(1) - probabilities[rows, scores.argmax(1)]
    assert (lost <= 2 * tolerance).all()


# --- answers


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("precision", ["auto", "float32", "float16", "bfloat16"])
def test_the_card_agrees_with_the_reference(
    precision: str, graphs: bool, network: torch.nn.Module, batch: Pixels, reference: Scores
) -> None:
    """In each format that the GPU is fast in, for sizes that fill a bucket, are padded, and are split."""
    if precision not in ("auto", *formats_for(torch.cuda.get_device_capability())):
        pytest.skip(f"the GPU has no fast {precision}")
    backend = on_the_card(copy.deepcopy(network), precision, graphs)
    backend.warm_up(len(batch))
    (dtype,) = [name for name in TOLERANCES if f", {name})" in backend.device]
    for count in (*range(1, 10), 15, 17, 31, 33, len(batch)):
        assert_agrees(backend.infer(batch[:count], Want.SCORES).scores, reference[:count], TOLERANCES[dtype])
    backend.close()


def test_every_bucket_is_a_captured_graph(network: torch.nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """The network is captured in every bucket of both slots: nothing falls back, and nothing is warned of."""
    with caplog.at_level(logging.WARNING):
        backend = on_the_card(copy.deepcopy(network))
        backend.warm_up(32)
    assert caplog.records == []
    for slot in slots_of(backend):
        assert slot.buckets == [1, 2, 4, 8, 16, 32]
        assert all("CUDAGraph" in repr(program) for program in slot._programs.values())
    backend.close()


def test_padding_and_splitting_leave_no_trace(network: torch.nn.Module, batch: Pixels, reference: Scores) -> None:
    """Sizes in a random order through the same buffers: each batch has its own answers."""
    backend = on_the_card(copy.deepcopy(network))
    backend.warm_up(32)
    random = np.random.default_rng(0)
    for _ in range(100):
        chosen = random.permutation(len(batch))[: random.integers(1, 33)]
        assert_agrees(backend.infer(batch[chosen], Want.SCORES).scores, reference[chosen], 0.03)
    backend.close()


def test_two_batches_in_flight_get_their_own_answers(
    network: torch.nn.Module, batch: Pixels, reference: Scores
) -> None:
    """Two threads, 200 batches each, of their own images: streams, buffers and pools do not meet."""
    backend = on_the_card(copy.deepcopy(network))
    backend.warm_up(16)
    halves = {"first": np.arange(0, len(batch), 2), "second": np.arange(1, len(batch), 2)}
    worst: dict[str, float] = {}

    def work(name: str) -> None:
        random = np.random.default_rng(len(name))
        differences = []
        for _ in range(200):
            chosen = random.permutation(halves[name])[: random.integers(1, 17)]
            scores = backend.infer(batch[chosen], Want.SCORES).scores
            differences.append(distance(scores, reference[chosen]))
        worst[name] = max(differences)

    threads = [threading.Thread(target=work, args=(name,)) for name in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst.keys() == halves.keys()
    assert max(worst.values()) <= 0.03
    backend.close()


def test_the_engine_answers_a_crowd(network: torch.nn.Module, batch: Pixels, reference: Scores) -> None:
    """Warm-up, batcher and GPU together: 400 images at once, each with its own answer, in batches."""
    backend = on_the_card(copy.deepcopy(network))
    engine = InProcessEngine(backend, max_batch_size=None, max_queue=1000)

    async def ask() -> list[tuple[int, Scores, int]]:
        await engine.start()
        deadline = time.monotonic() + 120

        async def one(number: int) -> tuple[int, Scores, int]:
            scored = await engine.run(batch[number], Want.SCORES, deadline)
            return number, scored.outputs.scores, scored.batch_size

        answers = await asyncio.gather(*[one(number % len(batch)) for number in range(400)])
        await engine.close()
        return answers

    answers = asyncio.run(ask())
    for number, scores, _ in answers:
        assert distance(scores[None], reference[number][None]) <= 0.03
    assert max(size for _, _, size in answers) > 1


def test_a_waiting_thread_leaves_the_cpu(network: torch.nn.Module, batch: Pixels) -> None:
    """While the GPU computes, the thread that waits for it sleeps: decoding has the CPU."""
    backend = on_the_card(copy.deepcopy(network), "float32", graphs=True)
    large = np.concatenate([batch, batch])
    backend.warm_up(len(large))
    began, used = time.perf_counter(), time.thread_time()
    for _ in range(20):
        backend.infer(large, Want.SCORES)
    wall, busy = time.perf_counter() - began, time.thread_time() - used
    assert busy < 0.7 * wall
    backend.close()


# --- the device contract


def test_buffers_are_on_the_card_and_pinned_on_the_host() -> None:
    """Both ends of a copy are memory that it crosses without a wait."""
    device = CudaDevice(torch.device("cuda", 0))
    assert device.buffer((2, 3), torch.uint8).device == torch.device("cuda", 0)
    assert device.host_buffer((2, 3), torch.uint8).is_pinned()


def test_one_capture_at_a_time() -> None:
    """A second thread's capture, and calls that concern the whole device, wait until the first capture has ended."""
    device = CudaDevice(torch.device("cuda", 0))
    numbers = torch.zeros(8, device="cuda")
    where = [(device.stream(), device.pool()) for _ in range(2)]
    device.drain()
    inside, may_end = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow() -> None:
        numbers.add_(1)
        inside.set()
        assert may_end.wait(30)
        ended.append("first")

    def quick() -> None:
        numbers.add_(1)
        ended.append("second")

    def whole_device(call: Callable[[], None], name: str) -> None:
        call()
        ended.append(name)

    first = threading.Thread(target=device.capture, args=(slow, *where[0]))
    first.start()
    assert inside.wait(30)
    others = [
        threading.Thread(target=device.capture, args=(quick, *where[1])),
        threading.Thread(target=whole_device, args=(device.free_memory, "free")),
        threading.Thread(target=whole_device, args=(device.drain, "drain")),
    ]
    for thread in others:
        thread.start()
        thread.join(0.2)
    assert ended == []
    may_end.set()
    for thread in [first, *others]:
        thread.join(30)
    assert ended[0] == "first"
    assert sorted(ended[1:]) == ["drain", "free", "second"]


# --- captures that break


def test_a_network_that_cannot_be_captured_is_served_without(batch: Pixels, caplog: pytest.LogCaptureFixture) -> None:
    """A warning with the reason, right answers, and a device that is well afterwards."""
    with caplog.at_level(logging.WARNING):
        backend = on_the_card(own.Synchronising(), "float32")
        backend.warm_up(8)
    assert "could not be captured" in caplog.text
    plan = DevicePlan(torch.device("cpu"), torch.float32, 1, staged=False)
    expected = TorchBackend(own.Synchronising(), resnet50_v1(), plan).infer(batch[:5], Want.SCORES).scores
    assert np.abs(backend.infer(batch[:5], Want.SCORES).scores - expected).max() < 1e-3
    backend.close()
    torch.cuda.synchronize()


# --- memory


def test_the_weights_are_on_the_card_once(network: torch.nn.Module) -> None:
    """Two slots hold less than two sets of weights before they are warm, and closing gives everything back."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    backend = on_the_card(copy.deepcopy(network), "float32")
    buffers = 2 * backend.max_batch_size * (224 * 224 * 3 + 1000 * 4)
    weights = sum(each.numel() * 4 for each in [*network.parameters(), *network.buffers()])
    assert torch.cuda.memory_allocated() - before < 1.5 * weights + buffers
    backend.warm_up(8)
    backend.close()
    del backend
    gc.collect()
    # What stays is cuBLAS's workspace for each stream, which torch keeps.
    assert torch.cuda.memory_allocated() - before < 200e6


def test_memory_does_not_grow(network: torch.nn.Module, batch: Pixels) -> None:
    """A thousand batches of all sizes allocate nothing."""
    backend = on_the_card(copy.deepcopy(network))
    backend.warm_up(32)
    backend.infer(batch[:7], Want.SCORES)
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(1000):
        backend.infer(batch[: 1 + number % 32], Want.SCORES)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (allocated, reserved)
    backend.close()


def test_buckets_that_do_not_fit_are_left_out(network: torch.nn.Module, batch: Pixels, reference: Scores) -> None:
    """With little memory the largest buckets are dropped with a warning; batches of that size are split."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    backend = on_the_card(copy.deepcopy(network), "float32")
    room = torch.cuda.memory_reserved() + 700e6
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        backend.warm_up(128)
        for slot in slots_of(backend):
            assert 128 not in slot.buckets
            assert 1 in slot.buckets
        scores = backend.infer(batch, Want.SCORES).scores
        assert_agrees(scores, reference, TOLERANCES["float32"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        backend.close()


def test_out_of_memory_on_a_request_is_told_and_survived(network: torch.nn.Module, batch: Pixels) -> None:
    """Without graphs a batch allocates as it runs: too much is `OutOfMemory`, and afterwards the GPU works."""
    gc.collect()
    backend = on_the_card(copy.deepcopy(network), "float32", graphs=False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4e6) / total)
    try:
        with pytest.raises(OutOfMemory):
            backend.infer(np.concatenate([batch, batch]), Want.SCORES)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(backend.infer(batch, Want.SCORES).scores).all()
    backend.close()


# --- a lost device: in a process of its own, which it takes along

_LOSE_THE_DEVICE = """
import numpy as np, torch
from app.backends.torch import TorchBackend, plan_device
from app.checkpoints import published_resnet50_preprocessing
from app.errors import DeviceLost
from app.types import Want

class Asserting(torch.nn.Module):
    def forward(self, planes):
        torch._assert_async(planes.amax() < 2)
        return planes.mean((2, 3))

backend = TorchBackend(Asserting(), published_resnet50_preprocessing(), plan_device("cuda", "float32"))
dark, light = np.zeros((1, 224, 224, 3), np.uint8), np.full((1, 224, 224, 3), 255, np.uint8)
assert backend.infer(dark, Want.SCORES).scores.shape == (1, 3)
for _ in range(2):
    try:
        backend.infer(light, Want.SCORES)
    except DeviceLost as error:
        print("lost:", error)
"""


def test_a_device_side_assert_is_a_lost_device() -> None:
    """The first call says so and every later one too: the engine ends and the process with it."""
    run = subprocess.run([sys.executable, "-c", _LOSE_THE_DEVICE], capture_output=True, text=True, timeout=300)
    assert run.stdout.count("lost: cuda:0 (") == 2, run.stdout + run.stderr
    assert "device-side assert" in run.stdout
