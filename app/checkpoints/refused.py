"""Checkpoints that people have and that are not read: known by their signs, each refused with the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError

_DISTRIBUTED = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"


def is_distributed(folder: Path) -> bool:
    """A folder of torch.distributed.checkpoint's: the shards of each rank."""
    return any(folder.glob("*.distcp"))


def refuse_distributed(path: Path) -> Path | None:
    raise CheckpointError(
        f"{path} is a sharded checkpoint (.distcp). Join its shards with torch's own: {_DISTRIBUTED}."
    )


def _is_shard(path: Path, head: bytes) -> bool:
    return path.suffix == ".distcp"


def _is_caffe(path: Path, head: bytes) -> bool:
    """A NetParameter (caffe.proto): its name in field 1, then a layer, in field 100 or in the old field 2."""
    if head[:1] != b"\x0a" or len(head) < 4:
        return False
    end = 2 + head[1]
    return head[1] < 0x80 and head[2:end].isascii() and head[end : end + 2].startswith((b"\xa2\x06", b"\x12"))


def _is_lfs_pointer(path: Path, head: bytes) -> bool:
    return head.startswith(b"version https://git-lfs.")


_SIGNS: tuple[tuple[Callable[[Path, bytes], bool], str], ...] = (
    (_is_shard, f"{{path}} is one shard of a checkpoint. Join its folder with torch's own: {_DISTRIBUTED}."),
    (
        _is_caffe,
        "{path} is a Caffe model (.caffemodel), which is not read. Convert it to ONNX or PyTorch, or take the same "
        "network from torchvision.",
    ),
    (_is_lfs_pointer, "{path} is a pointer of Git LFS and not the file itself. Fetch it: git lfs pull."),
)


def refuse_by_sign(path: Path, head: bytes) -> None:
    """Raises `CheckpointError` for a file of a known kind that is not read."""
    for has_sign, message in _SIGNS:
        if has_sign(path, head):
            raise CheckpointError(message.format(path=path))
