"""The file that `quantize` writes: an ONNX model whose metadata has the record."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from ..checkpoints import QuantizedRecord
from ..checkpoints.quantized import RECORD_KEY
from ..errors import QuantizationError


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
    partial = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False
        ) as file:
            partial = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is its owner's alone; this one is to be served by whoever serves.
        partial.chmod(0o644)
        partial.replace(target)
    except OSError as error:
        raise QuantizationError(f"Cannot write {target}: {error.strerror or error}.") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
