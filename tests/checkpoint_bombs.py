"""Checkpoints that claim, repeat or name far more than they hold: each is refused before it takes time or memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.checkpoint_fuzz import _block, _varint, table

_MEGABYTE = 1 << 20


class _Storage:
    def __init__(self, key: str, count: int) -> None:
        self.key = key
        self.count = count


class _Tensor:
    def __init__(self, storage: _Storage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        arguments = (self.storage, 0, (self.storage.count,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        import torch

        if isinstance(value, _Storage):
            return "storage", torch.FloatStorage, value.key, "cpu", value.count
        return None


def _pickled(document: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, 2).dump(document)
    return out.getvalue()


def overlapping_storages(folder: Path, storages: int = 100, megabytes: int = 40, script: bool = False) -> Path:
    """A torch zip whose many storages are one region of the file: 4 GB claimed of 40 MB."""
    count = megabytes * _MEGABYTE // 4
    names = [f"layer1.{number}.weight" for number in range(storages)]
    document: Any = {name: _Tensor(_Storage(str(number), count)) for number, name in enumerate(names)}
    path = folder / ("model.pt" if script else "weights.pth")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled(document))
        archive.writestr("archive/version", "3\n")
        if script:
            archive.writestr("archive/constants.pkl", _pickled(()))
            archive.writestr("archive/code/__torch__.py", "class Net(Module):\n  pass\n")
        archive.writestr("archive/data/0", bytes(4 * count))
        first = archive.getinfo("archive/data/0")
        for number in range(1, storages):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            info.CRC, info.file_size, info.compress_size = first.CRC, first.file_size, first.compress_size
            info.header_offset = first.header_offset
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    return path


def many_tensors(folder: Path, count: int = 200_000) -> Path:
    """A torch zip whose pickle names a tensor 200,000 times."""
    tensor = _Tensor(_Storage("0", 1))
    with zipfile.ZipFile(folder / "weights.pth", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled({f"w{number}": tensor for number in range(count)}))
        archive.writestr("archive/data/0", bytes(4))
    return folder / "weights.pth"


def laughing_pickle(folder: Path) -> Path:
    """A pickle whose lists hold each other: thousands of millions of entries if it were walked."""
    document: Any = "ha"
    for _ in range(30):
        document = [document] * 10
    with zipfile.ZipFile(folder / "weights.pth", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": document, "classes": document}, 2))
    return folder / "weights.pth"


def _bundle(folder: Path, entries: list[tuple[bytes, bytes]], data_bytes: int) -> Path:
    (folder / "model.ckpt.index").write_bytes(table([(b"", b"\x08\x01"), *entries]))
    with (folder / "model.ckpt.data-00000-of-00001").open("wb") as file:
        file.truncate(data_bytes)
    return folder / "model.ckpt.index"


def _entry(shape: bytes, offset: int, size: int) -> bytes:
    """A BundleEntryProto of float32."""
    offset_field = b"\x20" + _varint(offset) if offset else b""
    return b"\x08\x01\x12" + _varint(len(shape)) + shape + offset_field + b"\x28" + _varint(size)


def _shape(*sizes: int) -> bytes:
    return b"".join(b"\x12" + _varint(len(one)) + one for size in sizes for one in [b"\x08" + _varint(size)])


def overlapping_entries(folder: Path) -> Path:
    """A TensorFlow index of 2,000 entries that are all the same 40 MB."""
    count = 10 * _MEGABYTE
    entry = _entry(_shape(count), 0, 4 * count)
    names = sorted(f"net/block2/bottlencek1/v{number:05}/kernel".encode() for number in range(2_000))
    return _bundle(folder, [(name, entry) for name in names], 4 * count)


def multiplying_keys(folder: Path) -> Path:
    """A TensorFlow index whose keys share prefixes of a megabyte: 9 MB become gigabytes."""
    entry = _entry(_shape(1), 0, 4)
    first = b"a" * _MEGABYTE
    parts = [b"\0" + _varint(len(first)) + _varint(len(entry)) + first + entry]
    for number in range(9_000):
        fresh = struct.pack(">I", number).hex().encode()
        parts.append(_varint(len(first) - 8) + _varint(len(fresh)) + _varint(len(entry)) + fresh + entry)
    block = b"".join(parts) + struct.pack("<II", 0, 1)
    index = _block([(b"\xff", _varint(0) + _varint(len(block)))])
    tail = _block([])
    out = block + bytes(5) + tail + bytes(5) + index + bytes(5)
    footer = (
        *(_varint(len(block) + 5), _varint(len(tail))),
        *(_varint(len(block) + 5 + len(tail) + 5), _varint(len(index))),
    )
    (folder / "model.ckpt.index").write_bytes(
        out + b"".join(footer).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    )
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(64))
    return folder / "model.ckpt.index"


def many_dimensions(folder: Path) -> Path:
    """A TensorFlow entry of a million dimensions."""
    entry = _entry(_shape(*[1] * 1_000_000), 0, 4)
    return _bundle(folder, [(b"net/block2/bottlencek1/conv_1/kernel", entry)], 64)


def many_safetensors(folder: Path) -> Path:
    """A safetensors header that names a million tensors."""
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ("{" + ",".join(f'"w{number}":{entry}' for number in range(1_000_000)) + "}").encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder / "model.safetensors"


def overlapping_safetensors(folder: Path) -> Path:
    """A safetensors header whose thousand tensors are the same 40 MB."""
    size = 40 * _MEGABYTE
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({f"w{number}": entry for number in range(1_000)}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return folder / "model.safetensors"


def large_config(folder: Path) -> Path:
    """A Hugging Face folder with a config.json of 15 MB."""
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "more": [[[]]] * 2_500_000}))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


def unpacking_archive(folder: Path) -> Path:
    """A TorchServe archive of 1 MB whose weights unpack to 1 GB."""
    with zipfile.ZipFile(folder / "model.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"serializedFile": "weights.pth"}}))
        with archive.open("weights.pth", "w") as member:
            for _ in range(1000):
                member.write(bytes(_MEGABYTE))
    return folder / "model.mar"


def fifo(folder: Path) -> Path:
    """A checkpoint that is a pipe which nobody writes to."""
    os.mkfifo(folder / "weights.pth")
    return folder / "weights.pth"


def fifo_config(folder: Path) -> Path:
    """A folder whose config.json is a pipe."""
    large_config(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    return folder


def endless(folder: Path) -> Path:
    """A checkpoint that leads to /dev/zero."""
    (folder / "weights.pth").symlink_to("/dev/zero")
    return folder / "weights.pth"


def endless_config(folder: Path) -> Path:
    """A folder whose config.json leads to /dev/zero."""
    large_config(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    return folder


def endless_labels(folder: Path) -> Path:
    """A checkpoint beside a labels.txt that leads to /dev/zero."""
    from tests.checkpoint_fuzz import SEEDS

    (folder / "labels.txt").symlink_to("/dev/zero")
    return SEEDS["ONNX"](folder)


def hostile_name(folder: Path) -> Path:
    """A damaged file whose name clears a terminal and begins a line of its own."""
    path = folder / "a\x1b[2J\nERROR all is well\x07.pth"
    path.write_bytes(b"nothing")
    return path


def deep_json(folder: Path) -> Path:
    """A Hugging Face folder whose config.json is nested 100,000 deep."""
    large_config(folder)
    (folder / "config.json").write_text('{"model_type": "resnet", "a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return folder


def _near_the_limit(folder: Path, dtype: str, form: str) -> Path:
    """A ResNet-50's entries and others without a place, 800 MB and more together."""
    import torch
    import torchvision.models
    from safetensors.torch import save_file

    number = getattr(torch, dtype)
    state = {name: tensor.to(number) for name, tensor in torchvision.models.resnet50().state_dict().items()}
    pieces = 800 * _MEGABYTE // (16 * _MEGABYTE * number.itemsize)
    state |= {f"extra{piece}.weight": torch.zeros(16, _MEGABYTE, dtype=number) for piece in range(pieces)}
    path = folder / f"weights.{form}"
    if form == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


