"""ONNX files whose weights lie in another file, and files that claim what they do not have."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.backends import BackendOptions, create_backend
from app.checkpoints import CheckpointFile, depends_on, locate, onnx_wire, read_checkpoint
from app.checkpoints.onnx_data import assemble, data_files, mapped
from app.checkpoints.onnx_weights import Weights
from app.errors import CheckpointError
from app.protobuf import bytes_field, field_head
from app.settings import Settings
from app.types import Want
from tests.examined import examine
from tests.onnx_graphs import SIDE, Maker, behind, node, with_data_beside

PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx_data", "numbers.bin"])
def test_weights_beside_the_model_are_its_own(tmp_path: Path, name: str) -> None:
    """A model and its weights beside it are one checkpoint: served right, found in a folder, digested together."""
    path = tmp_path / "model.onnx"
    with_data_beside(Maker().model(), path, name)
    assert locate(str(tmp_path)) == CheckpointFile(path)
    found = examine(Settings(), path)
    assert found.contents.sha256 == hashlib.sha256(path.read_bytes() + (tmp_path / name).read_bytes()).hexdigest()
    backend = create_backend("auto", found.checkpoint, BackendOptions(threads=1))
    expected = Maker().logits(((PIXELS / 255 - MEAN) / STD).transpose(0, 3, 1, 2))
    assert np.abs(backend.infer(PIXELS, Want.SCORES).scores - expected).max() < 1e-4
    before = depends_on(path)
    with (tmp_path / name).open("r+b") as file:
        file.write(b"\1")
    assert depends_on(path) != before


def test_model_and_weights_may_be_links_to_files_that_lie_side_by_side(tmp_path: Path) -> None:
    """In a download cache both files are links into one folder, under other names there."""
    (tmp_path / "made").mkdir()
    with_data_beside(Maker().model(), tmp_path / "made" / "model.onnx", "model.onnx_data")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        os.rename(tmp_path / "made" / name, tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / name).symlink_to(Path("..", "blobs", str(number)))
    assert read_checkpoint(tmp_path / "snapshot" / "model.onnx").graph is not None


def test_size_limit_counts_the_file_beside(tmp_path: Path) -> None:
    """A model is over the limit where it and its weights together are."""
    path = tmp_path / "model.onnx"
    with_data_beside(Maker().model(), path, "model.onnx.data")
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    with pytest.raises(CheckpointError, match="RESNET_MAX_CHECKPOINT_BYTES"):
        read_checkpoint(path, max_bytes=max(sizes) + 1)


def _entry(model: onnx.ModelProto, key: str, value: str) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value


def _location(value: str) -> Callable[[onnx.ModelProto, Path], None]:
    return lambda model, folder: _entry(model, "location", value)


def _fifo(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "data").unlink()
    os.mkfifo(folder / "data")


def _folder(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "data").unlink()
    (folder / "data").mkdir()


def _link(model: onnx.ModelProto, folder: Path) -> None:
    os.rename(folder / "data", folder.parent / "elsewhere")
    (folder / "data").symlink_to(folder.parent / "elsewhere")


def _device(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "data").unlink()
    (folder / "data").symlink_to("/dev/zero")


def _short(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "data").write_bytes(b"\0" * 64)


def _overlap(model: onnx.ModelProto, folder: Path) -> None:
    """A hundred tensors of 200 MB, all in one region."""
    with (folder / "data").open("wb") as file:
        file.truncate(200_000_000)
    for number in range(100):
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type, tensor.data_location = f"t{number}", TensorProto.FLOAT, TensorProto.EXTERNAL
        tensor.dims.append(50_000_000)
        for key, value in (("location", "data"), ("offset", "0"), ("length", "200000000")):
            tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_location("/etc/passwd"), "which is no file beside it"),
        (_location("../data"), "which is no file beside it"),
        (_location("folder/data"), "which is no file beside it"),
        (_location(""), "which is no file beside it"),
        (_location("missing"), "does not lie beside it; copy that file there too"),
        (_fifo, "which is no regular file"),
        (_folder, "which is no regular file"),
        (_link, "a link that leads elsewhere"),
        (_device, "a link that leads elsewhere"),
        (_short, "data does not have that there"),
        (lambda model, folder: _entry(model, "length", "4"), "data does not have that there"),
        (lambda model, folder: _entry(model, "offset", "-4"), "data does not have that there"),
        (_overlap, "they overlap"),
    ],
)
def test_weights_elsewhere_are_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto, Path], None], part: str
) -> None:
    """Weights that do not lie in a real file beside the model, or not as it says, are refused for that reason."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "model.onnx"
    with_data_beside(Maker().model(), path, "data")
    model = onnx.load(path, load_external_data=False)
    change(model, folder)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def _with(in_graph: bytes = b"", in_model: bytes = b"") -> bytes:
    """A sound model with more fields at the end of its graph, and of itself."""
    model = Maker().model()
    graph = model.graph.SerializeToString() + in_graph
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field_head(7, len(graph)) + graph + in_model


def _attribute(fields: bytes) -> bytes:
    return bytes_field(1, bytes_field(4, b"Conv") + bytes_field(5, bytes_field(1, b"pads") + fields))


