"""Every route × every bad input: one error shape, fixed texts, and nothing of what was sent in the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.api.error_reference import error_rows
from app.settings import Settings
from tests.photos import make_jpeg
from tests.raw_http import Answer, connect, receive_answer
from tests.running import RunningServer, running_server

# In every place that a client can write into; no answer may repeat it.
MARK = "zQmarkZq"
IMAGE = make_jpeg(1)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PATHS = (
    *("/predict", "/predict/batch", "/healthz", "/readyz", "/metrics", "/", "/docs", "/docs/errors", "/openapi.json"),
    *("/static/docs.css", "/static/example.jpg", f"/static/{MARK}", f"/{MARK}", "/predict/", "/redoc", "/favicon.ico"),
)
JSON = {"Content-Type": "application/json"}
FORM = f"multipart/form-data; boundary={MARK}"

# name → query, headers, body
INPUTS: dict[str, tuple[str, dict[str, str], bytes]] = {
    "nothing": ("", {}, b""),
    "an image": ("", {}, IMAGE),
    "text": ("", {}, MARK.encode()),
    "half an image": ("", {}, IMAGE[:500]),
    "JSON cut off": ("", JSON, f'{{"{MARK}": '.encode()),
    "JSON of another shape": ("", JSON, f'{{"{MARK}": "{MARK}"}}'.encode()),
    "JSON with a wrong type": ("", JSON, f'{{"image": ["{MARK}"]}}'.encode()),
    "JSON without base64": ("", JSON, f'{{"image": "*{MARK}"}}'.encode()),
    "JSON with a wrong top_k": (
        "",
        JSON,
        f'{{"image": "", "top_k": "{MARK}"}}'.encode(),
    ),
    "a broken form": ("", {"Content-Type": FORM}, MARK.encode()),
    "a form without files": (
        "",
        {"Content-Type": FORM},
        f'--{MARK}\r\nContent-Disposition: form-data; name="{MARK}"\r\n\r\n{MARK}\r\n--{MARK}--\r\n'.encode(),
    ),
    "a form without a boundary": ("", {"Content-Type": "multipart/form-data"}, MARK.encode()),
    "top_k that is no number": (f"top_k={MARK}", {}, IMAGE),
    "top_k of nothing": ("top_k=", {}, IMAGE),
    "top_k of zero": ("top_k=0", {}, IMAGE),
    "top_k beyond the classes": ("top_k=100000", {}, IMAGE),
    "a huge top_k": ("top_k=" + "9" * 5000, {}, IMAGE),
    "a query of noise": (f"%00%ff&&==&{MARK}[]=%", {}, IMAGE),
    "a deadline that is none": ("", {"X-Request-Timeout-Ms": MARK}, IMAGE),
    "a deadline before now": ("", {"X-Request-Timeout-Ms": "-1"}, IMAGE),
    "a packed body": ("", {"Content-Encoding": MARK}, IMAGE),
    "a body that is too large": ("", {"Content-Length": "99999999999"}, b""),
    "an id that is none": ("", {"X-Request-ID": f"{MARK} {MARK}"}, b""),
    "another protocol": ("", {"Connection": "Upgrade", "Upgrade": MARK}, b""),
    "another host": ("", {"Host": f"{MARK}.example"}, b""),
    "no host": ("", {"Host": ""}, b""),
    "another origin": ("", {"Origin": f"http://{MARK}.example", "Access-Control-Request-Method": "POST"}, b""),
    "ranges": ("", {"Range": "bytes=5-1,-,9999999-"}, b""),
    "no such encoding": ("", {"Accept": "image/avif", "Accept-Encoding": MARK, "TE": "trailers"}, b""),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(Settings(backend="null", port=0, log_level="error")) as server:
        yield server


@pytest.fixture(scope="module")
def problem_schema(server: RunningServer) -> Any:
    """The one schema of errors, from the service's own document, and no member but those that are documented."""
    document = httpx.get(f"{server.address}/openapi.json").json()
    schema = document["components"]["schemas"]["Problem"]
    extra = {"retry_after_ms": {"type": "integer"}, "state": {"type": "string"}}
    closed = schema | {"additionalProperties": False, "properties": schema["properties"] | extra}
    return jsonschema_rs.validator_for(closed)


