"""For any mixture of extra tensors, renamed heads and altered modules, an answer is the framework's, or it is said."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from app.agreement import probabilities
from app.errors import StartError
from app.settings import Settings
from tests import torch_made as made
from tests.examined import Examined, examine

CLASSES = 4
# Small, so that an example takes half a second: each stage still has several points.
IMAGES = made.photos()[:1, :, ::2, ::2].contiguous()
TOLERANCE = 1e-4


@cache
def base() -> nn.Module:
    return made.discriminating(torchvision.models.resnet50(num_classes=CLASSES))


@dataclass(frozen=True)
class Alteration:
    """A change of a module, and a word that a warning of it would have."""

    module: str
    change: Callable[[Any], None]

    def __repr__(self) -> str:
        return self.module


def _set(path: str, name: str, value: Any) -> Alteration:
    def change(network: Any) -> None:
        setattr(network.get_submodule(path), name, value)

    return Alteration(path, change)


def _put(path: str, create: Callable[[], nn.Module]) -> Alteration:
    return Alteration(path, lambda network: network.set_submodule(path, create()))


def dilate(network: Any) -> None:
    convolution = network.get_submodule("layer3.1.conv2")
    convolution.dilation = convolution.padding = (2, 2)


class OwnActivation(nn.Module):
    """Somebody's own: what its code does is not known from its layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, 0, 0.5)


ALTERATIONS = (
    _put("maxpool", nn.Identity),
    _put("maxpool", lambda: nn.MaxPool2d(2, 2)),
    _put("maxpool", lambda: nn.MaxPool2d(3, 2, 0, ceil_mode=True)),
    _put("maxpool", lambda: nn.AvgPool2d(3, 2, 1)),
    _put("avgpool", lambda: nn.AdaptiveMaxPool2d(1)),
    _put("relu", lambda: nn.LeakyReLU(0.2)),
    _put("layer2.1.relu", nn.SiLU),
    _put("layer3.0.relu", lambda: nn.PReLU()),
    _put("layer1.0.relu", OwnActivation),
    _put("layer4.2.bn3", lambda: nn.Sequential(nn.BatchNorm2d(2048), nn.Dropout(0.5))),
    _set("conv1", "stride", (1, 1)),
    _set("layer4.0.conv2", "stride", (1, 1)),
    _set("layer4.0.downsample.0", "stride", (1, 1)),
    Alteration("layer3.1.conv2", dilate),
    _set("layer2.0.bn1", "eps", 0.1),
    _set("bn1", "eps", 1e-2),
)
# Two that must go together, for the shapes of a block's two roads to fit.
LAST_STRIDE = ALTERATIONS[11:13]

