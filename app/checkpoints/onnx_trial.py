"""Trial runs of an ONNX graph: the number of classes, and whether batches give the results of single images."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .onnx_graph import Graph
from .onnx_operators import is_quantized
from .onnx_refusal import Refused
from .onnx_session import Session
from .onnx_sizes import check_sizes, measure, most_value_bytes
from .onnx_weights import Weights

DEFAULT_SIDE = 224
TOLERANCE = 1e-4
# With rounding to 8 bits, a difference in the last digit of a float can become a whole level.
QUANTIZED_TOLERANCE = 5e-2
MAX_IMAGES = 6
# The first images resemble no photo, but contain differences of all sizes as photos do.
_ORDINARY = 3
# The limit of all runs together; two images are run in any case.
_OPERATIONS = 1.5e11
# The limit of the values of a batch.
_TOGETHER_BYTES = 48 << 20
_LOUDER = 50


@dataclass
class Entrance:
    """The only input."""

    name: str
    dtype: str
    layout: str
    size: tuple[int, int] | None
    batch: int | None
    side: int = DEFAULT_SIDE
    """The side of the trial images if the graph takes any size."""

    def shape(self, count: int) -> tuple[int, ...]:
        height, width = self.size or (self.side, self.side)
        return (count, 3, height, width) if self.layout == "nchw" else (count, height, width, 3)


class Trial:
    """The trial runs of `model`, the skeleton with one output. Raises `Refused`, or any error of ONNX Runtime."""

    def __init__(self, model: Any, weights: Weights, entrance: Entrance, takes: str | None, evidence: str) -> None:
        import numpy as np

        self._weights, self._entrance, self._takes = weights, entrance, takes
        self._evidence = evidence
        self._tolerance = QUANTIZED_TOLERANCE if is_quantized(model) else TOLERANCE
        self.model = model
        """The model to serve."""
        self.batch: int | None = entrance.batch or 1
        self.note = ""
        self.rows: Any
        self.evidence: Any
        freed = free_batch(model, entrance.name, self.batch)
        stored = weights.stored_bytes(model)
        single = measure(freed, entrance.name, entrance.shape(1))
        check_sizes(single, stored)
        count = min(MAX_IMAGES, max(2, int(_OPERATIONS / max(1.0, single.operations))))
        few = 2 if 2 * single.value_bytes <= most_value_bytes(stored) else 1
        self._together = min(count, max(few, _TOGETHER_BYTES // max(1, single.value_bytes)))
        """The number of images in one call."""
        self._levels = trial_levels(count, entrance.shape(1)[1:])
        self._run(model, freed, stored)
        self.classes: int = self.rows.shape[1]
        is_finite = np.isfinite(self.rows).all(axis=1) & np.isfinite(self.evidence).all(axis=1)
        if not is_finite[:_ORDINARY].all():
            raise Refused("it answers images with numbers that are not finite; make it again of sound weights")
        # Other images, such as all white or black, resemble no photo: their results need not be finite.
        self.evidence = self.evidence[is_finite]

    def louder(self) -> Any | None:
        """The results for images of much higher contrast; None if the input cannot represent them."""
        if self._entrance.dtype != "float32":
            return None
        return self._answers(self._opened(self.model), self._levels[:1], self.batch or 1, contrast=_LOUDER)[0]

    def _run(self, model: Any, freed: Any, stored: int) -> None:
        """Determine the rows of the trial images, and whether the graph accepts any batch size."""
        batch, known = self._entrance.batch, None
        if batch is not None:
            sizes = measure(model, self._entrance.name, self._entrance.shape(batch))
            # A large fixed batch is not run: the freed model is then compared only with itself.
            if batch == 1 or sizes.value_bytes <= most_value_bytes(stored):
                known = self._answers(self._opened(model), self._levels, batch)
        for candidate in (model, freed) if batch is None else (freed,):
            if self._together > 1 and self._answers_any_batch(candidate, known):
                self.model, self.batch = candidate, None
                return
        if known is None and batch is not None:
            check_sizes(sizes, stored)
        self.rows, self.evidence = known or self._answers(self._opened(model), self._levels, 1)
        if self.batch == 1:
            self.note = "it answers 1 image at a time, so that no batches are formed"
            return
        self.note = f"it answers {batch} images at a time and no other number, so that smaller batches are padded"
        # Other images of a batch must not change an image's result.
        others = self._levels[::-1].copy()
        others[0] = self._levels[0]
        if not self._is_same(self._answers(self._opened(model), others, self.batch or 1)[0][:1], self.rows[:1]):
            raise Refused("its answer for an image depends on the images beside it; export it for one image")

    def _answers_any_batch(self, model: Any, known: tuple[Any, Any] | None) -> bool:
        """Whether a batch gives the results of single images, and the known results."""
        try:
            session = self._opened(model)
            rows, evidence = self._answers(session, self._levels, self._together)
            alone, _ = self._answers(session, self._levels[:2], 1)
        except Exception:
            # ONNX Runtime has various errors for a batch size that does not fit.
            return False
        if not self._is_same(rows[:2], alone) or (known is not None and not self._is_same(rows, known[0])):
            return False
        self.rows, self.evidence = rows, evidence
        return True

    def _is_same(self, rows: Any, others: Any) -> bool:
        import numpy as np

        if rows.shape != others.shape or not np.array_equal(np.isfinite(rows), np.isfinite(others)):
            return False
        rows, others = np.nan_to_num(rows, posinf=0, neginf=0), np.nan_to_num(others, posinf=0, neginf=0)
        return bool(np.abs(rows - others).max() <= self._tolerance * (1 + np.abs(others).max()))

    def _answers(self, session: Session, levels: Any, size: int, contrast: int = 1) -> tuple[Any, Any]:
        """Rows and evidence of all images, in calls of `size`, padded to it if the graph accepts no other size."""
        import numpy as np

        rows, evidence = [], []
        is_fixed = self._entrance.batch == size
        for begin in range(0, len(levels), size):
            taken = levels[begin : begin + size]
            given = np.resize(taken, (size, *taken.shape[1:])) if is_fixed else taken
            some, other = self._rows(session, self._prepared(given, contrast))
            rows.append(some[: len(taken)])
            evidence.append(other[: len(taken)])
        return np.concatenate(rows), np.concatenate(evidence)

    def _opened(self, model: Any) -> Session:
        return Session(model, self._weights, self._evidence)

    def _rows(self, session: Session, images: Any) -> tuple[Any, Any]:
        """Output and evidence, (N, classes) float32 each."""
        import numpy as np

        scores, *others = session.run({self._entrance.name: images})
        is_row = scores.ndim >= 2 and prod(scores.shape[1:]) == max(scores.shape[1:])
        is_one = scores.ndim == 1 and len(scores) == len(images)
        if not (is_row or is_one) or scores.dtype.kind != "f" or scores.size == 0 or len(scores) != len(images):
            raise Refused(
                f"it answers with {scores.dtype} of the shape {list(scores.shape)}, not with scores for classes; "
                f"export the network up to its last dense layer or softmax"
            )
        rows = np.asarray(scores, np.float32).reshape(len(scores), -1)
        if others and others[0].dtype.kind == "f" and others[0].size == rows.size:
            return rows, np.asarray(others[0], np.float32).reshape(rows.shape)
        return rows, rows

    def _prepared(self, levels: Any, contrast: int) -> Any:
        """The images in the scale and data type of the input."""
        import numpy as np

        if self._entrance.dtype == "uint8":
            return levels
        low, step = {"levels": (0.0, 1.0), "unit": (0.0, 255.0), None: (0.45 * 255, 0.225 * 255)}[self._takes]
        images = levels.astype(np.float32)
        images -= low
        images *= contrast / step
        return images.astype(self._entrance.dtype, copy=False)


def trial_levels(count: int, shape: tuple[int, ...]) -> Any:
    """Images of noise, patches, a gradient, white, black, and stripes: (count, *shape) uint8."""
    import numpy as np

    random = np.random.default_rng(0)
    channel = shape.index(3)
    height, width = (side for axis, side in enumerate(shape) if axis != channel)
    noise = random.integers(0, 256, (height, width, 3), np.uint8)
    patches = random.integers(0, 256, (8, 8, 3), np.uint8)
    down, across = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None, :]
    stripes = (np.arange(width) // 7 % 2 * 128).astype(np.uint8)[None, :, None]
    images = np.zeros((6, height, width, 3), np.uint8)
    images[0] = noise
    images[1] = patches[np.arange(height)[:, None] * 8 // height, np.arange(width) * 8 // width]
    for plane, ramp in enumerate((down, across, (down + across) / 2)):
        images[2, ..., plane] = ramp
    images[3] = 255
    images[5] = noise // 2 + stripes
    return np.ascontiguousarray(np.moveaxis(images[:count], 3, 1 + channel))


def free_batch(model: Any, input_name: str, batch: int) -> Any:
    """A copy whose first axis takes any size, in its declarations and in reshapes that repeat the batch size."""
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
                # 0 keeps the axis; it is used if another axis is open (-1), since only one can be.
                values[0] = 0 if (values[1:] == -1).any() else -1
                tensor = graph.constants[node.input[1]]
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return freed
