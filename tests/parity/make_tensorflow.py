"""The original ResNet-50 and TF-slim's, built and run by TensorFlow itself; writes their checkpoints and logits.

python -m tests.parity.make_tensorflow      (in an environment with tests/parity/requirements.txt)
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from tests.parity.patterns import FIXTURES, inputs, kernel, normalisation, tiled

STAGES = ((2, 3, 256), (3, 4, 512), (4, 6, 1024), (5, 3, 2048))
CLASSES = 1000


class Original:
    """He et al. (2015) as a TF1 graph: scopes block2…block5 with bottlenecks spelt "bottlencek", and fc6."""

    def __init__(self) -> None:
        self._seed = 0

    def _variable(self, name: str, value: Any) -> Any:
        return tf.get_variable(name, value.shape, initializer=tf.constant_initializer(value))

    def _next(self) -> int:
        self._seed += 10
        return self._seed

    def _convolve(self, x: Any, scope: str, size: int, outputs: int, stride: int) -> Any:
        with tf.variable_scope(scope):
            value = kernel(self._next(), (size, size, int(x.shape[-1]), outputs), size * size * outputs)
            return tf.nn.conv2d(x, self._variable("kernel", value), [1, stride, stride, 1], "SAME")

    def _normalise(self, x: Any, scope: str, is_last: bool = False) -> Any:
        with tf.variable_scope(scope):
            values = normalisation(self._next(), int(x.shape[-1]), is_last)
            mean = self._variable("moving_mean", values["mean"])
            variance = self._variable("moving_variance", values["variance"])
            beta, gamma = self._variable("beta", values["beta"]), self._variable("gamma", values["gamma"])
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def _bottleneck(self, x: Any, scope: str, outputs: int, stride: int) -> Any:
        width = outputs // 4
        with tf.variable_scope(scope):
            y = tf.nn.relu(self._normalise(self._convolve(x, "conv_1", 1, width, stride), "bn_1"))
            y = tf.nn.relu(self._normalise(self._convolve(y, "conv_2", 3, width, 1), "bn_2"))
            y = self._normalise(self._convolve(y, "conv_3", 1, outputs, 1), "bn_3", is_last=True)
            if int(x.shape[-1]) != outputs:
                x = self._normalise(self._convolve(x, "conv_4", 1, outputs, stride), "bn_4")
            return tf.nn.relu(x + y)

    def __call__(self, images: Any) -> Any:
        with tf.variable_scope("resnet50"):
            x = tf.nn.relu(self._normalise(self._convolve(images, "conv1", 7, 64, 2), "bn1"))
            x = tf.nn.max_pool(x, [1, 3, 3, 1], [1, 2, 2, 1], "SAME")
            for number, blocks, outputs in STAGES:
                with tf.variable_scope(f"block{number}"):
                    for block in range(1, blocks + 1):
                        stride = 2 if block == 1 and number > 2 else 1
                        x = self._bottleneck(x, f"bottlencek{block}", outputs, stride)
            x = tf.reshape(tf.nn.avg_pool(x, [1, 7, 7, 1], [1, 1, 1, 1], "VALID"), [-1, 2048])
            with tf.variable_scope("fc6"):
                weight = self._variable("weight", tiled(self._next(), (2048, CLASSES), "normal", 0, 0.02))
                bias = self._variable("bias", tiled(self._next(), (CLASSES,), "normal", 0, 0.1))
                return tf.matmul(x, weight) + bias


class Slim(Original):
    """TF-slim's resnet_v1_50 with its scopes and its padding (tf_slim/nets/resnet_v1.py, resnet_utils.py).

    Built from TensorFlow's operations: tf_slim's own layers no longer import beside a current TensorFlow.
    """

    def _convolve(self, x: Any, scope: str, size: int, outputs: int, stride: int) -> Any:
        with tf.variable_scope(scope):
            value = kernel(self._next(), (size, size, int(x.shape[-1]), outputs), size * size * outputs)
            if stride > 1 and size > 1:  # conv2d_same: the padding does not depend on the input's size
                before = (size - 1) // 2
                x = tf.pad(x, [[0, 0], [before, size - 1 - before], [before, size - 1 - before], [0, 0]])
                padding = "VALID"
            else:
                padding = "SAME"
            return tf.nn.conv2d(x, self._variable("weights", value), [1, stride, stride, 1], padding)

    def _layer(self, x: Any, scope: str, size: int, outputs: int, stride: int, is_last: bool = False) -> Any:
        x = self._convolve(x, scope, size, outputs, stride)
        with tf.variable_scope(scope, auxiliary_name_scope=False):
            values = normalisation(self._next(), outputs, is_last)
            with tf.variable_scope("BatchNorm"):
                names = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
                made = {key: self._variable(name, values[key]) for key, name in names.items()}
            return tf.nn.batch_normalization(x, made["mean"], made["variance"], made["beta"], made["gamma"], 1e-5)

    def _bottleneck(self, x: Any, scope: str, outputs: int, stride: int) -> Any:
        with tf.variable_scope(scope), tf.variable_scope("bottleneck_v1"):
            if int(x.shape[-1]) == outputs:
                shortcut = x if stride == 1 else tf.nn.max_pool(x, [1, 1, 1, 1], [1, stride, stride, 1], "SAME")
            else:
                shortcut = self._layer(x, "shortcut", 1, outputs, stride)
            y = tf.nn.relu(self._layer(x, "conv1", 1, outputs // 4, 1))
            y = tf.nn.relu(self._layer(y, "conv2", 3, outputs // 4, stride))
            return tf.nn.relu(shortcut + self._layer(y, "conv3", 1, outputs, 1, is_last=True))

    def __call__(self, images: Any) -> Any:
        with tf.variable_scope("resnet_v1_50"):
            x = tf.nn.relu(self._layer(images, "conv1", 7, 64, 2))
            x = tf.nn.max_pool(x, [1, 3, 3, 1], [1, 2, 2, 1], "SAME")
            for number, blocks, outputs in STAGES:
                with tf.variable_scope(f"block{number - 1}"):
                    for block in range(1, blocks + 1):
                        # The stride stands in a stage's last unit, and the last stage has none.
                        stride = 2 if block == blocks and number < 5 else 1
                        x = self._bottleneck(x, f"unit_{block}", outputs, stride)
            x = tf.reduce_mean(x, [1, 2], keepdims=True)
            with tf.variable_scope("logits"):
                weights = self._variable("weights", tiled(self._next(), (1, 1, 2048, CLASSES), "normal", 0, 0.02))
                biases = self._variable("biases", tiled(self._next(), (CLASSES,), "normal", 0, 0.1))
                return tf.squeeze(tf.nn.conv2d(x, weights, [1, 1, 1, 1], "SAME"), [1, 2]) + biases


def _save_under_another_scope(session: Any, folder: Path, target: Path) -> None:
    """The same variables under a scope in a scope: its names sort as before, so that its numbers are the same file."""
    names = {each.op.name: each for each in tf.global_variables()}
    renamed = {name.replace("resnet50/", "tower_0/he2015/"): each for name, each in names.items()}
    tf.train.Saver(renamed).save(session, f"{folder}/nested.ckpt", write_meta_graph=False)
    data = [Path(folder, f"{name}.ckpt.data-00000-of-00001").read_bytes() for name in ("model", "nested")]
    assert data[0] == data[1]
    (target / "nested.ckpt.index").write_bytes(Path(folder, "nested.ckpt.index").read_bytes())


def make(name: str, network: Callable[[Any], Any]) -> None:
    """Build, run, save: `name`.index as TensorFlow writes it, its data packed, and the logits."""
    target = FIXTURES / name
    target.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tempfile.TemporaryDirectory() as folder:
        images = tf.placeholder(tf.float32, [None, 224, 224, 3])
        logits = network(images)
        tf.train.get_or_create_global_step()
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, f"{folder}/model.ckpt", write_meta_graph=False)
            np.save(target / "logits.npy", session.run(logits, {images: inputs()}))
            if name == "original":
                _save_under_another_scope(session, Path(folder), target)
        (target / "model.ckpt.index").write_bytes(Path(folder, "model.ckpt.index").read_bytes())
        data = Path(folder, "model.ckpt.data-00000-of-00001").read_bytes()
        (target / "model.ckpt.data-00000-of-00001.xz").write_bytes(lzma.compress(data, preset=9))
    sys.stderr.write(f"{name}: made by TensorFlow {tf.__version__}\n")


if __name__ == "__main__":
    tf.disable_v2_behavior()
    make("original", Original())
    make("slim", Slim())
