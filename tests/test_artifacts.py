"""Artifacts kept on disk: made once, used by every later start without torch, made again when anything has changed."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from app.artifacts import artifact, checking, open_served, opening, process, timings_of, worker
from app.artifacts.artifact import serialized
from app.artifacts.key import SCHEMA_VERSION, key_of
from app.artifacts.machine import cpu_features
from app.artifacts.store import Store
from app.backends import BackendOptions, choice, create_backend
from app.backends.choice import backend_name
from app.backends.null import NULL_CHECKPOINT
from app.backends.onnx import OnnxBackend
from app.backends.onnx_sessions import Sessions, open_session, session_options
from app.checkpoints import Checkpoint, CheckpointFile, Found, Graph, open_checkpoint
from app.errors import CheckpointError, ExportFailed, LoadCancelled, SettingError, StartError
from app.settings import EXPORT_SETTINGS, Settings
from app.types import Want
from tests.checkpoints_made import Told
from tests.examined import examine
from tests.lazy import torch, torchvision
from tests.onnx_graphs import Maker
from tests.pace import within
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
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SqueezeNet of seven classes, which torch exports."""
    path = tmp_path_factory.mktemp("traced") / "small.pth"
    torch.save(discriminating(torchvision.models.squeezenet1_1(num_classes=CLASSES)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that has the export of `weights`, made by the process that makes them."""
    cache = tmp_path_factory.mktemp("exported")
    process.export_apart(settings_of(weights, cache), Found(CheckpointFile(weights)), Told(), lambda: False)
    return cache


@pytest.fixture
def cache(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "cache"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of what is exported from now on; in this process, which has torch already."""
    keys: list[str] = []

    def export_here(settings: Settings, found: Found, reporter: Told, is_cancelled: Callable[[], bool]) -> str:
        keys.append(worker.export(settings, found, reporter))
        return keys[-1]

    monkeypatch.setattr(opening, "export_apart", export_here)
    return keys


def settings_of(weights: Path, cache: Path, **others: Any) -> Settings:
    return Settings(**({"weights": str(weights), "architecture": "resnet18", "cache_dir": cache} | others))


def opened(settings: Settings, told: Told | None = None) -> tuple[Checkpoint, str]:
    """What is served, and by which backend."""
    checkpoint = open_served(settings, told or Told(), lambda: False)
    return checkpoint, backend_name(settings.backend, checkpoint)


def scores_of(checkpoint: Checkpoint, backend: str = "onnx") -> np.ndarray:
    """What a backend on one thread answers for three photos."""
    made = create_backend(backend, checkpoint, BackendOptions("cpu", threads=1))
    try:
        return made.infer(pixels_of(checkpoint.preprocessing.crop), Want.SCORES).scores
    finally:
        made.close()


def file_in(cache: Path) -> Path:
    """The one artifact of a cache; its name is its key."""
    (file,) = (cache / "artifacts").glob("*.onnx")
    return file


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


# --- the file


def test_an_artifact_is_a_model_that_any_runtime_opens(weights: Path, cache: Path) -> None:
    """One ONNX file, valid and not optimised for a CPU, with its record in its metadata, answers as it is."""
    file = file_in(cache)
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert {each.domain for each in model.opset_import} <= {"", "ai.onnx"}
    notes = {each.key: each.value for each in model.metadata_props}
    record, facts = json.loads(notes["resnet_serve"]), json.loads(notes["resnet_serve_artifact"])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (record["source"], record["source_sha256"], facts["sha256"]) == ("small.pth", digest, digest)
    assert (record["architecture"], record["activation"], record["labels"][3]) == ("resnet18", "softmax", "kind 3")
    assert record["preprocessing"]["crop"] == [224, 224]
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["class_count"] == CLASSES
    assert facts["decided_by"]["architecture"] == "RESNET_ARCHITECTURE"
    assert facts["decided_by"]["labels"] == "labels.txt"
    assert (facts["key"], facts["schema_version"]) == (file.stem, SCHEMA_VERSION)
    checkpoint, _ = opened(settings_of(weights, cache))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    pixels = pixels_of(checkpoint.preprocessing.crop)
    assert np.array_equal(session.run(None, {"pixels": pixels})[0], scores_of(checkpoint))


def test_an_artifact_is_a_checkpoint_too(weights: Path, cache: Path, tmp_path: Path) -> None:
    """Copied elsewhere and named as weights, it is served by its own record, and nothing is assumed."""
    kept, _ = opened(settings_of(weights, cache))
    copy = tmp_path / "elsewhere" / "model.onnx"
    copy.parent.mkdir()
    shutil.copy(file_in(cache), copy)
    copied = examine(Settings(), copy).checkpoint
    for name in ("architecture", "class_count", "preprocessing", "labels", "activation"):
        assert getattr(copied, name) == getattr(kept, name), name
    assert not copied.warnings
    assert copied.graph is not None
    assert (copied.graph.is_exported, copied.graph.computes_in) == (True, "float32")
    assert np.array_equal(scores_of(copied), scores_of(kept))
    content = bytearray(copy.read_bytes())
    at = len(content) // 2
    content[at] ^= 1
    copy.write_bytes(content)
    with pytest.raises(CheckpointError, match="another graph than the one that its record was made of"):
        examine(Settings(), copy)


WRITTEN = {
    "network": "6f65db429a0328dfbca0e226974275b704ab02fa3077913fbc69dc5fbec775de",
    "onnx": "79ce5990b2c1732d59530a188321a2124cffd2f0ff560b6c2051aaa033f8a6a6",
}
"""What schema version 2 writes for the two checkpoints of the test below."""
VARYING = ("versions", "key", "source", "graph_sha256", "source_sha256", "sha256", "warnings", "trial_scores")


def described(file: Path) -> str:
    """A digest of all that is written for a checkpoint, but for numbers, paths and versions."""
    model = onnx.load(file)
    shown = [
        *(f"{node.op_type} {node.input} {node.output} {sorted(map(str, node.attribute))}" for node in model.graph.node),
        *(f"{tensor.name} {tensor.dims} {tensor.data_type}" for tensor in model.graph.initializer),
        *map(str, (*model.graph.input, *model.graph.output, *model.opset_import)),
    ]
    for entry in model.metadata_props:
        if entry.key != "resnet_serve_sha256":
            shown.append(json.dumps(json.loads(entry.value, object_hook=without_varying), sort_keys=True))
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()


def without_varying(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in VARYING}


def test_what_is_written_does_not_change_without_the_schema_version(
    weights: Path, cache: Path, tmp_path: Path, made: list[str]
) -> None:
    """The graph and the record of a small network, and of an ONNX file, are those of this schema version.

    Where they are meant to change, raise `SCHEMA_VERSION` and put the new digests here: a kept artifact of the version
    before is then made again.
    """
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(Maker().build())
    opened(Settings(weights=str(graph), cache_dir=tmp_path))
    found = {"network": described(file_in(cache)), "onnx": described(file_in(tmp_path))}
    assert (SCHEMA_VERSION, found) == (2, WRITTEN)


# --- the key


def key_with(weights: Path, cache: Path, **settings: Any) -> str:
    return key_of(settings_of(weights, cache, **settings), Found(CheckpointFile(weights)))


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
    """An artifact is of one way to serve: another is another artifact."""
    assert set(changed) <= set(EXPORT_SETTINGS)
    assert key_with(weights, cache) == key_with(weights, cache)
    assert key_with(weights, cache) != key_with(weights, cache, **changed)


def test_each_file_that_is_read_changes_the_key(weights: Path, tmp_path: Path) -> None:
    """One bit of the weights, a label, a config beside them, a named labels file: each makes another key."""
    file = tmp_path / "small.pth"
    shutil.copy(weights, file)
    labels = tmp_path / "names.txt"
    labels.write_text("a\nb", encoding="utf-8")
    keys = [key_with(file, tmp_path), key_with(file, tmp_path, labels=labels)]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    keys.append(key_with(file, tmp_path))
    (tmp_path / "labels.txt").write_text("a", encoding="utf-8")
    keys.append(key_with(file, tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    keys.append(key_with(file, tmp_path))
    labels.write_text("a\nc", encoding="utf-8")
    keys.append(key_with(file, tmp_path, labels=labels))
    assert len(set(keys)) == len(keys)


def test_the_schema_version_and_the_release_change_the_key(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that may decide or write otherwise makes another artifact; the fallback's warning is part of it as well."""
    settings = settings_of(weights, cache)
    keys = [key_with(weights, cache), key_of(settings, Found(CheckpointFile(weights), "It stands in."))]
    for name, value in (("SCHEMA_VERSION", SCHEMA_VERSION + 1), ("__version__", "0.0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(f"app.artifacts.key.{name}", value)
            keys.append(key_with(weights, cache))
    assert len(set(keys)) == len(keys) == 4


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


def flip_the_seal(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def flip_the_record(file: Path) -> None:
    content = file.read_bytes()
    assert content.count(b"kind 3") == 1
    file.write_bytes(content.replace(b"kind 3", b"kind 4"))


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = (cut, flip, flip_the_seal, flip_the_record, lengthen, garbage, empty, replace_by_a_folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_seen(
    cache: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever became of its bytes, the artifact is not served: a log line says so, and it is removed."""
    file = file_in(cache)
    damage(file)
    assert Store(cache).read(file.stem) is None
    assert not file.exists()
    assert "is damaged" in caplog.text


def test_a_foreign_file_is_seen(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Another checkpoint's whole artifact, one of another schema, and an ONNX file of others are not served."""
    plain = Maker().build()
    right = b"".join(serialized(read_graph(plain), "0"))
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        later = b"".join(serialized(read_graph(plain), "0"))
    file = file_in(cache).with_name("0.onnx")
    for content, reason in (
        (file_in(cache).read_bytes(), "another checkpoint or schema version"),
        (later, "another checkpoint or schema version"),
        (plain, "not as they were written"),
    ):
        file.write_bytes(content)
        caplog.clear()
        assert Store(cache).read("0") is None
        assert reason in caplog.text
        assert not file.exists()
    file.write_bytes(right)
    assert Store(cache).read("0") is not None


def read_graph(model: bytes) -> Checkpoint:
    """A checkpoint of which no more is known than a graph."""
    graph = Graph(model, "image", "scores", "float32", "nchw", None, None, 4)
    return replace(NULL_CHECKPOINT, graph=graph, labels=tuple("abcd"), class_count=4)


def test_a_damaged_artifact_is_made_again(weights: Path, cache: Path, made: list[str]) -> None:
    """The start that meets the damage makes the artifact anew and serves it."""
    expected = scores_of(opened(settings_of(weights, cache))[0])
    flip(file_in(cache))
    assert np.array_equal(scores_of(opened(settings_of(weights, cache))[0]), expected)
    assert made == [file_in(cache).stem]
    opened(settings_of(weights, cache))
    assert len(made) == 1


def test_two_first_starts_at_once_both_serve(weights: Path, tmp_path: Path) -> None:
    """Two processes that make the same artifact at the same time end with one whole file and nothing beside it."""
    settings = settings_of(weights, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(open_served, settings, Told(), lambda: False) for _ in range(2)]
        first, second = [each.result() for each in found]
    assert first == second
    assert {path.name.partition(".")[0] for path in (tmp_path / "artifacts").iterdir()} == {file_in(tmp_path).stem}
    assert np.array_equal(scores_of(first), scores_of(second))


def test_a_second_writer_disturbs_no_session(weights: Path, cache: Path) -> None:
    """An artifact that is made again is the same; a server that has the first one open answers as before."""
    before = opened(settings_of(weights, cache))[0]
    backend = create_backend("onnx", before, BackendOptions(threads=2))
    pixels = pixels_of(before.preprocessing.crop)
    expected = backend.infer(pixels, Want.SCORES).scores
    content = file_in(cache).read_bytes()
    assert worker.export(settings_of(weights, cache), Found(CheckpointFile(weights)), Told()) == file_in(cache).stem
    assert file_in(cache).read_bytes() == content
    assert np.array_equal(backend.infer(pixels, Want.SCORES).scores, expected)


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


def test_only_the_newest_artifacts_are_kept(cache: Path) -> None:
    """A fifth artifact replaces the one that was not used for longest, with what lies beside it and former caches."""
    store, first = Store(cache), file_in(cache)
    beside = first.with_name(f"{first.stem}.seconds-1.json")
    beside.write_bytes(b"{}")
    (cache / "exports" / "key").mkdir(parents=True)
    os.utime(first, (10, 10))
    for number in range(4):
        with store.scratch() as scratch:
            store.keep(f"key{number}", scratch, read_graph(Maker().build()))
        assert first.exists() == beside.exists() == (number < 3)
        os.utime(cache / "artifacts" / f"key{number}.onnx", (100 + number, 100 + number))
    names = [f"key{number}.onnx" for number in range(4)]
    assert sorted(path.name for path in (cache / "artifacts").iterdir()) == names
    assert not (cache / "exports").exists()


WRITER = """
import sys
from pathlib import Path
from app.artifacts.store import Store

with Store(Path(sys.argv[1])).scratch() as folder:
    (folder / "key.onnx").write_bytes(bytes(1000))
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
        with Store(tmp_path).scratch() as ours:
            assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {theirs.name, ours.name}
        writer.kill()
        writer.wait()
    assert theirs.is_dir()
    with Store(tmp_path).scratch() as ours:
        assert list((tmp_path / "artifacts").iterdir()) == [ours]
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_disk_that_fails_is_no_damage(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the disk while an artifact is read removes nothing."""
    file = file_in(cache)

    def fails(opened: object, size_bytes: int) -> str:
        raise OSError(errno.EIO, "Input/output error", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_digest", fails)
        assert Store(cache).read(file.stem) is None
    assert "Input/output error" in caplog.text
    assert Store(cache).read(file.stem) is not None


def test_a_full_disk_leaves_no_halves(cache: Path) -> None:
    """Artifacts, and what is kept beside them, are written whole or not at all."""
    kept = Store(cache).read(file_in(cache).stem)
    assert kept is not None
    timings = timings_of(kept.checkpoint.graph, 2, "auto")
    assert timings is not None
    before = set(cache.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        timings.keep({1: 0.25, 2: 0.5})
        with pytest.raises(OSError, match="too large"), Store(cache).scratch() as scratch:
            Store(cache).keep("key", scratch, read_graph(Maker().build()))
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
        process.export_apart(settings_of(weights, tmp_path), Found(CheckpointFile(weights)), Told(), lambda: False)


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
    assert not list(tmp_path.glob("artifacts/failed/*"))


def put_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """`program` in place of `app.artifacts.worker`."""
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
    assert (
        process.export_apart(settings_of(weights, tmp_path), Found(CheckpointFile(weights)), told, lambda: False)
        == "a key"
    )
    assert told.steps == ["Trying"]


def test_a_cancelled_export_ends_its_process(weights: Path, tmp_path: Path) -> None:
    """A service that is told to stop while its checkpoint is exported does so at once and leaves nothing behind."""
    told = Told()
    with ExitStack() as promptly:

        def is_cancelled() -> bool:
            if told.steps:
                promptly.enter_context(within(process._EXIT_SECONDS))
            return bool(told.steps)

        with pytest.raises(LoadCancelled):
            process.export_apart(settings_of(weights, tmp_path), Found(CheckpointFile(weights)), told, is_cancelled)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_an_export_whose_service_is_killed_ends_too(weights: Path, tmp_path: Path) -> None:
    """The process notices that nobody waits for it any more."""
    flags = ("--weights", str(weights), "--architecture", "resnet18", "--cache-dir", str(tmp_path))
    with service_process(*flags, folder=tmp_path) as service:
        service.wait_for("Exporting in a process of its own")
        tasks = Path(f"/proc/{service.process.pid}/task")
        wait_until(lambda: any(each.read_text() for each in tasks.glob("*/children")))
        children = [int(word) for each in tasks.glob("*/children") for word in each.read_text().split()]
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(is_running(child) for child in children))
    assert not list(tmp_path.glob("artifacts/*.onnx"))


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what is chosen


def test_an_artifact_is_compared_with_its_network_on_each_machine(
    weights: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another runtime a kept artifact is compared once; where it answers otherwise there, torch serves."""
    settings = settings_of(weights, cache)
    compared: list[str] = []

    def counted(found: np.ndarray, expected: np.ndarray, architecture: str) -> None:
        compared.append(architecture)
        real(found, expected, architecture)

    real = checking.check_same
    monkeypatch.setattr(checking, "check_same", counted)
    assert opened(settings)[1] == "onnx"
    assert compared == []
    monkeypatch.setattr("app.artifacts.machine.version", lambda package: "0")
    with monkeypatch.context() as patch:
        patch.setattr(checking, "TOLERANCE", -1.0)
        checkpoint, backend = opened(settings)
        assert backend == "torch"
        assert "resnet18 as ONNX answers otherwise than PyTorch" in checkpoint.warnings[-1]
    assert [opened(settings)[1] for _ in range(2)] == ["onnx", "onnx"]
    assert (compared, made) == (["resnet18"] * 2, [])


def test_a_network_that_cannot_be_exported_is_served_by_torch(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that answers otherwise than torch is not kept: torch serves, with a warning, unless onnx was named."""
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
    checkpoint, backend = opened(settings_of(weights, tmp_path))
    assert backend == "torch"
    assert checkpoint.weights
    assert "resnet18 as ONNX answers otherwise than PyTorch" in checkpoint.warnings[-1]
    assert "served by PyTorch" in checkpoint.warnings[-1]
    with pytest.raises(ExportFailed, match="answers otherwise"):
        opened(settings_of(weights, tmp_path, backend="onnx"))
    assert [path.name for path in tmp_path.glob("artifacts/*")] == ["failed"]
    assert len(made) == 0


def test_a_failed_export_is_not_tried_again(
    weights: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later starts go straight to torch and say why in a line, until that is removed or a package has changed."""
    settings = settings_of(weights, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checking, "TOLERANCE", -1.0)
        opened(settings)
    told = Told()
    checkpoint, backend = opened(settings, told)
    assert backend == "torch"
    assert not [step for step in told.steps if "process of its own" in step]
    (warning,) = [line for line in checkpoint.warnings if "as ONNX answers otherwise" in line]
    (file,) = tmp_path.glob("artifacts/failed/*")
    assert f"to try again, remove {file}. So it is served by PyTorch" in warning
    assert "\n" not in warning
    document = json.loads(file.read_bytes())
    for other in (document | {"versions": {"torch": "0"}}, {}):
        file.write_text(json.dumps(other), encoding="utf-8")
        assert opened(settings)[1] == "onnx"
        file_in(tmp_path).unlink()
    file.unlink()
    assert opened(settings)[1] == "onnx"
    assert len(made) == 3


def test_what_is_not_the_networks_fault_is_tried_again(
    traced: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while the network is traced is no reason never to try again."""

    def no_memory(*arguments: object, **others: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", no_memory)
        with pytest.raises(MemoryError):
            opened(settings_of(traced, tmp_path, architecture="squeezenet1_1"))
    assert not list(tmp_path.glob("artifacts/failed/*"))
    assert opened(settings_of(traced, tmp_path, architecture="squeezenet1_1"))[1] == "onnx"


def test_what_this_machine_does_to_an_export_is_no_mark(
    traced: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that may come of the machine has torch serve once, and is tried again at the next start."""

    def fails(*arguments: object, **others: object) -> None:
        raise RuntimeError("could not create a primitive")

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", fails)
        checkpoint, backend = opened(settings_of(traced, tmp_path, architecture="squeezenet1_1"))
        assert backend == "torch"
        assert "could not create a primitive" in checkpoint.warnings[-1]
    assert not list(tmp_path.glob("artifacts/failed/*"))
    assert opened(settings_of(traced, tmp_path, architecture="squeezenet1_1"))[1] == "onnx"


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
    assert not list(tmp_path.glob("cache/artifacts/*"))
    with service_process(*flags, folder=tmp_path) as service:
        service.wait_for("Ready:")
        assert service.stop() == 0
    assert file_in(tmp_path / "cache")


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
    assert bool(list(tmp_path.glob("cache/artifacts/*.onnx"))) is (backend == "auto")


def test_an_export_in_memory_is_checked_too(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be kept, a graph that answers otherwise than torch is not served either."""
    (tmp_path / "cache").write_text("a file, and no folder", encoding="utf-8")
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
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
        checking.check_same(found, expected, "resnet18")
        return
    with pytest.raises(ExportFailed):
        checking.check_same(found, expected, "resnet18")


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


def test_sessions_map_one_optimised_form(weights: Path, cache: Path) -> None:
    """The sessions of an artifact map their weights from one file, removed once they are open, and answer alike."""
    checkpoint, _ = opened(settings_of(weights, cache))
    assert checkpoint.graph is not None
    before = weight_mappings()
    sessions = Sessions(checkpoint.graph, 4)
    assert not list((cache / "artifacts").glob(".*"))
    assert len(weight_mappings() - before) >= 2
    assert len({inode for _, inode in weight_mappings() - before}) == 1
    pixels = pixels_of(checkpoint.preprocessing.crop)
    with sessions.borrow() as whole, sessions.borrow() as half, sessions.borrow() as other:
        answers = [each.run(None, {"pixels": pixels})[0] for each in (whole, half, other)]
    alone = open_session(checkpoint.graph, 1).run(None, {"pixels": pixels})[0]
    for each in answers:
        np.testing.assert_allclose(each, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def weight_mappings() -> set[tuple[str, str]]:
    """Address range and inode of each mapping of an optimised form's weights in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "weights.bin" in line]
    return {(fields[0], fields[4]) for fields in lines}


def test_an_artifact_is_served_where_its_optimised_form_cannot_be_written(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, and where no folder can be written, there is one session, which answers the same."""
    checkpoint, _ = opened(settings_of(weights, cache))
    assert checkpoint.graph is not None
    expected = scores_of(checkpoint)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        on_a_full_disk = create_backend("onnx", checkpoint, BackendOptions(threads=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def fails(folder: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("app.backends.onnx_sessions.scratch_in", fails)
    without_a_folder = create_backend("onnx", checkpoint, BackendOptions(threads=2))
    for backend in (on_a_full_disk, without_a_folder):
        assert backend.concurrency == 1
        found = backend.infer(pixels_of(checkpoint.preprocessing.crop), Want.SCORES).scores
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("computes_in", "calls"), [("", 1), ("int8", 2)])
def test_float_weights_within_a_graph_are_held_once(tmp_path: Path, computes_in: str, calls: int) -> None:
    """An ONNX file is kept with its weights in it, of which each session has a copy: only int8's are small enough."""
    graph = Graph(b"", "image", "scores", "float32", "nchw", None, None, 4, computes_in=computes_in)
    (tmp_path / "model.onnx").write_bytes(Maker().build())
    sessions = Sessions(replace(graph, path=tmp_path / "model.onnx"), 4)
    assert sessions.calls == calls
    with sessions.borrow() as first, sessions.borrow() as second:
        assert (first is second) is (calls == 1)


def test_the_export_keeps_to_the_setting(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESNET_COMPUTE_THREADS is for the process that exports as well: for both sessions of what is compared."""
    counts: list[int | None] = []

    def counted(threads: int | None) -> Any:
        counts.append(threads)
        return session_options(threads)

    monkeypatch.setattr("app.backends.onnx_sessions.session_options", counted)
    worker.export(settings_of(weights, tmp_path, compute_threads=3), Found(CheckpointFile(weights)), Told())
    assert counts == [3, 3]


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


def test_measured_seconds_are_kept_beside_the_artifact(weights: Path, cache: Path) -> None:
    """They are read as they were written, by number of threads and the setting that allows the sizes."""
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
        (file,) = file_in(cache).parent.glob("*.seconds-*")
        file.write_bytes(damaged)
        assert timings.read() == {}
    # The artifact itself is whole.
    assert Store(cache).read(file_in(cache).stem) is not None
    shutil.rmtree(cache)
    timings.keep({1: 1.0})
    assert timings.read() == {}


def test_measured_seconds_are_of_this_machine(
    weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another CPU, or another runtime, optimises the artifact otherwise: it does not read this one's times."""
    checkpoint, _ = opened(settings_of(weights, cache))
    lines = "processor : 0\nmodel name : A CPU\nflags : fma avx2 {}\n\nprocessor : 1\nflags : none\n"
    machines = []
    for flags in ("", "avx512f"):
        (tmp_path / "cpuinfo").write_text(lines.format(flags), encoding="utf-8")
        machines.append(cpu_features(tmp_path / "cpuinfo"))
    files = set()
    for name, value in (
        *(("cpu_features", lambda machine=machine: machine) for machine in machines),
        ("version", lambda package: "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"app.artifacts.machine.{name}", value)
            timings = timings_of(checkpoint.graph, 2, "auto")
            assert timings is not None
            assert timings.read() == {}
            timings.keep({1: 0.25})
            files |= set(cache.glob("artifacts/*.seconds-*"))
    assert len(files) == 3
    assert cpu_features(tmp_path / "none")
