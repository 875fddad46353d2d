"""A quantized model from the command to the answers, and when it is not served."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from app.backends import BackendOptions, create_backend
from app.checkpoints import Checkpoint, Cpu, read_checkpoint
from app.checkpoints.record import RECORD_KEY
from app.errors import CheckpointError, QuantizationError, SettingError
from app.labels import imagenet_labels
from app.loading import LoadedModel, load_model
from app.metrics import Metrics
from app.progress import LogReporter
from app.quantization import Options, write
from app.settings import Settings
from app.types import Outputs, Pixels, Want
from tests.examined import examine
from tests.images_made import photo
from tests.photos import encode
from tests.quantized_made import CLASSES, colours, made, write_network, write_photos
from tests.running import running_server
from tests.test_command_line import run

PHOTOS = 40
# Layers are searched in test_quantization.py, in networks that take less than minutes.
QUICKLY = ("--keep-float", "0", "--min-agreement", "0.9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(scope="module")
def quantized_demo(folder: Path) -> dict[str, Any]:
    """What `quantize --json` says of the offline demo, on photos of which one is cut and one is no photo."""
    photos = write_photos(folder / "photos", PHOTOS)
    (photos / "cut.jpg").write_bytes(next((photos / "odd").iterdir()).read_bytes()[:2000])
    (photos / "notes.txt").write_text("not a photo")
    done = run(
        "quantize", "--weights", "offline-demo", "photos", "--report", "report.png", "--json", *QUICKLY, folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert "Skipped cut.jpg: The image is truncated or damaged" in done.stderr
    assert "40 photos are few" in done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


# -- the command --


def test_the_command_reports(quantized_demo: dict[str, Any], folder: Path) -> None:
    """A real network agrees with itself in 8 bits on photos that it was not calibrated with; all figures are there."""
    assert quantized_demo["output"] == "tf_efficientnet_lite0.int8.onnx"
    assert quantized_demo["agreement"]["images"] == quantized_demo["calibration_images"] == PHOTOS // 2
    assert quantized_demo["agreement"]["top1"] >= 0.9
    assert 0.5 < quantized_demo["agreement"]["top5"] <= 1
    assert 0 < quantized_demo["agreement"]["mean_difference"] < 0.05
    assert quantized_demo["agreement"]["mean_difference"] <= quantized_demo["agreement"]["worst_difference"]
    assert quantized_demo["speed_up"] == pytest.approx(
        quantized_demo["speeds"]["float32_seconds"] / quantized_demo["speeds"]["int8_seconds"]
    )
    assert quantized_demo["source_sha256"].startswith("57934424")
    assert quantized_demo["int8_bytes"] == (folder / quantized_demo["output"]).stat().st_size
    assert quantized_demo["int8_bytes"] < 0.6 * quantized_demo["float32_bytes"]
    assert [each["photo"] for each in quantized_demo["skipped"]] == ["cut.jpg"]
    assert quantized_demo["other_files"] == 1
    assert quantized_demo["cpu"] == json.loads(Cpu.here().model_dump_json())
    with Image.open(folder / "report.png") as picture:
        picture.load()
        assert picture.width > 800
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_every_layer_runs_in_8_bits(quantized_demo: dict[str, Any], folder: Path) -> None:
    """As ONNX Runtime lays the graph out, no convolution is left in float, and little is turned around."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "laid_out.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(folder / quantized_demo["output"]), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(folder / "laid_out.onnx").graph.node]
    assert nodes.count("QLinearConv") == 49
    assert not {"Conv", "FusedConv", "Clip", "Relu", "Gemm"} & set(nodes)
    assert nodes.count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in nodes
    assert nodes.count("Transpose") <= 2


