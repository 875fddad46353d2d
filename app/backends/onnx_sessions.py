"""ONNX Runtime's sessions: how many threads a call gets, by whether another one runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..checkpoints import Graph
from ..errors import CheckpointError

# onnxruntime_session_options_config_keys.h: where the weights of a model given as bytes are looked for.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Sessions:
    """A session of all threads for a call that is alone, and for two calls at once one of half the threads each.

    A call on all cores is the soonest answer, and wastes a part of each core where its threads wait for one another,
    the more so beside decoding. Two calls that share the cores waste less: `docs/backends.md` has the figures. A kept
    export's weights lie in a file beside its graph and are mapped from there, so that more sessions do not hold them
    again. Weights within a graph are each session's own: where those are float's there is one session, and only int8's,
    a quarter as large, are held two or three times.
    """

    def __init__(self, graph: Graph, threads: int | None) -> None:
        """Raises `CheckpointError` where the graph is not run here."""
        half = (threads or 1) // 2
        # An odd one is in the other half: no core idles.
        other = (threads or 1) - half
        is_cheap = graph.is_optimised or graph.computes_in == "int8"
        self.calls = 2 if half and graph.path is not None and is_cheap else 1
        """How many may run at once."""
        self._whole: Any = open_session(graph, threads)
        self._halves: list[Any] = []
        if self.calls == 2:
            first = open_session(graph, half)
            # On one thread a call runs in its caller's: two share a session and nothing else.
            self._halves = [first, first if other == 1 else open_session(graph, other)]
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def borrow(self, other: Any = None) -> Iterator[Any]:
        """The session for a call that begins now; `other` is run in its place where that is given."""
        with self._lock:
            is_alone = not self._running
            self._running += 1
            half = self._halves.pop() if self._halves and not is_alone and other is None else None
        try:
            yield other or (self._whole if half is None else half)
        finally:
            with self._lock:
                self._running -= 1
                if half is not None:
                    self._halves.append(half)

    def close(self) -> None:
        self._whole = None
        self._halves.clear()


def open_session(graph: Graph, threads: int | None, model: bytes | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of `graph` on the CPU. Raises `CheckpointError` where it is not run here.

    `model` is another form of the graph, with the same weights in the file beside it.
    """
    import onnxruntime

    options = session_options(threads)
    source: str | bytes = model or graph.model
    if graph.path is not None:
        if model is None:
            source = str(graph.path)
        else:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.path.parent))
    if graph.is_optimised:
        # What was checked when it was made is what runs.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common class; the graph ran when it was examined, so that this is the machine's fault.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"ONNX Runtime cannot load the graph here: {first[:200].rstrip('. ')}.") from None


def session_options(threads: int | None) -> Any:
    """`onnxruntime.SessionOptions` with everything that this service sets."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # A thread that waits for work by spinning takes a core from decoding: measured in docs/backends.md.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised
    return options
