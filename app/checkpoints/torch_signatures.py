"""Signatures of torch's operations: argument order, aliases, number of results, and the operations that copy."""

from __future__ import annotations

# ATen/native/native_functions.yaml. An operation that is not listed has the argument `self`.
ARGUMENTS = {
    "conv2d": "self weight bias stride padding dilation groups",
    "_convolution_mode": "self weight bias stride padding dilation groups",
    "convolution": "self weight bias stride padding dilation transposed output_padding groups",
    "batch_norm": "self weight bias running_mean running_var training momentum eps",
    "native_batch_norm": "self weight bias running_mean running_var training momentum eps",
    "_native_batch_norm_legit_no_training": "self weight bias running_mean running_var momentum eps",
    "layer_norm": "self normalized_shape weight bias eps",
    "native_layer_norm": "self normalized_shape weight bias eps",
    "max_pool2d": "self kernel_size stride padding dilation ceil_mode",
    "avg_pool2d": "self kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "adaptive_avg_pool2d": "self output_size",
    "adaptive_max_pool2d": "self output_size",
    "mean": "self dim keepdim",
    "linear": "self weight bias",
    "addmm": "bias self weight beta alpha",
    "flatten": "self start_dim end_dim",
    **dict.fromkeys(("view", "reshape"), "self size"),
    **dict.fromkeys(("squeeze", "unsqueeze", "softmax", "log_softmax"), "self dim"),
    **dict.fromkeys(("add", "sub", "mul", "div", "rsub"), "self other alpha"),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), "self p train"),
    "leaky_relu": "self negative_slope",
    "rrelu": "self lower upper training",
    "elu": "self alpha scale input_scale",
    "gelu": "self approximate",
    "hardtanh": "self min_val max_val",
    "softplus": "self beta threshold",
    "clamp": "self min max",
    "flip": "self dims",
    "index": "self indices",
    "index_select": "self dim index",
    "slice": "self dim start end step",
    "constant_pad_nd": "self pad value",
    "pad": "self pad mode value",
    "permute": "self dims",
    "transpose": "self dim0 dim1",
    "matmul": "self weight",
}
ALIASES = {
    **{"_convolution": "convolution", "cudnn_convolution": "convolution", "max_pool2d_with_indices": "max_pool2d"},
    **{"_adaptive_avg_pool2d": "adaptive_avg_pool2d", "_softmax": "softmax", "_log_softmax": "log_softmax"},
    **{"_unsafe_view": "view", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"},
    **{"mm": "matmul", "swish": "silu", "cudnn_batch_norm": "batch_norm"},
}
RESULTS = {  # the number of results, of which the first is the output; 1 where an operation is not listed
    **{"max_pool2d_with_indices": 2, "adaptive_max_pool2d": 2},
    **{"native_batch_norm": 3, "_native_batch_norm_legit_no_training": 3, "native_layer_norm": 3},
}
SAME = ("contiguous", "detach", "alias", "lift_fresh", "requires_grad", "expand_as", "cpu", "cuda")
COPIES = ("clone", "lift_fresh_copy", "_to_copy", "to", "float", "type_as")
