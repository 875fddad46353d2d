"""What a whole module, a script, a trace or an exported graph states of its layers is realised, or refused by name."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import CheckpointError
from tests import torch_made as made
from tests.lazy import Lazy, nn, torch, torchvision
from tests.torch_made import PARITY

own = Lazy("tests.own_modules")

# torch itself deprecates TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore")

Alter = Callable[[Any], None]


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return made.thin()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return made.photos()[:1, :, :128, :128].contiguous()


def set_activations(network: nn.Module, create: Callable[[], nn.Module]) -> None:
    for module in list(network.modules()):
        if isinstance(getattr(module, "relu", None), nn.ReLU):
            module.relu = create()


def no_pool(network: nn.Module) -> None:
    network.maxpool = nn.Identity()


def small_pool(network: nn.Module) -> None:
    network.maxpool = nn.MaxPool2d(2, 2)


def adaptive_pool(network: nn.Module) -> None:
    network.maxpool = nn.AdaptiveMaxPool2d(30)
    network.avgpool = nn.AdaptiveMaxPool2d(1)


def average_pool(network: nn.Module) -> None:
    network.maxpool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    network.avgpool = nn.AvgPool2d(3, stride=4)


def stem_of_stride_one(network: nn.Module) -> None:
    network.conv1.stride = (1, 1)


def last_stride_one(network: nn.Module) -> None:
    network.layer4[0].conv2.stride = (1, 1)
    network.layer4[0].downsample[0].stride = (1, 1)


def dilated(network: nn.Module) -> None:
    last_stride_one(network)
    for block in network.layer4:
        block.conv2.dilation = block.conv2.padding = (2, 2)


def first_stride_in_one_stage(network: nn.Module) -> None:
    network.layer3[0].conv1.stride, network.layer3[0].conv2.stride = (2, 2), (1, 1)


def two_epsilons(network: nn.Module) -> None:
    network.layer2[1].bn2.eps, network.bn1.eps = 0.3, 0.1


def leaky(network: nn.Module) -> None:
    set_activations(network, lambda: nn.LeakyReLU(0.2))


def two_activations(network: nn.Module) -> None:
    network.relu = nn.SiLU(inplace=True)
    network.layer3[2].relu = nn.GELU(approximate="tanh")


def deep_head(network: nn.Module) -> None:
    hidden = nn.Linear(128, 32)
    nn.init.normal_(hidden.weight, std=0.3)
    norm = nn.BatchNorm1d(32, eps=0.5)
    network.fc = nn.Sequential(nn.Dropout(), hidden, norm, nn.ELU(0.6), nn.Dropout(), nn.Linear(32, 10, bias=False))


def named_head(network: nn.Module) -> None:
    layers = {"fc1": nn.Linear(128, 32), "act": nn.LeakyReLU(0.3), "fc2": nn.Linear(32, 10), "out": nn.Softmax(dim=1)}
    network.fc = nn.Sequential(collections.OrderedDict(layers))


def sigmoid_head(network: nn.Module) -> None:
    network.fc = nn.Sequential(nn.LayerNorm(128, eps=0.2), nn.Linear(128, 10), nn.Sigmoid())


ALTERED: list[tuple[Alter, str]] = [
    (no_pool, "maxpool: identity"),
    (small_pool, "maxpool: max_pool kernel 2×2"),
    (adaptive_pool, "maxpool: adaptive_max_pool kernel 30×30"),
    (average_pool, "maxpool: average_pool kernel 3×3"),
    (stem_of_stride_one, "conv1: convolution stride 1×1"),
    (last_stride_one, "layer4.0.conv2: convolution stride 1×1"),
    (dilated, "layer4.1.conv2: convolution stride 1×1 padding 2×2 dilation 2×2"),
    (first_stride_in_one_stage, "layer3.0.conv1: convolution stride 2×2"),
    (two_epsilons, "bn1: batch_norm 0.1"),
    (leaky, "layer1.0.relu: leaky_relu 0.2"),
    (two_activations, "layer3.2.relu: gelu_tanh"),
    (deep_head, ""),
    (named_head, ""),
    (sigmoid_head, ""),
]


@pytest.mark.parametrize(("alter", "shown"), ALTERED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_a_module_states_is_served(
    alter: Alter, shown: str, plain: nn.Module, image: torch.Tensor, tmp_path: Path
) -> None:
    """An altered layer moves torch's own answer, and what is served follows; the decision names layer and source."""
    network = copy.deepcopy(plain)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        alter(network)
    torch.save(network.eval(), tmp_path / "m.pth")
    examined = made.opened_thin(tmp_path / "m.pth")
    own = made.own_logits(network, image)
    assert made.distance(examined.answers(image), own) <= PARITY
    assert made.distance(own, made.own_logits(plain, image)) > 100 * PARITY
    altered = examined.decisions.altered
    assert shown in "; ".join(f"{layer.name}: {layer.describe()}" for layer in altered.value)
    assert altered.source == examined.decisions.pool.source == "the file's pickled module"
    assert not [warning for warning in examined.contents.warnings if "own code" in warning]