def ask(server: RunningServer, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
    """One request, over a connection of its own: clients put in order what is sent here."""
    lines = {"Host": "test", "Content-Length": str(len(body)), "Connection": "close", "User-Agent": MARK} | headers
    target = f"{path}?{query}" if query else path
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with connect(server) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        return receive_answer(connection, has_body=method != "HEAD")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_one_shape(server: RunningServer, problem_schema: Any, path: str) -> None:
    """Whatever the method and the input, an error is a problem with a documented code and a fixed text; what was sent
    does not come back, and nothing is a 5xx."""
    statuses = {(row.code, row.status) for row in error_rows()}
    refused = 0
    for method in METHODS:
        for name, (query, headers, body) in INPUTS.items():
            answer = ask(server, method, path, query, headers, body)
            told = f"{method} {path}, {name}: {answer}"
            assert 200 <= answer.status < 500, told
            assert MARK.lower() not in str(answer.headers).lower(), told
            assert MARK.encode() not in answer.body, told
            assert "x-request-id" in answer.headers, told
            if answer.status < 400:
                continue
            refused += 1
            assert answer.headers["content-type"] == "application/problem+json", told
            if method == "HEAD":
                continue
            document = answer.json()
            problem_schema.validate(document)
            assert (document["code"], document["status"]) in statuses, told
            assert document["status"] == answer.status, told
            assert document["type"] == f"/docs/errors#{document['code']}", told
            assert document["request_id"] == answer.headers["x-request-id"], told
            for leak in ("Traceback", ".py", "/app/", "Exception", "Error:", "pydantic", "starlette"):
                assert leak not in answer.body.decode(), told
            if answer.status == 405:
                assert answer.headers["allow"], told
    assert refused > len(METHODS)


def test_a_code_has_a_few_texts(server: RunningServer) -> None:
    """What a detail says depends on the kind of fault alone: two senders of the same fault read the same."""
    for name, (query, headers, body) in INPUTS.items():
        first = ask(server, "POST", "/predict", query, headers, body)
        other = ask(server, "POST", "/predict", query, {**headers, "X-Other": "1"}, body)
        if first.status >= 400:
            assert first.json()["detail"] == other.json()["detail"], name


def test_the_page_of_errors_is_where_the_types_lead(server: RunningServer) -> None:
    """GET /docs/errors has a place for each code, which a problem's type names; it runs no script."""
    page = httpx.get(f"{server.address}/docs/errors")
    problem = httpx.post(f"{server.address}/predict", content=b"text").json()
    path, _, fragment = problem["type"].partition("#")
    assert path == "/docs/errors"
    assert f'id="{fragment}"' in page.text
    for row in error_rows():
        assert f'<tr id="{row.code}"><td>{row.status}</td>' in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text


def test_the_type_leads_there_behind_a_proxy_too() -> None:
    """Under a prefix that a proxy strips, the type has the prefix, whatever layer answers."""
    with running_server(Settings(backend="null", port=0, log_level="error", root_path="/classify")) as server:
        for answer in (
            httpx.post(f"{server.address}/predict", content=b"text").json(),
            httpx.get(f"{server.address}/nowhere").json(),
            ask(server, "POST", "/predict", "", {"Content-Length": "no"}, b"").json(),
            httpx.post(f"{server.address}/predict/batch", files=[("a", b"text")]).json()["results"][0],
        ):
            assert answer["type"] == f"/classify/docs/errors#{answer['code']}"


def test_the_document_lists_what_the_page_does(repository: Any) -> None:
    """docs/errors.md and the page have the same rows, in the same words."""
    text = (repository / "docs" / "errors.md").read_text(encoding="utf-8")
    for row in error_rows():
        assert f"| {row.status} | `{row.code}` | {row.meaning} | {row.advice} |" in text
