"""Artifacts on disk: whole and verified, or not at all.

artifacts/
  KEY.onnx                           one artifact, written in a scratch folder and renamed in one step
  KEY.seconds-….json                 how long batches took with it (`timings`)
  KEY.checked-….json                 its answers were compared with the network's on that machine (`checking`)
  failed/KEY.json                    why the network of this key cannot be written as ONNX
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checkpoints import Checkpoint
from ..files import scratch_in, write_whole
from .artifact import Artifact, read_artifact, serialized, tool_versions

logger = logging.getLogger(__name__)

ARTIFACTS_FOLDER = "artifacts"
# Caches of earlier releases, whose files nothing reads any more.
_FORMER_FOLDERS = ("exports",)
# A ResNet-50's takes 100 MB. Two for switching between two checkpoints, and as many for a second service.
_KEPT = 4
_KEPT_FAILURES = 64
_FAILED_FOLDER = "failed"


class Store:
    """The artifacts in one cache folder. Any number of processes may use it at once."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._folder = cache_dir / ARTIFACTS_FOLDER

    def read(self, key: str) -> Artifact | None:
        """The artifact of `key`, its bytes verified; None where there is none, or a damaged one, which is removed.

        One that cannot be read is None too, and stays: another user's process may be able to read it.
        """
        path = self._file(key)
        try:
            artifact = read_artifact(path, key)
        except FileNotFoundError:
            return None
        except (ValueError, IsADirectoryError) as error:
            reason = "it is a folder" if isinstance(error, IsADirectoryError) else error
            logger.warning("The artifact %s is damaged (%s) and is made again.", path, reason)
            _remove(path)
            return None
        except OSError as error:
            logger.warning("The artifact %s cannot be read and is left as it is: %s", path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the newest are kept
        return artifact

    def has(self, key: str) -> bool:
        """Whether there is an artifact of `key`. Its bytes are not looked at."""
        return self._file(key).is_file()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder to write an artifact in, for `keep`. Raises `OSError` where the cache cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with scratch_in(self._folder) as folder:
            yield folder

    def keep(self, key: str, scratch: Path, checkpoint: Checkpoint) -> Path:
        """Make `checkpoint`, whose graph has its model in memory, the artifact of `key`. Raises `OSError`.

        One that is there is replaced: a process that has it open keeps what it has.
        """
        written = scratch / self._file(key).name
        with written.open("xb") as file:
            for piece in serialized(checkpoint, key):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        written.chmod(0o644)
        written.replace(self._file(key))
        _sync(self._folder)
        self._remove_old(key)
        return self._file(key)

    def failure(self, key: str) -> str | None:
        """Why the network of `key` cannot be written as ONNX with these packages, found by an earlier start, and how
        to try again.
        """
        file = self._failed_file(key)
        try:
            document = json.loads(file.read_bytes())
            if document["versions"] != tool_versions():
                return None
            reason = document["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return f"{reason} An earlier start has found that; to try again, remove {file}."

    def remember_failure(self, key: str, reason: str) -> None:
        """Keep why the network of `key` cannot be written, so that no later start tries. Raises `OSError`."""
        file = self._failed_file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        document = {"reason": reason, "versions": tool_versions()}
        write_whole(file, json.dumps(document, ensure_ascii=False).encode())
        for old in _newest_first(file.parent.glob("*.json"))[_KEPT_FAILURES:]:
            old.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.onnx"

    def _failed_file(self, key: str) -> Path:
        return self._folder / _FAILED_FOLDER / f"{key}.json"

    def _remove_old(self, key: str) -> None:
        """Remove all but the newest artifacts, of which `key` is one, files beside no artifact, and former caches."""
        with contextlib.suppress(OSError):
            others = [path for path in self._folder.glob("*.onnx") if path != self._file(key)]
            for path in _newest_first(others)[_KEPT - 1 :]:
                _remove(path)
            for path in self._folder.glob("*.json"):
                if not self.has(path.name.partition(".")[0]):
                    _remove(path)
            for name in _FORMER_FOLDERS:
                if (self._cache_dir / name).is_dir():
                    logger.info("Removing %s, the cache of an earlier release.", self._cache_dir / name)
                    _remove(self._cache_dir / name)


def _remove(path: Path) -> None:
    """The file or folder at `path`, as far as it can be removed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
