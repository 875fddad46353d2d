"""PyTorch: the reference on CPU, and the default on CUDA, where batches travel through slots and captured graphs.

backend.py    the backend contract: leases a runner for each batch, and says what an error means
precision.py  where the network runs and in which number format
folding.py    normalisations folded into convolutions, on CUDA
forward.py    pixels -> logits, features: normalisation and the network
pooling.py    a network that also answers with its feature maps
runners.py    what runs a batch: as it comes (CPU), or in a slot
slots.py      a stream, its buffers and its programs, one for each bucket
buckets.py    which buckets a batch is run in: padded, or split
devices.py    what a slot asks of a device, and the CPU's answer; cuda.py has CUDA's
faults.py     what a CUDA error means: less memory, a lost device, or one batch's failure
"""

from .backend import TorchBackend, create_torch_backend
from .precision import DevicePlan, plan_device

__all__ = ["DevicePlan", "TorchBackend", "create_torch_backend", "plan_device"]
