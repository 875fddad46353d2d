"""torch's containers: each is known by what is in it, read without its framework's loader, and kept within limits."""

from __future__ import annotations

import json
import pickle
import random
import resource
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints import CheckpointFile, locate, read_checkpoint
from app.checkpoints import pickled_weights as limits
from app.errors import CheckpointError, LabelsError, SettingError
from app.settings import load_settings
from tests import torch_made as made
from tests.lazy import Lazy, torch
from tests.torch_made import PARITY

own = Lazy("tests.own_modules")

# torch itself deprecates TorchScript, and warns of pickles that it then refuses.
pytestmark = pytest.mark.filterwarnings("ignore")

TURNED = ("1x1", "symmetric", "ceil", 1e-3)


@pytest.fixture(scope="module")
def turned() -> torch.nn.Module:
    return made.caffe_like()


@pytest.fixture(scope="module")
def turned_logits(turned: torch.nn.Module) -> np.ndarray:
    return made.own_logits(turned, made.photos()[:1])


def save_module(network: torch.nn.Module, path: Path) -> None:
    torch.save(network, path)


def save_legacy_module(network: torch.nn.Module, path: Path) -> None:
    torch.save({"epoch": np.int64(3), "model": network}, path, _use_new_zipfile_serialization=False)


def save_parallel(network: torch.nn.Module, path: Path) -> None:
    torch.save(torch.nn.DataParallel(network), path)


def save_script(network: torch.nn.Module, path: Path) -> None:
    torch.jit.script(network).save(str(path))


def save_trace(network: torch.nn.Module, path: Path) -> None:
    torch.jit.trace(network, torch.zeros(1, 3, 224, 224)).save(str(path))


def save_export(network: torch.nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 224, 224),)), path)


CONTAINERS: list[tuple[str, str, Callable[[torch.nn.Module, Path], None]]] = [
    ("torch zip", "the file's pickled module", save_module),
    ("torch legacy", "the file's pickled module", save_legacy_module),
    ("torch zip", "the file's pickled module", save_parallel),
    ("TorchScript", "the file's TorchScript", save_script),
    ("TorchScript", "the file's TorchScript", save_trace),
    ("torch.export", "the file's exported graph", save_export),
]