def test_it_is_served_as_its_source(quantized_demo: dict[str, Any], folder: Path) -> None:
    """Over HTTP the file answers as float32 does, under the source's name and labels, and says that it is int8."""
    path = folder / quantized_demo["output"]
    settings = {"port": 0, "log_level": "warning", "max_batch_size": 8, "cache_dir": folder / "cache"}
    images = [encode(photo(name), quality=92) for name in ("chelsea", "coffee", "rocket")]
    answers = {}
    for weights in ("offline-demo", str(path)):
        with (
            running_server(Settings(weights=weights, **settings)) as server,
            httpx.Client(base_url=server.address, timeout=30) as client,
        ):
            answers[weights] = [client.post("/predict", content=image, params={"top_k": 5}).json() for image in images]
            health = client.get("/healthz").json()
    assert "int8" in health["device"]
    assert health["backend"] == "onnx"
    worst = 2 * quantized_demo["agreement"]["worst_difference"] + 0.05
    for float32, int8 in zip(*answers.values(), strict=True):
        assert int8["model"]["name"] == float32["model"]["name"] == "tf_efficientnet_lite0"
        assert int8["model"]["version"] != float32["model"]["version"]
        best, found = float32["predictions"][0], int8["predictions"][0]
        assert found["label"] == imagenet_labels()[found["class_id"]]
        assert found["class_id"] == best["class_id"]
        assert abs(found["probability"] - best["probability"]) < worst


