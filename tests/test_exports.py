"""Exports kept on disk: made once, used by every later start without torch, made again when anything has changed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import torchvision.models

from app.backends import BackendOptions, create_backend
from app.backends.null import NULL_CHECKPOINT
from app.backends.onnx import OnnxBackend
from app.backends.onnx_sessions import Sessions, open_session, session_options
from app.checkpoints import Checkpoint, CheckpointFile, Graph, PublishedWeights
from app.errors import CheckpointError, ExportFailed, SettingError, StartError
from app.exports import build, choice, key, open_served, process, store, timings_of, worker
from app.exports.key import code_digest, cpu_features, key_of, key_parts
from app.exports.store import Entry, Store
from app.opening import Found, LoadCancelled, open_checkpoint
from app.settings import EXPORT_SETTINGS, Settings
from app.types import Want
from tests.checkpoints_made import Told
from tests.onnx_graphs import Maker
from tests.running import service_process, wait_until
from tests.test_exporting import pixels_of
from tests.test_serve import address_in
from tests.torch_made import discriminating

CLASSES = 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of seven classes, with a name for each beside it."""
    folder = tmp_path_factory.mktemp("weights")
    network = discriminating(torchvision.models.resnet18(num_classes=CLASSES))
    torch.save(network.state_dict(), folder / "small.pth")
    (folder / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(CLASSES)), encoding="utf-8")
    return folder / "small.pth"


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that has the export of `weights`, made by the process that makes them."""
    cache = tmp_path_factory.mktemp("exported")
    process.export_apart(settings_of(weights, cache), Told(), lambda: False)
    return cache


@pytest.fixture
def cache(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "cache"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of what is exported from now on; in this process, which has torch already."""
    keys: list[str] = []

    def export_here(settings: Settings, reporter: Told, is_cancelled: Callable[[], bool]) -> str:
        keys.append(worker.export(settings, reporter))
        return keys[-1]

    monkeypatch.setattr(choice, "export_apart", export_here)
    return keys


def settings_of(weights: Path, cache: Path, **others: Any) -> Settings:
    return Settings(**({"weights": str(weights), "architecture": "resnet18", "cache_dir": cache} | others))


def opened(settings: Settings, told: Told | None = None) -> tuple[Checkpoint, str]:
    return open_served(settings, told or Told(), lambda: False)


def scores_of(checkpoint: Checkpoint, backend: str = "onnx") -> np.ndarray:
    """What a backend on one thread answers for three photos."""
    made = create_backend(backend, checkpoint, BackendOptions("cpu", threads=1))
    try:
        return made.infer(pixels_of(checkpoint.preprocessing.crop), Want.SCORES).scores
    finally:
        made.close()


def entry_in(cache: Path) -> Path:
    (folder,) = [path.parent for path in (cache / "exports").glob("*/entry.json")]
    return folder


# --- one start after another


def test_second_start_opens_what_the_first_has_made(weights: Path, cache: Path, made: list[str]) -> None:
    """A kept export is served as it is, with all that the checkpoint is known by, and answers as torch does."""
    settings = settings_of(weights, cache)
    told = Told()
    kept, backend = opened(settings, told)
    assert (backend, made) == ("onnx", [])
    assert told.steps == ["Looking for its export"]
    read = open_checkpoint(settings, Told(), lambda: False)
    for name in ("architecture", "class_count", "preprocessing", "labels", "sha256", "source", "warnings", "switches"):
        assert getattr(kept, name) == getattr(read, name), name
    assert kept.labels[3] == "kind 3"
    assert kept.graph is not None
    assert kept.graph.path is not None
    assert not kept.weights
    expected = scores_of(read, "torch")
    assert np.abs(scores_of(kept) - expected).max() <= 2e-6 * np.abs(expected).max()


def test_a_server_that_starts_again_imports_no_torch(weights: Path, cache: Path, example_jpeg: bytes) -> None:
    """Where the export is kept, a real server is ready, and answers, without torch among what it has imported."""
    flags = ("--weights", str(weights), "--architecture", "resnet18", "--cache-dir", str(cache))
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    with service_process(*flags, folder=cache, environment=environment) as service:
        address = address_in(service.wait_for("Ready:"))
        with httpx.Client(base_url=address, timeout=60) as client:
            answer = client.post("/predict", content=example_jpeg).json()
        assert answer["predictions"][0]["label"].startswith("kind ")
        mapped = Path(f"/proc/{service.process.pid}/maps")
        assert not mapped.exists() or "libtorch" not in mapped.read_text()
        assert service.stop() == 0
    imported = {line.rpartition("|")[2].strip() for line in service.lines if line.startswith("import time:")}
    assert {"onnxruntime", "numpy", "fastapi"} <= imported
    assert not {"torch", "torchvision", "timm", "onnx"} & imported