def script(network: nn.Module, image: torch.Tensor, path: Path) -> None:
    torch.jit.script(network).save(str(path))


def trace(network: nn.Module, image: torch.Tensor, path: Path) -> None:
    torch.jit.trace(network, image, check_trace=False).save(str(path))


def export(network: nn.Module, image: torch.Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(network, (image.repeat(2, 1, 1, 1),)), path)


def export_in_core_operations(network: nn.Module, image: torch.Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(network, (image.repeat(2, 1, 1, 1),)).run_decompositions(), path)


def much(network: nn.Module) -> None:
    """One of each kind at once."""
    adaptive_pool(network)
    dilated(network)
    two_epsilons(network)
    leaky(network)
    network.layer3[2].relu = nn.GELU()
    deep_head(network)
    network.fc.append(nn.Sigmoid())


@pytest.mark.parametrize("save", [script, trace, export, export_in_core_operations], ids=lambda each: each.__name__)
def test_what_code_and_graphs_state_is_served(
    save: Callable[..., None], plain: nn.Module, image: torch.Tensor, tmp_path: Path
) -> None:
    """The same layers in a script, a trace and an exported graph are read from what these compute."""
    network = copy.deepcopy(plain)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        much(network)
    save(network.eval(), image, tmp_path / "m")
    examined = made.opened_thin(tmp_path / "m")
    assert made.distance(examined.answers(image), made.own_logits(network, image)) <= PARITY
    assert examined.decisions.activation.value == "sigmoid"
    assert examined.decisions.altered.source in ("the file's TorchScript", "the file's exported graph")
    assert not [warning for warning in examined.contents.warnings if "own code" in warning]


def test_timms_three_activations_are_served_each(image: torch.Tensor, tmp_path: Path) -> None:
    """timm's blocks have an activation behind each normalisation, and drop_block and aa that do nothing."""
    timm = pytest.importorskip("timm")
    network = made.discriminating(timm.create_model("resnet50", num_classes=10, drop_block_rate=0.1, drop_rate=0.2))
    network.layer1[0].act2, network.layer2[1].act3, network.act1 = nn.SiLU(), nn.Hardswish(), nn.Mish()
    torch.save(network, tmp_path / "m.pth")
    examined = made.opened(tmp_path / "m.pth")
    assert made.distance(made.logits_of(examined, image), made.own_logits(network, image)) <= PARITY
    assert [layer.name for layer in examined.decisions.altered.value] == ["relu", "layer1.0.act2", "layer2.1.act3"]


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    network.set_submodule(name, module)


