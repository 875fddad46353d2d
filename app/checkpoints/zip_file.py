"""Zip files as torch writes them: listed within bounds, members read in place."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError

# 90,000 members: above any checkpoint's, and listed in some tens of megabytes.
_MAX_DIRECTORY_BYTES = 4 << 20
_LOCAL_HEADER_BYTES = 30
_CHUNK_BYTES = 1 << 20


class _BoundedFile(io.FileIO):
    """A file with a limit for reads: zipfile reads the directory at once, in the size that the zip claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size) or b""


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip with unique member names, none of which leads out of it."""

    path: Path
    members: dict[str, zipfile.ZipInfo]
    ends: dict[str, int]
    """Name → the latest end of the member in the file: the next member, or the zip's directory."""

    def root(self) -> str:
        """The folder that torch puts all members into, with its slash; "" if there is none."""
        first = next(iter(self.members), "")
        folder = first.split("/", 1)[0] + "/"
        return folder if "/" in first and all(name.startswith(folder) for name in self.members) else ""

    def size(self, name: str) -> int:
        return self._member(name).file_size

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A member, decompressed if needed. Raises `CheckpointError` if it is larger than `limit_bytes`."""
        member = self._member(name)
        if member.file_size > limit_bytes:
            raise CheckpointError(
                f"{self.path}: {name} has {member.file_size:,} bytes, and at most {limit_bytes:,} are read. "
                f"Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
            )
        if member.compress_type == zipfile.ZIP_STORED:
            return bytes(self.read_stored(name))
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflated(member)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
                return file.read(limit_bytes)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None

    def read_stored(self, name: str) -> bytearray:
        """An uncompressed member, read from its position: never larger than the file itself."""
        member = self._member(name)
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(
                f"{self.path}: {name} is compressed, which torch never does. Save it again with torch.save."
            )
        with self.path.open("rb") as file:
            self._seek(file, member)
            values = bytearray(member.file_size)
            if file.readinto(values) == member.file_size:
                return values
        raise _damaged(self.path, f"{name[:80]} is cut off")

    def _seek(self, file: BinaryIO, member: zipfile.ZipInfo) -> None:
        """Seek to a member's first byte. Raises `CheckpointError` if it would overlap the next one."""
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        if len(header) == _LOCAL_HEADER_BYTES and header.startswith(b"PK\x03\x04"):
            name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
            start = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            if start + member.compress_size <= min(self.ends[member.filename], self.path.stat().st_size):
                file.seek(start)
                return
        raise _damaged(self.path, f"{member.filename[:80]} is cut off")

    def _inflated(self, member: zipfile.ZipInfo) -> bytes:
        """A compressed member, decompressed piece by piece up to its claimed size."""
        content, left = bytearray(), member.compress_size
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            with self.path.open("rb") as file:
                self._seek(file, member)
                while left and not inflater.eof and len(content) <= member.file_size:
                    piece = file.read(min(left, _CHUNK_BYTES >> 4))
                    left -= len(piece)
                    content += inflater.decompress(piece, member.file_size + 1 - len(content))
        except (zlib.error, OSError) as error:
            raise _damaged(self.path, error) from None
        if len(content) != member.file_size:
            raise _damaged(self.path, f"{member.filename[:80]} has not the size that it claims")
        return bytes(content)

    def extract(self, name: str, to: Path, limit_bytes: int) -> None:
        """Decompress a member into a new file, piece by piece."""
        left = limit_bytes
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._member(name)) as file, to.open("xb") as out:
                while chunk := file.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise CheckpointError(
                            f"{self.path}: {name} unpacks to more than {limit_bytes:,} bytes. "
                            f"Raise RESNET_MAX_CHECKPOINT_BYTES if it is meant."
                        )
                    out.write(chunk)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self.members:
            raise _damaged(self.path, f"it lacks {name}")
        return self.members[name]


# Errors of zipfile and zlib on damage; RuntimeError is that for an encryption flag.
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError, struct.error, OverflowError)


def open_zip(path: Path) -> Archive:
    """The zip's directory. Raises `CheckpointError` for damage, duplicate names, and names that lead out of it."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            directory = archive.start_dir
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    if any(member.header_offset < 0 for member in members):
        raise _damaged(path, "its directory points before its beginning")
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise CheckpointError(
            f"{path} holds two members of one name, and which one counts is not clear. Save it again."
        )
    for name in by_name:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise CheckpointError(f"{path} holds a member that leads out of it, {name[:80]!r}. Save it again.")
    return Archive(path, by_name, _ends(path, members, directory))


def _ends(path: Path, members: Sequence[zipfile.ZipInfo], directory: int) -> dict[str, int]:
    """Name → the latest end of the member. Raises `CheckpointError` if two members overlap in the file."""
    in_order = sorted(members, key=lambda member: member.header_offset)
    ends: dict[str, int] = {}
    for member, end in zip(in_order, [*(each.header_offset for each in in_order[1:]), directory], strict=True):
        if member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size > end:
            raise CheckpointError(
                f"{path} is no checkpoint to read: {member.filename[:80]!r} and what follows it share bytes of the "
                f"file. Copy or download it again."
            )
        ends[member.filename] = end
    return ends


def require_stored(archive: Archive, but: Sequence[str] = ()) -> None:
    """Raises `CheckpointError` for compressed members, which torch does not write, except in the folders `but`."""
    for name, member in archive.members.items():
        if member.compress_type != zipfile.ZIP_STORED and not name.startswith(tuple(but)):
            raise CheckpointError(
                f"{archive.path}: {name} is compressed, which torch never does. Save it again with torch.save."
            )


def _damaged(path: Path, reason: object) -> CheckpointError:
    text = str(reason).splitlines()[0][:120] if str(reason) else type(reason).__name__
    return CheckpointError(
        f"{path} looks like a PyTorch file (a zip) but cannot be read ({text}). Copy or download it again."
    )
