"""Damaged and hostile checkpoints for every reader: `make hostile`, and a short run in the suite.

Each file is read in a process of its own, which says how long that took and what memory it and its children held at
their peak. A file is read or refused in one line; nothing else may happen, and nothing may take more than twice the
file and 200 MB, or 30 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

MOST_SECONDS = 30.0
SPARE_BYTES = 200 * 1024 * 1024
_MOST_WALL_SECONDS = 60
_LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Measured:
    """What reading one checkpoint did."""

    outcome: str
    """"read", "refused", or what went wrong."""
    line: str
    """Of a refusal, its text."""
    seconds: float
    peak_bytes: int
    """What reading added to the process's memory at its peak, and the most that one of its children held."""

    def faults(self, size_bytes: int) -> list[str]:
        """What the bounds forbid."""
        faults = []
        if self.outcome not in ("read", "refused"):
            faults.append(self.outcome)
        if "\n" in self.line or not all(letter.isprintable() for letter in self.line):
            faults.append(f"the refusal is no one printable line: {self.line[:200]!r}")
        if self.seconds > MOST_SECONDS:
            faults.append(f"{self.seconds:.1f} s")
        if self.peak_bytes > 2 * size_bytes + SPARE_BYTES:
            faults.append(f"{self.peak_bytes / 1e6:.0f} MB for a file of {size_bytes / 1e6:.1f} MB")
        return faults


class Reader:
    """A process that has everything imported and forks for each checkpoint, so that each is measured alone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint_fuzz", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def measure(self, path: Path) -> Measured:
        """Read the checkpoint at `path`. Raises `RuntimeError` where the process that forks has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process that reads checkpoints has ended.")
        return Measured(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve() -> None:
    """The process behind `Reader`: a path as JSON on each line of its input, an answer on each of its output."""
    import h5py  # noqa: F401 - what readers import is not what a file costs
    import safetensors.torch  # noqa: F401
    import torch
    import torchvision.models  # noqa: F401

    import app.checkpoints  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(_apart(Path(json.loads(line))))) + "\n")
        sys.stdout.flush()


def _apart(path: Path) -> Measured:
    """Read in a forked process; one that dies or hangs is an answer too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 1
        try:
            os.write(write, json.dumps(asdict(_read(path))).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    deadline, most_of_children, ready = time.monotonic() + _MOST_WALL_SECONDS, 0, False
    while not ready and time.monotonic() < deadline:
        ready = bool(select.select([read], [], [], _LOOK_SECONDS)[0])
        most_of_children = max(most_of_children, _children_peak(child))
    answer = os.read(read, 1 << 16) if ready else b""
    os.close(read)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    if not answer:
        return Measured("the process died" if ready else "it hangs", "", _MOST_WALL_SECONDS, 0)
    measured = Measured(**json.loads(answer))
    return replace(measured, peak_bytes=measured.peak_bytes + most_of_children)


def _children_peak(process: int) -> int:
    """The most memory that one of the children which `process` has now has held since it became its program."""
    most = 0
    try:
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            # Between fork and exec it still has this process's memory.
            if "--serve" not in Path(f"/proc/{child}/cmdline").read_text():
                most = max(most, _status("VmHWM", child))
    except (OSError, ValueError):
        pass  # it has ended
    return most


def _read(path: Path) -> Measured:
    from app.errors import StartError
    from app.settings import Settings
    from tests.examined import examine

    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.monotonic()
    line = ""
    try:
        examine(Settings(), path)
        outcome = "read"
    except StartError as error:
        outcome, line = "refused", str(error)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - began
    return Measured(outcome, line[:2000], seconds, max(0, _status("VmHWM") - before))


def _status(name: str, process: str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


# --- files that are as they should be: what damage starts from


def _state() -> dict[str, object]:
    from tests.checkpoints_made import named_like_resnet50

    return {"state_dict": named_like_resnet50(), "class_to_idx": {"cat": 0, "dog": 1}, "epoch": 3}


def _torch_zip(folder: Path) -> Path:
    import torch

    torch.save(_state(), folder / "weights.pth")
    return folder / "weights.pth"


def _torch_legacy(folder: Path) -> Path:
    import torch

    torch.save(_state(), folder / "weights.pth", _use_new_zipfile_serialization=False)
    return folder / "weights.pth"


def _module(folder: Path) -> Path:
    import torch

    torch.save(_small(), folder / "model.pth")
    return folder / "model.pth"


def _small() -> object:
    """A module with two of a ResNet's names, a normalisation, and few numbers."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), relu=nn.ReLU(), fc=nn.Linear(4, 2))
    ).eval()


