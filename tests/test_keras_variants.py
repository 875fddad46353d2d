"""Models around Keras's ResNet50, as people make them, answer here as in Keras: heads, activations, preprocessing.

The configurations, files and answers under tests/parity/fixtures/keras-variants were written by
tests/parity/make_keras_variants.py.
"""

from __future__ import annotations

import copy
import json
import lzma
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from app.checkpoints import Decisions, decide_all
from app.checkpoints.base import Contents, Stored
from app.checkpoints.decisions import with_activation_for
from app.checkpoints.keras_config import read_config
from app.checkpoints.names import settle_names
from app.checkpoints.readers import read_checkpoint
from app.errors import CheckpointError
from app.layers import Layer, ResNetSwitches
from app.networks import build_network, count_classes
from app.settings import Settings
from tests.lazy import torch
from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, pixels, tiled

FOLDER = FIXTURES / "keras-variants"
VARIANTS: dict[str, Any] = json.loads(lzma.decompress((FOLDER / "variants.json.xz").read_bytes()))
FILES = ("adapted.keras", "sequential.h5", "mlp.weights.h5", "mlp-2.h5")
TOLERANCE = 1e-4
PATH = Path("model.keras")

Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def answers() -> dict[str, NDArray[np.float32]]:
    with np.load(FOLDER / "answers.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def body() -> Tensors:
    """The numbers that every variant's body has (make_keras_variants.fill), by Keras's names."""
    tensors: Tensors = {}
    stages = ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512))
    layers: list[tuple[str, tuple[int, ...]]] = [("conv1_conv", (7, 7, 3, 64)), ("conv1_bn", (64,))]
    given = 64
    for stage, blocks, width in stages:
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}"
            start = [(f"{name}_0_conv", (1, 1, given, 4 * width))] if block == 1 else []
            norm = [(f"{name}_0_bn", (4 * width,))] if block == 1 else []
            layers += [
                *((f"{name}_1_conv", (1, 1, given, width)), (f"{name}_1_bn", (width,))),
                *((f"{name}_2_conv", (3, 3, width, width)), (f"{name}_2_bn", (width,))),
                *(*start, (f"{name}_3_conv", (1, 1, width, 4 * width)), *norm, (f"{name}_3_bn", (4 * width,))),
            ]
            given = 4 * width
    for number, (name, shape) in enumerate(layers, start=1):
        if len(shape) == 1:
            values = normalisation(10 * number, shape[0], name.endswith("_3_bn"))
            leaves = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
            tensors |= {f"{name}/{leaf}": values[key] for key, leaf in leaves.items()}
        else:
            tensors[f"{name}/kernel"] = kernel(10 * number, shape, shape[0] * shape[1] * shape[3])
            tensors[f"{name}/bias"] = tiled(10 * number + 1, shape[3:], "normal", 0, 0.1)
    return tensors


def tensors_of(name: str, body: Tensors) -> Tensors:
    variant = VARIANTS[name]
    tensors = {**body, "conv1_conv/kernel": body["conv1_conv/kernel"] * np.float32(variant["scale"])}
    for layer, leaves in variant["head"].items():
        for leaf, recipe in leaves.items():
            is_recipe = len(recipe) == 5
            values = tiled(recipe[0], tuple(recipe[1]), *recipe[2:]) if is_recipe else np.float32(recipe).reshape(-1)
            tensors[f"{layer}/{leaf}"] = values
    return tensors


def read(name: str, body: Tensors, config: Any = None) -> Stored:
    training = VARIANTS[name].get("training")
    text = json.dumps(config or VARIANTS[name]["config"])
    return read_config(text, PATH, json.dumps(training) if training else None).with_facts(tensors_of(name, body))


def contents_of(stored: Stored) -> Contents:
    settled = settle_names(stored, PATH)
    assert settled.place is not None
    told = settled.told.then(stored.told).then(settled.place.family.told)
    return Contents(Path("made"), settled.weights, "", "", "", told, (*stored.warnings, *settled.warnings))


