"""Whether a graph answers as its network does: when it is made, and later on another CPU or runtime.

An artifact has its network's answers to a few generated images in it. On a machine, or with a version of ONNX Runtime,
that has not run it yet, the graph is compared with them once. Small files beside the artifact note where that was done.
"""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..backends.onnx_sessions import open_session
from ..backends.trial import trial_images
from ..checkpoints import Graph
from ..errors import ExportFailed
from ..files import write_whole
from .artifact import Artifact
from .machine import machine_digest

# Largest accepted difference from torch's logits, of the largest logit. Measured of ResNet-50s: under 2e-6.
TOLERANCE = 1e-4


def as_text(scores: NDArray[np.float32]) -> str:
    """Scores `(N, classes)` for `Graph.trial_scores`."""
    return base64.b64encode(np.ascontiguousarray(scores, "<f4").tobytes()).decode()


def check_graph(graph: Graph, expected: NDArray[np.float32], crop: tuple[int, int], name: str, threads: int) -> None:
    """Raises `ExportFailed` where `graph` does not answer the trial images with `expected`."""
    (found,) = open_session(graph, threads).run([graph.output_name], {graph.input_name: trial_images(crop)})
    check_same(found, expected, name)


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


def check_here(artifact: Artifact, threads: int) -> None:
    """Compare an artifact with its network's answers, once for each machine. Raises `ExportFailed` where they differ.

    Nothing for an ONNX file's own graph, which was tried when it was read.
    """
    checkpoint = artifact.checkpoint
    graph = checkpoint.graph
    assert graph is not None
    mark = _mark_of(artifact.path)
    if not graph.trial_scores or mark.is_file():
        return
    expected = np.frombuffer(base64.b64decode(graph.trial_scores), "<f4").reshape(-1, graph.class_count)
    try:
        check_graph(graph, expected, checkpoint.preprocessing.crop, checkpoint.architecture, threads)
    except ExportFailed as error:
        # This machine's fault: on the one that made it, it was the same.
        raise ExportFailed(str(error), may_pass=True) from None
    mark_checked(artifact.path)


def mark_checked(path: Path) -> None:
    """Note that the artifact at `path` answers right here; unless that can be written, each start compares again."""
    with contextlib.suppress(OSError):
        write_whole(_mark_of(path), b"{}")


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.checked-{machine_digest()}.json")
