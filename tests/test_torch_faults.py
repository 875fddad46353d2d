"""What an error of the device means: text, codes and chains as PyTorch raises them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.backends.torch.faults import Fault, fault_of
from app.errors import first_line
from tests.lazy import torch


def cuda_error(words: str, name: str) -> str:
    """As PyTorch words it."""
    return (
        f"CUDA error: {words}\nSearch for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more "
        "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
        "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    )


def with_code(code: int, message: str = "CUDA error: something") -> torch.AcceleratorError:
    error = torch.AcceleratorError(message)
    error.error_code = code
    return error


def fails() -> None:
    """A device that does not answer any more."""
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


LOST = [
    ("an illegal memory access was encountered", "cudaErrorIllegalAddress", 700),
    ("device-side assert triggered", "cudaErrorAssert", 710),
    ("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable", 214),
    ("unspecified launch failure", "cudaErrorLaunchFailure", 719),
    ("misaligned address", "cudaErrorMisalignedAddress", 716),
    ("an illegal instruction was encountered", "cudaErrorIllegalInstruction", 715),
    ("the launch timed out and was terminated", "cudaErrorLaunchTimeout", 702),
    ("unknown error", "cudaErrorUnknown", 999),
    ("something from a later release", "cudaErrorFromALaterRelease", 4321),
]


@pytest.mark.parametrize(("words", "name", "code"), LOST)
def test_errors_that_stay_mean_a_lost_device(words: str, name: str, code: int) -> None:
    """By text alone, by name, and by code; one that is not known counts among them."""
    assert fault_of(RuntimeError(cuda_error(words, name))) is Fault.LOST
    assert fault_of(torch.AcceleratorError(f"CUDA error: {words}")) is Fault.LOST
    assert fault_of(with_code(code)) is Fault.LOST


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        lambda: MemoryError("Unable to allocate 19.0 MiB for an array"),
        lambda: torch.AcceleratorError(cuda_error("out of memory", "cudaErrorMemoryAllocation")),
        lambda: with_code(2),
        lambda: RuntimeError("CUDA error: out of memory"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        lambda: RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_no_memory_is_told_in_many_ways(error: Callable[[], Exception]) -> None:
    """The allocator's, the runtime's, the libraries' and the host's own words mean that less may fit."""
    assert fault_of(error(), fails) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        lambda: with_code(1, cuda_error("invalid argument", "cudaErrorInvalidValue")),
        lambda: with_code(701),
        lambda: RuntimeError(
            cuda_error("operation not permitted when stream is capturing", "cudaErrorStreamCaptureUnsupported")
        ),
        lambda: RuntimeError("CUDA error: operation failed due to a previous error during capture"),
        lambda: RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    ],
)
def test_what_one_call_did_wrong_is_its_batch_s_failure(error: Callable[[], Exception]) -> None:
    """The batch fails where the device still answers; where it does not, the device is lost."""
    assert fault_of(error(), lambda: None) is Fault.BATCH
    assert fault_of(error(), fails) is Fault.LOST


def test_mistakes_of_the_program_are_no_fault_of_the_device() -> None:
    """A ValueError asks the device nothing."""

    assert fault_of(ValueError("poison"), fails) is Fault.BATCH


def while_handling(first: BaseException, then: BaseException) -> BaseException:
    """`then`, as Python hands it on when it is raised while `first` is handled."""
    then.__context__ = first
    return then


def test_what_stands_behind_an_error_counts() -> None:
    """What it was raised from, and while handling, in any depth; a lost device outweighs missing memory."""
    no_memory = torch.OutOfMemoryError("CUDA out of memory.")
    broken = while_handling(
        no_memory, RuntimeError("CUDA error: operation failed due to a previous error during capture")
    )
    assert fault_of(broken) is Fault.OUT_OF_MEMORY
    outer = KeyError("again")
    outer.__cause__ = broken
    assert fault_of(outer) is Fault.OUT_OF_MEMORY
    assert fault_of(while_handling(outer, with_code(700))) is Fault.LOST
    assert fault_of(while_handling(with_code(700), outer)) is Fault.LOST


def test_an_error_in_a_circle_ends() -> None:
    """Errors that name each other as their cause are each looked at once."""
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert fault_of(first) is Fault.BATCH


def test_a_log_line_is_one_line() -> None:
    """Only what happened, and never more than fits; an error without words is told by its kind."""
    assert first_line(RuntimeError(cuda_error("misaligned address", "x"))) == "CUDA error: misaligned address"
    assert len(first_line(RuntimeError("x" * 1000))) == 200
    assert first_line(AssertionError()) == "AssertionError"
