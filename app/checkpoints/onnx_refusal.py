"""The refusal of an ONNX graph that cannot be served."""


class Refused(Exception):
    """Its text is a clause: a property of the graph that is not supported, and mostly a way to export it without."""
