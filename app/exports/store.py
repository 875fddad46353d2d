"""Exports on disk: whole and verified, or not at all.

exports/
  published/ARCHITECTURE.NAME.json   where torchvision has these weights: known without importing it
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
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..checkpoints import Checkpoint, Graph, PublishedWeights, sha256_of
from ..types import Preprocessing, ResNetSwitches, ScoreKind

logger = logging.getLogger(__name__)

EXPORTS_FOLDER = "exports"
MODEL, WEIGHTS, _ENTRY = "model.onnx", "weights.bin", "entry.json"
# A ResNet-50's takes 100 MB. Two for switching between two checkpoints, and as many for a second kind of machine.
_KEPT = 4
_UNFINISHED = ".unfinished-"
_UNFINISHED_SECONDS = 3600.0


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
    output: ScoreKind
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
            output=checkpoint.output,
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
            output=self.output,
            is_fallback=self.is_fallback,
            graph=replace(self.graph, model=model, path=path),
        )


_ENTRIES = TypeAdapter(Entry)
_PUBLISHED = TypeAdapter(PublishedWeights)


class Store:
    """The exports in one cache folder. Any number of processes may use it at once."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / EXPORTS_FOLDER

    def read(self, key: str) -> Checkpoint | None:
        """The export of `key`, its bytes verified; None where there is none, or a damaged one, which is removed."""
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
        except FileNotFoundError as error:
            if folder.is_dir():
                self._drop(folder, f"{error.filename} is missing")
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "it is of another form" if isinstance(error, ValidationError) else str(error)
            self._drop(folder, reason)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # the newest are kept
        return entry.checkpoint(path=folder / MODEL)

    def unfinished(self) -> Path:
        """A new folder to write an export into. Raises `OSError` where the cache cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))

    def discard(self, unfinished: Path) -> None:
        """Remove what is left of a folder of `unfinished()`."""
        shutil.rmtree(unfinished, ignore_errors=True)

    def keep(self, key: str, unfinished: Path, entry: Entry) -> None:
        """Make the model in `unfinished`, written by `unfinished()`, the export of `key`. Raises `OSError`."""
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
            shutil.rmtree(unfinished, ignore_errors=True)
        _sync(self._folder)
        self._bound(key)

    def published(self, architecture: str, name: str) -> PublishedWeights | None:
        """What `remember` was told of torchvision's weights of this name."""
        try:
            return _PUBLISHED.validate_json(self._published_file(architecture, name).read_bytes())
        except (OSError, ValueError):
            return None

    def remember(self, asked: str, weights: PublishedWeights) -> None:
        """Keep where torchvision has the weights that were asked for by the name `asked`. Raises `OSError`."""
        file = self._published_file(weights.architecture, asked)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=file.parent)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(_PUBLISHED.dump_json(weights))
            opened.flush()
            os.fsync(opened.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)

    def _published_file(self, architecture: str, name: str) -> Path:
        # Of another version of torchvision the same name may mean other weights (DEFAULT), or none.
        from importlib.metadata import version

        file = f"{architecture}.{name}.{version('torchvision')}.json".replace("/", "_")
        return self._folder / "published" / file

    def _drop(self, folder: Path, reason: str) -> None:
        logger.warning("The export in %s is damaged (%s) and is made again.", folder, reason)
        shutil.rmtree(folder, ignore_errors=True)

    def _bound(self, key: str) -> None:
        """Remove all but the newest exports, and what writers that were killed have left."""
        with contextlib.suppress(OSError):
            folders = [path for path in self._folder.iterdir() if path.is_dir()]
            exports = [path for path in folders if (path / _ENTRY).is_file() and path.name != key]
            exports = [path for path in exports if not path.name.startswith(_UNFINISHED)]
            exports.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            stale = [path for path in folders if path.name.startswith(_UNFINISHED)]
            stale = [path for path in stale if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS]
            for path in (*exports[_KEPT - 1 :], *stale):
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
