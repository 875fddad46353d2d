"""ONNX Runtime's sessions of a graph: optimised for this CPU, and with threads by whether another call runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints import Graph
from ..checkpoints.onnx_wire import walk
from ..errors import CheckpointError, clause_of
from ..files import own_temporary_folder, scratch_in

logger = logging.getLogger(__name__)

_MODEL, _WEIGHTS = "model.onnx", "weights.bin"
# Smaller constants stay in the graph's own file.
_LEAST_OUTSIDE_BYTES = 1024

# onnxruntime_session_options_config_keys.h: where the weights of a model given as bytes are looked for.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Sessions:
    """A session of all threads for a call that is alone, and for two calls at once one of half the threads each.

    A call on all cores is the soonest answer, and wastes a part of each core where its threads wait for one another,
    the more so beside decoding. Two calls that share the cores waste less: `docs/backends.md` has the figures. An
    artifact of this service is optimised once for all of its sessions, which map the weights of that from a file, so
    that more sessions do not hold them again. In any other graph each session has its own copy: where those are float's
    there is one session, and only int8's, a quarter as large, are held two or three times.
    """

    def __init__(self, graph: Graph, threads: int | None) -> None:
        """Raises `CheckpointError` where the graph is not run here."""
        half = (threads or 1) // 2
        # An odd one is in the other half: no core idles.
        other = (threads or 1) - half
        may_share = bool(half) and graph.path is not None
        with contextlib.ExitStack() as stack:
            shared = None
            if may_share and graph.is_exported:
                shared = stack.enter_context(_optimised(graph, threads))
            is_cheap = shared is not None or graph.computes_in == "int8"
            self.calls = 2 if may_share and is_cheap else 1
            """How many may run at once."""
            opened, as_it_is = (graph, False) if shared is None else (replace(graph, path=shared), True)
            self._whole: Any = open_session(opened, threads, as_it_is=as_it_is)
            self._halves: list[Any] = []
            if self.calls == 2:
                first = open_session(opened, half, as_it_is=as_it_is)
                # On one thread a call runs in its caller's: two share a session and nothing else.
                self._halves = [first, first if other == 1 else open_session(opened, other, as_it_is=as_it_is)]
        self._lock = threading.Lock()
        self._running = 0

    @contextlib.contextmanager
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


def open_session(graph: Graph, threads: int | None, model: bytes | None = None, *, as_it_is: bool = False) -> Any:
    """An `onnxruntime.InferenceSession` of `graph` on the CPU, optimised for it unless the graph is to run as it is.

    `model` is another form of the graph, with the same weights in the file beside it. Raises `CheckpointError` where
    it is not run here.
    """
    import onnxruntime

    options = session_options(threads)
    source: str | bytes = model or graph.model
    if graph.path is not None:
        if model is None:
            source = str(graph.path)
        else:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.path.parent))
    if as_it_is:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common class; the graph ran when it was examined, so that this is the machine's fault.
        raise CheckpointError(f"ONNX Runtime cannot load the graph here: {clause_of(error)}.") from None


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


@contextlib.contextmanager
def _optimised(graph: Graph, threads: int | None) -> Iterator[Path | None]:
    """A file with `graph`, which lies in a file too, as ONNX Runtime optimises it for this CPU; None where none can be
    written.

    It lasts as long as the block: sessions are opened meanwhile. They map the weights, and a mapping outlives its file.
    """
    assert graph.path is not None
    with contextlib.ExitStack() as stack:
        found = None
        for folder in _scratch_parents(graph.path):
            try:
                scratch = stack.enter_context(scratch_in(folder))
                _optimise(graph.path, threads, scratch)
            except Exception as error:  # ONNX Runtime's have no common class
                logger.debug("The graph cannot be optimised in %s: %s", folder, error)
                continue
            found = scratch / _MODEL
            break
        yield found


def _scratch_parents(model: Path) -> Iterator[Path]:
    yield model.parent
    yield own_temporary_folder("resnet-serve-scratch")


def _optimise(model: Path, threads: int | None, folder: Path) -> None:
    """Have ONNX Runtime write the optimised form of `model` into `folder`. Raises where it is not written whole."""
    import onnxruntime

    options = session_options(threads)
    options.optimized_model_filepath = str(folder / _MODEL)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_OUTSIDE_BYTES)
    )
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime does not say that a disk is full, nor need it notice.
    tensors = walk((folder / _MODEL).read_bytes()).tensors
    ends = [tensor.offset + (tensor.length or 0) for tensor in tensors if tensor.location == _WEIGHTS]
    if ends and max(ends) > (folder / _WEIGHTS).stat().st_size:
        raise OSError("the disk is full")
