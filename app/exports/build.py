"""A checkpoint → its graph, optimised for this CPU and compared with a reference.

The reference is torch for a network that torch exports, and the graph without optimisations for one that is written
from its description: tests compare those graphs with torch.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.exporting import INPUT, OUTPUT, described, export_graph, graph_file, trace, with_preprocessing
from ..backends.onnx_sessions import open_session, session_options
from ..backends.trial import trial_images
from ..checkpoints import Checkpoint, Graph
from ..errors import ExportFailed
from ..networks import build_network, is_described
from .process import CannotExport, first_line
from .store import MODEL, WEIGHTS

if TYPE_CHECKING:
    import torch

# Largest accepted difference from the reference's logits, of the largest logit. Measured of ResNet-50s: under 2e-6.
TOLERANCE = 1e-4
_PLAIN = "plain.onnx"
# What is smaller stays in the graph's own file.
_LEAST_OUTSIDE_BYTES = 1024


def export_into(checkpoint: Checkpoint, folder: Path, threads: int) -> Graph:
    """Write the graph of `checkpoint` into `folder`, optimised and with its weights beside it, and check it there.

    Raises `ExportFailed` where the network cannot be exported, or where the graph's answers are not the reference's,
    `OSError` where the folder cannot be written, and `CannotExport`.
    """
    if checkpoint.graph is not None:
        (folder / MODEL).write_bytes(checkpoint.graph.model)
        return replace(checkpoint.graph, model=b"", path=folder / MODEL)
    reference: torch.nn.Module | Graph
    model: bytes | Path
    if is_described(checkpoint.architecture):
        file, model = graph_file(checkpoint), folder / _PLAIN
        size_bytes = file.size_bytes()
        with model.open("wb") as target:
            target.writelines(file.pieces())
        reference = replace(described(checkpoint), path=model)
    else:
        reference = _built(checkpoint, threads)
        model = trace(reference, checkpoint)
        size_bytes = len(model)
    # ONNX Runtime does not say that a disk is full, nor need it notice.
    _reserve(folder, size_bytes)
    try:
        optimise(model, folder, threads)
        graph = replace(described(checkpoint), path=folder / MODEL, is_optimised=True)
        _check(graph, reference, checkpoint, threads)
    except (ExportFailed, MemoryError):
        raise
    except Exception as error:
        # It may have become full since.
        _reserve(folder, size_bytes)
        raise CannotExport(first_line(error)) from error
    (folder / _PLAIN).unlink(missing_ok=True)
    return graph


def export_in_memory(checkpoint: Checkpoint, threads: int) -> Checkpoint:
    """`checkpoint` as a graph in memory, checked, for where nothing can be written; not optimised yet.

    Raises as `export_into` does.
    """
    if checkpoint.graph is not None:
        return checkpoint
    reference: torch.nn.Module | Graph
    if is_described(checkpoint.architecture):
        reference = graph = described(checkpoint, export_graph(checkpoint))
    else:
        reference = _built(checkpoint, threads)
        graph = described(checkpoint, trace(reference, checkpoint))
    _check(graph, reference, checkpoint, threads)
    return replace(checkpoint, weights={}, graph=graph)


def _reserve(folder: Path, size_bytes: int) -> None:
    """Raises `OSError` where a file of that size cannot be written into `folder`."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)


def _built(checkpoint: Checkpoint, threads: int) -> torch.nn.Module:
    import torch

    # Its own way would be a thread for each CPU of the machine, also where a container may use fewer.
    torch.set_num_threads(threads)
    return build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches)


def _check(graph: Graph, reference: torch.nn.Module | Graph, checkpoint: Checkpoint, threads: int) -> None:
    """Raises `ExportFailed` where the answers of `graph` are not those of `reference`, a network or a plain graph."""
    images = trial_images(checkpoint.preprocessing.crop)
    if isinstance(reference, Graph):
        # Marked as optimised, it is run as it is.
        (expected,) = open_session(replace(reference, is_optimised=True), threads).run([OUTPUT], {INPUT: images})
    else:
        import torch

        with torch.inference_mode():
            expected = with_preprocessing(reference, checkpoint.preprocessing)(torch.from_numpy(images)).numpy()
    (found,) = open_session(graph, threads).run([OUTPUT], {INPUT: images})
    check_same(found, expected, checkpoint.architecture)


def optimise(model: bytes | Path, folder: Path, threads: int) -> None:
    """Let ONNX Runtime fuse and lay out the graph for this CPU, and write the result."""
    import onnxruntime

    options = session_options(threads)
    options.optimized_model_filepath = str(folder / MODEL)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_OUTSIDE_BYTES)
    )
    onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def check_same(found: NDArray[np.float32], expected: NDArray[np.float32], architecture: str) -> None:
    """Raises `ExportFailed` where the graph's logits are not torch's within the tolerance."""
    finite = np.isfinite(expected)
    largest = float(np.abs(expected[finite]).max(initial=0.0))
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), finite):
        raise ExportFailed(f"{architecture} as ONNX answers otherwise than PyTorch: in another shape, or not finite.")
    difference = float(np.abs(found[finite] - expected[finite]).max(initial=0.0))
    if difference > TOLERANCE * largest:
        raise ExportFailed(
            f"{architecture} as ONNX answers otherwise than PyTorch: logits differ by up to {difference:.2g}, where "
            f"the largest is {largest:.2g}."
        )
