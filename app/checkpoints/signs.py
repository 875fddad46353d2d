"""Signatures of file formats: first and last bytes, and for a few formats the name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import open_regular
from ..protobuf import varint
from .sharded import is_index

_JSON = re.compile(r'[{\[]\s*["}\]{]')


@dataclass(frozen=True, slots=True)
class Edges:
    """The name and the first and last bytes of a file."""

    path: Path
    head: bytes
    """Its first 512 bytes."""
    tail: bytes

    @property
    def text(self) -> str:
        """The beginning of a text file, in lower case, without BOM and leading spaces; empty for other files."""
        data = self.head.removeprefix(b"\xef\xbb\xbf")
        if not data or any(byte < 9 or 13 < byte < 27 for byte in data):
            return ""
        # The last character may be incomplete.
        return data.decode("utf-8", "ignore").lstrip().lower()


Test = Callable[[Edges], bool]


def starts(*signs: bytes, at: int = 0) -> Test:
    return lambda file: file.head[at:].startswith(signs)


def named(*endings: str) -> Test:
    return lambda file: file.path.name.endswith(endings)


def says(pattern: str) -> Test:
    compiled = re.compile(pattern)
    return lambda file: compiled.match(file.text) is not None


def both(one: Test, other: Test) -> Test:
    return lambda file: one(file) and other(file)


def is_caffe(file: Edges) -> bool:
    """Whether it is a NetParameter (caffe.proto): name in field 1, then a layer in field 100 or the old field 2."""
    head = file.head
    if head[:1] != b"\x0a" or len(head) < 4:
        return False
    end = 2 + head[1]
    return head[1] < 0x80 and head[2:end].isascii() and head[end : end + 2].startswith((b"\xa2\x06", b"\x12"))


def _inside(head: bytes) -> bytes:
    """The beginning of a protobuf message in field 1; empty if there is none."""
    try:
        _, position = varint(head, 1)
    except (IndexError, ValueError):
        return b""
    return head[position:] if head[:1] == b"\x0a" else b""


# NodeDef: name, op; the framework's Value: tag, then a tensor, whose first field is its dimensions.
_NODE = re.compile(rb"\x0a[\x01-\x7f][\x20-\x7e]+\x12[\x01-\x40][A-Za-z]\w+")
_VALUE = re.compile(rb"\x0a[\x01-\x7f][\x20-\x7e]+\x12[\x80-\xff]*[\x00-\x7f][\x08\x0a]")


def is_pickle(file: Edges) -> bool:
    """Whether it is a pickle: protocols 2 to 5 by the first opcode, 0 and 1 by the start of a mapping and the end."""
    if file.head[:1] == b"\x80" and file.head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return not file.head.startswith(b"\x80\x02\x8a\x0a")  # torch's own, until 1.6
    return file.head.startswith((b"(dp", b"(lp", b"}q\x00", b"ccollections\n", b"ccopy_reg\n")) and file.tail.endswith(
        b"."
    )


def is_packed_tar(file: Edges) -> bool:
    """Whether a gzip's first bytes are a tar's."""
    try:
        return zlib.decompressobj(31).decompress(file.head, 512)[257:262] == b"ustar"
    except zlib.error:
        return False


def is_cut_zip(file: Edges) -> bool:
    """Whether a zip lacks the directory at its end, before a comment of at most 64 KiB (APPNOTE.TXT, 4.3.16)."""
    if not file.head.startswith(b"PK\x03\x04"):
        return False
    with open_regular(file.path) as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - (1 << 16) - 22))
        return b"PK\x05\x06" not in opened.read()


def is_core_ml(file: Edges) -> bool:
    """Whether it begins with a version and a description with an input. ONNX's second field is a text."""
    head = file.head
    if len(head) < 8 or head[0] != 0x08 or head[2] != 0x12:
        return False
    try:
        _, position = varint(head, 3)
    except (IndexError, ValueError):
        return False
    return head[position : position + 1] == b"\x0a"


def is_frozen_graph(file: Edges) -> bool:
    return _NODE.match(_inside(file.head)) is not None


def is_mindspore(file: Edges) -> bool:
    return _VALUE.match(_inside(file.head)) is not None


def is_paddle_program(file: Edges) -> bool:
    """Whether its first block has number 0 and no parent."""
    return _inside(file.head).startswith(b"\x08\x00\x10")


def is_json(file: Edges) -> bool:
    """Whether it begins as a JSON object or list, and is no index of weights, which is read."""
    return _JSON.match(file.text) is not None and not is_index(file.head, file.tail)


def is_picture(file: Edges) -> bool:
    return file.head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8")) or file.head[8:12] in (b"WEBP", b"ftyp")
