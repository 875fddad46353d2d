"""A checkpoint is served as its own framework would serve it, or refused in one line that says why."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints import (
    CheckpointFile,
    OfflineDemo,
    PublishedName,
    default_preprocessing,
    find_by_name,
    find_by_sha256,
    locate,
    published,
    read_checkpoint,
)
from app.errors import CheckpointError, LabelsError, SettingError
from app.labels import imagenet_labels
from app.networks import build_network, count_classes
from app.settings import load_settings
from tests import checkpoints_made as made
from tests.checkpoints_made import State, Told, load, make_network, save_pth
from tests.lazy import Lazy, torch, torchvision

PARITY = 1e-4

named = cache(made.named_like_resnet50)
safetensors_torch = Lazy("safetensors.torch")


def shifted() -> State:
    return {name: tensor + 1 for name, tensor in named().items()}


def extras() -> dict[str, Any]:
    return {
        "epoch": 89,
        "best_acc1": 76.1,
        "arch": "resnet50",
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 89, "_step_count": 90},
        "scaler": None,
    }


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def refusal_of(path: Path, **settings: Any) -> str:
    """The one line that loading `path` ends with."""
    with pytest.raises((CheckpointError, SettingError)) as refusal:
        load(weights=str(path), **settings)
    line = str(refusal.value)
    assert "\n" not in line
    assert line.endswith(".")
    return line


# --- containers and names


def test_a_state_dict_is_read_whole(tmp_path: Path) -> None:
    """A bare state dict gives its 267 entries that inference needs, with their values and its file's SHA-256."""
    path = save_pth(named(), tmp_path / "weights.pth")
    contents = read_checkpoint(path)
    weights, sha256 = contents.weights, contents.sha256
    assert len(weights) == 267
    assert made.same_weights(weights, named())
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_the_bytes_decide_the_container(container: str, name: str, tmp_path: Path) -> None:
    """A torch zip, a file from before torch 1.6 and safetensors are each told by their bytes, whatever their name."""
    path = tmp_path / name
    if container == "safetensors":
        safetensors_torch.save_file(named(), path)
    else:
        save_pth(named(), path, _use_new_zipfile_serialization=container == "zip")
    assert made.same_weights(read_checkpoint(path).weights, named())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("container", ["pth", "safetensors"])
def test_every_float_becomes_float32(dtype: str, container: str, tmp_path: Path) -> None:
    """Half, bfloat16 and double weights are read as the float32 of the same value."""
    state = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in named().items()}
    path = tmp_path / "weights"
    safetensors_torch.save_file(state, path) if container == "safetensors" else save_pth(state, path)
    assert made.same_weights(read_checkpoint(path).weights, state)