def test_inspect_says_what_it_is(quantized_demo: dict[str, Any], folder: Path) -> None:
    """`inspect` tells int8, its agreement, and the source's preprocessing and name as decided."""
    done = run("inspect", quantized_demo["output"], "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "int8" in document["family"]
    assert document["quantized"]["agreement"] == quantized_demo["agreement"]
    assert document["decisions"]["architecture"]["value"] == "tf_efficientnet_lite0"
    assert document["decisions"]["preprocessing"]["value"]["mean"] == [127 / 255] * 3
    assert not document["decisions"]["preprocessing"]["assumed"]
    assert document["warnings"] == []
    assert "all layers" in run("inspect", quantized_demo["output"], folder=folder).stdout


def test_files_that_exist_are_kept(quantized_demo: dict[str, Any], folder: Path) -> None:
    """A file that is there is refused before any work, whether it is the model or the picture."""
    model = quantized_demo["output"]
    for flags in (("--output", model), ("--output", "other.onnx", "--report", "report.png")):
        done = run("quantize", "--weights", "offline-demo", "photos", *flags, folder=folder)
        assert done.returncode == 1
        assert "exists. Remove it" in done.stderr
        assert "Reading" not in done.stderr
    wrong = run("quantize", "--weights", "offline-demo", "photos", "--keep-float", "some", folder=folder)
    assert "--keep-float cannot be 'some'" in wrong.stderr


def test_a_model_that_agrees_too_little_is_not_written(tmp_path: Path) -> None:
    """Under the threshold the status is 1 and no file is there; with --force there is one, which serve refuses."""
    write_network(tmp_path, outlier=True)
    photos = write_photos(tmp_path / "photos", 24)
    flags = ("--weights", "outlier.onnx", str(photos), "--keep-float", "0", "--min-agreement", "1")
    done = run("quantize", *flags, "--output", "bad.onnx", folder=tmp_path)
    assert done.returncode == 1
    assert "not written" in done.stderr
    assert "Another first class" in done.stdout
    assert not (tmp_path / "bad.onnx").exists()
    forced = run("quantize", *flags, "--output", "bad.onnx", "--force", folder=tmp_path)
    assert forced.returncode == 1
    assert (tmp_path / "bad.onnx").exists()
    served = run("serve", "--port", "0", "--weights", "bad.onnx", "--min-agreement", "1", folder=tmp_path)
    assert served.returncode == 1
    assert "was quantized with a top-1 agreement of" in served.stderr + served.stdout
    assert "RESNET_MIN_AGREEMENT (--min-agreement) is 100.0%" in served.stderr + served.stdout


def test_the_printed_command_serves_what_was_made(tmp_path: Path) -> None:
    """With a lowered threshold the printed command lowers it for serving too; any name of a photo can be printed."""
    write_network(tmp_path, outlier=True)
    photos = write_photos(tmp_path / "photos", 24)
    for path in sorted(photos.glob("*/*.jpg")):
        os.rename(path, os.fsencode(path.parent) + b"/\xe9" + os.fsencode(path.name))
    flags = ("--weights", "outlier.onnx", str(photos), "--keep-float", "0", "--min-agreement", "0.05")
    done = run("quantize", *flags, "--output", "low.onnx", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "?photo" in done.stdout
    (command,) = re.findall(r"serve it: resnet-serve serve (.*)\)", done.stdout)
    assert command == "--weights low.onnx --min-agreement 0.05"
    photo = next(photos.glob("*/*.jpg")).rename(tmp_path / "photo.jpg")
    asked = run("classify", *shlex.split(command), str(photo), folder=tmp_path)
    assert asked.returncode == 0, asked.stderr


# -- the record --


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """A small quantized network on disk."""
    data, _ = made(write_network(folder), colours(48), Options(keep_float=0))
    path = folder / "small.int8.onnx"
    write(data, path, replace=False)
    return path


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """`source` with a record that `change` was at."""
    model = onnx.load(source)
    (entry,) = [each for each in model.metadata_props if each.key == RECORD_KEY]
    record = json.loads(entry.value)
    change(record)
    entry.value = json.dumps(record)
    onnx.save(model, target)
    return target


def load(path: Path, **settings: Any) -> LoadedModel:
    settings.setdefault("cache_dir", path.parent / "cache")
    return load_model(Settings(weights=str(path), **settings), Metrics(), LogReporter())


def test_recorded_agreement_decides(small: Path, tmp_path: Path) -> None:
    """A record under the threshold is refused with both figures; the same file over it is served."""
    path = changed(small, tmp_path / "low.onnx", lambda record: record["agreement"].update(top1=0.9))
    with pytest.raises(QuantizationError) as caught:
        load(path)
    text = str(caught.value)
    assert "agreement of 90.0%" in text
    assert "is 95.0%" in text
    assert "\n" not in text
    assert load(path, min_agreement=0.9).identity.name == "onnx"


def test_the_record_holds_at_later_starts(small: Path, tmp_path: Path) -> None:
    """What a start keeps in the cache keeps the record: a later one refuses and checks by it as the first did."""
    path = changed(small, tmp_path / "low.onnx", lambda record: record["agreement"].update(top1=0.9))
    for _ in range(2):
        assert "int8" in load(path, cache_dir=tmp_path / "cache", min_agreement=0.9).device
        with pytest.raises(QuantizationError, match="agreement of 90"):
            load(path, cache_dir=tmp_path / "cache")


class Counting:
    """A backend that is asked for nothing but what it counts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._backend = create_backend("auto", checkpoint, BackendOptions(threads=1))
        self.max_batch_size = self._backend.max_batch_size
        self.images = 0

    def infer(self, batch: Pixels, want: Want) -> Outputs:
        self.images += len(batch)
        return self._backend.infer(batch, want)


def other_cpu(record: dict[str, Any]) -> None:
    # None that is in use: AVX2 alone would be some machines' own.
    record["cpu"] = {"machine": "x86_64", "features": ["sse4_1"]}


def other_runtime(record: dict[str, Any]) -> None:
    record["versions"]["onnxruntime"] = "1.0.0"


@pytest.mark.parametrize("change", [other_cpu, other_runtime])
def test_another_cpu_or_runtime_is_checked(
    small: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], caplog: pytest.LogCaptureFixture
) -> None:
    """On the CPU that it was made on nothing runs; on another, or another runtime, every stored image does."""
    from app.backends.quantized import check_again

    here = examine(Settings(), small).checkpoint
    backend = Counting(here)
    check_again(here, backend, 1.0, lambda text: None)  # type: ignore[arg-type]
    assert backend.images == 0
    moved = examine(Settings(), changed(small, tmp_path / "moved.onnx", change)).checkpoint
    said: list[str] = []
    with caplog.at_level(logging.INFO):
        check_again(moved, backend, 0.9, said.append)  # type: ignore[arg-type]
    assert backend.images == 24
    assert said == ["Checking the quantized model on this CPU, with 24 stored images"]
    assert "top-1 agreement with float32 is" in caplog.text


def test_a_cpu_on_which_it_answers_otherwise_is_refused(small: Path, tmp_path: Path) -> None:
    """Where the stored images are answered otherwise than in float32, the model is not served, and it says why."""

    def saturated(record: dict[str, Any]) -> None:
        """As a CPU whose sums saturate sees it: float32's classes are others than those that come out."""
        other_cpu(record)
        record["check"]["classes"][:6] = [(value + 1) % CLASSES for value in record["check"]["classes"][:6]]

    path = changed(small, tmp_path / "saturated.onnx", saturated)
    with pytest.raises(QuantizationError) as caught:
        load(path)
    text = str(caught.value)
    assert "was quantized on x86_64 with sse4_1" in text
    assert "top-1 agreement is 75.0% on the 24 images stored with it" in text
    assert "--reduce-range" in text
    assert load(path, min_agreement=0.7).backend == "onnx"


def test_stored_images_are_those_held_out(small: Path) -> None:
    """What is stored are the held-out pixels themselves, with the class and probability that float32 gives."""
    record = examine(Settings(), small).checkpoint.graph.quantized  # type: ignore[union-attr]
    assert record is not None
    assert np.array_equal(record.check.images(), colours(48).pixels[24:])
    source = examine(Settings(), small.with_name("network.onnx")).checkpoint
    scores = create_backend("auto", source, BackendOptions(threads=1)).infer(record.check.images(), Want.SCORES).scores
    assert scores.argmax(axis=1).tolist() == list(record.check.classes)


def _cut(record: dict[str, Any]) -> None:
    del record["agreement"]


def _nan(record: dict[str, Any]) -> None:
    record["agreement"]["top1"] = float("nan")


def _bomb(record: dict[str, Any]) -> None:
    record["check"]["pixels"] = base64.b64encode(zlib.compress(bytes(1 << 26))).decode()


def _short(record: dict[str, Any]) -> None:
    record["check"]["pixels"] = record["check"]["pixels"][: len(record["check"]["pixels"]) // 8 * 4]


def _many(record: dict[str, Any]) -> None:
    record["check"]["shape"] = [1 << 40, 32, 32, 3]


def _no_class(record: dict[str, Any]) -> None:
    record["check"]["classes"][0] = CLASSES


def _text(record: dict[str, Any]) -> None:
    record["check"]["pixels"] = "not base64 at all!"


@pytest.mark.parametrize("change", [_cut, _nan, _bomb, _short, _many, _no_class, _text])
def test_damaged_records_are_refused(small: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A record that lacks or overdoes something is refused in one line, before anything of it is believed."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(changed(small, tmp_path / "damaged.onnx", change))
    assert "has a damaged record of how it was quantized" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_of_another_graph_is_refused(small: Path, tmp_path: Path) -> None:
    """A single weight that is another makes another graph; and so does a record with too few labels."""
    model = onnx.load(small)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel1_quantized")
    kernel.raw_data = bytes([kernel.raw_data[0] ^ 1]) + kernel.raw_data[1:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="another graph than the one that its record was made of"):
        read_checkpoint(tmp_path / "other.onnx")
    path = changed(small, tmp_path / "labels.onnx", lambda record: record["labels"].append("one more"))
    with pytest.raises(CheckpointError, match="another graph"):
        read_checkpoint(path)


def test_a_damaged_file_is_refused(small: Path, tmp_path: Path) -> None:
    """A file that was cut short is a damaged ONNX file."""
    (tmp_path / "cut.onnx").write_bytes(small.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "cut.onnx")


def test_its_preprocessing_is_its_own(small: Path) -> None:
    """A quantized model was calibrated for one preprocessing: RESNET_PREPROCESSING is refused, not half obeyed."""
    with pytest.raises(SettingError, match="was quantized for its own preprocessing"):
        examine(Settings(preprocessing="keras"), small)


def test_any_number_of_images_is_answered_at_once(small: Path) -> None:
    """Batches of any size answer as single images do, within what one level of 8 bits makes."""
    checkpoint = examine(Settings(), small).checkpoint
    assert checkpoint.graph is not None
    assert checkpoint.graph.batch_size is None
    backend = create_backend("auto", checkpoint, BackendOptions(threads=2))
    pixels = colours(5).pixels
    together = backend.infer(pixels, Want.SCORES).scores
    alone = np.concatenate([backend.infer(each[None], Want.SCORES).scores for each in pixels])
    assert np.abs(together - alone).max() <= 0.05 * (1 + np.abs(alone).max())
    assert "int8" in backend.device


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A file is written whole or not at all: a folder that cannot be written to is a typed error, and no leftover."""
    with pytest.raises(QuantizationError, match="Cannot write"):
        write(b"data", tmp_path / "nowhere" / "model.onnx", replace=False)
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(QuantizationError, match="exists"):
        write(b"new", tmp_path / "model.onnx", replace=False)
    write(b"new", tmp_path / "model.onnx", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"new"