REFUSED: dict[str, tuple[Alter, str]] = {
    "attention": (
        lambda network: network.layer1[0].add_module("se", own.SqueezeAndExcitation()),
        r"layer1\.0\.se is a tests\.own_modules\.SqueezeAndExcitation",
    ),
    "sigmoid": (lambda network: network.layer1[0].add_module("gate", nn.Sigmoid()), r"layer1\.0\.gate is a .*Sigmoid"),
    "an activation with weights": (lambda network: put(network, "relu", nn.PReLU()), r"relu is a .*PReLU"),
    "an activation of one's own": (
        lambda network: put(network, "layer2.0.relu", own.SqueezeAndExcitation()),
        "layer2.0.relu",
    ),
    "another normalisation": (lambda network: put(network, "bn1", nn.GroupNorm(8, 64)), r"bn1 is a .*GroupNorm"),
    "a pool of one's own": (lambda network: put(network, "avgpool", own.SqueezeAndExcitation()), "avgpool is a"),
    "a head of one's own": (lambda network: put(network, "fc.2", nn.Softmin(1)), r"fc\.2 is a .*Softmin"),
    "reflected padding": (lambda network: setattr(network.conv1, "padding_mode", "reflect"), "padding_mode 'reflect'"),
    "a hook": (lambda network: network.layer1.register_forward_hook(print), "layer1 has a hook, which is code"),
    "a softmax between": (
        lambda network: put(network, "fc", nn.Sequential(nn.Linear(128, 9), nn.Softmax(1), nn.Linear(9, 9))),
        r"fc\.1 is a .*Softmax",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_served_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """A module that is none of the layers that are served is named with its class, and ONNX is the way out."""
    network = made.thin()
    network.fc = nn.Sequential(nn.Dropout(), network.fc)
    alter, expected = REFUSED[name]
    alter(network)
    torch.save(network, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=expected) as refusal:
        made.opened_thin(tmp_path / "m.pth")
    assert str(refusal.value).endswith("Export the model to ONNX (torch.onnx.export) and serve that.")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: nn.DataParallel(network),
        lambda network: torch.compile(network),
        lambda network: torch.optim.swa_utils.AveragedModel(network),
        lambda network: nn.Sequential(*list(network.children())[:-1], nn.Flatten(), network.fc),
        lambda network: nn.Sequential(network, nn.LogSoftmax(dim=1)),
    ],
    ids=["DataParallel", "compile", "AveragedModel", "Sequential of its children", "LogSoftmax behind it"],
)
def test_a_module_in_torchs_wrappers_is_read(
    wrap: Callable[[Any], Any], plain: nn.Module, image: torch.Tensor, tmp_path: Path
) -> None:
    """What torch puts around a network leaves its layers readable and its answers as they were."""
    network = copy.deepcopy(plain)
    two_epsilons(network)
    torch.save(wrap(network), tmp_path / "m.pth")
    examined = made.opened_thin(tmp_path / "m.pth")
    assert made.distance(examined.logits(image), made.own_logits(network, image)) <= PARITY
    assert examined.decisions.activation.value == "softmax"
    assert not [warning for warning in examined.contents.warnings if "own code" in warning]


def test_a_class_of_ones_own_is_served_by_its_modules_with_a_warning(
    plain: nn.Module, image: torch.Tensor, tmp_path: Path
) -> None:
    """A pickled class gives its pool and its head in the order of its Sequential, and is warned of."""
    head = nn.Sequential(nn.Linear(128, 16), nn.SiLU(), nn.Linear(16, 3))
    network = own.BackboneAndHead(copy.deepcopy(plain), head).eval()
    torch.save(network, tmp_path / "m.pth")
    examined = made.opened_thin(tmp_path / "m.pth")
    assert made.distance(examined.logits(image), made.own_logits(network, image)) <= PARITY
    assert "BackboneAndHead, whose own code never runs here" in examined.contents.warnings[0]


def test_a_normalize_module_in_front_is_preprocessing(plain: nn.Module, image: torch.Tensor, tmp_path: Path) -> None:
    """torchvision's Normalize before the network is what the images are normalised with."""
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
    torch.save(nn.Sequential(torchvision.transforms.Normalize(mean, std), plain), tmp_path / "m.pth")
    preprocessing = made.opened_thin(tmp_path / "m.pth").decisions.preprocessing
    assert preprocessing.value.mean == pytest.approx(mean)
    assert preprocessing.value.std == pytest.approx(std)
    assert "the file's pickled module, which takes images from 0 to 1" in preprocessing.source
