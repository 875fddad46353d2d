"""TensorFlow 2's graph of saved objects, which has the names of variables (trackable_object_graph.proto)."""

from __future__ import annotations

from ..protobuf import fields, messages

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def read_object_graph(message: bytes) -> dict[str, str]:
    """Checkpoint keys (`model/layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE`) → names (`conv1_conv/kernel`).

    Variables without a name of their own are left out. Raises `ValueError` or `IndexError` for a damaged message.
    """
    names: dict[str, str] = {}
    for node in messages(message, 1):  # TrackableObjectGraph.nodes
        for attribute in messages(node, 2):  # TrackableObject.attributes
            texts = {number: value for number, value in fields(attribute) if isinstance(value, bytes)}
            # SerializedTensor: name = 1, full_name = 2, checkpoint_key = 3
            if texts.get(1) == b"VARIABLE_VALUE" and texts.get(2) and texts.get(3):
                names[texts[3].decode("utf-8")] = texts[2].decode("utf-8")
    return names
