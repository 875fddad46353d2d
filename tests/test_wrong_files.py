"""Files that are no checkpoint are refused by what they are, and what the refusal advises leads to one that is read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from app.checkpoints import read_checkpoint
from app.errors import CheckpointError
from tests.lazy import torch

ARRAYS = {"fc.weight": np.ones((2, 4), np.float32), "fc.bias": np.zeros(2, np.float32)}


def state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in ARRAYS.items()}


def tarred() -> bytes:
    header = tarfile.TarInfo("weights.pth")
    return header.tobuf() + bytes(1024)


def field(number: int, content: bytes) -> bytes:
    """A message's field of bytes, of at most 127."""
    return bytes([number << 3 | 2, len(content)]) + content


NODE = field(1, field(1, b"input") + field(2, b"Placeholder")) + bytes(8)
VALUE = field(1, field(1, b"conv1.weight") + field(2, b"\x08\x40\x08\x03\x12\x07Float32")) + bytes(8)

# name, content, what it is called, what is advised
CASES: dict[str, tuple[str, bytes, str, str]] = {
    "web page": ("w.pth", b"<!DOCTYPE html><html><body>404</body></html>", "a web page (HTML)", "/resolve/"),
    "web page behind a mark": ("w.pth", b"\xef\xbb\xbf\r\n  <HTML lang=en>", "a web page (HTML)", "gdown"),
    "xhtml": ("w.pth", b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC ""><html>', "a web page (HTML)", "Download"),
    "S3's answer": (
        "w.pth",
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
        "a server's error answer (XML)",
        "download the file again",
    ),
    "JSON answer": ("w.pth", b'{"error": "Repository not found"}', "JSON, as a server answers", "download the file"),
    "configuration": ("config.json", b'{"model_type": "resnet"}', "a JSON file, which has no weights", "the folder"),
    "Keras configuration": ("m.json", b'{"class_name": "Functional"}', "a Keras model's configuration", ".weights.h5"),
    "zeros": ("w.pth", bytes(4096), "zeros", "download it again"),
    "gz": ("w.pth", gzip.compress(b"PK\x03\x04" + bytes(900)), "packed (.gz)", "gunzip <"),
    "tar.gz": ("w.pth", gzip.compress(tarred()), "a packed archive (.tar.gz)", "tar xzf"),
    "tar": ("w.pth.tar", tarred(), "an archive (.tar)", "tar xf"),
    "bz2": ("w.pth", bz2.compress(b"x"), "packed (.bz2)", "bunzip2"),
    "xz": ("w.pth", lzma.compress(b"x"), "packed (.xz)", "xz -dc"),
    "zst": ("w.pth", b"\x28\xb5\x2f\xfd" + bytes(9), "packed (.zst)", "zstd -dc"),
    "7z": ("w.pth", b"7z\xbc\xaf\x27\x1c" + bytes(9), "an archive (.7z)", "7z x"),
    "rar": ("w.pth", b"Rar!\x1a\x07\x01\0", "an archive (.rar)", "unrar x"),
    "pickle 4": ("w.pkl", pickle.dumps(ARRAYS, 4), "a plain pickle", "python -c"),
    "pickle 2": ("w.pkl", pickle.dumps(ARRAYS, 2), "a plain pickle", "python -c"),
    "pickle 0": ("w.pkl", pickle.dumps(OrderedDict(a=[1]), 0), "a plain pickle", "python -c"),
    "paddle": ("w.pdparams", pickle.dumps(ARRAYS, 4), "PaddlePaddle's", "paddle2onnx"),
    "paddle, renamed": (
        "w.pth",
        pickle.dumps({"a": 1, "StructuredToParameterName@@": {}}, 2),
        "PaddlePaddle's",
        "paddle2onnx",
    ),
    "paddle program": ("w", field(1, b"\x08\x00\x10\xff") + bytes(9), "a PaddlePaddle program", "paddle2onnx"),
    "tflite": ("w", b"\x1c\0\0\0TFL3" + bytes(9), "a TensorFlow Lite model", "tf2onnx.convert --tflite"),
    "frozen graph": ("w.pb", NODE, "a frozen TensorFlow graph", "tf2onnx.convert --graphdef"),
    "saved model's graph": ("saved_model.pb", b"\x08\x01\x12\x05abcde", "the graph of a SavedModel", "its folder"),
    "MindSpore": ("w.ckpt", VALUE, "a MindSpore checkpoint", "ONNX"),
    "Core ML": ("w", b"\x08\x04\x12\x0c\x0a\x0a\x0a\x05image" + bytes(40), "a Core ML model", "PyTorch or Keras"),
    "OpenVINO": ("w.xml", b'<?xml version="1.0"?>\n<net name="r" version="11">', "an OpenVINO model", "ONNX"),
    "TensorRT": ("w.engine", b"ftrt" + bytes(60), "a TensorRT engine", "ONNX file"),
    "MXNet": ("w.params", b"\x12\x01" + bytes(30), "MXNet's (.params)", "ONNX"),
    "MATLAB": ("w.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB's (.mat)", "ONNX"),
    "GGUF": ("w", b"GGUF\x03\0\0\0", "a GGUF file", "ResNet-50"),
    "numbers of TensorFlow": ("m.data-00000-of-00001", b"\x01\x02", "the numbers of a TensorFlow", "its .index"),
    "list of TensorFlow": ("checkpoint", b'model_checkpoint_path: "m"', "the list of a folder's", ".index"),
    "npy": ("w.npy", b"\x93NUMPY\x01\0", "one NumPy array", "torch.from_numpy"),
    "JPEG": ("w.pth", b"\xff\xd8\xff\xe0\0\x10JFIF", "a picture", "resnet-serve classify"),
    "PNG": ("w.pth", b"\x89PNG\r\n\x1a\n" + bytes(9), "a picture", "Name the file with the weights"),
    "PDF": ("w.pth", b"%PDF-1.7", "a PDF", "Name the file with the weights"),
    "program": ("train.py", b"# mine\nimport torch\n", "a Python program", "that it saves"),
    "text": ("w.pth", b"Download the weights from our site.\n", "a text that begins with 'Download the", "Expected"),
    "empty": ("w.pth", b"", "it is empty", "cut off"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_file_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    """Each is refused in one line that says what it is and what to do."""
    file, content, what, cure = CASES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(tmp_path / file)
    line = str(refusal.value)
    assert what in line
    assert cure in line
    assert str(tmp_path / file) in line
    assert "\n" not in line
    assert line.endswith(".")
    assert "{" not in line or "torch.save({" in line


def test_a_download_that_was_cut_off_is_called_that(tmp_path: Path) -> None:
    """A zip without its end, which torch's files are, and a safetensors file that ends early say so."""
    from safetensors.numpy import save_file

    torch.save(state(), tmp_path / "w.pth")
    save_file(ARRAYS, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for part in (0.6, 0.9):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(CheckpointError, match=r"ends early.*ownload it again"):
                read_checkpoint(tmp_path / name)


def advised(path: Path) -> str:
    """The command behind the last colon that a refusal ends in."""
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(path)
    found = re.search(r": ((?:python -c|gunzip|bunzip2|xz|tar|unzip) .*)\.$", str(refusal.value))
    assert found, str(refusal.value)
    return found[1].replace("python -c", f"{shlex.quote(sys.executable)} -c")


def packed(name: str, path: Path) -> Path:
    """A checkpoint in another file, in the way of `name`; what unpacking it gives."""
    inner = path.parent / "inner.pth"
    torch.save(state(), inner)
    content = inner.read_bytes()
    if name in ("gz", "bz2", "xz"):
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[name].compress(content))
        return path.parent / "weights"
    if name in ("tar", "tar.gz"):
        with tarfile.open(path, "w:gz" if name == "tar.gz" else "w") as archive:
            archive.add(inner, "out.pth")
        return path.parent / "out.pth"
    if name == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.write(inner, "out.pth")
        return path.parent / "out.pth"
    if name == "npz":
        np.savez(path, **ARRAYS)
        path.with_name(f"{path.name}.npz").rename(path)
    else:
        path.write_bytes(pickle.dumps(state() if name == "pickled tensors" else ARRAYS))
    return path.parent / "weights.pth"


@pytest.mark.parametrize("name", ["gz", "bz2", "xz", "tar", "tar.gz", "zip", "npz", "pickled tensors"])
def test_the_advice_leads_to_the_weights(name: str, tmp_path: Path) -> None:
    """The command in the refusal, run as it stands, gives a file that is read and has the values."""
    unpacked = packed(name, tmp_path / "it is packed")
    command = advised(tmp_path / "it is packed")
    (tmp_path / "inner.pth").unlink()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=60)
    weights = read_checkpoint(unpacked).weights
    assert {key: values.tolist() for key, values in weights.items()} == {
        key: tensor.tolist() for key, tensor in state().items()
    }


def test_a_header_that_looks_like_another_sign_is_still_safetensors(tmp_path: Path) -> None:
    """The length of a header may be the first bytes of gzip's: the file is what its JSON says."""
    header = json.dumps(
        {"fc.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, "__metadata__": {"a": "x"}}
    ).encode()
    header = header.replace(b'"x"', b'"' + b"x" * (0x8B1F - len(header) + 1) + b'"')
    assert len(header) == 0x8B1F
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes())
    assert (tmp_path / "w").read_bytes()[:2] == b"\x1f\x8b"
    assert read_checkpoint(tmp_path / "w").weights["fc.weight"].tolist() == [[1, 2]]