def _torch_script(folder: Path) -> Path:
    import torch

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 3)
            self.fc = torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.fc(torch.relu(self.conv1(x)).mean((2, 3)))
            return answer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word about its own age
        torch.jit.trace(Two().eval(), torch.zeros(1, 3, 8, 8)).save(str(folder / "model.pt"))
    return folder / "model.pt"


def _exported(folder: Path) -> Path:
    import torch

    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), folder / "model.pt2")
    return folder / "model.pt2"


def _safetensors(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    state = {name: tensor for name, tensor in _state()["state_dict"].items() if isinstance(tensor, torch.Tensor)}  # type: ignore[attr-defined]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def _sharded(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "id2label": {"0": "a", "1": "b"}}))
    names = ["resnet.embedder.embedder.convolution.weight", "classifier.1.weight"]
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        save_file({name: torch.ones(2, 2048)}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict(zip(names, shards, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _hdf5(folder: Path) -> Path:
    import h5py
    import numpy as np

    with h5py.File(folder / "model.h5", "w") as file:
        for layer in ("conv1_conv", "conv2_block1_1_conv", "predictions"):
            shape = (64, 2) if layer == "predictions" else (3, 3, 3, 4)
            file.create_dataset(f"model_weights/{layer}/{layer}/kernel:0", data=np.ones(shape, np.float32))
    return folder / "model.h5"


def _keras_zip(folder: Path) -> Path:
    import zipfile

    weights = _hdf5(folder)
    layers = [{"class_name": "Dense", "config": {"name": "predictions", "units": 2, "activation": "softmax"}}]
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": layers}}))
        archive.writestr("metadata.json", "{}")
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return folder / "model.keras"


def _saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir()
    _tensor_bundle(folder / "variables")
    for file in list((folder / "variables").iterdir()):
        file.rename(file.with_name(file.name.replace("model.ckpt", "variables")))
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\x04\x0a\x02\x0a\x00")
    return folder


def _own_preprocessing(folder: Path) -> Path:
    (folder / "preprocessing.json").write_text(json.dumps({"resize": 256, "crop": 224, "mean": [0.5, 0.5, 0.5]}))
    return _onnx(folder)


def _onnx_in_two(folder: Path) -> Path:
    import onnx

    from tests.onnx_graphs import Maker

    model = Maker().model()
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return folder / "m.onnx"


def _tensor_bundle(folder: Path) -> Path:
    entries = [(f"net/block2/bottlencek1/conv_{number}/kernel", b"\x08\x01\x28\x04\x45\0\0\0\0") for number in (1, 2)]
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(64))
    (folder / "model.ckpt.index").write_bytes(table([(b"", b"\x08\x01"), *((n.encode(), v) for n, v in entries)]))
    return folder / "model.ckpt.index"


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """An SSTable of one block whose keys share nothing (LevelDB's doc/table_format.md)."""
    data = _block(entries)
    index = _block([(b"\xff", _varint(0) + _varint(len(data)))])
    empty = _block([])
    out = data + bytes(5) + empty + bytes(5) + index + bytes(5)
    footer = (
        *(_varint(len(data) + 5), _varint(len(empty))),
        *(_varint(len(data) + 5 + len(empty) + 5), _varint(len(index))),
    )
    return out + b"".join(footer).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
    return body + struct.pack("<II", 0, 1)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _onnx(folder: Path) -> Path:
    from tests.onnx_graphs import Maker

    (folder / "model.onnx").write_bytes(Maker().build())
    return folder / "model.onnx"


def _archive(folder: Path) -> Path:
    import zipfile

    inner = _torch_zip(folder)
    with zipfile.ZipFile(folder / "model.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"serializedFile": "weights.pth"}}))
        archive.writestr("index_to_name.json", json.dumps({"0": "cat", "1": "dog"}))
        archive.write(inner, "weights.pth")
    inner.unlink()
    return folder / "model.mar"


SEEDS: dict[str, Callable[[Path], Path]] = {
    "torch zip": _torch_zip,
    "torch legacy": _torch_legacy,
    "pickled module": _module,
    "TorchScript": _torch_script,
    "torch.export": _exported,
    "safetensors": _safetensors,
    "Hugging Face shards": _sharded,
    "Keras HDF5": _hdf5,
    "Keras 3": _keras_zip,
    "SavedModel": _saved_model,
    "TensorFlow checkpoint": _tensor_bundle,
    "ONNX": _onnx,
    "ONNX and its data": _onnx_in_two,
    "a preprocessing beside": _own_preprocessing,
    "TorchServe archive": _archive,
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` cut, with bytes changed, a piece repeated or taken out, or a number made large."""
    data = bytearray(content)
    kind = chance.choice(("cut", "bytes", "bytes", "repeat", "remove", "number"))
    at = chance.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "bytes":
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == "repeat":
        data[at:at] = data[at : at + chance.randint(1, 4096)] * chance.randint(1, 8)
    elif kind == "remove":
        del data[at : at + chance.randint(1, 256)]
    else:
        data[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 40), struct.pack("<q", -1)))
    return bytes(data)


def damaged_checkpoints(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """`count` damaged ones of each kind, in folders of their own: the file, or one file of the folder."""
    chance = random.Random(seed)
    for name, create in SEEDS.items():
        home = folder / name.replace(" ", "-")
        home.mkdir(parents=True)
        path = create(home)
        files = {file: file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()}
        for _ in range(count):
            victim = chance.choice(list(files))
            victim.write_bytes(damaged(files[victim], chance))
            yield name, path
            victim.write_bytes(files[victim])


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--count", type=int, default=300, help="damaged files of each kind")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    if given.serve:
        serve()
        return 0
    from tests.checkpoint_bombs import BOMBS, LARGE

    reader, failed = Reader(), 0
    with tempfile.TemporaryDirectory() as temporary:
        outcomes: dict[str, Counter[str]] = {}
        worst: dict[str, tuple[float, int]] = {}
        for name, path in damaged_checkpoints(Path(temporary) / "damaged", given.count, given.seed):
            measured = reader.measure(path)
            outcomes.setdefault(name, Counter())[measured.outcome] += 1
            seconds, peak = worst.get(name, (0.0, 0))
            worst[name] = max(seconds, measured.seconds), max(peak, measured.peak_bytes)
            for fault in measured.faults(size_of(path)):
                failed += 1
                print(f"FAULT {name}: {fault}")
        for name, counted in outcomes.items():
            seconds, peak = worst[name]
            print(f"{name:24} {dict(counted)}, slowest {seconds:.2f} s, most {peak / 1e6:.0f} MB")
        for name, create in (BOMBS | LARGE).items():
            home = Path(temporary) / name.replace(" ", "-").replace("/", "-")
            home.mkdir()
            path = create(home)
            measured = reader.measure(path)
            faults = measured.faults(size_of(path))
            failed += len(faults)
            print(
                f"{name:60} {size_of(path) / 1e6:8.1f} MB: {measured.outcome}, {measured.seconds:.2f} s, "
                f"{measured.peak_bytes / 1e6:.0f} MB {'FAULT ' + '; '.join(faults) if faults else ''}"
            )
    reader.close()
    print(f"{failed} faults")
    return 1 if failed else 0


def size_of(path: Path) -> int:
    """Of a folder, or of files that make one checkpoint, all of them."""
    home = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in home.rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