@pytest.mark.parametrize(("container", "source", "save"), CONTAINERS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_container_tells_its_switches(
    container: str,
    source: str,
    save: Callable[[torch.nn.Module, Path], None],
    turned: torch.nn.Module,
    turned_logits: np.ndarray,
    tmp_path: Path,
) -> None:
    """A module in any container gives its weights, strides, pool and epsilon, and with them its own logits."""
    path = tmp_path / "model"
    save(turned, path)
    examined = made.opened(path)
    assert examined.contents.container == container
    assert made.told_switches(examined.contents) == TURNED
    assert examined.decisions.stride_in.source == source
    assert len(examined.contents.weights) == 267
    assert made.distance(made.logits_of(examined, made.photos()[:1]), turned_logits) <= PARITY


@pytest.mark.parametrize("wrong", [{"stride_in": "3x3"}, {"pool": "symmetric"}, {"epsilon": 1e-5}, {"stem": "same"}])
def test_the_tolerance_tells_a_wrong_switch(
    wrong: dict[str, Any], turned: torch.nn.Module, turned_logits: np.ndarray, tmp_path: Path
) -> None:
    """Each switch turned back moves the logits by a hundred tolerances or more."""
    save_module(turned, tmp_path / "model")
    examined = made.opened(tmp_path / "model", **wrong)
    assert made.distance(made.logits_of(examined, made.photos()[:1]), turned_logits) > 100 * PARITY


def test_a_plain_state_dict_tells_no_switch(turned: torch.nn.Module, tmp_path: Path) -> None:
    """The weights alone say nothing of strides, and the assumption is marked as one."""
    torch.save(turned.state_dict(), tmp_path / "weights.pth")
    examined = made.opened(tmp_path / "weights.pth")
    assert made.told_switches(examined.contents) == (None, None, None, None)
    assert examined.decisions.stride_in.is_assumed


@pytest.mark.parametrize("new_container", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_training_extras_are_left_behind(dtype: str, new_container: bool, tmp_path: Path) -> None:
    """A checkpoint with its script's arguments, paths and numpy numbers gives its tensors, with their values."""
    state = {"fc.weight": torch.randn(5, 7), "conv1.weight": torch.randn(3, 4, 2, 2)}
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    extras = {"args": Namespace(lr=0.1, out=Path("out")), "best": np.float64(76.1), "seen": {1, 2}, "rng": np.ones(3)}
    path = tmp_path / "checkpoint.pth"
    torch.save({**extras, "model": state}, path, _use_new_zipfile_serialization=new_container)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    weights = read_checkpoint(path).weights
    assert weights.keys() == state.keys()
    assert all(np.array_equal(weights[name], tensor.float().numpy()) for name, tensor in state.items())


def test_views_of_one_storage_keep_their_values(tmp_path: Path) -> None:
    """Transposed, sliced, empty and tied tensors of a pickled module are what they were."""
    module = torch.nn.Module()
    base = torch.arange(24.0).reshape(4, 6)
    views = {"turned": base.T, "sliced": base[1:3, ::2], "empty": base[:0], "single": base[2, 3]}
    for name, view in views.items():
        module.register_buffer(name, view)
    for new_container in (True, False):
        torch.save(module, tmp_path / "m", _use_new_zipfile_serialization=new_container)
        weights = read_checkpoint(tmp_path / "m").weights
        assert all(np.array_equal(weights[name], view.numpy()) for name, view in views.items())


def test_frozen_script_is_refused(tmp_path: Path) -> None:
    """TorchScript whose weights became nameless constants is refused with the way to save it."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    torch.jit.freeze(torch.jit.script(network)).save(str(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=r"without named weights: torch\.jit\.freeze"):
        read_checkpoint(tmp_path / "m")


def test_anti_aliased_modules_are_refused(tmp_path: Path) -> None:
    """A network with a ResNet-50's entries and pools that blur is refused where the module shows them."""
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnetblur50"), tmp_path / "blur.pth")
    with pytest.raises(CheckpointError, match=r"anti-aliased strides \(maxpool\.1 is a BlurPool2d\)"):
        read_checkpoint(tmp_path / "blur.pth")


def test_a_class_of_ones_own_is_warned_of(tmp_path: Path) -> None:
    """A pickled module of an unknown class gives its weights, and a warning that its code is not run."""
    torch.save(own.Bespoke(), tmp_path / "m.pth")
    contents = read_checkpoint(tmp_path / "m.pth")
    assert set(contents.weights) == {"weight", "bias"}
    assert "Bespoke, whose own code never runs here" in contents.warnings[0]


# --- TorchServe and MLflow

HANDLER = "import pathlib\npathlib.Path({marker!r}).touch()\n"


def archive(path: Path, inner: Path, labels: object = None, name: str = "model.pth", **manifest: Any) -> Path:
    """A .mar as torch-model-archiver makes one, with a handler that leaves a mark where it runs."""
    document = {"runtime": "python", "model": {"modelName": "m", "serializedFile": name, "handler": "handler.py"}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("handler.py", HANDLER.format(marker=str(path.parent / "marker")))
        file.write(inner, "model.pth")
        if labels is not None:
            file.writestr("index_to_name.json", json.dumps(labels))
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(document | manifest))
    return path


@pytest.mark.parametrize("save", [save_legacy_module, save_trace])
def test_a_torchserve_archive_is_read(
    save: Callable[[torch.nn.Module, Path], None], turned: torch.nn.Module, tmp_path: Path
) -> None:
    """The model in a .mar is read by its own reader, with the archive's labels, and its handler leaves no mark."""
    save(turned, tmp_path / "inner")
    labels = {str(index): [f"n{index}", f"class {index}"] for index in range(10)}
    examined = made.opened(archive(tmp_path / "m.mar", tmp_path / "inner", labels))
    assert examined.contents.container == "TorchServe archive"
    assert made.told_switches(examined.contents) == TURNED
    assert examined.labels.value[3] == "class 3"
    assert examined.labels.source == "the archive's index_to_name.json"
    assert not (tmp_path / "marker").exists()


def test_a_torchserve_archive_is_refused_by_its_own_name(tmp_path: Path) -> None:
    """A fault of the inner file, its manifest or its labels names the archive and not the copy that was read."""
    inner = tmp_path / "inner"
    inner.write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"m\.mar \(model\.pth\) is no checkpoint"):
        read_checkpoint(archive(tmp_path / "m.mar", inner))
    with pytest.raises(CheckpointError, match=r"names no model file that is in the archive"):
        read_checkpoint(archive(tmp_path / "n.mar", inner, name="../../etc/passwd"))
    torch.save({"fc.weight": torch.ones(2, 2)}, inner)
    with pytest.raises(CheckpointError, match=r"index_to_name\.json is not a label map"):
        read_checkpoint(archive(tmp_path / "o.mar", inner, {"1": "one"}))


@pytest.mark.parametrize("name", ["data/model.pth", "data/state_dict.pth", "state_dict.pth"])
def test_an_mlflow_folder_is_read(name: str, tmp_path: Path) -> None:
    """What mlflow.pytorch logs is found in its folder, named, alone in model_weights/ or as it."""
    folder = tmp_path / "weights" / "run"
    (folder / "data").mkdir(parents=True)
    for companion in ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"):
        (folder / companion).write_text("flavors: {}\n")
    network = torch.nn.Linear(2, 3)
    torch.save(network if name.endswith("model.pth") else network.state_dict(), folder / name)
    contents = read_checkpoint(folder)
    assert contents.container == "MLflow folder (torch zip)"
    assert set(contents.weights) == {"weight", "bias"}
    assert locate(str(folder)) == CheckpointFile(folder)
    assert locate(None, tmp_path / "weights") == CheckpointFile(folder)
    assert locate(None, folder) == CheckpointFile(folder)


def test_an_mlflow_link_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    """A model that is a link to elsewhere is not followed."""
    torch.save({"a": torch.ones(1)}, tmp_path / "elsewhere.pth")
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "MLmodel").touch()
    (tmp_path / "run" / "data" / "model.pth").symlink_to(tmp_path / "elsewhere.pth")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        read_checkpoint(tmp_path / "run")


