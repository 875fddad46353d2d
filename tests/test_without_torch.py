"""With torch, torchvision and timm not to be had, every format of a ResNet-50 is served from the first start on."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from app.backends import BackendOptions, create_backend
from app.checkpoints import open_checkpoint
from app.images import decode
from app.ranking import rank
from app.settings import Settings
from app.types import Want
from tests.checkpoints_made import Told, make_network, without_counters
from tests.images_made import photo
from tests.parity.patterns import FIXTURES
from tests.photos import LIMITS, encode
from tests.running import CACHE_DIR, clean_environment, service_process
from tests.test_serve import address_in

CLASSES = 10
ABSENT = ("torch", "torchvision", "timm")
# Small images, for time; half of ResNet-50's points at the end are enough to tell two photos apart.
SIZE = {"resize": "72", "crop": "64"}
FLAGS = [each for name, value in SIZE.items() for each in (f"--{name}", value)]

# Python runs it before anything else, in each process that has its folder on the path: in children too.
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Absent())
"""
# Several commands in one process: starting each would be most of the time.
COMMANDS = """
import json, sys
from app.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["resnet-serve", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    print("\\x1e", flush=True)
"""


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that makes Python find no torch, on its path."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return folder


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return make_network("resnet50", classes=CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "coffee"):
        (folder / f"{name}.jpg").write_bytes(encode(photo(name)))
    return folder


def environment_of(absent: Path) -> dict[str, str]:
    repository = Path(__file__).parent.parent
    return clean_environment() | {"PYTHONPATH": f"{absent}{os.pathsep}{repository}", "COLUMNS": "200"}


def run(absent: Path, commands: list[list[str]], folder: Path) -> list[str]:
    """What each of the commands of `resnet-serve` prints, from an empty cache on."""
    environment = environment_of(absent) | {CACHE_DIR: str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\x1e")


def best_by_torch(path: str, image: Path) -> Any:
    """The first prediction of the torch backend, here."""
    checkpoint = open_checkpoint(Settings(weights=path, **SIZE), Told(), lambda: False)
    backend = create_backend(
        "torch" if checkpoint.graph is None else "onnx", checkpoint, BackendOptions("cpu", threads=1)
    )
    pixels = decode(image.read_bytes(), checkpoint.preprocessing, LIMITS)
    outputs = backend.infer(pixels[None], Want.SCORES)
    backend.close()
    return rank(outputs.scores[0], outputs.activation, checkpoint.labels, 1)[0]


def save_legacy(network: torch.nn.Module, path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, path, _use_new_zipfile_serialization=False)


def save_bfloat16(network: torch.nn.Module, path: Path) -> None:
    torch.save({name: tensor.bfloat16() for name, tensor in without_counters(network.state_dict()).items()}, path)


def save_safetensors(network: torch.nn.Module, path: Path) -> None:
    safetensors.torch.save_file(network.state_dict(), path)


def save_script(network: torch.nn.Module, path: Path) -> None:
    torch.jit.trace(network, torch.zeros(1, 3, 64, 64), check_trace=False).save(str(path))


def save_export(network: torch.nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 64, 64),)), path)


