"""Further forms of a graph, made at their first use: with a tensor as input, and with features as outputs.

ONNX Runtime computes all outputs of a session whether they are asked for or not, so that the plain graph stays as it
is and each form is a session of its own. Weights in a file beside the graph are mapped by all sessions once; a graph
with its weights in it is held again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Graph
from ..checkpoints.onnx_graph import pruned
from ..errors import FeaturesNotAvailable, InvalidParameter, TensorsNotAvailable
from ..types import FeatureMaps, Features, InputSpec, Pixels, Want
from .onnx_entry import Front, Line, find_front, fit_line
from .onnx_input import GraphInput
from .onnx_pooling import Pooling, find_pooling
from .onnx_sessions import open_session

_TENSOR = "tensor"
# Between a pool's output and its maps' mean: in 8 bits both are rounded, and a pool of a part of the map is far off.
_MOST_ROUNDING = 0.02


class Found(NamedTuple):
    """A form's outputs: the scores as the graph has them, features `(N, C)` and feature maps `(N, C, h, w)`."""

    scores: NDArray[Any]
    features: Features | None
    maps: FeatureMaps | None


@dataclass(frozen=True, slots=True)
class Form:
    """A session of the graph in another form."""

    session: Any
    input_name: str
    pooling: Pooling | None
    is_nhwc: bool
    """Whether the feature maps have their channels last."""

    def run(self, images: NDArray[Any], output: str, want: Want) -> Found:
        """`output` has the scores."""
        names = [output]
        if self.pooling is not None:
            names += [self.pooling.pooled] if Want.FEATURES in want else []
            names += [self.pooling.maps] if Want.FEATURE_MAPS in want else []
        scores, *others = self.session.run(names, {self.input_name: images})
        features = _flat(others[0]) if Want.FEATURES in want else None
        maps = self._planes(others[-1]) if Want.FEATURE_MAPS in want else None
        return Found(scores, features, maps)

    def _planes(self, maps: NDArray[Any]) -> FeatureMaps:
        return np.ascontiguousarray(maps.transpose(0, 3, 1, 2) if self.is_nhwc else maps, np.float32)


class _Traits(NamedTuple):
    """Everything that the forms of a graph need to know of it."""

    front: Front
    line: Line | None
    pooling: Pooling | None