def test_offline_demo_and_an_onnx_file_are_kept_too(tmp_path: Path, made: list[str]) -> None:
    """The demo goes the same way, and of an ONNX file, kept as it is, what was found out about it."""
    file = tmp_path / "graph.onnx"
    file.write_bytes(Maker().build())
    for weights in ("offline-demo", str(file)):
        settings = Settings(weights=weights, cache_dir=tmp_path / "cache")
        first, second = opened(settings)[0], opened(settings)[0]
        assert first == second
        made_now = len(made)
        assert np.array_equal(scores_of(first), scores_of(second))
        read = open_checkpoint(settings, Told(), lambda: False)
        reference = scores_of(read, "onnx" if read.graph else "torch")
        assert np.abs(scores_of(second) - reference).max() <= 2e-6 * np.abs(reference).max()
    assert made_now == len(made) == 2


def test_published_weights_are_found_without_torchvision(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torchvision has the weights of a name is kept: the second start looks them up without importing it."""
    cache = tmp_path / "cache"
    (cache / "checkpoints").mkdir(parents=True)
    network = discriminating(torchvision.models.resnet18())
    torch.save(network.state_dict(), cache / "checkpoints" / "resnet18-f37072fd.pth")
    settings = settings_of(Path("IMAGENET1K_V1"), cache)
    first, _ = opened(settings)

    def unused(*arguments: object) -> None:
        raise AssertionError("torchvision was asked")

    monkeypatch.setattr("app.checkpoints.find_by_name", unused)
    assert opened(settings)[0] == first
    assert len(made) == 1


def test_the_fallback_is_kept_as_what_it_is(tmp_path: Path, made: list[str]) -> None:
    """Weights that stand in for others that cannot be downloaded keep their warning, and the demo itself has none."""
    cannot = {"download_mirror": "http://127.0.0.1:9", "cache_dir": tmp_path}
    fallback = Settings(weights_fallback="offline-demo", **cannot)
    first, second = opened(fallback)[0], opened(fallback)[0]
    assert first == second
    assert second.is_fallback
    assert "could not be downloaded" in second.warnings[0]
    demo, _ = opened(Settings(weights="offline-demo", **cannot))
    assert (demo.is_fallback, demo.warnings) == (False, ())
    assert len(made) == 2


# --- the key


def parts_of(weights: Path, cache: Path, **settings: Any) -> dict[str, Any]:
    return key_parts(settings_of(weights, cache, **settings), Found(CheckpointFile(weights)))


@pytest.mark.parametrize(
    "changed",
    [
        {"architecture": "resnet34"},
        {"stride_in": "1x1"},
        {"stem": "same"},
        {"pool": "ceil"},
        {"epsilon": 1e-3},
        {"preprocessing": "timm"},
        {"max_checkpoint_bytes": 1 << 29},
    ],
    ids=str,
)
def test_each_setting_of_a_decision_changes_the_key(weights: Path, cache: Path, changed: dict[str, Any]) -> None:
    """An export is of one way to serve: another is another export."""
    assert set(changed) <= set(EXPORT_SETTINGS)
    assert key_of(parts_of(weights, cache)) == key_of(parts_of(weights, cache))
    assert key_of(parts_of(weights, cache)) != key_of(parts_of(weights, cache, **changed))


def test_each_file_that_is_read_changes_the_key(weights: Path, tmp_path: Path) -> None:
    """One bit of the weights, a label, a config beside them, a named labels file: each makes another key."""
    file = tmp_path / "small.pth"
    shutil.copy(weights, file)
    labels = tmp_path / "names.txt"
    labels.write_text("a\nb", encoding="utf-8")
    keys = [key_of(parts_of(file, tmp_path)), key_of(parts_of(file, tmp_path, labels=labels))]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    keys.append(key_of(parts_of(file, tmp_path)))
    (tmp_path / "labels.txt").write_text("a", encoding="utf-8")
    keys.append(key_of(parts_of(file, tmp_path)))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    keys.append(key_of(parts_of(file, tmp_path)))
    labels.write_text("a\nc", encoding="utf-8")
    keys.append(key_of(parts_of(file, tmp_path, labels=labels)))
    assert len(set(keys)) == len(keys)


def test_one_byte_of_the_code_or_the_labels_changes_the_key(tmp_path: Path, repository: Path) -> None:
    """What reads and exports is in the key by content, and so are ImageNet's names, which an export carries."""
    copy = Path(shutil.copytree(repository / "app", tmp_path / "app"))
    digests = [code_digest.__wrapped__(copy)]
    for name in ("data/imagenet1k_labels.txt", "labels.py", "exports/build.py", "checkpoints/families.py"):
        content = bytearray((copy / name).read_bytes())
        content[100] ^= 1
        (copy / name).write_bytes(content)
        digests.append(code_digest.__wrapped__(copy))
    assert len(set(digests)) == len(digests)


def test_each_version_and_the_cpu_change_the_key(
    weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another package, exporter, reader or CPU may give another graph."""
    keys = [key_of(parts_of(weights, cache))]

    def changed(module: object, name: str, value: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.append(key_of(parts_of(weights, cache)))

    real = key._version
    for package in ("torch", "torchvision", "onnx", "onnxruntime", "timm"):
        changed(key, "_version", lambda name, package=package: "0" if name == package else real(name))
    changed(key, "code_digest", lambda: "other")
    lines = "processor : 0\nmodel name : A CPU\nflags : fma avx2 {}\n\nprocessor : 1\nflags : none\n"
    for flags in ("", "avx512f"):
        (tmp_path / "cpuinfo").write_text(lines.format(flags), encoding="utf-8")
        told = cpu_features(tmp_path / "cpuinfo")
        changed(key, "cpu_features", lambda told=told: told)
    assert len(set(keys)) == len(keys) == 9
    assert cpu_features(tmp_path / "none")


# --- damage, and what else can happen to a cache


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def garbage(file: Path) -> None:
    file.write_bytes(b"\x00garbage")


def replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", ["entry.json", "model.onnx", "weights.bin"])
@pytest.mark.parametrize("damage", [cut, flip, garbage, Path.unlink, replace_by_a_folder])
def test_a_damaged_export_is_seen(
    weights: Path, cache: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever became of a file, the entry is not served: it is said, and removed to be made again."""
    folder = entry_in(cache)
    damage(folder / name)
    assert Store(cache).read(folder.name) is None
    assert not folder.exists()
    assert "is damaged" in caplog.text


def test_a_damaged_export_is_made_again(weights: Path, cache: Path, made: list[str]) -> None:
    """The start that meets the damage makes the export anew and serves it."""
    expected = scores_of(opened(settings_of(weights, cache))[0])
    flip(entry_in(cache) / "weights.bin")
    assert np.array_equal(scores_of(opened(settings_of(weights, cache))[0]), expected)
    assert made == [entry_in(cache).name]
    opened(settings_of(weights, cache))
    assert len(made) == 1


def test_an_entry_that_lacks_its_digests_is_not_trusted(cache: Path) -> None:
    """An entry that says nothing of its files, or of another form, is no entry."""
    folder = entry_in(cache)
    document = json.loads((folder / "entry.json").read_text())
    for wrong in (document | {"files": {}}, [document], document | {"entry": "{}"}):
        (folder / "entry.json").write_text(json.dumps(wrong), encoding="utf-8")
        copy = shutil.copytree(folder, cache / "exports" / "copy")
        assert Store(cache).read("copy") is None
        assert not copy.exists()


def test_two_first_starts_at_once_both_serve(weights: Path, tmp_path: Path) -> None:
    """Two processes that export the same at the same time end with one whole entry and nothing beside it."""
    settings = settings_of(weights, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(open_served, settings, Told(), lambda: False) for _ in range(2)]
        (first, _), (second, _) = [each.result() for each in found]
    assert first == second
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [entry_in(tmp_path).name]
    assert np.array_equal(scores_of(first), scores_of(second))


def test_a_second_writer_leaves_the_first_ones_entry(weights: Path, cache: Path) -> None:
    """An entry that is there may be mapped into memory by a server: it is not replaced."""
    folder = entry_in(cache)
    before = (folder / "weights.bin").stat().st_ino
    settings = settings_of(weights, cache)
    assert worker.export(settings, Told()) == folder.name
    assert (folder / "weights.bin").stat().st_ino == before
    assert entry_in(cache) == folder


def test_an_unwritable_cache_is_a_warning(weights: Path, tmp_path: Path) -> None:
    """Where nothing can be kept, the start says so and serves all the same."""
    (tmp_path / "cache").write_text("a file, and no folder", encoding="utf-8")
    settings = settings_of(weights, tmp_path / "cache")
    told = Told()
    checkpoint, backend = opened(settings, told)
    assert backend == "onnx"
    (warning,) = [line for line in told.warnings if "cannot be kept" in line]
    assert "RESNET_CACHE_DIR" in warning
    expected = scores_of(open_checkpoint(settings, Told(), lambda: False), "torch")
    assert np.abs(scores_of(checkpoint) - expected).max() <= 2e-6 * np.abs(expected).max()
    assert timings_of(checkpoint.graph, 1, "auto") is None


def test_only_the_newest_exports_are_kept(cache: Path, exported: Path) -> None:
    """A fifth export replaces the one that was not used for longest, and leavings of killed writers go too."""
    kept = Store(cache)
    folder = entry_in(cache)
    checkpoint = kept.read(folder.name)
    assert checkpoint is not None
    assert checkpoint.graph is not None
    entry = Entry.of(checkpoint, checkpoint.graph)
    for number in range(4):
        with kept.unfinished() as unfinished:
            for name in ("model.onnx", "weights.bin"):
                shutil.copy(folder / name if folder.exists() else entry_in(exported) / name, unfinished)
            os.utime(folder, (10, 10))
            kept.keep(f"key-{number}", unfinished, entry)
        if number < 3:
            os.utime(cache / "exports" / f"key-{number}", (100 + number, 100 + number))
    assert sorted(path.name for path in (cache / "exports").iterdir()) == [f"key-{number}" for number in range(4)]


WRITER = """
import sys
from pathlib import Path
from app.exports.store import Store

with Store(Path(sys.argv[1])).unfinished() as folder:
    (folder / "weights.bin").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_killed_writers_have_left_goes_at_the_next_export(tmp_path: Path) -> None:
    """A folder that is being written, however old, stays; once its process was killed the next writer removes it."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        theirs = Path(writer.stdout.readline().strip())
        os.utime(theirs, (1, 1))
        with Store(tmp_path).unfinished() as ours:
            assert {path.name for path in (tmp_path / "exports").iterdir()} == {theirs.name, ours.name}
        writer.kill()
        writer.wait()
    assert theirs.is_dir()
    with Store(tmp_path).unfinished() as ours:
        assert list((tmp_path / "exports").iterdir()) == [ours]
    assert list((tmp_path / "exports").iterdir()) == []


def test_half_an_export_goes_at_the_next_export(cache: Path) -> None:
    """What a removal that was cut short has left is removed; whole exports and what else is known stay."""
    kept = entry_in(cache).name
    (cache / "exports" / "half").mkdir()
    (cache / "exports" / "half" / "weights.bin").write_bytes(b"half")
    store = Store(cache)
    store.remember_failure("key", "It cannot.")
    store.remember("V1", PublishedWeights("resnet18", "V1", "https://example.org/a.pth", NULL_CHECKPOINT.preprocessing))
    with store.unfinished() as unfinished:
        names = {path.name for path in (cache / "exports").iterdir()}
    assert names == {kept, "failed", "published", unfinished.name}


def test_a_disk_that_fails_is_no_damage(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the disk while an export is read removes nothing."""
    folder = entry_in(cache)

    def fails(file: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(store, "sha256_of", fails)
        assert Store(cache).read(folder.name) is None
    assert "Input/output error" in caplog.text
    assert Store(cache).read(folder.name) is not None


def test_a_full_disk_leaves_no_halves(cache: Path) -> None:
    """What is kept beside exports is written whole or not at all."""
    checkpoint = Store(cache).read(entry_in(cache).name)
    assert checkpoint is not None
    timings = timings_of(checkpoint.graph, 2, "auto")
    assert timings is not None
    before = set(cache.rglob("*"))
    weights = PublishedWeights("resnet18", "V1", "https://example.org/a.pth", NULL_CHECKPOINT.preprocessing)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        timings.keep({1: 0.25, 2: 0.5})
        with pytest.raises(OSError, match="too large"):
            Store(cache).remember("V1", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert timings.read() == {}
    assert {path for path in set(cache.rglob("*")) - before if path.is_file()} == set()


# --- the process that exports


def test_errors_come_through_as_they_are(tmp_path: Path) -> None:
    """What is wrong with a checkpoint or a setting is the same typed error, in the same words, as in this process."""
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    settings = settings_of(tmp_path / "bad.pth", tmp_path)
    with pytest.raises(CheckpointError) as here:
        open_checkpoint(settings, Told(), lambda: False)
    with pytest.raises(CheckpointError) as there:
        opened(settings)
    assert str(there.value) == str(here.value)


def test_a_process_that_dies_is_told(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed, for memory perhaps, ends the start with what to do; libraries' last words are passed on."""
    put_worker(monkeypatch, "import os\nprint('no memory', flush=True)\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(StartError, match=r"ended by itself \(status -9, killed: .*no memory"):
        process.export_apart(settings_of(weights, tmp_path), Told(), lambda: False)


def test_a_process_that_crashes_is_no_end(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a signal ends is named, and torch serves; one that fails with words has the export made here."""
    put_worker(monkeypatch, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    checkpoint, backend = opened(settings_of(weights, tmp_path))
    assert backend == "torch"
    assert "SIGSEGV" in checkpoint.warnings[-1]
    assert "memory" not in checkpoint.warnings[-1]
    put_worker(monkeypatch, "raise SystemExit('a library is missing')")
    told = Told()
    checkpoint, backend = opened(settings_of(weights, tmp_path), told)
    assert backend == "onnx"
    (warning,) = [line for line in told.warnings if "own process" in line]
    assert "ended with status 1. It said last: a library is missing. So it is made in this one" in warning
    assert not list(tmp_path.glob("exports/failed/*"))


def put_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """`program` in place of `app.exports.worker`."""
    monkeypatch.setattr(process, "command", lambda module, *arguments: [sys.executable, "-c", program, *arguments])


def test_output_of_libraries_hides_no_message(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever libraries write to either stream, and however much, the process's messages arrive."""
    put_worker(
        monkeypatch,
        "import sys\nfrom app.processes.channel import Channel\nchannel = Channel.inherited(sys.argv[1])\n"
        "sys.stderr.write('50% ')\nsys.stderr.flush()\nchannel.send('step', text='Trying')\n"
        "sys.stdout.write('and so ' * 100_000)\nsys.stdout.flush()\nchannel.send('done', key='a key')\n",
    )
    told = Told()
    assert process.export_apart(settings_of(weights, tmp_path), told, lambda: False) == "a key"
    assert told.steps == ["Trying"]


def test_a_cancelled_export_ends_its_process(weights: Path, tmp_path: Path) -> None:
    """A service that is told to stop while its checkpoint is exported does so at once and leaves nothing behind."""
    told = Told()
    began: list[float] = []

    def is_cancelled() -> bool:
        if told.steps:
            began.append(time.monotonic())
        return bool(told.steps)

    with pytest.raises(LoadCancelled):
        process.export_apart(settings_of(weights, tmp_path), told, is_cancelled)
    assert time.monotonic() - began[0] < process._EXIT_SECONDS
    assert list((tmp_path / "exports").iterdir()) == []


def test_an_export_whose_service_is_killed_ends_too(weights: Path, tmp_path: Path) -> None:
    """The process notices that nobody waits for it any more."""
    flags = ("--weights", str(weights), "--architecture", "resnet18", "--cache-dir", str(tmp_path))
    with service_process(*flags, folder=tmp_path) as service:
        service.wait_for("Starting PyTorch in a process of its own")
        tasks = Path(f"/proc/{service.process.pid}/task")
        wait_until(lambda: any(each.read_text() for each in tasks.glob("*/children")))
        children = [int(word) for each in tasks.glob("*/children") for word in each.read_text().split()]
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(is_running(child) for child in children))
    assert not list(tmp_path.glob("exports/*/entry.json"))


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what is chosen


def test_a_network_that_cannot_be_exported_is_served_by_torch(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that answers otherwise than torch is not kept: torch serves, with a warning, unless onnx was named."""
    monkeypatch.setattr(build, "TOLERANCE", -1.0)
    checkpoint, backend = opened(settings_of(weights, tmp_path))
    assert backend == "torch"
    assert checkpoint.weights
    assert "resnet18 as ONNX answers otherwise than PyTorch" in checkpoint.warnings[-1]
    assert "served by PyTorch" in checkpoint.warnings[-1]
    with pytest.raises(ExportFailed, match="answers otherwise"):
        opened(settings_of(weights, tmp_path, backend="onnx"))
    assert [path.name for path in tmp_path.glob("exports/*")] == ["failed"]
    assert len(made) == 0


def test_a_failed_export_is_not_tried_again(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later starts go straight to torch and say why in a line, until what is kept of the failure is removed."""
    settings = settings_of(weights, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(build, "TOLERANCE", -1.0)
        opened(settings)
    told = Told()
    checkpoint, backend = opened(settings, told)
    assert backend == "torch"
    assert not [step for step in told.steps if "process of its own" in step]
    (warning,) = [line for line in checkpoint.warnings if "as ONNX answers otherwise" in line]
    (file,) = tmp_path.glob("exports/failed/*")
    assert f"to try again, remove {file}. So it is served by PyTorch" in warning
    assert "\n" not in warning
    file.write_bytes(b"{}")
    assert opened(settings)[1] == "onnx"
    file.unlink()
    assert opened(settings)[1] == "onnx"
    assert len(made) == 1


def test_what_is_not_the_networks_fault_is_tried_again(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while the network is traced is no reason never to try again."""

    def no_memory(*arguments: object, **others: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", no_memory)
        with pytest.raises(MemoryError):
            opened(settings_of(weights, tmp_path))
    assert not list(tmp_path.glob("exports/failed/*"))
    assert opened(settings_of(weights, tmp_path))[1] == "onnx"


def test_what_this_machine_does_to_an_export_is_no_mark(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that may come of the machine has torch serve once, and is tried again at the next start."""

    def fails(*arguments: object, **others: object) -> None:
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", fails)
        checkpoint, backend = opened(settings_of(weights, tmp_path))
        assert backend == "torch"
        assert "could not create a primitive" in checkpoint.warnings[-1]
    assert not list(tmp_path.glob("exports/failed/*"))
    assert opened(settings_of(weights, tmp_path))[1] == "onnx"


# Set for the service and, inherited, for the process that exports.
ON_A_FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
from app.cli import main
main()
"""
WITHOUT_EXECUTABLE_MEMORY = """
import ctypes, sys
# PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN (linux/prctl.h): systemd's MemoryDenyWriteExecute.
sys.exit(77) if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) else None
from app.resources import may_run_written_memory
assert not may_run_written_memory()
from app.cli import main
main()
"""


def test_a_full_disk_does_not_end_the_start(weights: Path, tmp_path: Path, example_jpeg: bytes) -> None:
    """Where an export does not fit on the disk the reason is said, the service serves, and a later start keeps one."""
    flags = ("--weights", str(weights), "--architecture", "resnet18", "--cache-dir", str(tmp_path / "cache"))
    with service_process(*flags, folder=tmp_path, program=ON_A_FULL_DISK) as service:
        address = address_in(service.wait_for("Ready:"))
        assert httpx.post(f"{address}/predict", content=example_jpeg).status_code == 200
        assert httpx.get(f"{address}/healthz").json()["backend"] == "onnx"
        assert service.stop() == 0
    said = "\n".join(service.lines)
    assert "cannot be kept" in said
    assert "File too large" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("cache/exports/*/*"))
    with service_process(*flags, folder=tmp_path) as service:
        service.wait_for("Ready:")
        assert service.stop() == 0
    assert entry_in(tmp_path / "cache")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_no_executable_memory_is_no_obstacle(weights: Path, tmp_path: Path, example_jpeg: bytes, backend: str) -> None:
    """Under a service manager that forbids writable-executable memory the export is made and kept, or torch serves."""
    flags = ("--weights", str(weights), "--architecture", "resnet18", "--cache-dir", str(tmp_path / "cache"))
    with service_process(*flags, "--backend", backend, folder=tmp_path, program=WITHOUT_EXECUTABLE_MEMORY) as service:
        try:
            address = address_in(service.wait_for("Ready:"))
        except AssertionError:
            if service.ended() == 77:
                pytest.skip("this kernel has no PR_SET_MDWE")
            raise
        assert httpx.post(f"{address}/predict", content=example_jpeg).status_code == 200
        assert service.stop() == 0
    said = "\n".join(service.lines)
    assert "could not create a primitive" not in said
    assert bool(list(tmp_path.glob("cache/exports/*/entry.json"))) is (backend == "auto")


def test_an_export_in_memory_is_checked_too(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be kept, a graph that answers otherwise than torch is not served either."""
    (tmp_path / "cache").write_text("a file, and no folder", encoding="utf-8")
    monkeypatch.setattr(build, "TOLERANCE", -1.0)
    checkpoint, backend = opened(settings_of(weights, tmp_path / "cache"))
    assert backend == "torch"
    assert "resnet18 as ONNX answers otherwise than PyTorch" in checkpoint.warnings[-1]
    with pytest.raises(ExportFailed, match="answers otherwise"):
        opened(settings_of(weights, tmp_path / "cache", backend="onnx"))


def test_a_card_that_torch_cannot_use_is_told(
    weights: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that counts a GPU which PyTorch does not see is a warning, and the CPU serves as it would without."""
    monkeypatch.setattr(choice, "cuda_device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    checkpoint, backend = opened(settings_of(weights, cache))
    assert (backend, made) == ("onnx", [])
    assert "PyTorch cannot use it" in checkpoint.warnings[0]
    for others in ({"backend": "torch"}, {"precision": "bfloat16"}):
        asked, backend = opened(settings_of(weights, cache, **others))
        assert backend == "torch"
        assert "PyTorch cannot use it" in asked.warnings[0]
    for devices, sees, expected in ((1, True, "torch"), (0, False, "onnx")):
        monkeypatch.setattr(choice, "cuda_device_count", lambda devices=devices: devices)
        monkeypatch.setattr("torch.cuda.is_available", lambda sees=sees: sees)
        served, backend = opened(settings_of(weights, cache))
        assert backend == expected
        assert not [line for line in served.warnings if "PyTorch cannot use it" in line]


@pytest.mark.parametrize("wrong", [{"precision": "bfloat16"}, {"device": "cuda"}], ids=str)
def test_what_onnx_cannot_do_is_said_before_reading(weights: Path, cache: Path, wrong: dict[str, str]) -> None:
    """The reason that is given is the setting that does not fit, and not the checkpoint, which is not read for it."""
    told = Told()
    ((name, value),) = wrong.items()
    with pytest.raises(SettingError, match=f"^RESNET_{name.upper()} is {value}, but ONNX graphs"):
        opened(settings_of(weights, cache, backend="onnx", **wrong), told)
    assert told.steps == []


@pytest.mark.parametrize(
    ("difference", "fails"), [(0.0, False), (9e-4, False), (2e-3, True), (np.nan, True), (np.inf, True)]
)
def test_what_differs_is_not_let_pass(difference: float, fails: bool) -> None:
    """A logit that is off by more than 1e-4 of the largest, or is no number, is seen."""
    expected = np.array([[1.0, -10.0], [3.0, 2.0]], np.float32)
    found = expected.copy()
    found[1, 0] += np.float32(difference)
    if not fails:
        build.check_same(found, expected, "resnet18")
        return
    with pytest.raises(ExportFailed):
        build.check_same(found, expected, "resnet18")


@pytest.mark.parametrize(
    ("settings", "devices", "expected"),
    [
        ({}, 0, True),
        ({}, 1, False),
        ({"device": "cpu"}, 1, True),
        ({"device": "cuda"}, 1, False),
        ({"backend": "onnx"}, 1, True),
        ({"backend": "torch", "device": "cpu"}, 0, False),
        ({"precision": "bfloat16"}, 0, False),
        ({"precision": "float32"}, 0, True),
    ],
    ids=str,
)
def test_onnx_runtime_is_for_the_cpu(
    settings: dict[str, Any], devices: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto takes ONNX Runtime where there is no GPU, or the CPU was named, in float32; a named backend is taken."""
    monkeypatch.setattr(choice, "cuda_device_count", lambda: devices)
    assert choice.is_for_cpu(Settings(**settings)) is expected


def test_torch_is_still_had_by_name(weights: Path, cache: Path, made: list[str]) -> None:
    """--backend torch reads the checkpoint in this process and exports nothing."""
    checkpoint, backend = opened(settings_of(weights, cache, backend="torch", device="cpu"))
    assert (backend, checkpoint.graph, made) == ("torch", None, [])
    with pytest.raises(SettingError, match="RESNET_BACKEND is onnx, which serves ONNX"):
        create_backend("onnx", checkpoint, BackendOptions())


def test_threads_are_as_many_as_were_asked_for(weights: Path, cache: Path) -> None:
    """A session has the threads of the options, and none that spins while it waits."""
    checkpoint, _ = opened(settings_of(weights, cache))
    assert checkpoint.graph is not None
    for threads in (1, 2):
        options = open_session(checkpoint.graph, threads).get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    backend = create_backend("onnx", checkpoint, BackendOptions(threads=2))
    assert backend.device == "cpu (2 threads, float32)"
    assert isinstance(backend, OnnxBackend)


@pytest.mark.parametrize(("threads", "together"), [(2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (5, [3, 2])])
def test_calls_at_once_share_the_threads(weights: Path, cache: Path, threads: int, together: list[int]) -> None:
    """A call that is alone has all threads; while one runs, those that begin have half of them each."""
    checkpoint, _ = opened(settings_of(weights, cache))
    assert checkpoint.graph is not None
    sessions = Sessions(checkpoint.graph, threads)

    def threads_of(session: Any) -> int:
        return int(session.get_session_options().intra_op_num_threads)

    assert sessions.calls == 2
    with ExitStack() as first:
        assert threads_of(first.enter_context(sessions.borrow())) == threads
        with sessions.borrow() as second:
            assert threads_of(second) == together[0]
            first.close()
            with sessions.borrow() as third:
                assert [threads_of(second), threads_of(third)] == together
                assert (third is second) is (together == [1, 1])
    with sessions.borrow() as again:
        assert threads_of(again) == threads


@pytest.mark.parametrize(("computes_in", "calls"), [("", 1), ("int8", 2)])
def test_float_weights_within_a_graph_are_held_once(tmp_path: Path, computes_in: str, calls: int) -> None:
    """An ONNX file is kept with its weights in it, of which each session has a copy: only int8's are small enough."""
    graph = Graph(b"", "image", "scores", "float32", "nchw", None, None, 4, computes_in=computes_in)
    (tmp_path / "model.onnx").write_bytes(Maker().build())
    sessions = Sessions(replace(graph, path=tmp_path / "model.onnx"), 4)
    assert sessions.calls == calls
    with sessions.borrow() as first, sessions.borrow() as second:
        assert (first is second) is (calls == 1)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """What is set for torch in this process is as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_the_export_keeps_to_the_setting(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESNET_COMPUTE_THREADS is for the process that exports as well: for ONNX Runtime and for torch."""
    counts: list[int | None] = []

    def counted(threads: int | None) -> Any:
        counts.append(threads)
        return session_options(threads)

    monkeypatch.setattr(build, "session_options", counted)
    monkeypatch.setattr("app.backends.onnx_sessions.session_options", counted)
    worker.export(settings_of(weights, tmp_path, compute_threads=3), Told())
    assert counts == [3, 3]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, None])
def test_one_thread_runs_one_call(weights: Path, cache: Path, threads: int | None) -> None:
    """Where there is nothing to share there is one session."""
    checkpoint, _ = opened(settings_of(weights, cache))
    assert checkpoint.graph is not None
    assert Sessions(checkpoint.graph, threads).calls == 1


def test_answers_do_not_depend_on_who_else_asks(weights: Path, cache: Path) -> None:
    """Two calls at once answer what each answers alone, to the last bits of float32."""
    checkpoint, _ = opened(settings_of(weights, cache))
    backend = create_backend("onnx", checkpoint, BackendOptions(threads=2))
    crop = checkpoint.preprocessing.crop
    batches = np.random.default_rng(0).integers(0, 256, (8, 2, *crop, 3), dtype=np.uint8)
    alone = [backend.infer(batch, Want.SCORES).scores for batch in batches]
    with ThreadPoolExecutor(backend.concurrency) as pool:
        together = [outputs.scores for outputs in pool.map(lambda batch: backend.infer(batch, Want.SCORES), batches)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


# --- what a warm-up measured


def test_measured_seconds_are_kept_beside_the_export(weights: Path, cache: Path) -> None:
    """They are read as they were written, by number of threads and the setting that chose the sizes."""
    checkpoint, _ = opened(settings_of(weights, cache))
    timings = timings_of(checkpoint.graph, 2, "auto")
    assert timings is not None
    assert timings.read() == {}
    timings.keep({1: 0.25, 2: 0.5})
    assert timings.read() == {1: 0.25, 2: 0.5}
    for others in ((1, "auto"), (2, 8)):
        other = timings_of(checkpoint.graph, *others)
        assert other is not None
        assert other.read() == {}
    for damaged in (b"", b"[1]", b'{"one": 1}', b'{"1": null}'):
        (file,) = entry_in(cache).glob("seconds-*")
        file.write_bytes(damaged)
        assert timings.read() == {}
    # The entry itself is whole.
    assert Store(cache).read(entry_in(cache).name) is not None
    shutil.rmtree(entry_in(cache))
    timings.keep({1: 1.0})
    assert timings.read() == {}
