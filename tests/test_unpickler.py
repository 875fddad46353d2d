"""Nothing that a pickle names is imported or run: it is refused, or becomes a stand-in, in limited time and memory."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints import pickled_weights, read_checkpoint
from app.checkpoints.pickled_document import locate_weights
from app.checkpoints.pickled_weights import unpickle
from app.errors import CheckpointError
from app.processes.limited import run_limited
from app.processes.start import bare_command
from tests.lazy import torch, torchvision
from tests.programs import PROGRAM, put_program

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of pickles that it then refuses

ANYWHERE = Path("file")


class Calls:
    """Unpickled, it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def traps(marker: Path) -> dict[str, Calls]:
    """Each makes the marker when it is unpickled by the usual means."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Calls(os.system, f"touch {marker}"),
        "posix.mkdir": Calls(os.mkdir, str(marker)),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "subprocess.check_call": Calls(subprocess.check_call, ["touch", str(marker)]),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
    }


NAMES = sorted(traps(ANYWHERE))


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "value", "key", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_a_malicious_pickle_runs_nothing(name: str, where: str, new_container: bool, tmp_path: Path) -> None:
    """Code alone, among the weights, as a key or in a whole module is refused by name, and leaves no mark."""
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    trap = traps(marker)[name]
    module = torch.nn.Linear(2, 2)
    module.extra = trap  # type: ignore[assignment]
    document = {"alone": trap, "value": {"w": torch.ones(1), "x": trap}, "module": module}.get(where)
    if where == "key":
        document = {"state_dict": {"w": torch.ones(1), ("name", trap): torch.ones(1)}}
    torch.save(document, path, _use_new_zipfile_serialization=new_container)
    with pytest.raises(CheckpointError, match="nothing in a checkpoint is ever run here") as refusal:
        read_checkpoint(path)
    assert f"({name})" in str(refusal.value)
    assert not marker.exists()


def test_the_traps_do_spring(tmp_path: Path) -> None:
    """Unpickled by the usual means, a trap makes its mark: that it stays absent elsewhere says something."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(traps(marker)["posix.mkdir"]))
    assert marker.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "os system", "posix system", "nt system", "subprocess run", "sys exit", "importlib import_module",
        "socket socket", "shutil rmtree", "pty spawn", "code InteractiveInterpreter", "builtins eval",
        "builtins exec", "builtins __import__", "__builtin__ eval", "__builtin__ execfile", "builtins open",
        "runpy run_path", "ctypes CDLL", "pickle loads", "marshal loads", "operator attrgetter", "torch.hub load",
        "torch load", "numpy load", "webbrowser open", "urllib.request urlopen", "types CodeType",
        "os.path join", "multiprocessing.util _args_from_interpreter_flags", "timeit timeit", "pdb run",
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 4])
def test_names_without_a_place_in_a_checkpoint_refuse_it(name: str, protocol: int) -> None:
    """A global of the modules that run, reach or read things refuses the file, whether or not it is called."""
    module, attribute = name.split(" ")
    content = f"c{module}\n{attribute}\n.".encode()
    if protocol == 4:
        parts = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
        content = b"\x80\x04" + parts + b"\x93."
    # Python 2's builtins go by their later name.
    found = f"{module}.{attribute}".replace("__builtin__", "builtins")
    with pytest.raises(CheckpointError, match=found):
        unpickle("zip", content, ANYWHERE)


@pytest.mark.parametrize(
    "name", ["torch.nn os.system", "numpy core.os.system", "a __class__.__base__", "x y.__globals__"]
)
def test_names_that_walk_through_objects_refuse_the_file(name: str) -> None:
    """A dotted name that walks through a module to another, or to an object's insides, is refused."""
    module, attribute = name.split(" ")
    parts = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
    with pytest.raises(CheckpointError, match="more than tensors"):
        unpickle("zip", b"\x80\x04" + parts + b"\x93.", ANYWHERE)


def unpickler() -> list[str]:
    """The command line of the process that unpickles."""
    limits = asdict(pickled_weights.LIMITS)
    return bare_command("app.checkpoints.inert_unpickler", "zip", limits=limits, flags=("-I", "-S"))


