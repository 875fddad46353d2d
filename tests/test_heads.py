"""Classifiers under any name and of several layers, networks under any prefix, and entries beside them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.checkpoints.base import Stored
from app.checkpoints.names import Settled, settle_names
from app.errors import CheckpointError, StartError
from app.networks import count_classes
from app.settings import Settings
from tests import torch_made as made
from tests.checkpoints_made import save_pth
from tests.examined import Examined, examine

CLASSES = 5
State = dict[str, torch.Tensor]
# Half the side of a photo: a quarter of the work, and every layer still has several points to pool.
IMAGES = made.photos()[:2, :, ::2, ::2].contiguous()


@cache
def body() -> nn.Module:
    """One network for all tests; each gives it a head of its own."""
    import torchvision.models

    return made.discriminating(torchvision.models.resnet50(num_classes=CLASSES))


@cache
def features() -> torch.Tensor:
    """The pooled features of the photos, which a head takes."""
    network = body()
    classifier, network.fc = network.fc, nn.Identity()  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            return network(IMAGES).clone()
    finally:
        network.fc = classifier  # type: ignore[assignment]


def with_head(head: nn.Module, name: str = "fc", seed: int = 3) -> tuple[State, np.ndarray]:
    """The body's state dict with `head` under `name`, and torch's logits."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 1 / module.in_features**0.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5)
            if isinstance(module, nn.BatchNorm1d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0.4, 0.2)
                module.running_var.uniform_(0.2, 2)
    head = head.eval()
    state = {key: tensor for key, tensor in body().state_dict().items() if not key.startswith("fc.")}
    state |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    with torch.inference_mode():
        return state, np.asarray(head(features()).numpy())


def settled(state: State) -> Settled:
    """The names of a state dict settled, without a file."""
    return settle_names(Stored({name: tensor.numpy() for name, tensor in state.items()}), Path("weights.pth"))


def opened(document: Any, tmp_path: Path, **settings: Any) -> Examined:
    return examine(Settings(**settings), save_pth(document, tmp_path / "weights.pth"))


def distance(examined: Examined, expected: np.ndarray) -> float:
    return made.distance(made.logits_of(examined, IMAGES), expected)


def assumptions(examined: Examined) -> list[str]:
    """The warnings that are of a head."""
    return [warning for warning in examined.warnings if "its head" in warning]


HEADS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(2048, CLASSES)), False),
    "no bias": (lambda: nn.Linear(2048, CLASSES, bias=False), False),
    "two layers": (
        lambda: nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, CLASSES)),
        True,
    ),
    "Udacity's": (
        lambda: nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(2048, 64),
                relu=nn.ReLU(),
                fc2=nn.Linear(64, CLASSES),
            )
        ),
        True,
    ),
    "wide": (lambda: nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, CLASSES)), True),
    "three layers": (
        lambda: nn.Sequential(
            *(nn.Linear(2048, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        ),
        True,
    ),
    "normalised first": (lambda: nn.Sequential(nn.BatchNorm1d(2048), nn.Linear(2048, CLASSES)), True),
    "normalised between": (
        lambda: nn.Sequential(nn.Linear(2048, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES)),
        True,
    ),
    "normalised behind the activation": (
        lambda: nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, CLASSES)),
        True,
    ),
    "nothing between": (lambda: nn.Sequential(nn.Linear(2048, 64), nn.Linear(64, CLASSES)), False),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    """A state dict with a head of its own gives torch's logits, and a warning where something had to be assumed."""
    create, is_assumed = HEADS[name]
    state, expected = with_head(create())
    examined = opened(state, tmp_path)
    assert examined.class_count == CLASSES
    assert distance(examined, expected) < made.PARITY
    assert bool(assumptions(examined)) == is_assumed


@pytest.mark.parametrize(
    "name", ["last_linear", "classifier", "head", "linear", "head.fc", "my_own_output", "new_fc.0"]
)
def test_one_dense_layer_is_the_classifier_under_any_name(name: str, tmp_path: Path) -> None:
    """The only dense layer that takes the features is the classifier, whatever it is called."""
    state, expected = with_head(nn.Linear(2048, CLASSES), name)
    examined = opened(state, tmp_path)
    assert distance(examined, expected) < made.PARITY
    assert not assumptions(examined)


