"""The torch backend: one answer for an image, whatever batch, slot, buffer or number format it travels in."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from app.backends import BackendOptions, create_backend, null_checkpoint
from app.backends.null import NullBackend
from app.backends.torch import TorchBackend, plan_device
from app.checkpoints import read_offline_demo
from app.checkpoints.offline_demo import ARCHITECTURE, PREPROCESSING
from app.errors import SettingError
from app.networks import build_network
from app.types import InputSpec, Pixels, Scores, Want
from tests.checkpoints_made import backend_of, cpu_plan, make_network, photos, pixels_of
from tests.images_made import noise, photo
from tests.lazy import torch

BATCHED_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return make_network("resnet18", classes=20)


@pytest.fixture(scope="module")
def batch() -> Pixels:
    """Six different images, no two of them with the same answer."""
    images = [*photos(), photo("astronaut"), photo("rocket"), noise((300, 300)), noise((300, 300), seed=1)]
    return pixels_of(images)


@pytest.fixture(scope="module")
def one_by_one(network: torch.nn.Module, batch: Pixels) -> Scores:
    """The answers that each image gets alone."""
    backend = backend_of(network)
    scores = np.concatenate([backend.infer(batch[n : n + 1], Want.SCORES).scores for n in range(len(batch))])
    apart = np.abs(scores[:, None] - scores[None]).max(2)
    assert apart[~np.eye(len(batch), dtype=bool)].min() > 100 * BATCHED_TOLERANCE
    return scores


@pytest.mark.parametrize("staged", [False, True])
def test_batched_equals_unbatched_in_order(
    staged: bool, network: torch.nn.Module, batch: Pixels, one_by_one: Scores
) -> None:
    """Each image of a batch gets the answer that it gets alone, in its own place."""
    backend = backend_of(network, cpu_plan(staged=staged))
    assert np.abs(backend.infer(batch, Want.SCORES).scores - one_by_one).max() <= BATCHED_TOLERANCE
    backwards = np.ascontiguousarray(batch[::-1])
    assert np.abs(backend.infer(backwards, Want.SCORES).scores - one_by_one[::-1]).max() <= BATCHED_TOLERANCE


def test_uint8_goes_in_and_float32_comes_out(network: torch.nn.Module, batch: Pixels) -> None:
    """A uint8 batch is answered with contiguous float32 logits, and is itself not changed."""
    backend = backend_of(network)
    before = batch.copy()
    outputs = backend.infer(batch, Want.SCORES)
    assert outputs.activation == "softmax"
    assert outputs.scores.shape == (6, 20)
    assert outputs.scores.dtype == np.float32
    assert outputs.scores.flags.c_contiguous
    assert np.array_equal(batch, before)
    assert backend.input_specs == {InputSpec.PIXELS_U8, InputSpec.TENSOR_F32}


def test_a_batch_may_be_a_view(network: torch.nn.Module, batch: Pixels, one_by_one: Scores) -> None:
    """Pixels that do not lie side by side in memory get the same answers."""
    every_other = batch[::2]
    assert not every_other.flags.c_contiguous
    scores = backend_of(network).infer(every_other, Want.SCORES).scores
    assert np.abs(scores - one_by_one[::2]).max() <= BATCHED_TOLERANCE


@pytest.mark.parametrize("staged", [False, True])
def test_answers_are_kept_when_the_next_batch_runs(
    staged: bool, network: torch.nn.Module, batch: Pixels, one_by_one: Scores
) -> None:
    """What was answered does not change under its receiver while the same slot works on."""
    backend = backend_of(network, cpu_plan(staged=staged))
    first = backend.infer(batch[:2], Want.SCORES).scores
    backend.infer(batch[2:4], Want.SCORES)
    assert np.abs(first - one_by_one[:2]).max() <= BATCHED_TOLERANCE


def test_a_reused_buffer_does_not_leak_the_batch_before(
    network: torch.nn.Module, batch: Pixels, one_by_one: Scores
) -> None:
    """After a large batch a smaller one through the same buffer gets its own answers and no more of them."""
    backend = backend_of(network, cpu_plan(staged=True))
    for images in ([0, 1, 2, 3, 4, 5], [3], [5, 4], [0, 1, 2, 3, 4, 5], [2]):
        scores = backend.infer(batch[images], Want.SCORES).scores
        assert scores.shape == (len(images), 20)
        assert np.abs(scores - one_by_one[images]).max() <= BATCHED_TOLERANCE


@pytest.mark.parametrize("staged", [False, True])
def test_two_threads_get_their_own_answers(staged: bool) -> None:
    """Batches that two slots work on at once do not mix: each thread keeps seeing its own colour."""
    mean_colour = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backend = backend_of(mean_colour, cpu_plan(staged=staged))
    both_begin = threading.Barrier(2)
    batches = {level: np.full((32, 224, 224, 3), level, np.uint8) for level in (0, 255)}
    expected = {level: backend.infer(batch[:1], Want.SCORES).scores for level, batch in batches.items()}
    worst: dict[int, float] = {}

    def work(level: int) -> None:
        differences = []
        for _ in range(20):
            both_begin.wait(30)
            scores = backend.infer(batches[level], Want.SCORES).scores
            differences.append(float(np.abs(scores - expected[level]).max()))
        worst[level] = max(differences)

    threads = [threading.Thread(target=work, args=(level,)) for level in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst.keys() == batches.keys()
    assert max(worst.values()) <= BATCHED_TOLERANCE


def softmax(scores: Scores) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("dtype", "largest_distance"),
    [
        ("bfloat16", 0.03),  # measured 0.015, of logits 0.23
        ("float16", 0.01),  # measured 0.004, of logits 0.03
    ],
)
def test_half_precision_stays_close_to_float32(dtype: str, largest_distance: float) -> None:
    """With trained weights, half precision through the staged road moves probabilities little and no best class."""
    weights, _, _ = read_offline_demo()
    demo = build_network(ARCHITECTURE, weights)
    pixels = pixels_of(photos())
    reference = TorchBackend(copy.deepcopy(demo), PREPROCESSING, cpu_plan()).infer(pixels, Want.SCORES).scores
    half = (
        TorchBackend(demo, PREPROCESSING, cpu_plan(getattr(torch, dtype), staged=True))
        .infer(pixels, Want.SCORES)
        .scores
    )
    assert half.dtype == np.float32
    assert not np.array_equal(half, reference)
    assert np.abs(softmax(half) - softmax(reference)).max() <= largest_distance
    assert np.array_equal(half.argmax(1), reference.argmax(1))


@pytest.mark.parametrize("staged", [False, True])
def test_warming_up_takes_any_size_up_to_the_largest(staged: bool) -> None:
    """The backend runs at size 1 and at the largest size that it declares, for which its buffers have room."""
    mean_colour = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backend = backend_of(mean_colour, cpu_plan(staged=staged))
    assert backend.max_batch_size == 32
    for size in (1, backend.max_batch_size):
        backend.warm_up(size)


def test_the_network_is_switched_to_inference(network: torch.nn.Module, batch: Pixels, one_by_one: Scores) -> None:
    """A network that comes in training mode answers as in inference, and the same answers twice."""
    training = copy.deepcopy(network).train()
    backend = backend_of(training)
    for _ in range(2):
        assert np.abs(backend.infer(batch, Want.SCORES).scores - one_by_one).max() <= BATCHED_TOLERANCE


@pytest.mark.parametrize("staged", [False, True])
def test_closing_lets_the_network_go(staged: bool, network: torch.nn.Module) -> None:
    """A closed backend holds no network, so that its memory can be had again, and answers nobody."""
    own = copy.deepcopy(network)
    weights = weakref.ref(own.conv1.weight)
    backend = TorchBackend(own, PREPROCESSING, cpu_plan(staged=staged))
    del own
    backend.warm_up(2)
    backend.close()
    gc.collect()
    assert weights() is None
    with pytest.raises(RuntimeError, match="closed"):
        backend.infer(np.zeros((1, 224, 224, 3), np.uint8), Want.SCORES)


# --- where it runs


def test_the_cpu_runs_float32_one_batch_at_a_time() -> None:
    """On CPU, auto means float32 and one slot, and the device says so for a person."""
    plan = plan_device("cpu", "auto")
    assert (plan.device, plan.dtype, plan.slots, plan.staged) == (torch.device("cpu"), torch.float32, 1, False)
    assert plan_device("cpu", "bfloat16").dtype == torch.bfloat16
    backend = TorchBackend(torch.nn.Flatten(), PREPROCESSING, plan)
    assert backend.concurrency == 1
    assert backend.device.startswith("cpu (")
    assert "float32" in backend.device


@pytest.mark.parametrize("device", ["cuda:99", "cuda", "cuda:0"])
def test_a_card_that_is_not_there_is_refused_in_one_line(device: str) -> None:
    """A device that PyTorch does not find is an error that says what it finds and the ways out."""
    if device != "cuda:99" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SettingError) as refusal:
        plan_device(device, "auto")
    line = str(refusal.value)
    assert line.startswith(f"RESNET_DEVICE is {device}, but PyTorch finds {torch.cuda.device_count()} CUDA devices.")
    assert "RESNET_DEVICE=cpu" in line
    assert "\n" not in line


# --- the null backend


@pytest.fixture
def null() -> NullBackend:
    return NullBackend(null_checkpoint())


def test_the_null_backend_names_the_image(null: NullBackend, batch: Pixels) -> None:
    """Without a network, the two best classes say which image was asked about, whatever batch it came in."""
    scores = null.infer(batch, Want.SCORES).scores
    assert scores.shape == (6, 1000)
    assert scores.dtype == np.float32
    for row, pixels in zip(scores, batch, strict=True):
        best, second = null.classes_of(pixels)
        assert row[best] == 8
        assert best == second or row[second] == 7
        assert np.array_equal(null.infer(pixels[None], Want.SCORES).scores[0], row)
    assert len({null.classes_of(pixels) for pixels in batch}) == len(batch)


@pytest.mark.parametrize("change", [lambda p: p ^ 1, lambda p: p[::-1], lambda p: np.roll(p, 5, axis=1)])
def test_the_null_backend_tells_changed_pixels_apart(
    change: Callable[[Pixels], Pixels], null: NullBackend, batch: Pixels
) -> None:
    """Other pixels, or the same in another place, are another image."""
    assert null.classes_of(np.ascontiguousarray(change(batch[0]))) != null.classes_of(batch[0])


def test_backends_are_made_by_name() -> None:
    """The registry makes the backend that was asked for, and refuses another with the names that it knows."""
    assert create_backend("null", null_checkpoint(), BackendOptions()).name == "null"
    with pytest.raises(
        SettingError, match="RESNET_BACKEND cannot be 'tensorrt': supported are auto, null, onnx, torch"
    ):
        create_backend("tensorrt", null_checkpoint(), BackendOptions())