def test_nothing_that_is_named_is_imported(tmp_path: Path) -> None:
    """A module on the path that leaves a mark when imported is named by a pickle, and leaves none."""
    (tmp_path / "trap_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Trap: pass\n")
    content = b"ctrap_module\nTrap\n)R."
    done = subprocess.run(unpickler(), input=content, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0
    assert b"trap_module.Trap" in done.stdout
    assert not (tmp_path / "marker").exists()
    assert unpickle("zip", content, ANYWHERE).document == {"o": "trap_module.Trap"}


PERSISTENT = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
LONG_4 = b"\x8b"


def bombs() -> dict[str, bytes]:
    """Pickles that cost time, memory or the stack, by what they do."""
    # t = (t, t), sixty times over: its hash is taken of 2**60 parts.
    doubled = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    return {
        "doubled tuple for a key": b"\x80\x02}" + doubled + b"K\x01s.",
        "deep tuple for a key": b"\x80\x02})" + b"\x85" * 5_000_000 + b"K\x01s.",
        "deep lists": b"\x80\x02" + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
        "huge binary integer": b"\x80\x02" + LONG_4 + struct.pack("<i", 1 << 30) + b"\x01" * 100 + b".",
        "integer of 15 MB": b"\x80\x02" + LONG_4 + struct.pack("<i", 15_000_000) + b"\x01" * 15_000_000 + b".",
        "integer in digits": b"L" + b"9" * 10_000_000 + b"L\n.",
        "text of 2 GiB": b"\x80\x02X" + struct.pack("<I", (1 << 31) - 1) + b"abc.",
        "text of an exabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc.",
        "frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"abc.",
        "memo of four billion": b"\x80\x02Nr\xff\xff\xff\xff.",
        "sixteen million dicts": b"\x80\x02(" + b"}" * 16_000_000 + b"l.",
        "giant bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "giant storage": b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
        "shape of text": b"ctorch._utils\n_rebuild_tensor_v2\n(" + PERSISTENT + b"K\x00X\x01\x00\x00\x00a)tR.",
        "negative stride": b"ctorch._utils\n_rebuild_tensor_v2\n("
        + PERSISTENT
        + b"K\x00K\x02\x85J\xff\xff\xff\xff\x85tR.",
        "nothing": b"",
        "stack underflow": b"\x80\x02R.",
        "unknown opcode": b"\x80\x02\xff.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_end_in_one_line(name: str) -> None:
    """A pickle made to exhaust time, memory or the stack is refused in bounded time, and here no memory is taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    content = bombs()[name]
    try:
        found = unpickle("zip", content, ANYWHERE)
    except CheckpointError as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017
    else:
        assert locate_weights(found.document, ANYWHERE).tensors == {}
    assert time.process_time() - began < 25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # KiB


MEASURE = """
import json, os, resource, subprocess, sys
content = sys.stdin.buffer.read()
command = [each.replace('"parent": ' + sys.argv[1], f'"parent": {os.getpid()}') for each in sys.argv[2:]]
done = subprocess.run(command, input=content, capture_output=True)
assert done.stdout[:1] == b"\x01", done.stderr
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.parametrize("name", ["sixteen million dicts", "deep lists", "integer of 15 MB", "text of an exabyte"])
def test_the_process_stays_within_its_memory(name: str) -> None:
    """The process that reads the worst of them never holds more than it may."""
    command = [sys.executable, "-c", MEASURE, str(os.getpid()), *unpickler()]
    done = subprocess.run(command, input=bombs()[name], capture_output=True, check=True)
    assert 0 < int(done.stdout) * 1024 <= pickled_weights.LIMITS.memory_bytes


OPEN = """
import os, socket, sys
def main():
    for act in (lambda: open("/etc/hostname"), socket.socket, os.pipe):
        try:
            act()
        except OSError:
            sys.stdout.write("no ")
"""


def test_the_process_can_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its limits, the process that unpickles can open no file, no socket and no pipe to a program."""
    put_program(tmp_path, monkeypatch, OPEN)
    limits = pickled_weights.LIMITS
    assert run_limited(PROGRAM, (), lambda pipe: pipe.read(), limits, standard_library_only=True) == b"no no no "


def test_a_module_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """Modules without end are refused, and a mapping that holds itself ends too."""
    module = torch.nn.Linear(1, 1)
    module._modules["child"] = module
    torch.save(module, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="modules without end"):
        read_checkpoint(tmp_path / "m.pth")
    document: dict[str, Any] = {"args": Namespace()}
    document["model"] = {"state_dict": document}
    torch.save(document, tmp_path / "n.pth")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "n.pth")


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_all_320_tensors_of_a_pickled_resnet50_are_found(container: str, tmp_path: Path) -> None:
    """A whole pickled ResNet-50 gives every tensor's place and shape, and its convolutions' strides."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in torchvision.models.resnet50().state_dict().items()}
    network = torchvision.models.resnet50()
    path = tmp_path / "m.pth"
    torch.save(network, path, _use_new_zipfile_serialization=container == "zip")
    content = path.read_bytes()
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            content = archive.read("m/data.pkl")
    pickled = unpickle("zip" if container == "zip" else "legacy", content[: 16 << 20], path)
    found = locate_weights(pickled.document, path)
    assert len(found.tensors) == 320
    assert {name: place.shape for name, place in found.tensors.items()} == shapes
    assert found.modules["layer2.0.conv2"]["stride"] == [2, 2]
    assert found.modules["bn1"]["eps"] == 1e-5
    assert found.modules["maxpool"]["padding"] == 1


def test_stand_ins_take_what_real_classes_take(tmp_path: Path) -> None:
    """Namespaces, numpy's scalars and arrays, sets, paths and mappings of one's own pass and leave nothing behind."""
    document = {
        "state_dict": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.zeros(3))},
        "args": Namespace(nested=Namespace(lr=np.float32(0.1)), path=Path("x"), names={"a", "b"}),
        "history": np.arange(12).reshape(3, 4),
        "kind": torch.float16,
        "device": torch.device("cpu"),
        "complex": 1j,
        "raw": bytearray(b"abc"),
    }
    for new_container in (True, False):
        torch.save(document, tmp_path / "m.pth", _use_new_zipfile_serialization=new_container)
        weights = read_checkpoint(tmp_path / "m.pth").weights
        assert {name: values.tolist() for name, values in weights.items()} == {"a": [1, 1], "b": [0, 0, 0]}