def respond(
    contents: Contents, decisions: Decisions, own_pixels: bool, switches: ResNetSwitches | None = None
) -> NDArray[np.float32]:
    """What is served for one photo: prepared as the decisions say, or normalised as ImageNet's are."""
    height, width = decisions.preprocessing.value.crop
    if own_pixels:
        photo = pixels()[:1, :height, :width].astype(np.float32)
        scale, shift = decisions.preprocessing.value.scale_and_shift()
        photo = (photo[..., ::-1] if decisions.preprocessing.value.is_bgr else photo) * scale + shift
    else:
        photo = inputs()[:1, :height, :width]
    network = build_network("resnet50", contents.weights, switches or decisions.switches).eval()
    with torch.inference_mode():
        scores = network(torch.from_numpy(np.ascontiguousarray(photo.transpose(0, 3, 1, 2))))
    turn = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}
    return np.asarray(turn[decisions.activation.value](scores).numpy())


def settled(contents: Contents) -> Decisions:
    decisions = decide_all(Settings(), contents)
    return with_activation_for(count_classes("resnet50", contents.weights, decisions.switches), decisions)


Spoiled = tuple[Decisions, ResNetSwitches]


def spoiled(decisions: Decisions) -> Iterator[Spoiled]:
    """The decisions with one of them wrong: the head's layers, what is altered in the body, the preprocessing."""
    right = decisions.switches
    if right.head:
        weak = tuple(
            Layer(layer.name, "identity") if layer.kind in ("relu", "gelu", "leaky_relu") else replace(layer, value=1.0)
            for layer in right.head
        )
        yield decisions, replace(right, head=weak)
    for name in ("layer2.1.bn2", "layer3.1.relu", "layer4.1.conv2", "maxpool", "avgpool"):
        rest = tuple(layer for layer in right.altered if layer.name != name)
        if rest != right.altered and Layer(name, "identity") not in right.altered:
            yield decisions, replace(right, altered=rest)
    if decisions.preprocessing.source == "the file's config":
        value = decisions.preprocessing.value
        darker = replace(value, mean=_three([mean - 0.2 for mean in value.mean]))
        for wrong in (replace(value, is_bgr=not value.is_bgr), darker):
            yield replace(decisions, preprocessing=replace(decisions.preprocessing, value=wrong)), right


def _three(values: list[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_around_resnet50_answers_as_keras_does(
    name: str, body: Tensors, answers: dict[str, NDArray[np.float32]]
) -> None:
    """By its configuration alone, each variant gives Keras's answer within 1e-4, and none with one fact wrong."""
    contents = contents_of(read(name, body))
    decisions = settled(contents)
    expected = answers[name]
    if "training" in VARIANTS[name]:
        expected = 1 / (1 + np.exp(-expected))
    own = respond(contents, decisions, VARIANTS[name]["prepares"])
    assert np.abs(own - expected).max() < TOLERANCE
    assert contents.warnings == ()
    assert (decisions.preprocessing.source == "the file's config") is VARIANTS[name]["prepares"]
    for wrong, switches in spoiled(decisions):
        other = respond(contents, wrong, VARIANTS[name]["prepares"], switches)
        assert np.abs(other - expected).max() > 5 * TOLERANCE


# --- whole files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("variants")
    with lzma.open(FOLDER / "files.tar.xz") as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        archive.extractall(folder, filter="data")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_model_in_a_model_answers_as_keras_does(
    name: str, files: Path, answers: dict[str, NDArray[np.float32]]
) -> None:
    """Nested models with heads of several layers, from .keras, legacy .h5 of both Keras and bare weights."""
    contents = read_checkpoint(files / name)
    decisions = settled(contents)
    own = respond(contents, decisions, name == "adapted.keras")
    assert np.abs(own - answers[name]).max() < TOLERANCE
    assert bool(contents.warnings) is (name == "mlp.weights.h5")


def test_bare_weights_of_several_dense_layers_are_assumed_to_have_a_relu(files: Path) -> None:
    """Weights alone do not say what lies between two dense layers: the assumption is a warning, which says the cure."""
    (warning,) = read_checkpoint(files / "mlp.weights.h5").warnings
    assert "assuming ReLU" in warning
    assert "model.save('model.keras')" in warning


def test_weights_without_layer_names_may_have_a_head_of_their_own(
    files: Path, answers: dict[str, NDArray[np.float32]]
) -> None:
    """With the names taken out that current Keras adds, the body is known by its order, and the head by its shapes."""
    bare = files / "bare.weights.h5"
    shutil.copyfile(files / "mlp.weights.h5", bare)
    with h5py.File(bare, "r+") as file:
        file.visititems(lambda _, entry: entry.attrs.pop("name", None) and None)
        # As of a model with a normalisation behind the pooling.
        group = file.create_group("layers/batch_normalization_53/vars")
        for number, value in enumerate((1, 0, 0, 1 - 1e-3)):
            group[str(number)] = np.full(2048, value, np.float32)
    contents = read_checkpoint(bare)
    decisions = settled(contents)
    assert [layer.kind for layer in decisions.head.value] == ["batch_norm", "linear", "relu", "linear"]
    assert np.abs(respond(contents, decisions, False) - answers["mlp.weights.h5"]).max() < TOLERANCE


# --- refusals


def layer_of(config: Any, name: str) -> Any:
    """The layer of that name, wherever it stands."""
    for layer in config["config"]["layers"]:
        if layer["config"].get("name") == name:
            return layer
        if "layers" in layer["config"] and (found := layer_of(layer, name)):
            return found
    return None


def with_options(name: str, layer: str, **options: Any) -> Any:
    """The variant's configuration with other options of one layer."""
    config = copy.deepcopy(VARIANTS[name]["config"])
    layer_of(config, layer)["config"] |= options
    return config


def with_layer(name: str, behind: str, kind: str, **options: Any) -> Any:
    """The variant's configuration, of Keras 3, with one layer more."""
    text = json.dumps(VARIANTS[name]["config"]).replace(f'["{behind}", 0, 0]', '["extra", 0, 0]')
    config = json.loads(text)
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [behind, 0, 0]}}
    call = {"args": [tensor], "kwargs": options.pop("call", {})}
    extra = {"class_name": kind, "name": "extra", "config": {"name": "extra", **options}, "inbound_nodes": [call]}
    config["config"]["layers"].append(extra)
    return config


