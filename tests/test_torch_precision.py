"""Where the network runs and in which number format: what a GPU can do, and whether the network survives it."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest

from app.backends.torch import DevicePlan, TorchBackend, plan_device
from app.backends.torch.forward import Forward
from app.backends.torch.precision import formats_for, has_kernels_for, place_network
from app.checkpoints import published_resnet50_preprocessing
from app.errors import SettingError
from app.types import Preprocessing, Want
from tests.checkpoints_made import cpu_plan, make_network, photos, pixels_of, resnet50_v1
from tests.lazy import Lazy, torch

own = Lazy("tests.own_modules")

# What PyTorch 2.14 for CUDA 13.0 is built for.
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def small() -> Preprocessing:
    published = published_resnet50_preprocessing()
    return Preprocessing(None, (8, 8), published.interpolation, published.mean, published.std)


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ((6, 1), ("float32",)),
        ((7, 0), ("float16", "float32")),
        ((7, 5), ("float16", "float32")),
        ((8, 0), ("float16", "bfloat16", "float32")),
        ((9, 0), ("float16", "bfloat16", "float32")),
        ((12, 0), ("float16", "bfloat16", "float32")),
    ],
)
def test_a_card_runs_what_its_tensor_cores_take(capability: tuple[int, int], formats: tuple[str, ...]) -> None:
    """float16 first, for it is the more accurate of what is equally fast; bfloat16 only where it is fast."""
    assert formats_for(capability) == formats


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 9), True), ((9, 0), True), ((10, 3), True), ((11, 0), False)],
)
def test_a_build_runs_on_its_own_major_versions(capability: tuple[int, int], runs: bool) -> None:
    """Machine code needs its own major version and at least its minor one."""
    assert has_kernels_for(capability, BUILT_FOR) is runs


def test_intermediate_code_runs_on_later_cards() -> None:
    """compute_90 runs on what came after it, and on nothing before; a build that does not say is believed."""
    assert has_kernels_for((13, 0), ["sm_75", "compute_90"])
    assert not has_kernels_for((8, 0), ["sm_75", "compute_90"])
    assert has_kernels_for((9, 0), ["sm_90a"])
    assert has_kernels_for((5, 0), [])
    assert has_kernels_for((9, 0), ["gfx90a", "gfx942"])


class Card:
    """What PyTorch tells of a GPU that is not here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        told = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "get_device_capability": lambda device: capability,
            "get_device_name": lambda device: "a GPU",
            "get_arch_list": lambda: BUILT_FOR,
        }
        for name, answer in told.items():
            monkeypatch.setattr(torch.cuda, name, answer)


def test_a_new_card_gets_two_slots_and_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes the GPU, half precision with its ways back, two batches in flight, and graphs."""
    Card(monkeypatch, (8, 9))
    plan = plan_device("auto", "auto")
    assert plan == DevicePlan(
        torch.device("cuda", 0), torch.float16, 2, True, (torch.bfloat16, torch.float32), graphs=True, folded=True
    )
    assert plan_device("cuda:1", "auto").device == torch.device("cuda", 1)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_format_that_was_asked_for_has_no_way_back(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESNET_PRECISION is taken at its word."""
    Card(monkeypatch, (8, 0))
    plan = plan_device("cuda", precision)
    assert (plan.dtype, plan.fallbacks, plan.folded) == (getattr(torch, precision), (), True)


def test_a_card_that_the_build_has_no_kernels_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old GPU is named with what the build is for and the ways out, before the first kernel fails."""
    Card(monkeypatch, (6, 1))
    with pytest.raises(SettingError, match=r"a GPU has compute capability 6\.1.*not built for.*RESNET_DEVICE=cpu"):
        plan_device("auto", "auto")


# --- whether a format holds the network


def placed(level: float, *formats: torch.dtype) -> torch.dtype:
    plan = DevicePlan(torch.device("cpu"), formats[0], 2, staged=True, fallbacks=formats[1:])
    return place_network(own.Loud(level), small(), plan).dtype


def test_a_network_within_float16_s_range_runs_in_it(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers up to 65,504 fit; nothing is said."""
    with caplog.at_level(logging.WARNING):
        assert placed(100.0, torch.float16, torch.bfloat16, torch.float32) == torch.float16
    assert caplog.records == []


def test_a_network_beyond_it_runs_in_bfloat16(caplog: pytest.LogCaptureFixture) -> None:
    """Where float16 overflows, bfloat16 holds the network, and a warning says so."""
    with caplog.at_level(logging.WARNING):
        assert placed(60_000.0, torch.float16, torch.bfloat16, torch.float32) == torch.bfloat16
    (record,) = caplog.records
    assert record.getMessage().startswith("Float16 does not hold this network")


def test_without_bfloat16_it_runs_in_float32() -> None:
    """On a GPU of 7.x the way back is float32, whose weights are the ones that came."""
    assert placed(60_000.0, torch.float16, torch.float32) == torch.float32


