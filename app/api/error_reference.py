"""GET /docs/errors, the page of error codes: meaning and advice. The `type` of every problem links to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from ..errors import ServiceError

router = APIRouter(include_in_schema=False)

ERRORS_PATH = "/docs/errors"
_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'"
_PAGE = (Path(__file__).parent / "static" / "errors.html").read_text(encoding="utf-8")

# code → its meaning, and advice to the client.
_ADVICE = {
    "malformed_request": (
        "no image, wrong JSON, wrong shape, a broken form, not HTTP",
        "correct the request; `detail` shows the shape",
    ),
    "invalid_base64": ("the image in JSON is not base64 or one `data:` URL", "encode it again"),
    "not_found": ("no such path", "see `/docs`"),
    "method_not_allowed": ("the path does not answer that method", "see the `Allow` header"),
    "request_timeout": (
        "headers or body did not come in time",
        "where it is `retryable`, send again without pauses; else shorter headers or a smaller image, or over a faster "
        "connection",
    ),
    "body_too_large": (
        "over `RESNET_MAX_BODY_BYTES` or `RESNET_MAX_BATCH_BODY_BYTES`",
        "send a smaller image, or raise the limit",
    ),
    "too_many_images": ("over `RESNET_MAX_IMAGES` in one batch", "split the batch"),
    "unsupported_media_type": (
        "a batch that is neither a form nor JSON, or JSON or a form whose `Content-Type` does not say so",
        "send it with its `Content-Type`",
    ),
    "unsupported_image_format": ("not JPEG, PNG, WebP, GIF or BMP", "convert it"),
    "unsupported_encoding": ("the body has a `Content-Encoding`", "send it plain"),
    "image_corrupt": ("truncated or damaged", "send the whole file"),
    "image_too_large": (
        "more pixels, or a longer side, than this server decodes",
        "scale it down, or raise the limit",
    ),
    "image_too_complex": (
        "a JPEG with too many scans, or decoding took longer than `RESNET_DECODE_TIMEOUT_SECONDS`",
        "save it again as a baseline JPEG or a PNG",
    ),
    "invalid_parameter": (
        "`top_k` or `X-Request-Timeout-Ms` is out of range or no number, or query and body disagree",
        "correct the parameter",
    ),
    "headers_too_large": (
        "over `RESNET_MAX_HEADER_BYTES` or `RESNET_MAX_HEADERS`",
        "send fewer and shorter headers",
    ),
    "internal": ("the server failed; its log says how", "report it with the `request_id`"),
    "model_output_invalid": ("the model answered this image with NaN or infinity", "look at the checkpoint"),
    "not_ready": ("the model is loading or warming up", "wait `Retry-After`, then again"),
    "overloaded": (
        "more requests wait, more bodies are on their way or more connections are open than can be answered in time",
        "wait `Retry-After`, then again",
    ),
    "out_of_memory": ("the device's memory is full", "wait `Retry-After`, then again"),
    "draining": (
        "the server is shutting down, or its grace period ended before the answer was ready",
        "send it to another instance",
    ),
    "engine_unavailable": ("the model cannot answer", "retry; look at `/healthz`"),
    "deadline_exceeded": ("the image was not classified before its deadline", "retry, or allow more time"),
}


@dataclass(frozen=True, slots=True)
class Row:
    status: int
    code: str
    meaning: str
    advice: str


def error_rows() -> list[Row]:
    """A row for each error that can answer a client, by status."""
    by_code = {error.code: error for error in _kinds(ServiceError)}
    return sorted(
        (Row(error.status, code, *_ADVICE[code]) for code, error in by_code.items()), key=lambda row: row.status
    )


def _kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def problem_type(code: str, root_path: str) -> str:
    """The `type` of a problem (RFC 9457): a path of this service, below the prefix that a proxy adds."""
    return f"{root_path}{ERRORS_PATH}#{code}"


@router.head(ERRORS_PATH)
@router.get(ERRORS_PATH)
async def errors() -> Response:
    return HTMLResponse(
        _PAGE.replace("<!-- rows -->", "\n".join(_html_row(row) for row in error_rows())),
        headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"},
    )


def _html_row(row: Row) -> str:
    cells = (str(row.status), f"`{row.code}`", row.meaning, row.advice)
    return f'<tr id="{row.code}">' + "".join(f"<td>{_marked_up(cell)}</td>" for cell in cells) + "</tr>"


def _marked_up(text: str) -> str:
    """Text between backticks becomes code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