def _nested(depth: int) -> bytes:
    nested = b""
    for _ in range(depth):
        nested = _attribute(bytes_field(6, nested))
    return nested


HOSTILE = {
    "a million empty nodes": (_with(b"\x0a\x00" * 1_000_000), "over 20,000 nodes"),
    "a million empty tensors": (_with(b"\x2a\x00" * 1_000_000), "over 500,000 parts"),
    "a million notes": (_with(in_model=b"\x72\x00" * 1_000_000), "over 500,000 parts"),
    "a million numbers, one by one": (_with(_attribute(b"\x40\x01" * 1_000_000)), "over 500,000 parts"),
    "a million numbers, packed": (
        _with(_attribute(bytes_field(8, b"\x01" * 1_000_000))),
        "a list of over 65,536 bytes",
    ),
    "a million dimensions": (_with(bytes_field(5, bytes_field(1, b"\x01" * 1_000_000))), "over 16 dimensions"),
    "graphs in graphs": (_with(_nested(10_000)), "holds a graph"),
    "a long name": (_with(bytes_field(5, bytes_field(8, b"n" * (17 << 20)))), "over 16,777,216 bytes beside"),
    "functions": (_with(in_model=bytes_field(25, b"")), "functions of its own"),
    "two graphs": (_with(in_model=bytes_field(7, b"")), "2 graphs where one was expected"),
    "a field past the end": (_with(in_model=b"\x3a\x7f"), "a field is longer than its message"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_files_that_multiply_are_refused_before_they_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What would take many times its bytes in memory, or a deep stack, is counted on its bytes alone and refused."""
    data, part = HOSTILE[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    monkeypatch.setattr("app.checkpoints.onnx_file._ask", lambda *asked: pytest.fail("it was parsed"))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shape_that_only_running_tells_is_bounded(tmp_path: Path) -> None:
    """A value whose size is computed from the image is not seen before it runs, and is refused when it does."""
    nodes = [
        node("ReduceSum", "image axes", "sum", keepdims=0),
        node("Mul", "sum nothing", "zero"),
        node("Cast", "zero", "whole", to=TensorProto.INT64),
        node("Add", "whole huge", "size"),
        node("ConstantOfShape", "size", "values"),
        node("ReduceMax", "values", "one", keepdims=0),
        node("Add", "logits one", "scores"),
    ]
    model = behind(nodes, axes=np.arange(4), nothing=0.0, huge=np.array([1 << 15, 1 << 15]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="over twice its size and 200 MB of memory"):
        read_checkpoint(path)


def test_large_batch_is_freed_and_not_run(tmp_path: Path) -> None:
    """A graph for 64 large images at a time, over the memory of a trial, is made to take any number."""
    path = tmp_path / "model.onnx"
    path.write_bytes(Maker(batch=64, side=512).build())
    graph = read_checkpoint(path).graph
    assert graph is not None
    assert graph.batch_size is None
    assert graph.size == (512, 512)


def _one_by_one(values: np.ndarray, name: str) -> TensorProto:
    """As older exporters write it: each number is one of protobuf's."""
    return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, values.tolist())


def test_large_tensors_are_found_where_they_lie_and_put_back(tmp_path: Path) -> None:
    """However numbers are stored, as they lie, one by one, in a constant or beside, the assembled model has them."""
    random = np.random.default_rng(0)
    values = {
        "raw": random.normal(0, 1, 3000).astype(np.float32),
        "floats": random.normal(0, 1, 3000).astype(np.float32),
        "small": random.normal(0, 1, 3).astype(np.float32),
        "int8": random.integers(-128, 128, 3000).astype(np.int8),
        "uint8": random.integers(0, 256, 3000).astype(np.uint8),
        "int32": np.array([0, 1, 300, 1 << 20, -5, (1 << 31) - 1] * 500, np.int32),
        "constant": random.normal(0, 1, 3000).astype(np.float16),
    }
    model = Maker().model()
    for name in ("raw", "small"):
        model.graph.initializer.append(numpy_helper.from_array(values[name], name))
    for name in ("floats", "int8", "uint8", "int32"):
        model.graph.initializer.append(_one_by_one(values[name], name))
    constant = helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(values["constant"], "v"))
    model.graph.node.insert(0, constant)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with mapped(path) as data:
        contents = onnx_wire.walk(data)
        assert {tensor.name for tensor in contents.tensors} == values.keys() - {"small"}
        weights = Weights(contents, data, {})
        weights.check(weights.skeleton)
        small, pieces = weights.pieces(weights.skeleton)
        del weights
    assembled = onnx.load_model_from_string(assemble(path, [], small, pieces))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in assembled.graph.initializer}
    for name, expected in values.items():
        assert np.array_equal(found[name], expected), name
    assert [each.op_type for each in assembled.graph.node] == [each.op_type for each in Maker().model().graph.node]


def test_files_beside_are_named_in_their_order(tmp_path: Path) -> None:
    """Weights may lie in a file for each tensor, which are read in the order of their names."""
    path = tmp_path / "model.onnx"
    onnx.save_model(Maker().model(), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert list(data_files(path)) == ["bias", "dense", "kernel"]
    assert read_checkpoint(path).graph is not None
    assert locate(str(tmp_path)) == CheckpointFile(path)
