"""A checkpoint → its ONNX graph, whose answers are compared with a reference.

The reference is torch for a network that torch exports. For one that is written from its description it is the graph
itself, run without ONNX Runtime's optimisations: tests compare those graphs with torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.onnx_sessions import open_session
from ..backends.trial import trial_images
from ..checkpoints import Checkpoint, Graph
from ..networks import build_network, is_described
from .checking import as_text, check_graph
from .exporting import described, export_graph, trace, with_preprocessing

if TYPE_CHECKING:
    import torch


def build(checkpoint: Checkpoint, threads: int) -> Checkpoint:
    """`checkpoint` as a graph that lies in memory, its answers checked; one that is a graph already as it is.

    Raises `ExportFailed` where the network cannot be exported, or where the graph's answers are not the reference's.
    """
    if checkpoint.graph is not None:
        return checkpoint
    if is_described(checkpoint.architecture):
        graph = described(checkpoint, export_graph(checkpoint))
        expected = _plain_answers(graph, checkpoint, threads)
        graph = replace(graph, trial_scores=as_text(expected))
    else:
        network = _built(checkpoint, threads)
        expected = _answers(network, checkpoint)
        graph = described(checkpoint, trace(network, checkpoint), as_text(expected))
    check_graph(graph, expected, checkpoint.preprocessing.crop, checkpoint.architecture, threads)
    return replace(checkpoint, weights={}, graph=graph)


def _plain_answers(graph: Graph, checkpoint: Checkpoint, threads: int) -> NDArray[np.float32]:
    """The logits of the trial images, `(N, classes)`, by the graph's own operators, one after another."""
    images = trial_images(checkpoint.preprocessing.crop)
    (scores,) = open_session(graph, threads, as_it_is=True).run([graph.output_name], {graph.input_name: images})
    return np.asarray(scores)


def _built(checkpoint: Checkpoint, threads: int) -> torch.nn.Module:
    import torch

    # Its own way would be a thread for each CPU of the machine, also where a container may use fewer.
    torch.set_num_threads(threads)
    return build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches)


def _answers(network: torch.nn.Module, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The logits of the trial images: `(N, classes)`."""
    import torch

    images = torch.from_numpy(trial_images(checkpoint.preprocessing.crop))
    with torch.inference_mode():
        return np.asarray(with_preprocessing(network, checkpoint.preprocessing)(images).numpy())