def test_another_activation_is_what_the_warning_is_for(tmp_path: Path) -> None:
    """A head with a tanh has the names of one with a ReLU: it is served with the ReLU that the warning names."""
    state, expected = with_head(nn.Sequential(nn.Linear(2048, 64), nn.Tanh(), nn.Linear(64, CLASSES)))
    examined = opened(state, tmp_path)
    assert distance(examined, expected) > 0.05
    (warning,) = assumptions(examined)
    assert "assuming ReLU" in warning


def test_another_epsilon_is_what_the_warning_is_for(tmp_path: Path) -> None:
    """A head's normalisation with an epsilon of its own is served with the one that the warning names."""
    state, expected = with_head(nn.Sequential(nn.BatchNorm1d(2048, eps=1.0), nn.Linear(2048, CLASSES)))
    examined = opened(state, tmp_path)
    assert distance(examined, expected) > 0.05
    (warning,) = assumptions(examined)
    assert "does not say the epsilon of the normalisations in its head (fc.0): assuming 1e-05" in warning


def test_a_layer_behind_a_whole_network_in_a_sequential_follows_its_classifier(tmp_path: Path) -> None:
    """In Sequential(network, Linear) nothing lies between the network's own classifier and the layer behind it."""
    layer = nn.Linear(CLASSES, 3)
    state = {f"0.{name}": tensor for name, tensor in body().state_dict().items()}
    state |= {f"1.{name}": tensor for name, tensor in layer.state_dict().items()}
    with torch.inference_mode():
        expected = np.asarray(layer(body()(IMAGES)).numpy())
    examined = opened(state, tmp_path)
    assert distance(examined, expected) < made.PARITY
    assert not assumptions(examined)


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


PREFIXES = [
    *("resnet.", "encoder.", "base_model.", "cnn.", "feature_extractor.", "student.", "self.model.", "network.net."),
    *("module.encoder.backbone.", "0.", "model.0."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_single_prefix_is_taken_off(prefix: str) -> None:
    """Whatever one prefix leaves a whole ResNet-50 is taken off, and nothing is warned of."""
    found = settled(renamed(body().state_dict(), lambda name: prefix + name))
    assert count_classes("resnet50", found.weights) == CLASSES
    assert (found.notes, found.warnings) == ((), ())


def children(name: str, prefix: str = "feature_extractor.") -> str:
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    part, _, rest = name.partition(".")
    return f"{prefix}{places[part]}.{rest}" if part in places else name


LAYOUTS: dict[str, Callable[[str], str]] = {
    "Lightning": lambda name: children(name).replace("fc.", "classifier."),
    "children bare": lambda name: children(name, "").replace("fc.", "8."),
    "mmpretrain": lambda name: f"head.{name}" if name.startswith("fc.") else f"backbone.{name}",
    "head beside": lambda name: name.replace("fc.", "classifier.") if name.startswith("fc.") else f"backbone.{name}",
    "head in the wrapper": lambda name: f"net.{name.replace('fc.', 'linear.')}",
    "stem of its own": lambda name: name.replace("bn1.", "stem.1.") if name.startswith("bn1.") else name.replace(
        "conv1.", "stem.0."
    )
    if name.startswith("conv1.")
    else name,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_frameworks_are_read(layout: str) -> None:
    """A network in the layout of a framework, its classifier beside it, has the weights of the plain one."""
    weights = settled(renamed(body().state_dict(), LAYOUTS[layout])).weights
    expected = {name: tensor for name, tensor in body().state_dict().items() if not name.endswith("tracked")}
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], tensor) for name, tensor in expected.items())


