"""Keras models around ResNet50 as people make them: other heads, activations, preprocessing, altered layers.

python -m tests.parity.make_keras_variants      (in an environment with tests/parity/requirements.txt)

Of each the configuration is stored as Keras writes it, how its weights were made, and what it answers. A few are also
stored as files: in one tar, since the bodies in them hold the same numbers.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras

from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, pixels, tiled

TARGET = FIXTURES / "keras-variants"
CLASSES = 5
_PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 27}]

Variant = Callable[[], Any]
VARIANTS: dict[str, tuple[Variant, float]] = {}
"""Name → what builds it, and what the first kernel is multiplied by: less for inputs that are larger."""


def variant(scale: float = 1.0) -> Callable[[Variant], Variant]:
    def add(build: Variant) -> Variant:
        VARIANTS[build.__name__] = build, scale
        return build

    return add


def body(of: Any = keras, side: int = 224, **options: Any) -> Any:
    return of.applications.ResNet50(weights=None, include_top=False, input_shape=(side, side, 3), **options)


def around(prepare: Callable[[Any], Any], of: Any = keras, activation: str = "softmax") -> Any:
    """A whole model with something before its body."""
    images = of.Input((224, 224, 3))
    x = body(of)(prepare(images), training=False)
    x = of.layers.Dropout(0.2)(of.layers.GlobalAveragePooling2D()(x))
    return of.Model(images, of.layers.Dense(CLASSES, activation=activation, name="flowers")(x))


# --- heads


@variant()
def mlp() -> Any:
    base = body(pooling="avg")
    x = keras.layers.Dense(2048, activation="relu", name="fc1")(base.output)
    return keras.Model(base.input, keras.layers.Dense(CLASSES, activation="softmax", name="predictions")(x))


@variant()
def normalised() -> Any:
    base = body()
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.GlobalAveragePooling2D()(base.output))
    x = keras.layers.Dense(CLASSES, name="scores")(keras.layers.Dropout(0.5)(x))
    return keras.Model(base.input, keras.layers.Softmax()(x))


@variant()
def sequential() -> Any:
    layers = keras.layers
    head = keras.Sequential(
        [layers.Dense(64, activation="gelu"), layers.LayerNormalization(), layers.Dense(CLASSES)], name="head"
    )
    outer = [keras.Input((224, 224, 3)), body(), layers.GlobalMaxPooling2D(), head, layers.Activation("softmax")]
    return keras.Sequential(outer)


@variant()
def flattened() -> Any:
    """Features that are not pooled, of smaller images."""
    base = body(side=96)
    x = keras.layers.Dense(16, activation=keras.layers.LeakyReLU(negative_slope=0.2))(
        keras.layers.Flatten()(base.output)
    )
    x = keras.layers.BatchNormalization(scale=False)(x)
    return keras.Model(base.input, keras.layers.Dense(CLASSES, activation="softmax")(x))


@variant()
def multi_label() -> Any:
    return around(lambda images: images, activation="sigmoid")


@variant()
def multi_label_scores() -> Any:
    """Scores of which the loss alone says what they are; the answer is the sigmoid of them."""
    model = around(lambda images: images, tf_keras, activation=None)  # type: ignore[arg-type]
    model.compile("sgd", loss=tf_keras.losses.BinaryCrossentropy(from_logits=True))
    return model


@variant(1 / 64)
def one_output() -> Any:
    images = keras.Input((224, 224, 3))
    x = body()(keras.layers.Rescaling(0.25, offset=-1)(images))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(1, activation="sigmoid")(x))


# --- bodies


def rebuilt(changes: dict[str, dict[str, Any]]) -> Any:
    """A model whose layers have other options."""
    model = around(lambda images: images)
    config = json.loads(model.to_json())
    (inner,) = [layer for layer in config["config"]["layers"] if layer["class_name"] == "Functional"]
    for layer in inner["config"]["layers"]:
        layer["config"] |= changes.get(layer["name"], {})
    return keras.models.model_from_json(json.dumps(config))


@variant()
def undivided() -> Any:
    """A last stage and a stem without strides, and two epsilons."""
    last = {f"conv5_block1_{number}_conv": {"strides": [1, 1]} for number in (0, 1)}
    return rebuilt(last | {"conv1_conv": {"strides": [1, 1]}, "conv3_block2_2_bn": {"epsilon": 0.1}})


@variant()
def dilated() -> Any:
    """A last stage with holes in place of strides, another pool, other activations in one block."""
    last = {f"conv5_block1_{number}_conv": {"strides": [1, 1]} for number in (0, 1)}
    last |= {f"conv5_block{number}_2_conv": {"dilation_rate": [2, 2]} for number in (1, 2, 3)}
    names = ("1_relu", "2_relu", "out")
    return rebuilt(
        last
        | {f"conv4_block2_{name}": {"activation": "leaky_relu"} for name in names}
        | {"pool1_pad": {"padding": [[0, 0], [0, 0]]}, "pool1_pool": {"pool_size": [2, 2]}}
    )


# --- preprocessing


@variant(1 / 64)
def caffe() -> Any:
    return around(keras.applications.resnet50.preprocess_input)


@variant(1 / 64)
def caffe_2() -> Any:
    return around(tf_keras.applications.resnet50.preprocess_input, tf_keras)


@variant()
def torch_2() -> Any:
    return around(lambda x: tf_keras.applications.imagenet_utils.preprocess_input(x, mode="torch"), tf_keras)


@variant()
def tf_mode() -> Any:
    return around(keras.applications.resnet_v2.preprocess_input)


@variant()
def adapted() -> Any:
    """What a Normalization learnt, behind a Rescaling and an augmentation."""
    norm = keras.layers.Normalization()
    norm.adapt(pixels() / 255)
    flip = keras.layers.RandomFlip()
    return around(lambda images: norm(keras.layers.Rescaling(1 / 255)(flip(images))))


@variant()
def by_hand() -> Any:
    """Channels turned round, a mean and deviations as arrays."""

    def prepare(images: Any) -> Any:
        x = keras.ops.flip(images[..., ::-1], axis=-1)[..., ::-1] / 255.0
        return (x - np.array([0.4, 0.45, 0.5], "float32")) / keras.ops.convert_to_tensor([0.2, 0.25, 0.3])

    return around(prepare)


@variant()
def by_hand_2() -> Any:
    def prepare(images: Any) -> Any:
        import tensorflow as tf

        red, green, blue = tf.split(tf.cast(images, "float32"), 3, axis=-1)
        return 1.0 - (2.0 - tf.concat([blue, green, red], -1) * (1 / 127.5))

    return around(prepare, tf_keras)


# --- weights


@cache
def seeds() -> dict[str, int]:
    """The body's layers as `make_keras` fills them."""
    model = keras.applications.ResNet50(weights=None)
    return {layer.name: number for number, layer in enumerate((each for each in model.layers if each.weights), start=1)}


