"""A graph run on images: how many classes, and whether any batch gives what single images give."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

from .onnx_graph import Graph
from .onnx_operators import is_quantized
from .onnx_sizes import check_sizes, measure, most_value_bytes
from .onnx_weights import Weights
from .onnx_wire import Refused

DEFAULT_SIDE = 224
TOLERANCE = 1e-4
# Where numbers are rounded to 8 bits, a difference in the last digit of a float can become one of a whole level.
QUANTIZED_TOLERANCE = 5e-2
MAX_IMAGES = 6
# What all runs together may take, beside those of the two images that are needed.
_OPERATIONS = 1.5e11
_LOUDER = 50
_MAX_THREADS = 4


@dataclass
class Entrance:
    """The one input."""

    name: str
    dtype: str
    layout: str
    size: tuple[int, int] | None
    batch: int | None
    side: int = DEFAULT_SIDE
    """Of the trial images, where the graph takes any."""

    def shape(self, count: int) -> tuple[int, ...]:
        height, width = self.size or (self.side, self.side)
        return (count, 3, height, width) if self.layout == "nchw" else (count, height, width, 3)


class Trial:
    """`model` is the skeleton with one output. Raises `Refused`, or whatever ONNX Runtime meets."""

    def __init__(self, model: Any, weights: Weights, entrance: Entrance, takes: str | None, evidence: str) -> None:
        import numpy as np

        self._weights, self._entrance, self._takes = weights, entrance, takes
        self._output, self._evidence = model.graph.output[0].name, evidence
        self._tolerance = QUANTIZED_TOLERANCE if is_quantized(model) else TOLERANCE
        self.model = model
        """The one that is to be served."""
        self.batch: int | None = entrance.batch or 1
        self.note = ""
        freed = free_batch(model, entrance.name, self.batch)
        stored = weights.stored_bytes(model)
        single = measure(freed, entrance.name, entrance.shape(1))
        check_sizes(single, stored)
        count = min(MAX_IMAGES, max(2, int(_OPERATIONS / max(1.0, single.operations))))
        self._together = min(count, most_value_bytes(stored) // max(1, single.value_bytes))
        """How many images are answered in one call."""
        self._images = self._prepared(trial_levels(count, entrance.shape(1)[1:]))
        self._run(model, freed, stored)
        self.classes: int = self.rows.shape[1]
        if not np.isfinite(self.rows).all():
            raise Refused("it answers images with numbers that are not finite; export the network from sound weights")

    def louder(self) -> Any | None:
        """What it answers for images of far more contrast, where its numbers can be large."""
        if self._entrance.dtype != "float32":
            return None
        return self._answers(self._session(self.model), self._images[:1] * _LOUDER, self.batch or 1)[0]

    def _run(self, model: Any, freed: Any, stored: int) -> None:
        """Find out whether any number of images is answered at a time, with the rows that the trial images give."""
        batch, known = self._entrance.batch, None
        if batch is not None:
            sizes = measure(model, self._entrance.name, self._entrance.shape(batch))
            # A large batch is not tried: what is made of it is compared with itself alone.
            if batch == 1 or sizes.value_bytes <= most_value_bytes(stored):
                known = self._answers(self._session(model), self._images, batch)
        for candidate in (model, freed) if batch is None else (freed,):
            if self._together > 1 and self._answers_any_batch(candidate, known):
                self.model, self.batch = candidate, None
                return
        if known is None and batch is not None:
            check_sizes(sizes, stored)
        self.rows, self.evidence = known or self._answers(self._session(model), self._images, 1)
        if self.batch == 1:
            self.note = "it answers 1 image at a time, so that no batches are formed"
            return
        self.note = f"it answers {batch} images at a time and no other number, so that smaller batches are padded"
        # Images beside it must not change an image's answer.
        others = self._images[::-1].copy()
        others[0] = self._images[0]
        if not self._is_same(self._answers(self._session(model), others, self.batch or 1)[0][:1], self.rows[:1]):
            raise Refused("its answer for an image depends on the images beside it; export it for one image")

    def _answers_any_batch(self, model: Any, known: tuple[Any, Any] | None) -> bool:
        """Whether images together get the answers that they get alone, and those that are known."""
        try:
            session = self._session(model)
            rows, evidence = self._answers(session, self._images, self._together)
            alone, _ = self._answers(session, self._images[:2], 1)
        except Exception:
            # Whatever ONNX Runtime meets where a number of images does not fit.
            return False
        if not self._is_same(rows[:2], alone) or (known is not None and not self._is_same(rows, known[0])):
            return False
        self.rows, self.evidence = rows, evidence
        return True

    def _is_same(self, rows: Any, others: Any) -> bool:
        import numpy as np

        return rows.shape == others.shape and bool(
            np.abs(rows - others).max() <= self._tolerance * (1 + np.abs(others).max())
        )

    def _answers(self, session: Any, images: Any, size: int) -> tuple[Any, Any]:
        """Rows and evidence of all images, in calls of `size`. Where a call must be of that size, it is filled up."""
        import numpy as np

        rows, evidence = [], []
        is_fixed = self._entrance.batch == size
        for begin in range(0, len(images), size):
            taken = images[begin : begin + size]
            given = np.resize(taken, (size, *taken.shape[1:])) if is_fixed else taken
            some, other = self._rows(session, given)
            rows.append(some[: len(taken)])
            evidence.append(other[: len(taken)])
        return np.concatenate(rows), np.concatenate(evidence)

    def _session(self, model: Any) -> Any:
        """On unchanged operators, so that the weights are held once and every value can be asked for."""
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(_MAX_THREADS, available_threads())
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._weights.give(options, model)
        if self._evidence != self._output:
            shown = onnx.ModelProto()
            shown.CopyFrom(model)
            shown.graph.output.add().name = self._evidence
            model = shown
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._weights.forget_pages()
        return session

    def _rows(self, session: Any, images: Any) -> tuple[Any, Any]:
        """(N, classes) float32 of the output, and of the evidence."""
        import numpy as np

        names = [self._output] + ([self._evidence] if self._evidence != self._output else [])
        scores, *others = session.run(names, {self._entrance.name: images})
        is_row = scores.ndim >= 2 and prod(scores.shape[1:]) == max(scores.shape[1:])
        is_one = scores.ndim == 1 and len(scores) == len(images)
        if not (is_row or is_one) or scores.dtype.kind != "f" or scores.size == 0 or len(scores) != len(images):
            raise Refused(
                f"it answers with {scores.dtype} of the shape {list(scores.shape)}, not with scores for classes; export "
                f"the network up to its last dense layer or softmax"
            )
        rows = np.asarray(scores, np.float32).reshape(len(scores), -1)
        if others and others[0].dtype.kind == "f" and others[0].size == rows.size:
            return rows, np.asarray(others[0], np.float32).reshape(rows.shape)
        return rows, rows

    def _prepared(self, levels: Any) -> Any:
        """In the input's own numbers."""
        import numpy as np

        if self._entrance.dtype == "uint8" or self._takes == "levels":
            return levels.astype(self._entrance.dtype)
        fractions = levels.astype(np.float32) / 255
        return (fractions if self._takes == "unit" else (fractions - 0.45) / 0.225).astype(self._entrance.dtype)