HARMLESS: dict[str, torch.Tensor] = {
    "total_ops": torch.zeros(1),
    "layer1.0.total_params": torch.zeros(1),
    "layer2.1.conv1.total_ops": torch.zeros(1, dtype=torch.float64),
    "criterion.weight": torch.ones(CLASSES),
    "loss_fn.ce.weight": torch.ones(CLASSES),
    "train_acc.tp": torch.zeros(CLASSES),
    "val_metrics.MulticlassF1Score.fp": torch.zeros(CLASSES),
    "global_step": torch.tensor(7.0),
    "n_averaged": torch.tensor(3),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_entries_that_cannot_change_an_answer_are_left_out(name: str) -> None:
    """Counters, losses and metrics are left out, and all but bare counters are noted."""
    found = settled({**body().state_dict(), name: HARMLESS[name]})
    assert count_classes("resnet50", found.weights) == CLASSES
    assert any(name in note for note in found.notes) == (name not in ("global_step", "n_averaged"))


def test_a_copy_is_left_out() -> None:
    """A second network or classifier that equals the first is left out with a note."""
    state = dict(body().state_dict())
    copies = {f"ema.{name}": tensor for name, tensor in state.items()} | {
        f"head.{name.removeprefix('fc.')}": tensor for name, tensor in state.items() if name.startswith("fc.")
    }
    found = settled({**state, **copies})
    assert count_classes("resnet50", found.weights) == CLASSES
    assert any("'ema' equals the one under no prefix" in note for note in found.notes)
    assert any("a copy of another entry" in note for note in found.notes)


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "an unknown parameter": ({"temperature": torch.ones(1)}, r"1 entries that the network does not, temperature first"),
    "a convolution": ({"extra.weight": torch.ones(8, 8, 3, 3)}, r"entries that the network does not, extra\.weight"),
    "attention": ({"layer1.0.se.fc.weight": torch.ones(4, 4)}, r"squeeze-and-excitation"),
    "two classifiers": ({"other.weight": torch.ones(3, 2048)}, r"2 dense layers behind .* which of them classifies"),
    "a mask": ({"mask": torch.ones(5, 2048)}, r"entries that the network does not, mask first"),
    "a second normalisation": (
        {f"norm.{leaf}": torch.ones(16) for leaf in ("weight", "bias", "running_mean", "running_var")},
        r"entries that the network does not, norm\.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_float_tensor_without_a_place_refuses_the_file(name: str) -> None:
    """A float tensor that is neither used nor known to be harmless refuses the checkpoint by its name."""
    extra, expected = REFUSED[name]
    with pytest.raises(CheckpointError, match=expected):
        count_classes("resnet50", settled({**body().state_dict(), **extra}).weights)


@pytest.mark.parametrize(
    ("names", "levels"),
    [
        (("mean", "std"), 1.0),
        (("data_preprocessor.mean", "data_preprocessor.std"), 255.0),
        (("norm.mean", "norm.std"), 1),
    ],
)
def test_mean_and_std_in_the_file_tell_the_preprocessing(names: tuple[str, str], levels: float, tmp_path: Path) -> None:
    """Buffers called mean and std are the normalisation, of fractions or of levels as their size says."""
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    extra = {names[0]: (mean * levels).view(3, 1, 1), names[1]: (std * levels).view(3, 1, 1)}
    decision = opened({**body().state_dict(), **extra}, tmp_path).decisions.preprocessing
    assert decision.value.mean == pytest.approx((0.5, 0.4, 0.3))
    assert decision.value.std == pytest.approx((0.2, 0.25, 0.3))
    assert names[0] in decision.source


# --- activation


@pytest.fixture(scope="module")
def one_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state, _ = with_head(nn.Linear(2048, 1))
    return save_pth(state, tmp_path_factory.mktemp("one") / "weights.pth")


def test_one_output_means_a_sigmoid(one_output: Path) -> None:
    """Of one output the activation is a sigmoid, and the decision says why."""
    decision = examine(Settings(), one_output).decisions.activation
    assert (decision.value, decision.source) == ("sigmoid", "its one output")


def test_a_softmax_of_one_output_is_refused(one_output: Path) -> None:
    """A softmax of one output is 1 whatever the image, so that asking for it is an error that says so."""
    with pytest.raises(StartError, match=r"RESNET_ACTIVATION has softmax .* is 1 for every image"):
        examine(Settings(activation="softmax"), one_output)


def test_one_output_takes_one_label_or_two(one_output: Path, tmp_path: Path) -> None:
    """One output has one label, or two of which the second is the output's."""
    for names in ("cat\ndog\n", "dog\n"):
        labels = tmp_path / "labels.txt"
        labels.write_text(names)
        assert examine(Settings(labels=labels), one_output).checkpoint.labels == tuple(names.split())
    labels.write_text("a\nb\nc\n")
    with pytest.raises(StartError, match="names 3 classes, but the checkpoint has 1"):
        examine(Settings(labels=labels), one_output)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_the_setting_decides_the_activation(activation: str, tmp_path: Path) -> None:
    """RESNET_ACTIVATION is what serves, and the decision names it."""
    state, _ = with_head(nn.Linear(2048, CLASSES))
    examined = opened(state, tmp_path, activation=activation)
    assert examined.checkpoint.activation == activation
    assert examined.decisions.activation.source == "RESNET_ACTIVATION"
