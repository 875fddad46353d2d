"""Archives beside a checkpoint (sources, datasets, packed copies), recognised by their content."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..files import open_regular
from .readers import READERS, is_zip
from .zip_file import open_zip

# gzip, bzip2, xz, zstd, lz4, 7z, rar: no checkpoint format uses them, and they are not unpacked here.
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!")
_TAR, _TAR_AT = b"ustar", 257
_HEAD_BYTES = 512


def is_other_archive(path: Path) -> bool:
    """Whether `path` is an archive other than a checkpoint. The zips of torch, Keras and TorchServe are checkpoints."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # a folder, or an unreadable file, which its reader reports
        return False
    if head.startswith(_PACKED) or head[_TAR_AT:].startswith(_TAR):
        return True
    if not is_zip(head, b""):
        return False
    try:
        members = list(open_zip(path).members)
    except CheckpointError:
        # A damaged `.pth` must be reported as damaged. No checkpoint has the name `.zip`.
        return path.suffix.lower() == ".zip"
    return not any(reader.recognises_zip is not None and reader.recognises_zip(members) for reader in READERS)
