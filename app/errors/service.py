"""Errors that are answered to a client; each class owns its status and code.

A `detail` is written for the client and never carries a path, a trace or what the client sent.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """A failure that is answered to the client."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    default_detail: ClassVar[str] = "The server failed on this request. The failure is in its log."

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or self.default_detail
        super().__init__(self.detail)


class Internal(ServiceError):
    """An unexpected failure; its answer says nothing about the cause."""


class ModelOutputInvalid(ServiceError):
    code = "model_output_invalid"
    title = "The model's output is invalid"
    default_detail = "The model answered this image with values that are not finite numbers."


class BadRequest(ServiceError):
    """An error that the client can correct."""

    status = 400
    code = "malformed_request"
    title = "Malformed request"
    default_detail = "The request could not be understood."


class MalformedRequest(BadRequest):
    pass


class InvalidBase64(BadRequest):
    code = "invalid_base64"
    title = "Invalid base64"
    default_detail = (
        "The image must be base64 (RFC 4648, with padding), or a data: URL with one base64 payload "
        "such as data:image/jpeg;base64,…"
    )


class NotFound(BadRequest):
    status = 404
    code = "not_found"
    title = "Not found"
    default_detail = "There is nothing at this path. GET /docs lists what there is."


class MethodNotAllowed(BadRequest):
    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"
    default_detail = "This path does not answer that method. The Allow header lists those it does."


class RequestTimeout(BadRequest):
    status = 408
    code = "request_timeout"
    title = "Request timeout"
    retryable = True
    default_detail = "The request did not come in time. Send it without pauses, or over a faster connection."


class HeadersTooSlow(RequestTimeout):
    """Headers that were still on their way: sent again at the same pace, they would not come in time either."""

    retryable = False
    default_detail = (
        "The headers came too slowly: they were still on their way when their time was over. Send fewer and shorter "
        "headers, or send them over a faster connection."
    )


class BodyTooSlow(RequestTimeout):
    """A body that was still on its way: sent again at the same pace, it would not come in time either."""

    retryable = False
    default_detail = (
        "The body came too slowly: it was still on its way when its time was over. Send a smaller image, or send it "
        "over a faster connection."
    )


class HeadersTooLarge(BadRequest):
    status = 431
    code = "headers_too_large"
    title = "Headers too large"
    default_detail = "The request's first line and headers are larger, or more, than this server takes."


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"
    title = "Body too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is over the limit of {limit_bytes:,} bytes.")


class TooManyImages(BadRequest):
    status = 413
    code = "too_many_images"
    title = "Too many images"

    def __init__(self, limit: int) -> None:
        super().__init__(f"One request may carry at most {limit} images.")


class UnsupportedMediaType(BadRequest):
    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"
    default_detail = "This path does not take that kind of body."


class UnsupportedImageFormat(BadRequest):
    status = 415
    code = "unsupported_image_format"
    title = "Unsupported image format"
    default_detail = "The body is not an image in a supported format: JPEG, PNG, WebP, GIF or BMP."


class UnsupportedEncoding(BadRequest):
    status = 415
    code = "unsupported_encoding"
    title = "Unsupported content encoding"
    default_detail = "Send the body as it is, with no Content-Encoding."


class ImageCorrupt(BadRequest):
    status = 422
    code = "image_corrupt"
    title = "Corrupt image"
    default_detail = "The image is truncated or damaged and could not be decoded."


class ImageTooLarge(BadRequest):
    status = 422
    code = "image_too_large"
    title = "Image too large"
    default_detail = "The image has more pixels than this server decodes."


class ImageTooComplex(BadRequest):
    status = 422
    code = "image_too_complex"
    title = "Image too complex"
    default_detail = "Decoding this image takes longer than this server allows."


class InvalidParameter(BadRequest):
    status = 422
    code = "invalid_parameter"
    title = "Invalid parameter"
    default_detail = "A parameter has a value that it cannot have."


class FeaturesNotAvailable(InvalidParameter):
    default_detail = (
        "Features and feature maps are not available for this model: its network has no global average pool before "
        "its classifier."
    )


class TensorsNotAvailable(InvalidParameter):
    default_detail = "Tensors are not available as inputs for this model. Send an image."


class Unavailable(ServiceError):
    """Not now. `retry_after_seconds` is when to try again, where that can be said."""

    status = 503
    code = "engine_unavailable"
    title = "Engine unavailable"
    retryable = True
    default_detail = "The model cannot answer at present."

    def __init__(self, detail: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class EngineUnavailable(Unavailable):
    pass


class Overloaded(Unavailable):
    code = "overloaded"
    title = "Overloaded"
    default_detail = "More requests are waiting than this server can answer in time."


class OutOfMemory(Unavailable):
    code = "out_of_memory"
    title = "Out of memory"
    default_detail = "The device has no memory for this image at present."


class NotReady(Unavailable):
    code = "not_ready"
    title = "Not ready"
    default_detail = "The model is still loading."


class Draining(Unavailable):
    code = "draining"
    title = "Draining"
    default_detail = "This server is shutting down and takes no new requests."


class DeadlineExceeded(Unavailable):
    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"
    default_detail = "The image was not classified before the request's deadline."