def save_onnx(network: torch.nn.Module, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
    axes = {"image": {0: "N"}, "scores": {0: "N"}}
    torch.onnx.export(network, (torch.zeros(1, 3, 64, 64),), path, dynamo=False, dynamic_axes=axes, **names)


WRITTEN: dict[str, Callable[[torch.nn.Module, Path], None]] = {
    "weights.pth": lambda network, path: torch.save(network.state_dict(), path),
    "legacy.pth": save_legacy,
    "half.pth": save_bfloat16,
    "module.pt": lambda network, path: torch.save(network, path),
    "script.pt": save_script,
    "export.pt2": save_export,
    "model.safetensors": save_safetensors,
    "model.onnx": save_onnx,
}
"""By the name of the file."""
UNPACKED = ("keras/keras.h5", "keras/keras.keras", "keras-v2/keras-v2.weights.h5", "objects/keras-3", "original")
"""Fixtures that other frameworks wrote."""


def unpacked(name: str, folder: Path) -> Path:
    fixture, _, file = name.partition("/")
    if file:
        (packed,) = (FIXTURES / fixture).glob("*.tar.xz")
        with lzma.open(packed) as archive, tarfile.open(fileobj=archive, mode="r|") as tar:
            for member in tar:
                if member.name == file or member.name.startswith(f"{file}/"):
                    tar.extract(member, folder, filter="data")
        return folder / file
    (folder / "model.ckpt.index").write_bytes((FIXTURES / name / "model.ckpt.index").read_bytes())
    data = "model.ckpt.data-00000-of-00001"
    (folder / data).write_bytes(lzma.decompress((FIXTURES / name / f"{data}.xz").read_bytes()))
    return folder / "model.ckpt.index"


@pytest.mark.filterwarnings("ignore")  # torch deprecates its own formats
@pytest.mark.parametrize("name", [*WRITTEN, *UNPACKED, "offline-demo"])
def test_every_format_is_served_without_torch(
    name: str, network: torch.nn.Module, absent: Path, photos: Path, tmp_path: Path
) -> None:
    """inspect, classify, convert and evaluate do their work, and the answer is torch's within 1e-4."""
    weights = name
    if name in WRITTEN:
        weights = str(tmp_path / name)
        WRITTEN[name](network, Path(weights))
    elif name in UNPACKED:
        weights = str(unpacked(name, tmp_path))
    image = photos / "chelsea.jpg"
    commands = [["classify", "--json", "-k", "1", "--weights", weights, *FLAGS, str(image)]]
    if name != "offline-demo":
        commands += [
            ["inspect", "--json", *FLAGS, weights],
            ["evaluate", "--json", "-", *FLAGS, weights, str(photos)],
        ]
    if name not in ("offline-demo", "model.onnx"):
        commands += [["convert", *FLAGS, weights, str(tmp_path / "converted.safetensors")]]
    classified, *others = run(absent, commands, tmp_path)
    found = json.loads(classified)["predictions"][0]
    expected = best_by_torch(weights, image)
    assert found["class_id"] == expected.class_id
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-4)
    if name == "offline-demo":
        return
    assert json.loads(others[0])["decisions"]["preprocessing"]["value"]["crop"] == [64, 64]
    assert "photos" in json.loads(others[1])
    assert (tmp_path / "converted.safetensors").exists() == (name != "model.onnx")


@pytest.mark.parametrize("name", ["weights.pth", "offline-demo"])
def test_a_server_answers_without_torch(
    name: str, network: torch.nn.Module, absent: Path, photos: Path, tmp_path: Path
) -> None:
    """A real server, from an empty cache and again from the kept artifact, answers as torch does."""
    weights = name
    if name in WRITTEN:
        weights = str(tmp_path / name)
        WRITTEN[name](network, Path(weights))
    image = photos / "coffee.jpg"
    expected = best_by_torch(weights, image)
    flags = ("--weights", weights, "--cache-dir", str(tmp_path / "cache"), "--max-batch-size", "1", *FLAGS)
    for _ in range(2):
        with service_process(*flags, folder=tmp_path, environment=environment_of(absent)) as service:
            address = address_in(service.wait_for("Ready:"))
            answer = httpx.post(f"{address}/predict", content=image.read_bytes(), timeout=60).json()
            assert service.stop() == 0
        (best, *_) = answer["predictions"]
        assert best["class_id"] == expected.class_id
        assert best["probability"] == pytest.approx(expected.probability, abs=1e-4)


def test_another_network_says_that_it_needs_torch(absent: Path, tmp_path: Path) -> None:
    """A network that torchvision builds is refused in one line that names it, and what to install."""
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    done = subprocess.run(
        [sys.executable, "-m", "app", "inspect", "--architecture", "squeezenet1_1", str(tmp_path / "other.pth")],
        cwd=tmp_path,
        env=environment_of(absent),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "squeezenet1_1 is built by torchvision, which is not installed here" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_block_is_one(absent: Path) -> None:
    """What these tests start cannot import torch: without that they would show nothing."""
    program = f"import importlib\nfor name in {ABSENT!r}:\n    importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", program], env=environment_of(absent), capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr
