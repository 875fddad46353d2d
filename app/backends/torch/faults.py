"""What an error of the device means for whoever asked: a smaller batch, a restart, or only this batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum, auto


class Fault(Enum):
    OUT_OF_MEMORY = auto()
    """A smaller batch may fit."""
    LOST = auto()
    """Every further call fails too; only a new process helps."""
    BATCH = auto()
    """The device works on; this batch failed."""


# cudaError_t (CUDA runtime API, "Data types used by CUDA Runtime", 13.0): after these "the process must be terminated
# and relaunched", or the GPU is gone for it.
_LOST_CODES = {
    46: "cudaErrorDevicesUnavailable",
    100: "cudaErrorNoDevice",
    214: "cudaErrorECCUncorrectable",
    220: "cudaErrorNvlinkUncorrectable",
    226: "cudaErrorContained",
    700: "cudaErrorIllegalAddress",
    702: "cudaErrorLaunchTimeout",
    709: "cudaErrorContextIsDestroyed",
    710: "cudaErrorAssert",
    714: "cudaErrorHardwareStackError",
    715: "cudaErrorIllegalInstruction",
    716: "cudaErrorMisalignedAddress",
    717: "cudaErrorInvalidAddressSpace",
    718: "cudaErrorInvalidPc",
    719: "cudaErrorLaunchFailure",
    721: "cudaErrorTensorMemoryLeak",
    802: "cudaErrorSystemNotReady",
    810: "cudaErrorMpsClientTerminated",
    999: "cudaErrorUnknown",
}
# Errors of one call: wrong arguments, a launch that asks too much, a capture that broke.
_BATCH_CODES = {
    1: "cudaErrorInvalidValue",
    9: "cudaErrorInvalidConfiguration",
    98: "cudaErrorInvalidDeviceFunction",
    209: "cudaErrorNoKernelImageForDevice",
    400: "cudaErrorInvalidResourceHandle",
    701: "cudaErrorLaunchOutOfResources",
    720: "cudaErrorCooperativeLaunchTooLarge",
    801: "cudaErrorNotSupported",
    900: "cudaErrorStreamCaptureUnsupported",
    901: "cudaErrorStreamCaptureInvalidated",
    902: "cudaErrorStreamCaptureMerge",
    903: "cudaErrorStreamCaptureUnmatched",
    904: "cudaErrorStreamCaptureUnjoined",
    905: "cudaErrorStreamCaptureIsolation",
    906: "cudaErrorStreamCaptureImplicit",
    907: "cudaErrorCapturedEvent",
    908: "cudaErrorStreamCaptureWrongThread",
}
_NO_MEMORY_CODES = {2: "cudaErrorMemoryAllocation"}
_CODES = _LOST_CODES | _BATCH_CODES | _NO_MEMORY_CODES
_BY_NAME = {name: code for code, name in _CODES.items()}
# Before torch 2.8 an error carried no code, and some still come as text alone: cudaGetErrorString's words.
_BY_WORDS = {
    "out of memory": 2,
    "no kernel image is available": 209,
    "uncorrectable ECC error": 214,
    "illegal memory access": 700,
    "launch timed out": 702,
    "device-side assert": 710,
    "illegal instruction": 715,
    "misaligned address": 716,
    "unspecified launch failure": 719,
    "stream is capturing": 900,
    "previous error during capture": 901,
}
_NAME = re.compile(r"cudaError[A-Z]\w+")
_NO_MEMORY_WORDS = re.compile(
    r"DefaultCPUAllocator: can't allocate memory"
    # cuBLAS and cuDNN say it in their own words.
    r"|STATUS_(ALLOC_FAILED|INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED)"
)


def fault_of(error: BaseException, drain: Callable[[], None] = lambda: None) -> Fault:
    """What `error`, or what it was raised from or while handling, means.

    `drain` waits for the device, and raises a RuntimeError where it is beyond repair; it is asked where the error does
    not say. A CUDA error that is not known counts as beyond repair: one restart too many costs seconds, one too few
    would answer every request with an error.
    """
    faults = [_fault_of_one(each) for each in _chain(error)]
    for certain in (Fault.LOST, Fault.OUT_OF_MEMORY):
        if certain in faults:
            return certain
    if isinstance(error, RuntimeError):
        try:
            drain()
        except RuntimeError:
            return Fault.LOST
    return Fault.BATCH


def _fault_of_one(error: BaseException) -> Fault:
    import torch

    message = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _NO_MEMORY_WORDS.search(message):
        return Fault.OUT_OF_MEMORY
    is_cuda_error = isinstance(error, torch.AcceleratorError) or "CUDA error" in message
    if not is_cuda_error:
        return Fault.BATCH
    code = _code_of(error, message)
    if code in _NO_MEMORY_CODES:
        return Fault.OUT_OF_MEMORY
    return Fault.BATCH if code in _BATCH_CODES else Fault.LOST


def _code_of(error: BaseException, message: str) -> int | None:
    code = getattr(error, "error_code", None)
    if isinstance(code, int):
        return code
    name = _NAME.search(message)
    if name is not None:
        return _BY_NAME.get(name[0])
    return next((code for words, code in _BY_WORDS.items() if words in message), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it: a capture that breaks is reported by its end, and hides what broke it."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__]