@pytest.mark.parametrize("beside", [dict, extras], ids=["alone", "with extras"])
@pytest.mark.parametrize(
    "wrapper", ["state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights"]
)
def test_each_wrapper_is_taken_off(wrapper: str, beside: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    """A training checkpoint is unwrapped, and what else it holds is left alone."""
    path = save_pth({**beside(), wrapper: OrderedDict(named())}, tmp_path / "weights.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


@pytest.mark.parametrize("other", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_preferred(averaged: str, other: str, tmp_path: Path) -> None:
    """Where a file holds both, the averaged weights are served, for they are the ones that were evaluated."""
    path = save_pth({other: shifted(), averaged: named()}, tmp_path / "weights.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


def test_wrappers_within_wrappers_are_taken_off(tmp_path: Path) -> None:
    """A state dict two levels down is found."""
    path = save_pth({"model": {"state_dict": named(), "epoch": 1}}, tmp_path / "weights.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


PREFIXES = ["module.", "_orig_mod.", "model.", "timm_model.", "net.", "backbone."]
NESTED = ["module._orig_mod.", "_orig_mod.module.", "model.backbone.", "module.model.net.", "model.model."]


@pytest.mark.parametrize("prefix", PREFIXES + NESTED)
def test_each_prefix_is_taken_off(prefix: str, tmp_path: Path) -> None:
    """What DataParallel, torch.compile, Lightning and hand-written classes put before the names is taken off."""
    path = save_pth({"state_dict": prefixed(named(), prefix)}, tmp_path / "weights.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    """The state dict of torch's AveragedModel, as torchvision's reference scripts save it, loses its counter."""
    averaged = {"n_averaged": torch.tensor(7), **prefixed(named(), "module.")}
    path = save_pth({"model": named(), "model_ema": averaged}, tmp_path / "weights.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


def test_prefixes_that_some_entries_lack_are_taken_off_the_others(tmp_path: Path) -> None:
    """A backbone under a prefix with its classifier beside it is one network."""
    mixed = {(name if name.startswith("fc.") else "backbone." + name): tensor for name, tensor in named().items()}
    assert made.same_weights(read_checkpoint(save_pth(mixed, tmp_path / "weights.pth")).weights, named())


# --- answers


@pytest.fixture(scope="module")
def resnet50() -> torch.nn.Module:
    return make_network("resnet50")


@pytest.fixture(scope="module")
def resnet50_file(resnet50: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pth(resnet50.state_dict(), tmp_path_factory.mktemp("checkpoints") / "resnet50.pth")


def test_a_resnet50_answers_as_torchvisions_own(resnet50: torch.nn.Module, resnet50_file: Path) -> None:
    """Loaded, batched and run by the service, photos get the logits of torchvision's module and preset."""
    model = load(weights=str(resnet50_file))
    assert model.class_count == 1000
    assert model.labels == imagenet_labels()
    assert model.identity.name == "resnet50"
    assert model.identity.version == hashlib.sha256(resnet50_file.read_bytes()).hexdigest()[:8]
    scores = made.scores_of(model, made.photos())
    expected = made.reference_scores(resnet50, "resnet50", "IMAGENET1K_V1", made.photos())
    assert np.abs(scores - expected).max() <= PARITY
    # The tolerance tells photos apart, and a wrong preprocessing from the right one.
    assert np.abs(expected[0] - expected[1]).max() > 100 * PARITY
    wrong = made.reference_scores(resnet50, "resnet50", "IMAGENET1K_V2", made.photos())
    assert np.abs(scores - wrong).max() > 100 * PARITY


def test_a_fine_tuned_resnet50_in_a_training_checkpoint_answers_as_trained(tmp_path: Path) -> None:
    """Seven classes, averaged weights, wrapped, prefixed and in the old container: the same logits."""
    network = make_network("resnet50", classes=7, seed=1)
    averaged = {"n_averaged": torch.tensor(7), **prefixed(network.state_dict(), "module._orig_mod.")}
    document = {**extras(), "model": named(), "model_ema": averaged}
    path = save_pth(document, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=False)
    model = load(weights=str(path))
    assert model.labels == ("0", "1", "2", "3", "4", "5", "6")
    expected = made.reference_scores(network, "resnet50", "IMAGENET1K_V1", made.photos())
    assert np.abs(made.scores_of(model, made.photos()) - expected).max() <= PARITY


def test_half_precision_safetensors_answer_as_their_float32_twin(tmp_path: Path) -> None:
    """Weights stored as bfloat16 in safetensors run as the float32 network that has those values."""
    network = make_network("resnet18", classes=10, seed=3).to(torch.bfloat16)
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(network.state_dict(), path)
    expected = made.reference_scores(network.float(), "resnet18", "IMAGENET1K_V1", made.photos())
    scores = made.scores_of(load(weights=str(path), architecture="resnet18"), made.photos())
    assert np.abs(scores - expected).max() <= PARITY


def old_densenet_names(state: State) -> State:
    """The names of torchvision's own DenseNet files: `norm.1` for `norm1`."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])", r"\1.\2", name): t for name, t in state.items()}


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18",
        "mobilenet_v3_small",
        "swin_t",
        "densenet121",
        "regnet_y_400mf",
        "squeezenet1_1",
        "mnasnet0_5",
    ],
)
def test_other_networks_are_served_by_name(architecture: str, tmp_path: Path) -> None:
    """A network that the user names answers as torchvision's own, with its own preprocessing and class count."""
    network = make_network(architecture, classes=5)
    state = network.state_dict()
    if architecture == "densenet121":
        state = old_densenet_names(state)
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    model = load(weights=str(save_pth(state, tmp_path / "weights.pth")), architecture=architecture)
    assert model.identity.name == architecture
    assert model.class_count == 5
    expected = made.reference_scores(network, architecture, "IMAGENET1K_V1", made.photos())
    assert np.abs(made.scores_of(model, made.photos()) - expected).max() <= PARITY
    assert np.abs(expected[0] - expected[1]).max() > 100 * PARITY


def test_classifiers_for_training_alone_are_left_out(tmp_path: Path) -> None:
    """A GoogLeNet with the classifiers that only its training used answers as torchvision's, which skips them too."""
    network = make_network("googlenet", classes=5, init_weights=False, transform_input=True, aux_logits=True)
    assert any(name.startswith("aux1.") for name in network.state_dict())
    path = save_pth(network.state_dict(), tmp_path / "weights.pth")
    model = load(weights=str(path), architecture="googlenet")
    expected = made.reference_scores(network, "googlenet", "IMAGENET1K_V1", made.photos())
    assert np.abs(made.scores_of(model, made.photos()) - expected).max() <= PARITY


def test_building_a_network_leaves_the_weights_alone() -> None:
    """A network that is built holds the weights it was given, and arrays that cannot be written to are copied."""
    state = make_network("squeezenet1_1", classes=3).state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    for values in weights.values():
        values.flags.writeable = False
    network = build_network("squeezenet1_1", weights)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


# --- refusals


@cache
def shapes_of(architecture: str) -> dict[str, Any]:
    with torch.device("meta"):
        state = torchvision.models.get_model(architecture, weights=None).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in made.without_counters(state).items()}


def shaped(architecture: str, **changed: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    """Zeros in the shapes of a network's entries, taking no memory; a shape can be changed or an entry left out."""
    shapes = shapes_of(architecture) | {name.replace("__", "."): shape for name, shape in changed.items()}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            lambda: shaped("resnet18"),
            r"lacks \d+ of 267 entries, layer1\.0\.conv3\.weight first; it has conv1\.w",
        ),
        (lambda: shaped("resnext50_32x4d"), r"layer1\.0\.conv1\.weight is 128×64×1×1 where 64×64×1×1 was expected"),
        (lambda: shaped("wide_resnet50_2"), r"layer1\.0\.conv1\.weight is 128×64×1×1 where 64×64×1×1 was expected"),
        (lambda: shaped("resnet101"), r"it has 255 entries that the network does not, layer3\.6\.conv1\.weight first"),
        (lambda: shaped("resnet50", fc__weight=None, fc__bias=None), r"lacks 2 of 267 entries, fc\.weight first"),
        (lambda: shaped("resnet50", fc__bias=None), r"lacks 1 of 267 entries, fc\.bias first"),
        (lambda: shaped("resnet50", fc__weight=(7, 2048)), r"fc\.bias is 1000 where 7 was expected"),
        (lambda: shaped("resnet50", fc__weight=(1000, 512)), r"fc\.weight is 1000×512 where 1000×2048 was expected"),
        (lambda: shaped("resnet50", fc__weight=(0, 2048)), r"fc\.weight is 0×2048 where 1000×2048 was expected"),
        (lambda: shaped("resnet50", fc__weight=()), r"fc\.weight is a single value where 1000×2048 was expected"),
        (lambda: shaped("resnet50", conv1__weight=(64, 1, 7, 7)), r"conv1\.weight is 64×1×7×7 where 64×3×7×7"),
        (lambda: shaped("resnet50", bn1__running_mean=None), r"lacks 1 of 267 entries, bn1\.running_mean first"),
        (
            lambda: shaped("resnet50", projector__weight=(9, 9)),
            r"1 entries that the network does not, projector",
        ),
        (dict, r"lacks 267 of 267 entries, conv1\.weight first; it has none"),
    ],
    ids=[
        "resnet18",
        "resnext50",
        "wide resnet50",
        "resnet101",
        "no classifier",
        "no classifier bias",
        "bias of another count",
        "narrow classifier",
        "no classes",
        "classifier is a number",
        "grey input",
        "no statistics",
        "one entry more",
        "nothing",
    ],
)
def test_weights_of_another_network_are_refused(weights: Callable[[], dict[str, np.ndarray]], expected: str) -> None:
    """What does not fit is refused in one line: the first entry that is missing, of another shape or too much."""
    with pytest.raises(CheckpointError, match=expected) as refusal:
        count_classes("resnet50", weights())
    assert str(refusal.value).startswith("The checkpoint does not fit resnet50: ")
    assert "--architecture" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_integer_weights_are_refused(dtype: type) -> None:
    """Quantized weights in the right shapes are refused and not run as numbers."""
    weights = {name: values.astype(dtype) for name, values in shaped("squeezenet1_1").items()}
    with pytest.raises(CheckpointError, match=rf"features\.0\.weight is {np.dtype(dtype)}\. Expected floats"):
        count_classes("squeezenet1_1", weights)


def test_a_resnet18_file_is_refused_as_a_resnet50(tmp_path: Path) -> None:
    """A real file of another network is refused by the whole road from settings to model, in one line."""
    with torch.device("meta"):
        names = torchvision.models.resnet18().state_dict()
    path = save_pth({name: torch.zeros(t.shape, dtype=t.dtype) for name, t in names.items()}, tmp_path / "w.pth")
    assert "does not fit resnet50" in refusal_of(path)


def test_an_unknown_architecture_lists_those_there_are(tmp_path: Path) -> None:
    """A network that torchvision does not have is refused by the setting's name."""
    path = save_pth(named(), tmp_path / "weights.pth")
    line = refusal_of(path, architecture="resnet51")
    assert "RESNET_ARCHITECTURE cannot be 'resnet51'" in line


def with_values(name: str, values: list[float], dtype: str = "float32") -> Callable[[], State]:
    return lambda: {**named(), name: torch.tensor(values, dtype=getattr(torch, dtype))}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            with_values("layer1.0.conv1.weight", [0.0, float("nan")]),
            r"layer1\.0\.conv1\.weight has values that are",
        ),
        (with_values("fc.bias", [float("inf"), 0.0]), r"fc\.bias has values that are not finite"),
        (with_values("fc.bias", [1e300], "float64"), r"fc\.bias has values that are not finite"),
        (with_values("bn1.running_var", [1.0, -1e-6]), r"bn1\.running_var has a variance below zero"),
        (
            lambda: {**named(), **prefixed(shifted(), "module.")},
            r"two networks, under no prefix and under 'module', and \w",
        ),
        (
            lambda: {**prefixed(named(), "net."), **prefixed(shifted(), "ema.")},
            r"two networks, under 'ema' and under 'net', and",
        ),
        (
            lambda: {**named(), "fc.weight": torch.ones(1).expand(10**6, 10**6)},
            r"fc\.weight claims shape \(1000000, 1000000\)",
        ),
        (lambda: {**named(), "fc.bias": torch.zeros(2, dtype=torch.complex64)}, r"fc\.bias .* \(torch\.complex64\)"),
        (lambda: {**named(), "fc.bias": torch.zeros(2).to(torch.float8_e5m2)}, r"fc\.bias .* \(torch\.float8_e5m2\)"),
        (lambda: {**named(), "fc.bias": torch.zeros(2, device="meta")}, r"fc\.bias is .*without data"),
        (
            lambda: {"epoch": 3, "arch": "resnet50"},
            r"holds no state dict\. .* found a mapping with the keys epoch, arch",
        ),
        (lambda: {"state_dict": {}}, r"holds no state dict"),
        (lambda: [torch.zeros(3)], r"holds no state dict\. .* found a list"),
        (lambda: torch.zeros(3), r"holds no state dict\. .* found a Tensor"),
    ],
    ids=[
        "NaN",
        "infinity",
        "too large for float32",
        "negative variance",
        "two networks",
        "two networks under prefixes",
        "expanded tensor",
        "complex",
        "float8",
        "no data",
        "no tensors",
        "empty state dict",
        "list",
        "tensor",
    ],
)
def test_values_that_cannot_be_served_are_refused(
    document: Callable[[], object], expected: str, tmp_path: Path
) -> None:
    """A file that torch reads but that holds no usable weights is refused with the file, the entry and the fault."""
    path = save_pth(document(), tmp_path / "weights.pth")
    line = refusal_of(path)
    assert line.startswith(str(path))
    assert re.search(expected, line)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates what this test must refuse
