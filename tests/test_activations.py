"""What makes probabilities of scores, from the checkpoint to the answer over HTTP."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.images.geometry import resize_and_crop
from tests.checkpoints_made import resnet50_v1
from tests.images_made import photo
from tests.running import post_image, service_process

CHANNELS = 4


def classifier(folder: Path, classes: int) -> Path:
    """A convolution, a mean and a dense layer of `classes` logits, as ONNX."""
    random = np.random.default_rng(4)
    weights = {
        "kernel": random.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "dense": random.normal(0, 2, (CHANNELS, classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("GlobalAveragePool", ["lit"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def sigmoids(path: Path, image: Image.Image) -> list[float]:
    """What the graph's logits are as probabilities that stand alone."""
    preset = resnet50_v1()
    pixels = np.asarray(resize_and_crop(image, preset))
    scale, shift = preset.scale_and_shift()
    inputs = (pixels.transpose(2, 0, 1) * scale[:, None, None] + shift[:, None, None]).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"image": inputs[None]}
    )
    return [float(value) for value in 1 / (1 + np.exp(-logits[0].astype(np.float64)))]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_output_answers_the_probabilities_of_both_labels(workers: str, tmp_path: Path) -> None:
    """A checkpoint with one output and two labels answers both, whether it is one process or several."""
    path = classifier(tmp_path, 1)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    image, sent = photo("chelsea"), io.BytesIO()
    image.save(sent, "PNG")
    (dog,) = sigmoids(path, image)
    assert 0.02 < dog < 0.98
    flags = ("--weights", str(path), "--http-workers", workers)
    with service_process(*flags, folder=tmp_path) as service, httpx.Client(timeout=30) as client:
        service.wait_for("Ready:")
        found = re.search(r"http://127\.0\.0\.1:\d+", service.wait_for("Listening on"))
        assert found is not None
        client.base_url = httpx.URL(found[0])
        answer = post_image(client, sent.getvalue()).json()
        too_many = post_image(client, sent.getvalue(), top_k=3)
    answered = {each["label"]: each["probability"] for each in answer["predictions"]}
    assert answered == pytest.approx({"cat": 1 - dog, "dog": dog}, abs=1e-5)
    assert [each["class_id"] for each in answer["predictions"]] == ([0, 1] if dog < 0.5 else [1, 0])
    assert too_many.status_code == 422