def test_float32_after_all_has_the_weights_that_came() -> None:
    """Trying half formats rounds copies of the weights, not the weights."""

    class Offset(own.Loud):
        def __init__(self) -> None:
            super().__init__(60_000.0)
            self.offset = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3]), requires_grad=False)

        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            return super().forward(planes) + self.offset

    plan = DevicePlan(torch.device("cpu"), torch.float16, 1, staged=True, fallbacks=(torch.float32,))
    plain = DevicePlan(torch.device("cpu"), torch.float32, 1, staged=True)
    grey = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    assert torch.equal(place_network(Offset(), small(), plan)(grey), place_network(Offset(), small(), plain)(grey))


def test_a_network_that_rounding_moves_far_runs_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    """Small differences of large numbers are lost in both half formats, and the warning says how far they moved."""

    class Cancelling(torch.nn.Module):
        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            means: torch.Tensor = planes.mean((2, 3))
            return (means + 3000.0) - 3000.0

    plan = DevicePlan(torch.device("cpu"), torch.float16, 2, staged=True, fallbacks=(torch.bfloat16, torch.float32))
    with caplog.at_level(logging.WARNING):
        assert place_network(Cancelling(), small(), plan).dtype == torch.float32
    assert len(caplog.records) == 2
    assert "up to 0." in caplog.records[0].getMessage()


def test_the_answers_are_those_of_the_format_that_was_chosen() -> None:
    """After a fallback the backend answers finite scores, says the format, and holds the network once."""
    plan = DevicePlan(torch.device("cpu"), torch.float16, 2, staged=True, fallbacks=(torch.bfloat16, torch.float32))
    backend = TorchBackend(own.Loud(60_000.0), small(), plan)
    assert "bfloat16" in backend.device
    batch = np.full((3, 8, 8, 3), 255, np.uint8)
    scores = backend.infer(batch, Want.SCORES).scores
    assert np.isfinite(scores).all()
    mean, std = np.array(small().mean), np.array(small().std)
    assert np.abs(scores - (1 - mean) / std).max() < 0.02


# --- normalisations folded into convolutions


def batch_norms(network: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("fallbacks", [(), ("float16", "float32")], ids=["asked for", "auto"])
def test_folding_leaves_the_answers(fallbacks: tuple[str, ...]) -> None:
    """A folded ResNet has no normalisation left and answers as before; the network that came is not changed."""
    network = make_network("resnet18", classes=20)
    pixels = pixels_of(photos())
    batch = torch.from_numpy(pixels)
    with torch.inference_mode():
        expected = Forward(copy.deepcopy(network), resnet50_v1(), torch.device("cpu"), torch.float32)(batch)
        others = tuple(getattr(torch, name) for name in fallbacks)
        plan = DevicePlan(torch.device("cpu"), torch.float32, 2, staged=True, fallbacks=others, folded=True)
        placed = place_network(network, resnet50_v1(), plan)
        assert batch_norms(placed.network) == 0
        assert (placed(batch) - expected).abs().max() < 1e-4
    assert batch_norms(network) == 20


def test_half_precision_is_folded_before_it_is_rounded() -> None:
    """The folded weights are computed in float32 and rounded once."""
    plan = DevicePlan(torch.device("cpu"), torch.float16, 2, staged=True, fallbacks=(torch.float32,), folded=True)
    backend = TorchBackend(make_network("resnet18", classes=20), resnet50_v1(), plan)
    plain = TorchBackend(make_network("resnet18", classes=20), resnet50_v1(), cpu_plan())
    pixels = pixels_of(photos())
    assert "float16" in backend.device
    difference = backend.infer(pixels, Want.SCORES).scores - plain.infer(pixels, Want.SCORES).scores
    assert np.abs(difference).max() < 0.02


def test_what_cannot_be_traced_is_run_as_it_is() -> None:
    """A network that looks at its values keeps its normalisations, and its answers."""

    class Looking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            means: torch.Tensor = self.norm(planes).mean((2, 3))
            return means * 2 if planes.sum() > 0 else means

    plan = DevicePlan(torch.device("cpu"), torch.float32, 1, staged=True, folded=True)
    placed = place_network(Looking(), small(), plan)
    assert batch_norms(placed.network) == 1
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    expected = Forward(Looking(), small(), torch.device("cpu"), torch.float32)(white)
    assert torch.equal(placed(white), expected)


def test_folding_that_changes_the_answers_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fold that answers otherwise is seen on made images, told, and not used."""
    monkeypatch.setattr("app.backends.torch.precision.fold_batch_norms", lambda network: own.Loud(0.0))
    plan = DevicePlan(torch.device("cpu"), torch.float32, 1, staged=True, folded=True)
    network = own.Loud(100.0)
    with caplog.at_level(logging.WARNING):
        assert place_network(network, small(), plan).network is network
    assert "left as they are" in caplog.text