class Forms:
    """The forms of one graph."""

    def __init__(self, graph: Graph, threads: int | None, graph_input: GraphInput) -> None:
        self._graph = graph
        self._threads = threads
        self._input = graph_input
        self._lock = threading.Lock()
        self._made: dict[tuple[InputSpec, bool], Form | type[InvalidParameter]] = {}

    @property
    def input_specs(self) -> frozenset[InputSpec]:
        """Tensors too, unless the graph mixes the image before it is normalised."""
        return frozenset(InputSpec) if self._traits.line is not None else frozenset({InputSpec.PIXELS_U8})

    @property
    def wants(self) -> Want:
        """Features too, where the graph has a global average pool, as a form of it shows that is made for this."""
        every = ~Want(0)
        try:
            self.form(InputSpec.PIXELS_U8, every)
        except FeaturesNotAvailable:
            return Want.SCORES
        return every

    def form(self, spec: InputSpec, want: Want) -> Form:
        """Made where it is asked for first. Raises `TensorsNotAvailable`, `FeaturesNotAvailable`."""
        key = spec, want != Want.SCORES
        made = self._made.get(key)
        if made is None:
            with self._lock:
                made = self._made.get(key) or self._made_or_not(*key)
                self._made[key] = made
        if isinstance(made, Form):
            return made
        raise made()

    def close(self) -> None:
        self._made.clear()

    def _made_or_not(self, spec: InputSpec, is_more: bool) -> Form | type[InvalidParameter]:
        try:
            return self._make(spec, is_more)
        except (TensorsNotAvailable, FeaturesNotAvailable) as error:
            return type(error)

    def _make(self, spec: InputSpec, is_more: bool) -> Form:
        traits, model, noise = self._traits, self._model(), self._noise()
        input_name, images = self._graph.input_name, self._input.prepared(noise)
        if spec == InputSpec.TENSOR_F32:
            if traits.line is None:
                raise TensorsNotAvailable()
            input_name, images = _TENSOR, self._input.tensor(noise)
            _put_tensor(model, traits.front, traits.line, (self._graph.batch_size or "N", *images.shape[1:]))
        pooling = traits.pooling if is_more else None
        if is_more:
            if pooling is None:
                raise FeaturesNotAvailable()
            model.graph.node.extend(pooling.added)
            present = {value.name for value in model.graph.output}
            for name in {pooling.maps, pooling.pooled} - present:
                model.graph.output.add().name = name
        session = open_session(self._graph, self._threads, model.SerializeToString())
        is_nhwc = pooling is not None and _is_nhwc(session, {input_name: images}, pooling)
        return Form(session, input_name, pooling, is_nhwc)

    @cached_property
    def _traits(self) -> _Traits:
        model = self._model()
        front = find_front(model, self._graph.input_name)
        pooling = find_pooling(model, self._graph.output_name)
        noise = self._noise()
        images, tensor = self._input.prepared(noise), self._input.tensor(noise)
        if front.outputs:
            # What a tensor becomes at the end of the front is read off by running the front alone.
            model.graph.output.add().name = front.end
            pruned(model, front.end)
            session = open_session(self._graph, 1, model.SerializeToString())
            (images,) = session.run([front.end], {self._graph.input_name: images})
        return _Traits(front, fit_line(images, tensor, self._graph.dtype == "float16"), pooling)

    def _noise(self) -> Pixels:
        """Images of which every pixel shows a wrong order."""
        shape = (self._graph.batch_size or 1, *self._input.crop, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def _model(self) -> Any:
        """onnx.ModelProto. Weights in another file stay there."""
        import onnx

        if self._graph.path is not None:
            return onnx.load(str(self._graph.path), load_external_data=False)
        return onnx.load_from_string(self._graph.model)


def _flat(features: NDArray[Any]) -> Features:
    return np.asarray(features, np.float32).reshape(len(features), -1)


def _is_nhwc(session: Any, inputs: dict[str, NDArray[Any]], pooling: Pooling) -> bool:
    """The axis of the channels. Raises `FeaturesNotAvailable` where the pool is not the mean of the whole map."""
    maps, pooled = session.run([pooling.maps, pooling.pooled], inputs)
    if maps.ndim == 4:
        features = _flat(pooled)
        for is_nhwc, axes in ((False, (2, 3)), (True, (1, 2))):
            means = maps.astype(np.float32).mean(axes)
            if means.shape == features.shape:
                distance = np.abs(means - features).max()
                if distance <= _MOST_ROUNDING * np.abs(features).max():
                    return is_nhwc
    raise FeaturesNotAvailable()


def _put_tensor(model: Any, front: Front, line: Line, shape: tuple[int | str, ...]) -> None:
    """Put an input for a tensor in the place of the image and the operators of `front`."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    name = _TENSOR

    def add(operator: str, *others: str, **attributes: Any) -> None:
        nonlocal name
        made = f"{_TENSOR} {len(nodes)}"
        nodes.append(helper.make_node(operator, [name, *others], [made], **attributes))
        name = made

    if line.is_reversed:
        constant = f"{_TENSOR} order"
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), constant))
        add("Gather", constant, axis=1)
    if not line.is_identity:
        for operator, values in (("Mul", line.scale), ("Add", line.shift)):
            constant = f"{_TENSOR} {operator}"
            planes = values.astype(np.float32).reshape(1, 3, 1, 1)
            model.graph.initializer.append(numpy_helper.from_array(planes, constant))
            add(operator, constant)
    if line.is_nhwc:
        add("Transpose", perm=[0, 2, 3, 1])
    if line.dtype != np.float32:
        add("Cast", to=helper.np_dtype_to_tensor_dtype(line.dtype))
    for node in model.graph.node:
        if front.outputs.isdisjoint(node.output):
            nodes.append(_copied(node))
            nodes[-1].input[:] = [name if each == front.end else each for each in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info(_TENSOR, TensorProto.FLOAT, shape))


def _copied(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())