def available_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trial_levels(count: int, shape: tuple[int, ...]) -> Any:
    """Images of noise, of patches, of a gradient, white, black, and of stripes: (count, *shape) uint8."""
    import numpy as np

    random = np.random.default_rng(0)
    channel = shape.index(3)
    height, width = (side for axis, side in enumerate(shape) if axis != channel)
    noise = random.integers(0, 256, (height, width, 3))
    patches = random.integers(0, 256, (8, 8, 3))[
        np.arange(height)[:, None] * 8 // height, np.arange(width) * 8 // width
    ]
    down, across = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None, :]
    gradient = np.stack(np.broadcast_arrays(down, across, (down + across) / 2), axis=2)
    stripes = np.where((np.arange(width) // 7 % 2)[None, :, None], noise // 2 + 128, noise // 4)
    plain = [np.full((height, width, 3), level) for level in (255, 0)]
    images = np.stack([noise, patches, gradient, *plain, np.broadcast_to(stripes, noise.shape)][:count])
    return np.ascontiguousarray(np.moveaxis(images, 3, 1 + channel)).astype(np.uint8)


def free_batch(model: Any, input_name: str, batch: int) -> Any:
    """A copy whose first axis takes any size: in its declarations, and in reshapes that say it again."""
    import onnx

    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    for value in (*freed.graph.input, *freed.graph.output):
        if value.name == input_name or value in freed.graph.output:
            sides = value.type.tensor_type.shape.dim
            if sides:
                sides[0].dim_param = "batch"
    graph = Graph(freed)
    for node in freed.graph.node:
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in graph.constants:
            values = graph.value(node.input[1])
            if values is not None and values.ndim == 1 and values.size > 1 and values[0] == batch:
                values = values.copy()
                # 0 keeps the axis as it comes; where another is left open, that one may have meant the images too.
                values[0] = 0 if (values[1:] == -1).any() else -1
                tensor = graph.constants[node.input[1]]
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return freed
