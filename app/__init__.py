"""resnet-serve: an HTTP service that classifies images with a ResNet-50 checkpoint."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime's own Linux builds report to Microsoft unless told not to: a device's id, model files'
# names, hashes of graphs and weights. Said before anything imports it, and to every process that is started from here.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
