"""ONNX Runtime sessions for trial runs: any intermediate value can be fetched, and weights are held once."""

from __future__ import annotations

import os
from typing import Any

from .onnx_weights import HUGE_BYTES, Weights, is_told_by_place

_MAX_THREADS = 4


class Session:
    """A session of the skeleton `model`, without graph optimisations.

    ONNX Runtime briefly holds two copies of a weight while loading it. Huge weights are passed as inputs of every run
    instead, which are not copied.
    """

    def __init__(self, model: Any, weights: Weights, evidence: str) -> None:
        import onnx
        import onnxruntime

        self._names = list(dict.fromkeys([model.graph.output[0].name, evidence]))
        self._huge: dict[str, Any] = {}
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        for name in self._names[1:]:
            shown.graph.output.add().name = name
        self._give_huge(shown, weights)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(_MAX_THREADS, _threads())
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        places = sorted({weights.place_of(each) for each in shown.graph.initializer if is_told_by_place(each)})
        if places:
            buffers = [weights.buffer(place) for place in places]
            options.add_external_initializers_from_files_in_memory(places, buffers, [len(each) for each in buffers])
        self._session = onnxruntime.InferenceSession(
            shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        weights.forget_pages()

    def run(self, inputs: dict[str, Any]) -> list[Any]:
        """The output, and the evidence if that is another value."""
        return list(self._session.run(self._names, inputs | self._huge))

    def _give_huge(self, model: Any, weights: Weights) -> None:
        import onnx

        kept, declared = [], {value.name for value in model.graph.input}
        for tensor in model.graph.initializer:
            is_huge = is_told_by_place(tensor) and weights.bytes_of(tensor)[2] > HUGE_BYTES
            values = weights.array(tensor) if is_huge else None
            if values is None:
                kept.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
                continue
            self._huge[tensor.name] = values
            if tensor.name not in declared:
                model.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