def flat(model: Any) -> list[Any]:
    return [inner for layer in model.layers for inner in (flat(layer) if hasattr(layer, "layers") else [layer])]


def fill(model: Any, scale: float) -> dict[str, dict[str, list[Any]]]:
    """Give every layer its pattern; what those of the head were made from."""
    known, made = seeds(), {}
    for number, layer in enumerate(layer for layer in flat(model) if layer.weights):
        kind = type(layer).__name__
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if kind == "Normalization":
            made[layer.name] = {
                leaf: np.asarray(weight).tolist()
                for leaf, weight in zip(("mean", "variance"), layer.weights, strict=False)
            }
            continue
        if layer.name in known and kind != "Dense":
            seed = 10 * known[layer.name]
            if kind == "BatchNormalization":
                values = normalisation(seed, shapes[0][0], layer.name.endswith("_3_bn"))
                layer.set_weights([values[name] for name in ("gamma", "beta", "mean", "variance")])
            else:
                height, width, _, outputs = shapes[0]
                numbers = kernel(seed, shapes[0], height * width * outputs) * np.float32(
                    scale if layer.name == "conv1_conv" else 1
                )
                layer.set_weights([numbers, tiled(seed + 1, shapes[1], "normal", 0, 0.1)])
            continue
        made[layer.name] = recipes(layer, kind, shapes, 10_000 + 10 * number)
        layer.set_weights([tiled(*recipe) for recipe in made[layer.name].values()])
    return made


