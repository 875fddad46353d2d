"""Files that are not read (web pages, pointers of Git LFS, Paddle files, …), each with the reason and a way out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ..errors import CheckpointError
from .signs import (
    Edges,
    Test,
    both,
    is_caffe,
    is_core_ml,
    is_cut_zip,
    is_frozen_graph,
    is_json,
    is_mindspore,
    is_packed_tar,
    is_paddle_program,
    is_pickle,
    is_picture,
    named,
    says,
    starts,
)

_DISTRIBUTED = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
_AGAIN = "Copy or download it again"
_ONNX = "Export the model to ONNX with its own framework, which is served as it is"
_WEIGHTS = "Name the file with the weights"


def is_distributed(folder: Path) -> bool:
    """Whether `folder` is from torch.distributed.checkpoint: it has the shards of each rank."""
    return any(folder.glob("*.distcp"))


def refuse_distributed(path: Path) -> Path | None:
    raise CheckpointError(
        f"{path} is a sharded checkpoint (.distcp). Join its shards with torch's own: {_DISTRIBUTED}."
    )


_PICKLE_TO_TORCH = (
    "python -c \"import pickle, torch; d = pickle.load(open({file}, 'rb')); "
    "torch.save({{k: torch.as_tensor(v) for k, v in d.items()}}, 'weights.pth')\""
)
_NPZ_TO_TORCH = (
    'python -c "import numpy, torch; d = numpy.load({file}); '
    "torch.save({{k: torch.from_numpy(d[k]) for k in d.files}}, 'weights.pth')\""
)

# Test, kind of file, remedy; the first match is reported. {path} is quoted for a shell, {file} for Python.
_SIGNS: tuple[tuple[Test, str, str], ...] = (
    (
        named(".distcp"),
        "one shard of a checkpoint",
        f"Join its folder with torch's own: {_DISTRIBUTED}",
    ),
    (starts(b"version https://git-lfs."), "a pointer of Git LFS and not the file itself", "Fetch it: git lfs pull"),
    # --- results of failed downloads
    (
        says(r"(?:<!--[^>]*-->\s*)?(?:<\?xml[^>]*>\s*)?<(?:!doctype html|html|head|body|script|title|meta)\b"),
        "a web page (HTML) and not the file that it offers",
        "Download the file itself: from Hugging Face by /resolve/ in place of /blob/, from GitHub by its Raw or "
        "Download button, from Google Drive with gdown",
    ),
    (
        both(says(r"<\?xml"), lambda file: "<net " in file.text),
        "an OpenVINO model (.xml), which is not read",
        f"Take the ONNX file that it was made of. {_ONNX}",
    ),
    (
        says(r"<\?xml[^>]*>\s*<error|<error>"),
        "a server's error answer (XML) and not the file",
        "Its link has ended or needs a login: download the file again",
    ),
    (
        both(is_json, lambda file: '"class_name"' in file.text),
        "a Keras model's configuration (JSON), which has no weights",
        f"{_WEIGHTS}: a .keras, a .h5 or a .weights.h5",
    ),
    (
        both(is_json, lambda file: '"modeltopology"' in file.text),
        "a TensorFlow.js model (JSON), which is not read",
        "Give the Keras or SavedModel that it was made of",
    ),
    (both(is_json, named(".json")), "a JSON file, which has no weights", f"{_WEIGHTS}, or the folder of both"),
    (
        is_json,
        "JSON, as a server answers an error, and not the file",
        "Look into it, and download the file again",
    ),
    (both(starts(bytes(512)), lambda file: not any(file.tail)), "zeros: its download never came to its data", _AGAIN),
    (is_cut_zip, "a zip (as PyTorch's files are) that ends early: its download or its copy was cut off", _AGAIN),
    # --- packed
    (
        both(starts(b"\x1f\x8b"), is_packed_tar),
        "a packed archive (.tar.gz)",
        "Unpack it, and name the file in it: tar xzf {path}",
    ),
    (starts(b"\x1f\x8b"), "packed (.gz)", "Unpack it: gunzip < {path} > weights"),
    (starts(b"BZh"), "packed (.bz2)", "Unpack it: bunzip2 < {path} > weights"),
    (starts(b"\xfd7zXZ\0"), "packed (.xz)", "Unpack it: xz -dc {path} > weights"),
    (starts(b"\x28\xb5\x2f\xfd"), "packed (.zst)", "Unpack it: zstd -dc {path} > weights"),
    (starts(b"\x04\x22\x4d\x18"), "packed (.lz4)", "Unpack it: lz4 -dc {path} > weights"),
    (starts(b"7z\xbc\xaf\x27\x1c"), "an archive (.7z)", "Unpack it, and name the file in it: 7z x {path}"),
    (starts(b"Rar!\x1a\x07"), "an archive (.rar)", "Unpack it, and name the file in it: unrar x {path}"),
    (
        both(starts(b"ustar", at=257), starts(b"sys_info\0", b"storages\0", b"pickle\0")),
        "a file of PyTorch before 0.2 (a tar), which is not read",
        'If you trust it, save it again: python -c "import torch; torch.save(torch.load({file}, weights_only=False), '
        "'weights.pth')\"",
    ),
    (starts(b"ustar", at=257), "an archive (.tar)", "Unpack it, and name the file in it: tar xf {path}"),
    # --- parts of a checkpoint
    (
        lambda file: re.search(r"\.data-\d{5}-of-\d{5}$", file.path.name) is not None,
        "the numbers of a TensorFlow checkpoint",
        "Name its .index, which lies beside it",
    ),
    (named(".ckpt.meta"), "the graph of a TensorFlow checkpoint", "Name its .index, which lies beside it"),
    (
        says(r"model_checkpoint_path:"),
        "the list of a folder's TensorFlow checkpoints",
        "Name the .index of the one to serve",
    ),
    (
        both(starts(b"\x08\x01\x12"), named(".pb")),
        "the graph of a SavedModel",
        "Name its folder, in which variables/ lies too",
    ),
    # --- other frameworks
    (named(".pdparams", ".pdopt", ".pdiparams"), "PaddlePaddle's, which is not read", f"{_ONNX}: paddle2onnx"),
    (
        is_paddle_program,
        "a PaddlePaddle program (.pdmodel), which is not read",
        f"{_ONNX}: paddle2onnx",
    ),
    (
        lambda file: b"StructuredToParameterName@@" in file.head + file.tail,
        "PaddlePaddle's (.pdparams), which is not read",
        f"{_ONNX}: paddle2onnx",
    ),
    (
        is_pickle,
        "a plain pickle and not a file of torch.save, and nothing that runs when it is read is read here",
        f"If you trust it, save its tensors with torch: {_PICKLE_TO_TORCH}",
    ),
    (
        starts(b"\x93NUMPY"),
        "one NumPy array (.npy)",
        "Save all arrays of the network under its names: torch.save({{name: torch.from_numpy(array)}}, 'weights.pth')",
    ),
    (
        starts(b"TFL3", at=4),
        "a TensorFlow Lite model, which is not read",
        f"{_ONNX}: python -m tf2onnx.convert --tflite {{path}} --output model.onnx",
    ),
    (
        is_frozen_graph,
        "a frozen TensorFlow graph (.pb), which is not read",
        "Convert it to ONNX, which is served as it is: python -m tf2onnx.convert --graphdef {path} --inputs INPUT:0 "
        "--outputs OUTPUT:0 --output model.onnx",
    ),
    (is_mindspore, "a MindSpore checkpoint, which is not read", _ONNX),
    (
        is_core_ml,
        "a Core ML model (.mlmodel), which is not read",
        "Give the PyTorch or Keras file that it was made of",
    ),
    (starts(b"ptrt", b"ftrt"), "a TensorRT engine, which is not read", "Give the ONNX file that it was made of"),
    (starts(b"\x12\x01\0\0\0\0\0\0"), "MXNet's (.params), which is not read", _ONNX),
    (
        starts(b"MATLAB 5.0 MAT-file"),
        "MATLAB's (.mat), which is not read",
        f"{_ONNX}, or take the same network from torchvision",
    ),
    (
        starts(b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1"),
        "Torch7's (.t7), which is not read",
        "Take the same network from torchvision, or convert it to PyTorch",
    ),
    (starts(b"ET12", at=4), "an ExecuTorch program, which is not read", "Give the PyTorch file that it was made of"),
    (starts(b"GGUF", b"lmgg", b"tjgg"), "a GGUF file of a language model", "Name the checkpoint of a ResNet-50"),
    (named(".msgpack"), "Flax's (.msgpack), which is not read", f"{_ONNX}, or give the model's safetensors"),
    (
        is_caffe,
        "a Caffe model (.caffemodel), which is not read",
        "Convert it to ONNX or PyTorch, or take the same network from torchvision",
    ),
    # --- other files
    (
        is_picture,
        "a picture and not a checkpoint",
        f"{_WEIGHTS}; a picture is classified by: resnet-serve classify",
    ),
    (starts(b"%PDF"), "a PDF and not a checkpoint", _WEIGHTS),
    (starts(b"\x7fELF", b"MZ\x90\0"), "a program and not a checkpoint", _WEIGHTS),
    (
        says(
            r"(?:#.*\n|\s)*(?:\"\"\"[^\"]*\"\"\"\s*)?(?:import\s+[\w.]+\s|from\s+[\w.]+\s+import\s|(?:def|class)\s+\w+\s*[(:])"
        ),
        "a Python program and not a checkpoint",
        f"{_WEIGHTS} that it saves",
    ),
)


_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".h5", ".keras", ".onnx", ".index", ".tar", ".mar")


def refuse_by_sign(path: Path, head: bytes, tail: bytes) -> None:
    """Raises `CheckpointError` for a file of a known kind that is not read."""
    file = Edges(path, head, tail)
    for has_sign, what, cure in _SIGNS:
        if has_sign(file):
            raise CheckpointError(f"{path} is {what}. {_filled(cure, path)}.")


def _filled(cure: str, path: Path) -> str:
    """A remedy with the file's name in its command. In Python code within shell quotes, unusual names become FILE."""
    plain = re.fullmatch(r"[\w./ +~-]+", str(path))
    return cure.format(path=shlex.quote(str(path)), file=f"'{path}'" if plain else "'FILE'")


def refuse_zip(path: Path, members: list[str]) -> None:
    """Raises `CheckpointError` for a zip of other files, with a remedy that depends on its members."""
    if all(name.endswith(".npy") for name in members):
        raise CheckpointError(
            f"{path} is NumPy's (.npz), which does not say whose names its arrays have. Save them with torch, under "
            f"the names of a network that is read here: {_filled(_NPZ_TO_TORCH, path)}."
        )
    inside = next((name for name in members if name.lower().endswith(_CHECKPOINTS)), None)
    cure = f"Unpack it, and name the file in it ({inside[:80]}): unzip {shlex.quote(str(path))}" if inside else _WEIGHTS
    raise CheckpointError(
        f"{path} is no checkpoint that can be read here: it is a zip of other files, {members[0][:80]!r} first. {cure}."
    )


def what_it_is(head: bytes) -> str:
    """A description of a file of unknown kind, for the end of a sentence."""
    if not head:
        return "it is empty: its download or its copy was cut off"
    text = Edges(Path(), head, b"").text
    if text:
        first = head.decode("utf-8", "ignore").strip().splitlines()[0][:40]
        return f"it is a text that begins with {first!r}"
    return f"it begins with {head[:8].hex(' ')}"