def test_sparse_and_quantized_tensors_are_refused(tmp_path: Path) -> None:
    """Tensors that are no plain arrays are refused by name."""
    sparse = save_pth({**named(), "fc.weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "fc.weight is sparse, quantized" in refusal_of(sparse)
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    assert "(torch.qint8)" in refusal_of(save_pth({**named(), "fc.weight": quantized}, tmp_path / "quantized.pth"))


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """Unwrapping ends, also where a file's wrapper leads back to itself."""
    document: dict[str, Any] = {}
    document["model"] = {"state_dict": document}
    assert "holds no state dict" in refusal_of(save_pth(document, tmp_path / "weights.pth"))


def test_a_pickled_module_is_read_without_its_code(tmp_path: Path) -> None:
    """Of a whole pickled network the tensors are read, and what does not fit is refused as any other."""
    line = refusal_of(save_pth(torch.nn.Linear(2, 3), tmp_path / "model.pth"))
    assert "does not fit resnet50" in line


def test_training_extras_do_not_stand_in_the_way(tmp_path: Path) -> None:
    """A checkpoint with its script's arguments in it gives its weights, and the arguments are never built."""
    path = save_pth({"state_dict": named(), "args": Namespace(lr=0.1)}, tmp_path / "checkpoint.pth")
    assert made.same_weights(read_checkpoint(path).weights, named())


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [True, False], ids=["among the weights", "alone"])
def test_a_malicious_pickle_runs_nothing(new_container: bool, inside: bool, tmp_path: Path) -> None:
    """Code in a checkpoint is not run: the folder that it would make is not there, though unsafe loading makes it."""
    marker = tmp_path / "marker"
    document: object = {**named(), "fc.scale": Trap(marker)} if inside else Trap(marker)
    path = save_pth(document, tmp_path / "weights.pth", _use_new_zipfile_serialization=new_container)
    assert "nothing in a checkpoint is ever run here" in refusal_of(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"# ResNet-50\nDownload the weights from our site.\n", "it is a text that begins with '# ResNet-50'"),
        (b"\x89\x50\x00\x01" + bytes(100), "it begins with 89 50 00 01"),
        (b"", "it is empty"),
    ],
    ids=["text", "numbers", "empty"],
)
def test_files_of_another_kind_are_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    """What is no checkpoint is refused with what was expected and what the file begins with."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    line = refusal_of(path)
    assert "Expected a PyTorch file (.pth, .pt), safetensors" in line
    assert expected in line


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder in the place of a file is refused as a folder."""
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(container: str, share: float, tmp_path: Path) -> None:
    """A file that ends early is refused with the advice to copy it again."""
    path = tmp_path / "weights"
    if container == "safetensors":
        safetensors_torch.save_file(named(), path)
    else:
        save_pth(named(), path, _use_new_zipfile_serialization=container == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "Copy or download it again" in refusal_of(path)


@pytest.mark.filterwarnings("ignore")  # torch warns of pickles it then refuses
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_read_or_refused(container: str, tmp_path: Path) -> None:
    """Whatever bytes are damaged, reading ends in weights or in one line, never in another exception."""
    path = tmp_path / "weights"
    state = {"fc.weight": torch.ones(4, 4), "bn1.running_var": torch.ones(4)}
    if container == "safetensors":
        safetensors_torch.save_file(state, path)
    else:
        save_pth(state, path, _use_new_zipfile_serialization=container == "zip")
    original = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(min(len(damaged), 700))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError as refusal:
            refused += 1
            assert "\n" not in str(refusal)  # noqa: PT017 - the refusal is one of two right ends
    assert refused > 25


# --- where the weights are


def test_an_empty_folder_means_torchvisions_weights(tmp_path: Path) -> None:
    """Without a word and without a file, the weights are torchvision's IMAGENET1K_V2."""
    assert locate(None, tmp_path) == PublishedName("IMAGENET1K_V2")
    assert locate(None, tmp_path / "not there") == PublishedName("IMAGENET1K_V2")


def test_the_one_file_in_the_folder_is_served(tmp_path: Path) -> None:
    """A single checkpoint in model_weights/ is taken, whatever its name."""
    path = tmp_path / "my network.ckpt"
    path.touch()
    assert locate(None, tmp_path) == CheckpointFile(path)
    assert locate(str(tmp_path)) == CheckpointFile(path)


def test_the_setting_goes_before_the_folder(tmp_path: Path) -> None:
    """A path, a published name or the demo in the settings is taken, whatever lies in the folder."""
    (tmp_path / "in the folder.pth").touch()
    other = tmp_path / "elsewhere"
    other.touch()
    assert locate(str(other), tmp_path) == CheckpointFile(other)
    assert locate("IMAGENET1K_V1", tmp_path) == PublishedName("IMAGENET1K_V1")
    assert locate("offline-demo", tmp_path) == OfflineDemo()


def test_the_folder_is_where_the_service_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no setting, loading takes the checkpoint in ./model_weights."""
    (tmp_path / "model_weights").mkdir()
    save_pth(make_network("squeezenet1_1", 3).state_dict(), tmp_path / "model_weights" / "mine.pth")
    monkeypatch.chdir(tmp_path)
    assert load(architecture="squeezenet1_1").source == "model_weights/mine.pth"


def test_two_checkpoints_are_an_error_that_names_both(tmp_path: Path) -> None:
    """Which of two files to serve is not guessed."""
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    for weights, folder in ((None, tmp_path), (str(tmp_path), Path("unused"))):
        with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: a\.pth, b\.safetensors"):
            locate(weights, folder)


@pytest.mark.parametrize(
    "companion",
    ["README.md", "labels.txt", "index_to_name.json", "config.json", ".gitkeep", ".DS_Store", ".mine.pth.x.part"],
)
def test_what_lies_beside_a_checkpoint_is_not_one(companion: str, tmp_path: Path) -> None:
    """Notes, labels, configurations and hidden files beside a checkpoint are passed over, and alone they are none."""
    (tmp_path / companion).write_text("{}")
    assert locate(None, tmp_path) == PublishedName("IMAGENET1K_V2")
    (tmp_path / "mine.pth").touch()
    assert locate(None, tmp_path) == CheckpointFile(tmp_path / "mine.pth")


def test_a_path_that_is_not_there_says_what_may_be_given(tmp_path: Path) -> None:
    """A missing file is refused with the three things that RESNET_WEIGHTS can be."""
    missing = tmp_path / "missing.pth"
    with pytest.raises(CheckpointError) as refusal:
        locate(str(missing))
    for word in (str(missing), "no such file", "IMAGENET1K_V2", "offline-demo"):
        assert word in str(refusal.value)


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    """A folder that was named and holds none is not silently replaced by a download."""
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        locate(str(tmp_path))


def test_a_file_goes_before_a_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is called like published weights is that file."""
    monkeypatch.chdir(tmp_path)
    Path("IMAGENET1K_V2").touch()
    assert locate("IMAGENET1K_V2") == CheckpointFile(Path("IMAGENET1K_V2"))


# --- what torchvision publishes


def test_every_published_file_has_a_checksum() -> None:
    """Of all weights that torchvision publishes, each file's name carries the beginning of its SHA-256."""
    for architecture in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(architecture):
            assert re.fullmatch("[0-9a-f]{8,}", find_by_name(architecture, weights.name).sha256_prefix or "")


def test_published_weights_are_found_by_name() -> None:
    """ResNet-50's two weights are those that torchvision names, and DEFAULT is the better of them."""
    second = find_by_name("resnet50", "IMAGENET1K_V2")
    assert second.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert second.sha256_prefix == "11ad3fa6"
    assert find_by_name("resnet50", "DEFAULT") == second


def test_published_weights_are_found_by_digest() -> None:
    """A digest that begins as a published one names those weights, and another names none."""
    assert find_by_sha256("resnet50", "0676ba61" + 56 * "0") == find_by_name("resnet50", "IMAGENET1K_V1")
    assert find_by_sha256("resnet50", 64 * "0") is None
    assert find_by_sha256("resnet18", "0676ba61" + 56 * "0") is None


@pytest.mark.parametrize(("architecture", "name"), [("resnet50", "IMAGENET1K_V3"), ("resnet18", "IMAGENET1K_V2")])
def test_unknown_published_names_list_those_there_are(architecture: str, name: str) -> None:
    """A weight name that an architecture does not have is refused with those that it has."""
    with pytest.raises(SettingError, match=rf"no weights {name} for {architecture}\. It has: IMAGENET1K_V1"):
        find_by_name(architecture, name)


# --- preprocessing, labels, name and version of a file


@pytest.fixture
def mobilenet(tmp_path: Path, mobilenet_bytes: bytes) -> Path:
    """A MobileNetV2 of 1000 classes, alone in its folder: torchvision prepares its two weights differently."""
    path = tmp_path / "mobilenet.pth"
    path.write_bytes(mobilenet_bytes)
    return path


@pytest.fixture(scope="module")
def mobilenet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_pth(make_network("mobilenet_v2").state_dict(), tmp_path_factory.mktemp("w") / "w.pth").read_bytes()


def test_unknown_training_is_assumed_and_said(mobilenet: Path) -> None:
    """A file of unknown origin gets the oldest published preprocessing and a warning that names it and the way out."""
    told = Told()
    model = load(told, weights=str(mobilenet), architecture="mobilenet_v2")
    assert model.preprocessing == find_by_name("mobilenet_v2", "IMAGENET1K_V1").preprocessing
    assert (model.preprocessing, "IMAGENET1K_V1") == default_preprocessing("mobilenet_v2")
    assert list(model.warnings) == told.warnings
    (warning,) = told.warnings
    for word in ("mobilenet.pth", "IMAGENET1K_V1", "short side 256 bilinear", "RESNET_PREPROCESSING"):
        assert word in warning


def test_the_preprocessing_setting_is_honoured(mobilenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESNET_PREPROCESSING names whose preprocessing to apply, and nothing is assumed any more."""
    monkeypatch.setenv("RESNET_PREPROCESSING", "IMAGENET1K_V2")
    settings = load_settings(weights=str(mobilenet), architecture="mobilenet_v2").model_dump()
    model = load(**settings)
    assert model.preprocessing.resize_short_side == 232
    assert model.warnings == ()


def test_a_wrong_preprocessing_setting_is_refused(mobilenet: Path) -> None:
    """A preprocessing that the architecture does not have is refused with those that it has."""
    line = refusal_of(mobilenet, architecture="mobilenet_v2", preprocessing="IMAGENET1K_V9")
    assert "It has: IMAGENET1K_V1, IMAGENET1K_V2" in line


def test_a_published_file_is_known_by_its_digest(
    mobilenet: Path, mobilenet_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a published file gets its own preprocessing without a warning, and ImageNet's labels."""
    begins = hashlib.sha256(mobilenet_bytes).hexdigest()[:8]
    known = published._all_of("mobilenet_v2")
    assert known[1].name == "IMAGENET1K_V2"
    renamed = [known[0], replace(known[1], url=f"https://example.org/mobilenet_v2-{begins}.pth")]
    table = {**published._published(), "mobilenet_v2": tuple(renamed)}
    monkeypatch.setattr(published, "_published", lambda: table)
    (mobilenet.parent / "labels.txt").write_text("somebody\nelse's\nlabels\n")
    model = load(weights=str(mobilenet), architecture="mobilenet_v2")
    assert model.preprocessing.resize_short_side == 232
    assert model.warnings == ()
    assert model.labels == imagenet_labels()


def test_the_version_is_the_digest_and_the_name_the_setting(mobilenet: Path, mobilenet_bytes: bytes) -> None:
    """A model is called as the settings say, else by its architecture, and its version tells its file from others."""
    begins = hashlib.sha256(mobilenet_bytes).hexdigest()[:8]
    named = load(weights=str(mobilenet), architecture="mobilenet_v2", model_name="my-model")
    assert (named.identity.name, named.identity.version) == ("my-model", begins)
    unnamed = load(weights=str(mobilenet), architecture="mobilenet_v2")
    assert (unnamed.identity.name, unnamed.identity.version) == ("mobilenet_v2", begins)


@pytest.fixture
def four_classes(tmp_path: Path) -> Path:
    """A checkpoint of four classes, alone in its folder."""
    return save_pth(make_network("squeezenet1_1", 4).state_dict(), tmp_path / "four.pth")


def test_labels_beside_the_checkpoint_are_taken(four_classes: Path) -> None:
    """A labels.txt in the checkpoint's folder names its classes."""
    (four_classes.parent / "labels.txt").write_text("cat\ndog\ncrane\ncrane\n")
    model = load(weights=str(four_classes), architecture="squeezenet1_1")
    assert model.labels == ("cat", "dog", "crane", "crane")


def test_the_labels_setting_goes_before_the_file_beside(four_classes: Path, tmp_path_factory: Any) -> None:
    """A labels file that the settings name is taken, and the one beside the checkpoint is not."""
    (four_classes.parent / "labels.txt").write_text("a\nb\nc\nd\n")
    chosen = tmp_path_factory.mktemp("labels") / "mine.json"
    chosen.write_text(json.dumps(["eins", "zwei", "drei", "vier"]))
    model = load(weights=str(four_classes), architecture="squeezenet1_1", labels=chosen)
    assert model.labels == ("eins", "zwei", "drei", "vier")


def test_labels_of_another_count_stop_the_start(four_classes: Path) -> None:
    """Three names for four classes are refused with both numbers, and not served one off."""
    labels = four_classes.parent / "labels.txt"
    labels.write_text("a\nb\nc\n")
    with pytest.raises(LabelsError, match="names 3 classes, but the checkpoint has 4"):
        load(weights=str(four_classes), architecture="squeezenet1_1")


def test_without_labels_the_index_is_the_name(four_classes: Path) -> None:
    """Classes that nothing names are called by their index."""
    assert load(weights=str(four_classes), architecture="squeezenet1_1").labels == ("0", "1", "2", "3")