def first_input(name: str) -> str:
    return str(VARIANTS[name]["config"]["config"]["layers"][0]["config"]["name"])


LAMBDA = {"class_name": "__lambda__", "config": {"code": "4wEAAAAA", "defaults": None, "closure": None}}
REFUSED = {
    "groups": (with_options("mlp", "conv3_block2_2_conv", groups=2), "'conv3_block2_2_conv' (Conv2D): it has groups"),
    "uneven padding": (
        with_options("mlp", "conv3_block1_2_conv", strides=[2, 2], padding="same"),
        "'conv3_block1_2_conv' (Conv2D): its padding (0, 1, 0, 1) is not the same on both sides",
    ),
    "uneven zeros": (with_options("mlp", "conv1_pad", padding=[[2, 4], [3, 3]]), "'conv1_conv' (Conv2D): its padding"),
    "kernel": (with_options("mlp", "conv1_conv", kernel_size=[5, 5]), "'conv1_conv' (Conv2D): its kernel"),
    "axis": (with_options("mlp", "conv1_bn", axis=1), "'conv1_bn' (BatchNormalization): it normalises along"),
    "epsilon": (with_options("mlp", "conv1_bn", epsilon=-1), "'conv1_bn' (BatchNormalization): its epsilon is -1"),
    "activation of a block": (
        with_options("mlp", "conv4_block2_2_relu", activation="elu"),
        "'conv4_block2_2_relu' (Activation): its activation is elu where 'conv4_block2_out' has relu",
    ),
    "activation of one's own": (
        with_options("mlp", "conv1_relu", activation={"class_name": "function", "config": "my_swish"}),
        "'conv1_relu' (Activation): its activation is my_swish",
    ),
    "zeros beside negatives": (
        with_options("mlp", "conv1_relu", activation="elu"),
        "'pool1_pool' (MaxPooling2D): there are zeros around",
    ),
    "no activation": (with_options("mlp", "conv1_conv", activation="relu"), "'conv1_conv' (Conv2D): it has an act"),
    "a layer in the body": (with_layer("mlp", "conv4_block3_out", "UpSampling2D"), "'extra' (UpSampling2D)"),
    "a layer in the head": (with_layer("mlp", "fc1", "UnitNormalization"), "'extra' (UnitNormalization)"),
    "a shape": (with_layer("mlp", "fc1", "Reshape", target_shape=[32, 64]), "'extra' (Reshape)"),
    "a last activation": (with_options("mlp", "predictions", activation="tanh"), "'predictions' (Dense): the model e"),
    "two softmaxes": (with_layer("mlp", "predictions", "Softmax"), "'extra' (Softmax): it follows a softmax"),
    "a softmax inside": (with_options("mlp", "fc1", activation="softmax"), "'fc1' (Dense): its softmax is not the la"),
    "code": (with_layer("mlp", first_input("mlp"), "Lambda", function=LAMBDA), "'extra' (Lambda): code"),
    "code in the head": (with_layer("mlp", "fc1", "Lambda", function=LAMBDA), "'extra' (Lambda): code"),
    "preprocessing": (with_layer("mlp", first_input("mlp"), "Solarization"), "'extra' (Solarization)"),
    "a crop": (with_layer("mlp", first_input("mlp"), "CenterCrop", height=200, width=200), "'extra' (CenterCrop)"),
    "two sizes": (
        with_layer("mlp", first_input("mlp"), "Resizing", height=256, width=256),
        "'extra' (Resizing): the model takes images of 224×224 and resizes them once more",
    ),
    "levels that fall": (
        with_layer("mlp", first_input("mlp"), "Rescaling", scale=-1),
        "'extra' (Rescaling): it is given levels that do not rise",
    ),
    "one channel": (
        with_options("mlp", first_input("mlp"), batch_shape=[None, 224, 224, 1]),
        " (InputLayer): the model takes images of 1 channels",
    ),
    "a size": (
        with_options("mlp", first_input("mlp"), batch_shape=[None, 9999, 9999, 3]),
        " (InputLayer): the model takes images of 9999×9999",
    ),
    "training": (
        with_layer("mlp", "fc1", "BatchNormalization", epsilon=1e-3, call={"training": True}),
        "'extra' (BatchNormalization): it is called with training=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_its_layers_name(case: str, body: Tensors) -> None:
    """A layer that would change the answer and is not served is named, in one line, with the way out: ONNX."""
    config, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        read("mlp", body, config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.keras has the layer ")
    assert "model.export('model.onnx', format='onnx')" in str(caught.value)


def test_models_of_several_outputs_or_of_a_class_of_their_own_are_refused() -> None:
    """Which output classifies is not guessed, and a class whose code is elsewhere is named."""
    two = copy.deepcopy(VARIANTS["mlp"]["config"])
    two["config"]["output_layers"] = [["predictions", 0, 0], ["fc1", 0, 0]]
    with pytest.raises(CheckpointError, match="a model with 2 outputs"):
        read_config(json.dumps(two), PATH)
    with pytest.raises(CheckpointError, match="a class of its own, MyResNet, whose code"):
        read_config(json.dumps({"class_name": "MyResNet", "config": {"units": 5}}), PATH)


def test_training_layers_and_casts_are_passed_over(body: Tensors) -> None:
    """Augmentation, dropout and noise do nothing once a model is trained, wherever they stand."""
    plain = read("mlp", body).told
    for behind, kind in ((first_input("mlp"), "RandomRotation"), ("fc1", "GaussianNoise"), ("fc1", "Dropout")):
        assert read("mlp", body, with_layer("mlp", behind, kind)).told == plain


# --- sizes


def prepared(body: Tensors, shape: list[Any], *layers: tuple[str, dict[str, Any]]) -> tuple[Any, tuple[str, ...]]:
    """The preprocessing of the variant `adapted` with another input, its first layers in place of a flip."""
    config = copy.deepcopy(VARIANTS["adapted"]["config"])
    listed = config["config"]["layers"]
    listed[0]["config"]["batch_shape"] = shape
    for number, (kind, options) in enumerate(layers):
        name = f"extra_{number}"
        behind = f"extra_{number - 1}" if number else listed[0]["config"]["name"]
        tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [behind, 0, 0]}}
        calls = [{"args": [tensor], "kwargs": {}}]
        if number == len(layers) - 1:
            flip = next(layer for layer in listed if layer["class_name"] == "RandomFlip")
            flip["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = [name, 0, 0]
        listed.append({"class_name": kind, "name": name, "config": {"name": name, **options}, "inbound_nodes": calls})
    stored = read("adapted", body, config)
    assert stored.told.preprocessing is not None
    return stored.told.preprocessing.value, stored.warnings


ANY = [None, None, None, 3]


def test_resizing_in_the_graph_is_read(body: Tensors) -> None:
    """Size, filter and crop of Resizing and CenterCrop are read, with a warning where Keras skips points."""
    squashed, warnings = prepared(body, ANY, ("Resizing", {"height": 192, "width": 160, "interpolation": "nearest"}))
    assert (squashed.crop, squashed.resize_short_side, squashed.interpolation.value) == ((192, 160), None, "nearest")
    assert warnings == ()
    options = {"height": 256, "width": 256, "interpolation": "bicubic", "crop_to_aspect_ratio": True}
    cropped, warnings = prepared(body, ANY, ("Resizing", options), ("CenterCrop", {"height": 224, "width": 224}))
    assert (cropped.crop, cropped.resize_short_side, cropped.floor_crop) == ((224, 224), 256, True)
    assert cropped.interpolation.value == "bicubic"
    assert "takes single points" in warnings[0]
    (unresized, _) = prepared(body, [None, 160, 160, 3])
    assert unresized.crop == (160, 160)


def test_a_normalization_of_fractions_is_taken_to_be_given_fractions(body: Tensors) -> None:
    """Means below 1 without a Rescaling before them are of images from 0 to 1: so they are served, with a warning."""
    config = copy.deepcopy(VARIANTS["adapted"]["config"])
    (rescaling,) = [layer for layer in config["config"]["layers"] if layer["class_name"] == "Rescaling"]
    rescaling["config"]["scale"] = 1.0
    stored = read("adapted", body, config)
    expected = read("adapted", body).told.preprocessing
    assert stored.told.preprocessing is not None
    assert expected is not None
    assert stored.told.preprocessing.value.mean == pytest.approx(expected.value.mean)
    assert stored.told.preprocessing.value.std == pytest.approx(expected.value.std)
    assert "taken to go from 0 to 1" in stored.warnings[0]


def test_strides_in_the_3x3_are_read(body: Tensors) -> None:
    """A v1.5 whose strided 3×3 pads alike on both sides, as SAME does with odd sizes, is one; no layer is altered."""
    config = with_options("mlp", first_input("mlp"), batch_shape=[None, 131, 131, 3])
    for stage in (3, 4, 5):
        layer_of(config, f"conv{stage}_block1_1_conv")["config"]["strides"] = [1, 1]
        layer_of(config, f"conv{stage}_block1_2_conv")["config"]["strides"] = [2, 2]
    told = read("mlp", body, config).told
    assert told.stride_in is not None
    assert (told.stride_in.value, told.altered) == ("3x3", None)


def test_padding_same_is_read(body: Tensors) -> None:
    """A stem and a pool with padding SAME are TensorFlow's; what another size of image would make of it is another."""
    none = {"padding": [[0, 0], [0, 0]]}
    config = with_options("mlp", "conv1_conv", padding="same")
    layer_of(config, "pool1_pool")["config"]["padding"] = "same"
    for name in ("conv1_pad", "pool1_pad"):
        layer_of(config, name)["config"] |= none
    told = read("mlp", body, config).told
    assert told.stem is not None
    assert told.pool is not None
    assert (told.stem.value, told.pool.value, told.altered) == ("same", "ceil", None)
    layer_of(config, first_input("mlp"))["config"]["batch_shape"] = [None, 225, 225, 3]
    told = read("mlp", body, config).told
    assert told.stem is not None
    assert told.pool is not None
    assert (told.stem.value, told.pool.value, told.altered) == ("symmetric", "symmetric", None)


def test_a_layer_that_is_called_twice_or_in_a_circle_is_no_crash(body: Tensors) -> None:
    """Graphs that no ResNet-50 has are refused, however their layers refer to each other."""
    circle = with_layer("mlp", "fc1", "ReLU")
    layer_of(circle, "extra")["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "predictions"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read("mlp", body, circle)
    missing = with_layer("mlp", "fc1", "ReLU")
    layer_of(missing, "extra")["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "nowhere"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read("mlp", body, missing)
