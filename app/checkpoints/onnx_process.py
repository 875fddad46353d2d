"""Examines an ONNX file: a program that `run_limited` runs within limits, with JSON on standard input.

    {"path": the model's, "beside": {name in the model: path}, "output": name or null}

onnx's checker and ONNX Runtime can crash on a hostile graph, so this is a separate process. It imports only the modules
`onnx_…`, `protobuf`, `errors` and two of `processes` from this package. The graph is checked first, then run on images:
a batch must give the same scores as single images. The answer on standard output is one document (see
`processes/framing.py`), followed by the small parts of the changed model if the model must be changed:

    {"input": name, "output": name, "dtype": "float32", "layout": "nchw", "size": [224, 224] or null,
     "batch": 8 or null, "classes": 1000, "activation": null or "softmax" or "none", "scale": null or "unit" or
     "levels", "notes": [clause], "warnings": [clause], "pieces": null or [[source, offset, length]],
     "record": null or [offset, length], "graph_sha256": null or hex, "quantized": false}
    {"refused": sentence}     the graph uses something that is not supported
    {"damaged": reason}
    {"not_run": reason}       the libraries could not be loaded, whatever the file is

"batch" is the only batch size that the graph accepts, or null if it accepts any. "pieces" is the changed model, as
`onnx_data.assemble` takes it. "record" is the position of this service's record in the file's metadata, and
"graph_sha256" the digest of the graph beside it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from typing import Any, BinaryIO

from ..errors import clause_of
from ..processes.framing import write_document
from ..processes.limits import limit, with_growth
from .onnx_graph import pruned
from .onnx_operators import check_operators, is_quantized
from .onnx_outputs import choose_output
from .onnx_refusal import Refused
from .onnx_scale import find_scale
from .onnx_scores import find_ending, read_scores
from .onnx_sizes import measure, without_weights
from .onnx_trial import DEFAULT_SIDE, Entrance, Trial
from .onnx_weights import Weights
from .onnx_wire import Contents, walk

MAX_SIDE = 1024
MAX_BATCH = 64
MAX_RECORD_BYTES = 64 << 20
# In addition to twice the weights: for the values of a run, and for the libraries.
_MEMORY_BYTES = 144 << 20
_SCORE_TOLERANCES = {"float32": 1e-3, "uint8": 1e-3, "float16": 1e-2}
_QUANTIZED_SCORE_TOLERANCE = 5e-2
_CHUNK_BYTES = 1 << 20


def examine(asked: dict[str, Any], answer: BinaryIO) -> None:
    """Write the answer for a valid graph. Raises `Refused`, or any error of the libraries."""
    import onnx

    files = {"": mapped(asked["path"])} | {name: mapped(path) for name, path in asked["beside"].items()}
    contents = walk(files[""])
    limit_growth(sum(len(data) for data in files.values()))
    weights = Weights(contents, files[""], {name: files[name] for name in contents.locations})
    model = weights.skeleton
    entrances = find_entrances(model)
    output, note = choose_output(model, measure(model, entrances[0].name, entrances[0].shape(1)), asked["output"])
    is_changed = pruned(model, output) or bool(contents.locations) or contents.has_moved_constants
    check_operators(model)
    weights.check(model)
    onnx.checker.check_model(without_weights(model).SerializeToString())
    ending = find_ending(model)
    entrance, scale, trial = tried(model, weights, entrances, ending.before_rounding)
    tolerance = _QUANTIZED_SCORE_TOLERANCE if is_quantized(model) else _SCORE_TOLERANCES[entrance.dtype]
    scores = read_scores(ending, trial.evidence, tolerance, trial.louder, trial.classes)
    small, pieces = weights.pieces(trial.model) if is_changed or trial.model is not model else (b"", None)
    found = {
        "input": entrance.name,
        "output": output,
        "dtype": entrance.dtype,
        "layout": entrance.layout,
        "size": entrance.size,
        "batch": trial.batch,
        "classes": trial.classes,
        "activation": scores.activation,
        "scale": scale.takes,
        "notes": [each for each in (note, scores.note, trial.note) if each],
        "warnings": [each for each in (scale.warning, scores.warning) if each],
        "pieces": pieces,
        "record": record_of(contents),
        "graph_sha256": None if contents.record is None else digest(files[""], *contents.graph),
        "quantized": is_quantized(model),
    }
    write_document(answer, found)
    answer.write(small)


def mapped(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def limit_growth(file_bytes: int) -> None:
    """Limit this process's memory to the most that a file of `file_bytes` can need."""
    import onnxruntime  # noqa: F401, before the limit, so that its own memory does not count as growth

    limit(data_bytes=with_growth("VmData", 2 * file_bytes + _MEMORY_BYTES))


