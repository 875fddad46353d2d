"""The file that `quantize` writes: an ONNX model whose metadata has the record."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..checkpoints import QuantizedRecord
from ..checkpoints.quantized import RECORD_KEY
from ..errors import QuantizationError
from ..files import write_whole


def graph_digest(model: bytes) -> str:
    """As `onnx_process` computes it of the file."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def with_record(model: bytes, record: QuantizedRecord) -> bytes:
    """`model` with the record in its metadata, in place of what the quantizer noted there."""
    import onnx

    document = onnx.load_model_from_string(model)
    del document.metadata_props[:]
    entry = document.metadata_props.add()
    entry.key, entry.value = RECORD_KEY, record.model_dump_json()
    return bytes(document.SerializeToString())


def write(data: bytes, target: Path, *, replace: bool) -> None:
    """Write a file whole or not at all. Raises `QuantizationError` where it cannot be, or is there and must not."""
    if target.exists() and not replace:
        raise QuantizationError(f"{target} exists. Remove it, name another with --output, or replace it with --force.")
    try:
        write_whole(target, data)
    except OSError as error:
        raise QuantizationError(f"Cannot write {target}: {error.strerror or error}.") from None
