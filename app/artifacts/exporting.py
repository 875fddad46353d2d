"""A checkpoint → an ONNX graph: pixels as they are decoded in, logits out.

Networks that have a description are written from their weights; others go through torch's exporter.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from ..checkpoints import Checkpoint, Graph
from ..errors import ExportFailed, clause_of
from ..networks import LOGITS, OPSET, PIXELS, build_network, describe_fitted, is_described, write_graph

if TYPE_CHECKING:
    import torch

    from ..networks import OnnxFile
    from ..types import Preprocessing

INPUT, OUTPUT = PIXELS, LOGITS


def export_graph(checkpoint: Checkpoint) -> bytes:
    """The serialized ONNX model of `checkpoint`.

    Input `pixels`: `(N, H, W, 3)` uint8 RGB at the preprocessing's crop, any N. Output `logits`: `(N, classes)`
    float32. Channel order and normalisation are in the graph, in float32 as the torch backend computes them, and batch
    normalisation is folded into the convolution before it, where there is one. Imports torch, for seconds, where the
    network has no description.

    Raises `ExportFailed` for a network that cannot be written as ONNX and for a checkpoint that is ONNX already, and
    `CheckpointError` where the weights do not fit.
    """
    if checkpoint.graph is not None:
        raise ExportFailed(f"{checkpoint.source} is an ONNX file, which is served as it is.")
    if is_described(checkpoint.architecture):
        return b"".join(graph_file(checkpoint).pieces())
    return trace(build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches), checkpoint)


def graph_file(checkpoint: Checkpoint) -> OnnxFile:
    """The same, ready to be written, of a network that has a description. Raises `CheckpointError`."""
    description = describe_fitted(checkpoint.architecture, checkpoint.weights, checkpoint.switches)
    return write_graph(description, checkpoint.weights, checkpoint.preprocessing.crop, checkpoint.preprocessing)


def described(checkpoint: Checkpoint, model: bytes, trial_scores: str = "") -> Graph:
    """The exported `model` of `checkpoint`, with the facts that running it needs."""
    return Graph(
        model=model,
        input_name=INPUT,
        output_name=OUTPUT,
        dtype="uint8",
        layout="nhwc",
        size=checkpoint.preprocessing.crop,
        batch_size=None,
        class_count=checkpoint.class_count,
        takes_pixels=True,
        computes_in="float32",
        is_exported=True,
        trial_scores=trial_scores,
    )


def trace(network: torch.nn.Module, checkpoint: Checkpoint) -> bytes:
    """As `export_graph`, of a network that is built already; it is set to inference."""
    import torch

    height, width = checkpoint.preprocessing.crop
    whole = with_preprocessing(network, checkpoint.preprocessing)
    example = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    target = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # It warns of its own age, and of every Python value that it takes for constant: for a fixed size they are.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                whole,
                (example,),
                target,  # type: ignore[arg-type]  # a file is taken too, as its documentation says
                # Not the exporter by torch.export, which needs onnxscript and folds no batch normalisation.
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
            )
    except MemoryError:
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):  # its allocator's words, in a RuntimeError
            raise MemoryError("Memory ran out while the network was exported.") from error
        # What it does not know it says in exceptions of many kinds.
        raise ExportFailed(
            f"{checkpoint.architecture} cannot be written as ONNX: {clause_of(error)}.",
            # Of these errors the network is the cause; any other may come of running it on this machine.
            may_pass=not isinstance(error, torch.onnx.errors.OnnxExporterError),
        ) from error
    return _without_aliases(target.getvalue())


def with_preprocessing(network: torch.nn.Module, preprocessing: Preprocessing) -> torch.nn.Module:
    """`network` behind channel order and normalisation, in inference: what the exported graph computes."""
    import torch

    class FromPixels(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            scale, shift = preprocessing.scale_and_shift()
            self.register_buffer("scale", torch.from_numpy(scale).view(1, 3, 1, 1))
            self.register_buffer("shift", torch.from_numpy(shift).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> Any:
            if preprocessing.is_bgr:
                pixels = pixels.flip(-1)
            planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
            return self.network(planes * self.scale + self.shift)

    return FromPixels().eval()


def _without_aliases(model: bytes) -> bytes:
    """The exporter writes equal tensors once, and an Identity for each further name: readers want tensors."""
    import onnx

    document = onnx.load_from_string(model)
    graph = document.graph
    stored = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored | names.keys():
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(document.SerializeToString())
