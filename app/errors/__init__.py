"""Every error of the service, as types.

ServiceError            answered to a client as problem+json; each class owns its status and code (`service.py`)
├─ BadRequest           400, 404, 405, 408, 413, 415, 422, 431: the client can correct the request
└─ Unavailable          503, 504: the same request may succeed later
DeviceLost              raised by a backend or the batcher: the engine ends, and with it the process
StartError              shown to the person who starts the service; the process ends non-zero (`start.py`)
├─ SettingError, CheckpointError, LabelsError, QuantizationError, EvaluationError, ExportFailed
└─ DownloadError
   ├─ DownloadUnreachable   the source cannot be reached: a fallback may be served (not for a wrong checksum)
   └─ DownloadNotWritten    the cache folder cannot be written: the same
"""

from __future__ import annotations

from .service import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    DeadlineExceeded,
    Draining,
    EngineUnavailable,
    FeaturesNotAvailable,
    HeadersTooLarge,
    HeadersTooSlow,
    ImageCorrupt,
    ImageTooComplex,
    ImageTooLarge,
    Internal,
    InvalidBase64,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    ModelOutputInvalid,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    RequestTimeout,
    ServiceError,
    TensorsNotAvailable,
    TooManyImages,
    Unavailable,
    UnsupportedEncoding,
    UnsupportedImageFormat,
    UnsupportedMediaType,
)
from .start import (
    MAY_FALL_BACK,
    CheckpointError,
    DownloadError,
    DownloadNotWritten,
    DownloadUnreachable,
    EvaluationError,
    ExportFailed,
    LabelsError,
    LoadCancelled,
    QuantizationError,
    SettingError,
    StartError,
)
from .texts import (
    clause_of,
    first_line,
    printable,
)

__all__ = [
    "MAY_FALL_BACK",
    "BadRequest",
    "BodyTooLarge",
    "BodyTooSlow",
    "CheckpointError",
    "DeadlineExceeded",
    "DeviceLost",
    "DownloadError",
    "DownloadNotWritten",
    "DownloadUnreachable",
    "Draining",
    "EngineUnavailable",
    "EvaluationError",
    "ExportFailed",
    "FeaturesNotAvailable",
    "HeadersTooLarge",
    "HeadersTooSlow",
    "ImageCorrupt",
    "ImageTooComplex",
    "ImageTooLarge",
    "Internal",
    "InvalidBase64",
    "InvalidParameter",
    "LabelsError",
    "LoadCancelled",
    "MalformedRequest",
    "MethodNotAllowed",
    "ModelOutputInvalid",
    "NotFound",
    "NotReady",
    "OutOfMemory",
    "Overloaded",
    "QuantizationError",
    "RequestTimeout",
    "ServiceError",
    "SettingError",
    "StartError",
    "TensorsNotAvailable",
    "TooManyImages",
    "Unavailable",
    "UnsupportedEncoding",
    "UnsupportedImageFormat",
    "UnsupportedMediaType",
    "clause_of",
    "first_line",
    "printable",
]


class DeviceLost(Exception):
    """The device is beyond repair for this process; only a restart helps. The message says what was seen."""