# Too large for the suite: `make hostile` reads them.
LARGE: dict[str, Callable[[Path], Path]] = {
    f"{dtype} of 900 MB as {form}": partial(_near_the_limit, dtype=dtype, form=form)
    for dtype in ("float32", "float16", "bfloat16")
    for form in ("pth", "safetensors")
}
BOMBS: dict[str, Callable[[Path], Path]] = {
    "torch zip, storages overlap": overlapping_storages,
    "TorchScript, storages overlap": lambda folder: overlapping_storages(folder, script=True),
    "torch zip, 200,000 tensors": many_tensors,
    "torch zip, lists in lists": laughing_pickle,
    "TensorFlow, entries overlap": overlapping_entries,
    "TensorFlow, keys multiply": multiplying_keys,
    "TensorFlow, a million dimensions": many_dimensions,
    "safetensors, a million tensors": many_safetensors,
    "safetensors, tensors overlap": overlapping_safetensors,
    "config.json of 15 MB": large_config,
    "config.json nested 100,000 deep": deep_json,
    "TorchServe archive that unpacks to 1 GB": unpacking_archive,
    "a pipe": fifo,
    "config.json is a pipe": fifo_config,
    "leads to /dev/zero": endless,
    "config.json leads to /dev/zero": endless_config,
    "labels.txt leads to /dev/zero": endless_labels,
    "control characters in the name": hostile_name,
}
