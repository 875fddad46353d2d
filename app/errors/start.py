"""Errors that end a start or a command; each message is for the person who started it."""

from __future__ import annotations

from typing import ClassVar

from .texts import printable


class StartError(Exception):
    """The service cannot start as it was told to. The message says what, where, and what to do next, on one line."""

    _separator: ClassVar[str] = ""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, self._separator))


class LoadCancelled(StartError):
    """The service was told to stop while it loaded."""


class SettingError(StartError):
    _separator = "\n"  # between several settings that are wrong


class CheckpointError(StartError):
    pass


class LabelsError(StartError):
    pass


class QuantizationError(StartError):
    """A checkpoint that cannot be quantized with these photos, or a quantized model that answers too differently."""


class EvaluationError(StartError):
    """Photos, labels or a service that a checkpoint cannot be evaluated with."""


class ExportFailed(StartError):
    """A network that cannot be written as an ONNX graph, or whose graph answers otherwise than the network.

    `may_pass` where this machine may be to blame, as it is now: then a later start tries again.
    """

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class DownloadError(StartError):
    pass


class DownloadUnreachable(DownloadError):
    pass


class DownloadNotWritten(DownloadError):
    """The cache folder cannot take the file."""


MAY_FALL_BACK = (DownloadUnreachable, DownloadNotWritten)
"""Where a fallback is in order: the weights cannot be had. Weights that are not what they should be are no reason."""
