"""Files beside a checkpoint that are no checkpoints: texts, checksums, licences, files of systems and tools."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError
from ..files import open_regular
from .folders import is_checkpoint_folder

_SUFFIXES = frozenset(
    {
        *(".md", ".markdown", ".rst", ".txt", ".rtf", ".tex", ".bib", ".cff", ".doc", ".docx", ".pdf", ".nfo"),
        *(".json", ".jsonl", ".yaml", ".yml", ".toml", ".cfg", ".conf", ".ini", ".env", ".xml", ".properties"),
        *(".csv", ".tsv", ".xls", ".xlsx", ".parquet", ".sqlite", ".db", ".names", ".labels", ".pbtxt", ".prototxt"),
        *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".tif", ".tiff", ".ico", ".mp4", ".webm", ".wav"),
        *(".htm", ".html", ".css", ".js", ".url", ".webloc", ".lnk", ".desktop"),
        *(".py", ".pyc", ".pyi", ".ipynb", ".sh", ".bat", ".ps1", ".c", ".cpp", ".h", ".so", ".dll"),
        *(".log", ".out", ".err", ".lock", ".pid", ".tmp", ".temp", ".bak", ".old", ".orig", ".swp"),
        # Checksums and signatures.
        *(".md5", ".md5sum", ".sha", ".sha1", ".sha224", ".sha256", ".sha384", ".sha512", ".sha1sum", ".sha256sum"),
        *(".sha512sum", ".b2", ".b3", ".blake3", ".crc", ".crc32", ".sfv", ".asc", ".sig", ".gpg", ".pem", ".minisig"),
        # Unfinished downloads.
        *(".part", ".partial", ".crdownload", ".download", ".aria2", ".incomplete", ".torrent", ".metadata"),
    }
)
# In lower case, up to the first dot.
_NAMES = frozenset(
    {
        *("license", "licence", "copying", "notice", "readme", "authors", "contributors", "changelog", "changes"),
        *("citation", "credits", "patents", "version", "todo", "makefile", "dockerfile", "requirements", "results"),
        *("checksums", "checksum", "md5sum", "md5sums", "sha1sums", "sha256sum", "sha256sums", "sha512sums", "b2sums"),
        *("manifest", "thumbs", "ehthumbs", "desktop", "icon\r"),
        *("__pycache__", "__macosx", "lost+found", "$recycle", "system volume information", "@eadir", "#recycle"),
    }
)
# TensorBoard's records, and the copies that editors and file managers make.
_PATTERN = re.compile(r"^events\.out\.tfevents\.|~$|^~\$|^\.")
# Suffixes of checkpoints. Readers recognise content; these only tell which of several files is the checkpoint.
_WEIGHTS = frozenset(
    {
        *(".pth", ".pt", ".pt2", ".bin", ".pkl", ".pickle", ".ckpt", ".tar", ".pyt", ".torch", ".t7", ".th", ".ts"),
        *(".jit", ".ptl", ".safetensors", ".onnx", ".ort", ".h5", ".hdf5", ".keras", ".weights", ".mar", ".index"),
        *(
            ".npz",
            ".npy",
            ".zip",
            ".gz",
            ".tgz",
            ".msgpack",
            ".pb",
            ".tflite",
            ".mlmodel",
            ".engine",
            ".plan",
            ".model",
        ),
    }
)
_HEAD_BYTES = 512


def is_companion(path: Path) -> bool:
    """Whether the name of `path` is that of a file that is no checkpoint."""
    name = path.name.lower()
    stem = name.partition(".")[0]
    # "version.pth" is a checkpoint nevertheless.
    return (
        _PATTERN.search(name) is not None
        or path.suffix.lower() in _SUFFIXES
        or (stem in _NAMES and path.suffix.lower() not in _WEIGHTS)
    )


def likely(candidates: list[Path]) -> list[Path]:
    """The files and folders among `candidates` that are probably checkpoints; all of them if none is.

    Checkpoint folders, files with a checkpoint's suffix and other binary files are. Other folders, texts and empty
    files are not.
    """
    found = [path for path in candidates if _may_be_one(path)]
    return found or candidates


def _may_be_one(path: Path) -> bool:
    if path.is_dir():
        try:
            return is_checkpoint_folder(path)
        except CheckpointError:  # a damaged checkpoint folder, which its reader reports
            return True
    if path.suffix.lower() in _WEIGHTS:
        return True
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    # No format of weights is text. With an unknown suffix, this is the only evidence.
    return any(byte < 9 or 13 < byte < 27 for byte in head)