# --- limits


def rewritten(source: Path, to: Path, change: Callable[[zipfile.ZipFile], None], packed: bool = False) -> Path:
    """A copy of a zip with `change` made to it, its members packed or not."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
        change(new)
    return to


@pytest.fixture
def small(tmp_path: Path) -> Path:
    torch.save({"fc.weight": torch.ones(4, 4)}, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_zips_that_torch_would_not_write_are_refused(small: Path, tmp_path: Path) -> None:
    """Packed members, a name twice and names that lead out of the zip are each refused in a line."""

    def refusal(change: Callable[[zipfile.ZipFile], None], packed: bool = False) -> str:
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(rewritten(small, tmp_path / "copy.pth", change, packed))
        return str(error.value)

    assert "is compressed, which torch never does" in refusal(lambda zip_: None, packed=True)
    assert "two members of one name" in refusal(lambda zip_: zip_.writestr("small/data.pkl", b""))
    for name in ("../outside", "/etc/passwd", "small/../../x"):
        assert "leads out of it" in refusal(lambda zip_, name=name: zip_.writestr(name, b""))


def test_a_pickle_and_a_count_over_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data.pkl over 16 MiB and more than 2,000 tensors are refused before anything is copied."""
    torch.save({"x": torch.ones(1), "note": "x" * (16 << 20)}, tmp_path / "long.pth")
    with pytest.raises(CheckpointError, match=r"data\.pkl has 16,\d{3},\d{3} bytes, and at most 16,777,216"):
        read_checkpoint(tmp_path / "long.pth")
    one = torch.ones(1)
    torch.save({str(index): one for index in range(limits.MAX_TENSORS + 1)}, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="has 2,001 tensors, and at most 2,000 are read"):
        read_checkpoint(tmp_path / "many.pth")