def find_entrances(model: Any) -> list[Entrance]:
    """The only input that is no weight: images of three channels. Two layouts if its shape allows both."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise Refused(
            f"it has {len(inputs)} inputs where one image was expected; export the network with its image alone"
        )
    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.UINT8: "uint8"}
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in kinds:
        raise Refused("its input is neither float32, float16 nor uint8; export it for one of those")
    # 0 for an axis that takes any size.
    sides = [max(0, axis.dim_value) for axis in tensor.shape.dim] if tensor.HasField("shape") else [0, 0, 0, 0]
    layouts = [("nchw", 1, (2, 3)), ("nhwc", 3, (1, 2))]
    open_to = [each for each in layouts if len(sides) == 4 and sides[each[1]] in (0, 3)]
    # An axis of length 3 is the channels.
    told = [each for each in open_to if sides[each[1]] == 3][:1] or open_to
    if not told:
        raise Refused(
            f"its input has the shape {sides} where (N, 3, H, W) or (N, H, W, 3) was expected; export it for colour "
            f"images"
        )
    if max(sides) > MAX_SIDE or sides[0] > MAX_BATCH:
        raise Refused(
            f"its input of {sides} is over the limit of {MAX_BATCH} images of {MAX_SIDE} pixels a side; export it for "
            f"fewer or smaller ones"
        )
    name, dtype, batch = inputs[0].name, kinds[tensor.elem_type], sides[0] or None
    entrances = []
    for layout, _, (rows, columns) in told:
        height, width = sides[rows], sides[columns]
        size = (height, width) if height and width else None
        entrances.append(Entrance(name, dtype, layout, size, batch, side=height or width or DEFAULT_SIDE))
    return entrances


def tried(model: Any, weights: Weights, entrances: list[Entrance], evidence: str) -> tuple[Entrance, Any, Trial]:
    """The first entrance that a trial run succeeds with. Raises the first one's error if there is none."""
    errors: list[Exception] = []
    for entrance in entrances:
        scale = find_scale(model, entrance.name, entrance.dtype)
        try:
            return entrance, scale, Trial(model, weights, entrance, scale.takes, evidence)
        except Exception as error:
            # A wrong layout causes various errors: ONNX Runtime's, a wrong shape, too much memory.
            errors.append(error)
    if any(
        word in str(errors[0]) for word in ("bad allocation", "bad_alloc", "Failed to allocate", "std::length_error")
    ):
        raise Refused(
            "running it takes over twice its size and 200 MB of memory; export it for smaller or fewer images"
        )
    raise errors[0]


def record_of(contents: Contents) -> tuple[int, int] | None:
    """The position of this service's record in the metadata, if there is one."""
    if contents.record is not None and contents.record[1] > MAX_RECORD_BYTES:
        raise Refused(f"its record has over {MAX_RECORD_BYTES:,} characters; quantize the checkpoint again")
    return contents.record


def digest(data: mmap.mmap, begin: int, end: int) -> str:
    """SHA-256 of the graph with its weights, without the metadata."""
    sha256 = hashlib.sha256()
    for at in range(begin, end, _CHUNK_BYTES):
        sha256.update(data[at : min(at + _CHUNK_BYTES, end)])
    return sha256.hexdigest()


def main() -> None:
    answer = sys.stdout.buffer
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except (ImportError, OSError, MemoryError) as error:
        write_document(answer, {"not_run": clause_of(error, 160)})
        return
    try:
        examine(json.loads(sys.stdin.buffer.read()), answer)
    except Refused as refusal:
        write_document(answer, {"refused": str(refusal)})
    except MemoryError:
        write_document(answer, {"refused": "reading it takes over twice its size and 200 MB of memory"})
    except Exception as error:
        # Damage causes all kinds of errors in the libraries: DecodeError, ValidationError, InferenceError, Fail, …
        write_document(answer, {"damaged": clause_of(error, 160)})
