"""Exports on disk: whole and verified, or not at all.

exports/
  published/ARCHITECTURE.NAME.json   where torchvision has these weights: known without importing it
  failed/KEY.json                    why the network of this key cannot be exported
  KEY/                               one export, written under another name and renamed in one step
    entry.json                       what serves it, and the SHA-256 of the other two
    model.onnx                       the graph
    weights.bin                      its weights, mapped into memory; an ONNX checkpoint has them in the graph
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..checkpoints import Checkpoint, Graph, PublishedWeights, sha256_of
from ..files import write_whole
from ..types import Activation, Preprocessing, ResNetSwitches
from .unfinished import is_unfinished, unfinished_in

logger = logging.getLogger(__name__)

EXPORTS_FOLDER = "exports"
MODEL, WEIGHTS, _ENTRY = "model.onnx", "weights.bin", "entry.json"
# A ResNet-50's takes 100 MB. Two for switching between two checkpoints, and as many for a second kind of machine.
_KEPT = 4
_KEPT_FAILURES = 64
_PUBLISHED_FOLDER, _FAILED_FOLDER = "published", "failed"
# Of an error while reading, those that say what lies there; any other (no right to read, a disk that fails) does not.
_DAMAGES = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """All of a `Checkpoint` but its numbers."""

    architecture: str
    class_count: int
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    sha256: str
    source: str
    warnings: tuple[str, ...]
    switches: ResNetSwitches | None
    activation: Activation
    is_fallback: bool
    graph: Graph
    """Without its model."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, graph: Graph) -> Entry:
        return cls(
            architecture=checkpoint.architecture,
            class_count=checkpoint.class_count,
            preprocessing=checkpoint.preprocessing,
            labels=checkpoint.labels,
            sha256=checkpoint.sha256,
            source=checkpoint.source,
            warnings=checkpoint.warnings,
            switches=checkpoint.switches,
            activation=checkpoint.activation,
            is_fallback=checkpoint.is_fallback,
            graph=replace(graph, model=b"", path=None),
        )

    def checkpoint(self, model: bytes = b"", path: Path | None = None) -> Checkpoint:
        return Checkpoint(
            weights={},
            architecture=self.architecture,
            class_count=self.class_count,
            preprocessing=self.preprocessing,
            labels=self.labels,
            sha256=self.sha256,
            source=self.source,
            warnings=self.warnings,
            switches=self.switches,
            activation=self.activation,
            is_fallback=self.is_fallback,
            graph=replace(self.graph, model=model, path=path),
        )


_ENTRIES = TypeAdapter(Entry)
PUBLISHED = TypeAdapter(PublishedWeights)


class Store:
    """The exports in one cache folder. Any number of processes may use it at once."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / EXPORTS_FOLDER

    def read(self, key: str) -> Checkpoint | None:
        """The export of `key`, its bytes verified; None where there is none, or a damaged one, which is removed.

        One that cannot be read is None too, and stays: it may be another process's that can.
        """
        folder = self._folder / key
        try:
            document = json.loads((folder / _ENTRY).read_bytes())
            content = document["entry"]
            if document["sha256"] != hashlib.sha256(content.encode()).hexdigest():
                raise ValueError(f"{_ENTRY} is not as it was written")
            if MODEL not in document["files"]:
                raise ValueError(f"it has no {MODEL}")
            for name, digest in document["files"].items():
                if sha256_of(folder / name) != digest:
                    raise ValueError(f"{name} is not as it was written")
            entry = _ENTRIES.validate_json(content)
        except _DAMAGES as error:
            if os.path.lexists(folder):
                self._drop(folder, "it is of another form" if isinstance(error, ValidationError) else str(error))
            return None
        except OSError as error:
            logger.warning("The export in %s cannot be read and is left as it is: %s", folder, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # the newest are kept
        return entry.checkpoint(path=folder / MODEL)

    def has(self, key: str) -> bool:
        """Whether there is an export of `key`. Its bytes are not looked at."""
        return (self._folder / key / _ENTRY).is_file()

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """A new folder to write an export into; what is not kept of it goes at the end of the block.

        What writers that were killed have left is removed first. Raises `OSError` where the cache cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folders():
            # Half removed: a whole one has its entry from the rename on.
            with contextlib.suppress(OSError):
                if not (path / _ENTRY).exists():
                    shutil.rmtree(path, ignore_errors=True)
        with unfinished_in(self._folder) as folder:
            yield folder

    def keep(self, key: str, unfinished: Path, entry: Entry) -> None:
        """Make the model in `unfinished`, a folder of `unfinished()`, the export of `key`. Raises `OSError`."""
        content = _ENTRIES.dump_json(entry).decode()
        files = {path.name: sha256_of(path) for path in sorted(unfinished.iterdir())}
        document = {
            "files": files,
            # The files' digests are covered too: changed ones do not fit their files.
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
            "entry": content,
        }
        (unfinished / _ENTRY).write_text(json.dumps(document), encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _sync(path)
        # mkdtemp's 0700 would shut out whoever shares the cache.
        unfinished.chmod(0o755)
        try:
            unfinished.rename(self._folder / key)
        except OSError:
            # Another process was first: its export is as good, and may be open already.
            if not (self._folder / key / _ENTRY).is_file():
                raise
        _sync(self._folder)
        self._bound(key)

    def published(self, architecture: str, name: str) -> PublishedWeights | None:
        """What `remember` was told of torchvision's weights of this name."""
        try:
            return PUBLISHED.validate_json(self._published_file(architecture, name).read_bytes())
        except (OSError, ValueError):
            return None

    def remember(self, asked: str, weights: PublishedWeights) -> None:
        """Keep where torchvision has the weights that were asked for by the name `asked`. Raises `OSError`."""
        file = self._published_file(weights.architecture, asked)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, PUBLISHED.dump_json(weights))

    def failure(self, key: str) -> str | None:
        """Why the network of `key` cannot be exported, as an earlier start has found, and how to try again."""
        file = self._failed_file(key)
        try:
            reason = json.loads(file.read_bytes())["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return f"{reason} An earlier start has found that; to try again, remove {file}."

    def remember_failure(self, key: str, reason: str) -> None:
        """Keep why the network of `key` cannot be exported, so that no later start tries. Raises `OSError`."""
        file = self._failed_file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"reason": reason}, ensure_ascii=False).encode())
        for old in _newest_first(file.parent.glob("*.json"))[_KEPT_FAILURES:]:
            old.unlink(missing_ok=True)

    def _failed_file(self, key: str) -> Path:
        return self._folder / _FAILED_FOLDER / f"{key}.json"

    def _published_file(self, architecture: str, name: str) -> Path:
        # Of another version of torchvision the same name may mean other weights (DEFAULT), or none.
        from importlib.metadata import version

        file = f"{architecture}.{name}.{version('torchvision')}.json".replace("/", "_")
        return self._folder / _PUBLISHED_FOLDER / file

    def _drop(self, folder: Path, reason: str) -> None:
        logger.warning("The export in %s is damaged (%s) and is made again.", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)

    def _bound(self, key: str) -> None:
        """Remove all but the newest exports, of which `key` is one."""
        with contextlib.suppress(OSError):
            others = [path for path in self._folders() if path.name != key]
            for path in _newest_first(others)[_KEPT - 1 :]:
                shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Those of exports that are finished."""
        others = (_PUBLISHED_FOLDER, _FAILED_FOLDER)
        folders = [path for path in self._folder.iterdir() if path.is_dir() and not is_unfinished(path)]
        return [path for path in folders if path.name not in others]


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