def test_a_file_over_the_limit_is_refused_unread(small: Path) -> None:
    """A file larger than RESNET_MAX_CHECKPOINT_BYTES is refused with both numbers and the setting's name."""
    settings = load_settings(max_checkpoint_bytes=100)
    with pytest.raises(CheckpointError, match=r"at most 100 are read.*RESNET_MAX_CHECKPOINT_BYTES"):
        made.opened(small, max_checkpoint_bytes=settings.max_checkpoint_bytes)
    assert load_settings().max_checkpoint_bytes == 1 << 30


def test_a_sparse_file_of_terabytes_costs_nothing(tmp_path: Path) -> None:
    """A file over 1 GiB is refused by its size, in no time, though it begins like a checkpoint."""
    path = tmp_path / "huge.pth"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"has 1,099,511,627,776 bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("whole", [True, False], ids=["pickled module", "state dict"])
def test_tensors_larger_than_their_storage_are_refused(whole: bool, tmp_path: Path) -> None:
    """A few bytes that claim to be terabytes by a stride of 0, and many views of one storage, are never copied."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    giant = torch.nn.Module()
    giant.register_buffer("fc", torch.ones(1).expand(10**6, 10**6))
    many = torch.nn.Module()
    shared = torch.ones(1 << 18, dtype=torch.float16)
    for index in range(1000):
        many.register_buffer(f"b{index}", shared)
    for module, expected in ((giant, r"claims shape \(1000000, 1000000\)"), (many, "tensors claim 524,288,000 bytes")):
        torch.save(module if whole else dict(module.named_buffers(remove_duplicate=False)), tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=expected):
            read_checkpoint(tmp_path / "m.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_zips_of_other_things_are_refused(tmp_path: Path) -> None:
    """A zip that is no checkpoint is refused with the name of what it holds."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("cat.jpg", b"\xff\xd8")
    with pytest.raises(CheckpointError, match=r"it is a zip of other files, 'cat\.jpg' first"):
        read_checkpoint(tmp_path / "photos.zip")


# --- damage


def small_module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Flatten()).eval()


def small_files(folder: Path) -> list[Path]:
    """One of each container, of some kilobytes."""
    module = small_module()
    image = torch.zeros(2, 3, 4, 4)
    torch.save({"fc.weight": torch.ones(4, 4), "a": Namespace(b=1)}, folder / "zip.pth")
    torch.save({"fc.weight": torch.ones(4, 4)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(module, folder / "module.pth")
    torch.save(module, folder / "legacy-module.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(module).save(str(folder / "script.pt"))
    torch.export.save(torch.export.export(module, (image,)), folder / "export.pt2")
    archive(folder / "serve.mar", folder / "zip.pth", {"0": "a"})
    return sorted(folder.iterdir())


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever bytes of whatever container are damaged, reading ends in weights or in one line, in bounded memory."""
    (tmp_path / "made").mkdir()
    files = small_files(tmp_path / "made")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance = random.Random(0)
    refused = 0
    for file in files:
        original = file.read_bytes()
        pickle_at = max(original.find(b"\x80\x02"), 0)
        for round_ in range(50):
            damaged = bytearray(original)
            # Half of them near the first pickle, where a byte means most.
            low, high = (0, len(damaged)) if round_ % 2 else (pickle_at, min(pickle_at + 900, len(damaged)))
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(low, high)] = chance.randrange(256)
            path = tmp_path / "damaged"
            path.write_bytes(damaged[: chance.randrange(len(damaged))] if round_ % 10 == 0 else damaged)
            try:
                read_checkpoint(path)
            except (CheckpointError, LabelsError, SettingError) as refusal:
                refused += 1
                assert "\n" not in str(refusal)  # noqa: PT017 - the refusal is one of two right ends
    assert 100 < refused < 50 * len(files)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert not (tmp_path / "made" / "marker").exists()