def recipes(layer: Any, kind: str, shapes: list[tuple[int, ...]], seed: int) -> dict[str, list[Any]]:
    if kind == "Dense":
        deviation = 1 / np.sqrt(shapes[0][0])
        return {
            "kernel": [seed, shapes[0], "normal", 0, float(deviation)],
            "bias": [seed + 1, shapes[1], "normal", 0, 0.5],
        }
    leaves = ["gamma"] if getattr(layer, "scale", True) else []
    leaves += ["beta", "moving_mean", "moving_variance"][: len(shapes) - len(leaves)]
    draws: dict[str, list[Any]] = {
        "gamma": ["uniform", 0.5, 1.5],
        "beta": ["normal", 0, 0.5],
        "moving_mean": ["normal", 0.3, 0.3],
        "moving_variance": ["uniform", 0.005, 0.5],
    }
    return {leaf: [seed + number, shapes[0], *draws[leaf]] for number, leaf in enumerate(leaves)}


# --- files


def write_files(folder: Path) -> dict[str, Any]:
    """Whole files as Keras writes them: what each answers."""
    answers: dict[str, Any] = {}
    models = {"adapted.keras": adapted(), "sequential.h5": sequential(), "mlp.weights.h5": mlp(), "mlp-2.h5": mlp_2()}
    for name, model in models.items():
        fill(model, 1.0)
        model.save_weights(folder / name) if ".weights." in name else model.save(folder / name)
        answers[name] = answer(model)
    return answers


def write_graphs(folder: Path) -> None:
    """Of SavedModels what stands beside their variables."""
    exported = {"multi_label": multi_label, "caffe": caffe, "undivided": undivided}
    saved = {"mlp_2": mlp_2, "caffe_2": caffe_2}
    for name, build in {**exported, **saved}.items():
        with tempfile.TemporaryDirectory() as whole:
            model = build()
            if name in exported:
                model.export(whole, verbose=False)
            else:
                model.save(whole, save_format="tf")
            (folder / name).mkdir()
            # Keras 2's graph is not looked at where its metadata is.
            file = "saved_model.pb" if name in exported else "keras_metadata.pb"
            (folder / name / file).write_bytes(Path(whole, file).read_bytes())


def mlp_2() -> Any:
    layers = tf_keras.layers
    head = tf_keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(CLASSES, activation="softmax")])
    outer = [tf_keras.Input((224, 224, 3)), body(tf_keras), layers.GlobalAveragePooling2D(), head]
    return tf_keras.Sequential(outer)


PREPARING = {"Rescaling", "GetItem", "TrueDivide", "TFOpLambda", "SlicingOpLambda"}


def prepares(model: Any) -> bool:
    """Whether something is done to images before the body."""
    return any(layer["class_name"] in PREPARING for layer in json.loads(model.to_json())["config"]["layers"])


def answer(model: Any) -> Any:
    """Of one photo: as it is where the model prepares it, else normalised as ImageNet's are."""
    side = model.input_shape[1]
    photo = (pixels().astype(np.float32) if prepares(model) else inputs())[:1, :side, :side]
    return np.asarray(model.predict(photo, verbose=0))


def make() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for name, (build, scale) in VARIANTS.items():
        of = keras if isinstance(model := build(), keras.Model) else tf_keras
        stored[name] = {"head": fill(model, scale), "scale": scale, "config": json.loads(model.to_json())}
        stored[name]["prepares"] = prepares(model)
        if getattr(model, "loss", None) is not None:
            stored[name]["training"] = {"loss": of.losses.serialize(model.loss)}
        answers[name] = answer(model)
        sys.stderr.write(f"{name}: {answers[name].round(4).tolist()}\n")
    with tempfile.TemporaryDirectory() as name:
        answers |= write_files(Path(name))
        pack(Path(name), TARGET / "files.tar.xz")
    with tempfile.TemporaryDirectory() as name:
        write_graphs(Path(name))
        pack(Path(name), TARGET / "graphs.tar.xz")
    (TARGET / "variants.json.xz").write_bytes(lzma.compress(json.dumps(stored).encode(), preset=9))
    np.savez(TARGET / "answers.npz", **answers)
    sys.stderr.write(f"made by Keras {keras.__version__} and {tf_keras.__version__}\n")


def pack(folder: Path, target: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            archive.add(path, path.relative_to(folder), filter=_anonymous)
    target.write_bytes(lzma.compress(tar.getbuffer(), filters=_PACKING))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make()