HEADS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Linear(2048, CLASSES),
    lambda: nn.Linear(2048, CLASSES, bias=False),
    lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(2048, CLASSES)),
    lambda: nn.Sequential(nn.Linear(2048, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
    lambda: nn.Sequential(nn.Linear(2048, 16), nn.Tanh(), nn.Linear(16, CLASSES)),
    lambda: nn.Sequential(nn.BatchNorm1d(2048), nn.Linear(2048, CLASSES)),
    lambda: nn.Sequential(nn.Linear(2048, CLASSES), nn.LogSoftmax(dim=1)),
    lambda: nn.Sequential(nn.Linear(2048, CLASSES), nn.Sigmoid()),
    lambda: nn.Sequential(nn.Linear(2048, CLASSES), nn.Hardtanh()),
)
EXTRAS: dict[str, torch.Tensor] = {
    "total_ops": torch.zeros(1),
    "criterion.weight": torch.ones(CLASSES),
    "mean": torch.tensor([0.4, 0.4, 0.4]),
    "temperature": torch.tensor([2.0]),
    "other.weight": torch.ones(3, 2048),
    "queue": torch.ones(128, 64),
}


def expected(network: nn.Module) -> np.ndarray:
    """What torch answers, as probabilities; where the network ends in an activation, what that gives."""
    with torch.inference_mode():
        scores = np.asarray(network(IMAGES).numpy())
    last = network.fc[-1] if isinstance(network.fc, nn.Sequential) else None
    return probabilities(scores, "none" if isinstance(last, nn.Sigmoid | nn.Hardtanh) else "softmax")


def served(examined: Examined) -> np.ndarray:
    return probabilities(made.logits_of(examined, IMAGES), examined.checkpoint.activation)


def save(network: nn.Module, extras: list[str], container: str, folder: Path) -> Path:
    path = folder / "weights.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word about its own age
        if container == "state dict":
            torch.save({**network.state_dict(), **{name: EXTRAS[name] for name in extras}}, path)
        elif container == "module":
            torch.save(network, path)
        elif container == "script":
            torch.jit.script(network).save(str(path))
        elif container == "trace":
            torch.jit.trace(network, IMAGES).save(str(path))
        else:
            torch.export.save(torch.export.export(network, (IMAGES,)), path.with_suffix(".pt2"))
            path.with_suffix(".pt2").rename(path)
    return path


def may_differ(examined: Examined, names: list[str], container: str, head: nn.Module) -> bool:
    """Whether a warning names what could make the answer another one."""
    said = " ".join(examined.warnings)
    if container == "state dict" and isinstance(head, nn.Sequential):
        # What lies between and behind dense layers is in no state dict: the assumption is warned of.
        return "its head" in said or not isinstance(head[-1], nn.Linear)
    return any(name in said for name in names)


@given(
    container=st.sampled_from(["state dict", "module", "module", "trace", "script", "export"]),
    altered=st.lists(st.sampled_from([*ALTERATIONS, LAST_STRIDE]), max_size=2, unique_by=str),
    head=st.sampled_from(HEADS),
    extras=st.lists(st.sampled_from(sorted(EXTRAS)), max_size=2, unique=True),
    seed=st.integers(0, 1000),
)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    # An example is hundreds of megabytes: none is made smaller or explained.
    phases=(Phase.generate,),
)
def test_no_difference_is_silent(
    tmp_path_factory: pytest.TempPathFactory,
    container: str,
    altered: list[Any],
    head: Callable[[], nn.Module],
    extras: list[str],
    seed: int,
) -> None:
    """Served probabilities are torch's, or the file is refused, or a warning names the module that was altered."""
    network = copy.deepcopy(base())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.fc = head()  # type: ignore[assignment]
    names = []
    # A state dict does not hold what its modules do otherwise: there, only what it does hold is altered.
    for each in altered if container != "state dict" else []:
        for alteration in each if isinstance(each, tuple) else (each,):
            if alteration in LAST_STRIDE and each is not LAST_STRIDE:
                continue
            alteration.change(network)
            names.append(alteration.module)
    network.eval()
    wanted = expected(network)
    path = save(network, extras, container, tmp_path_factory.mktemp("any"))
    try:
        examined = examine(Settings(), path)
        found = served(examined)
    except StartError:
        return
    finally:
        path.unlink()
    if float(np.abs(found - wanted).max()) > TOLERANCE:
        assert may_differ(examined, names, container, network.fc), (examined.warnings, examined.notes)


@pytest.mark.parametrize("seed", range(3))
def test_extra_tensors_never_change_an_answer(seed: int) -> None:
    """Whatever extras are added to a state dict, the weights are the plain one's, or the file is refused by one."""
    from app.checkpoints.base import Stored
    from app.checkpoints.names import settle_names
    from app.networks import count_classes

    chance = random.Random(seed)
    state = {name: tensor.numpy() for name, tensor in base().state_dict().items()}
    plain = settle_names(Stored(state), Path("weights.pth")).weights
    for _ in range(20):
        extras = {name: EXTRAS[name].numpy() for name in chance.sample(sorted(EXTRAS), chance.randint(1, 4))}
        try:
            weights = settle_names(Stored({**state, **extras}), Path("weights.pth")).weights
            count_classes("resnet50", weights)
        except StartError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert any(name.partition(".")[0] in refusal for name in extras)
            continue
        assert weights.keys() == plain.keys()
        assert all(weights[name] is plain[name] or np.array_equal(weights[name], plain[name]) for name in plain)
