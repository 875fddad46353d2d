"""POST /predict and /predict/batch over a real socket: the bodies, the answers, the headers."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.photos import make_jpeg, null_classes
from tests.running import RunningServer

IMAGE = make_jpeg(1)
BASE64 = base64.b64encode(IMAGE).decode()
JSON = {"Content-Type": "application/json"}


def best(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.json()["predictions"][0]["class_id"])


def form(*files: bytes, field: str = "image") -> list[tuple[str, Any]]:
    return [(field, (f"photo{number}.jpg", content, "image/jpeg")) for number, content in enumerate(files)]


class Chunks:
    """A body in pieces, as often as it is asked for."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


@pytest.mark.parametrize(
    "request_arguments",
    [
        {"content": IMAGE},
        {"content": IMAGE, "params": {"top_k": 5}},
        {"content": IMAGE, "headers": {"Content-Type": "image/jpeg"}},
        {"content": IMAGE, "headers": {"Content-Type": "image/png"}},
        {"content": IMAGE, "headers": {"Content-Type": "text/html"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": iter([IMAGE[:1000], IMAGE[1000:]])},
        {"files": form(IMAGE)},
        {"files": form(IMAGE, field="anything")},
        {"files": form(IMAGE), "data": {"top_k": "5", "_charset_": "UTF-8", "left_empty": ""}},
        {"files": {"image": (None, IMAGE)}},
        {"files": {"image": (None, IMAGE, "image/jpeg")}},
        {"files": [*form(IMAGE), ("second", ("", b"", "application/octet-stream"))]},
        {"json": {"image": BASE64}},
        {"json": {"image": f"data:image/jpeg;base64,{BASE64}"}},
        {"json": {"image": f"data:image/jpeg;name=a.jpg;base64,{BASE64}", "top_k": 5}},
        {"json": {"image": f"data:image/jpeg;base64,{quote(BASE64, safe='')}", "top_k": 5.0}},
        {"content": b"\xef\xbb\xbf" + json.dumps({"image": BASE64}).encode(), "headers": JSON},
        {"content": json.dumps({"image": BASE64}), "headers": {"Content-Type": "application/vnd.mine+json"}},
        {"json": {"image": re.sub("(.{76})", "\\1\n", BASE64)}},
        {"content": json.dumps({"image": BASE64}), "headers": {"Content-Type": "application/json; charset=utf-8"}},
    ],
)
def test_every_body_gives_the_same_answer(client: httpx.Client, request_arguments: dict[str, Any]) -> None:
    """Raw bytes under any content type, a form's file under any name and base64 in JSON are one and the same."""
    answer = client.post("/predict", **request_arguments)
    assert answer.json() == client.post("/predict", content=IMAGE).json()
    assert best(answer) == null_classes(IMAGE)[0]


def test_answer_has_the_documented_shape(client: httpx.Client) -> None:
    """The answer names the model and ranks classes with their labels and probabilities."""
    document = client.post("/predict", content=IMAGE, params={"top_k": 3}).json()
    assert document["model"] == {"name": "null", "version": "00000000"}
    first, second = null_classes(IMAGE)
    assert [prediction["class_id"] for prediction in document["predictions"][:2]] == [first, second]
    assert [sorted(prediction) for prediction in document["predictions"]] == [["class_id", "label", "probability"]] * 3
    probabilities = [prediction["probability"] for prediction in document["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1


def test_predictions_carry_their_headers(client: httpx.Client) -> None:
    """A prediction says its request id, its stages' milliseconds and its batch's size."""
    headers = client.post("/predict", content=IMAGE).headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["X-Request-ID"])
    timing = r"decode;dur=\d+\.\d+, queue;dur=\d+\.\d+, inference;dur=\d+\.\d+"
    assert re.fullmatch(timing, headers["Server-Timing"])
    assert int(headers["X-Batch-Size"]) >= 1
    assert "server" not in headers


@pytest.mark.parametrize(("sent", "kept"), [("abc-DEF_9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False)])
def test_a_harmless_request_id_is_kept(client: httpx.Client, sent: str, kept: bool) -> None:
    """A client's own request id comes back if it is short and plain, and is replaced if it is not."""
    answer = client.post("/predict", content=IMAGE, headers={"X-Request-ID": sent})
    assert (answer.headers["X-Request-ID"] == sent) is kept


@pytest.mark.parametrize(("asked", "given"), [(None, 5), (1, 1), (1000, 1000)])
def test_top_k_in_the_query(client: httpx.Client, asked: int | None, given: int) -> None:
    """top_k says how many classes come back; unsaid it is 5."""
    answer = client.post("/predict", content=IMAGE, params={} if asked is None else {"top_k": asked})
    assert len(answer.json()["predictions"]) == given


def test_top_k_in_the_json_may_repeat_the_query_and_not_contradict_it(client: httpx.Client) -> None:
    """top_k may stand in the JSON and in the query, if both say the same."""
    document = {"image": BASE64, "top_k": 2}
    assert len(client.post("/predict", json=document).json()["predictions"]) == 2
    assert len(client.post("/predict", json=document, params={"top_k": 2}).json()["predictions"]) == 2
    repeated = client.post("/predict?top_k=2&top_k=2", json=document)
    assert len(repeated.json()["predictions"]) == 2
    contradiction = client.post("/predict", json=document, params={"top_k": 3})
    assert (contradiction.status_code, contradiction.json()["code"]) == (422, "invalid_parameter")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no body": ({}, 400, "malformed_request"),
    "two files": ({"files": form(IMAGE, IMAGE)}, 400, "malformed_request"),
    "a form without a file": ({"files": {"image": (None, b"text")}}, 400, "malformed_request"),
    "a form with a field that is not known": (
        {"files": form(IMAGE), "data": {"topk": "5"}},
        400,
        "malformed_request",
    ),
    "top_k in a form that is a word": ({"files": form(IMAGE), "data": {"top_k": "many"}}, 422, "invalid_parameter"),
    "two top_k in the query": (
        {"content": IMAGE, "params": {"top_k": ["1", "2"]}},
        422,
        "invalid_parameter",
    ),
    "a good top_k and a bad one in the query": (
        {"content": IMAGE, "params": {"top_k": ["1", "many"]}},
        422,
        "invalid_parameter",
    ),
    "top_k in a form and another in the query": (
        {"files": form(IMAGE), "data": {"top_k": "3"}, "params": {"top_k": 2}},
        422,
        "invalid_parameter",
    ),
    "top_k in JSON that is a fraction": ({"json": {"image": BASE64, "top_k": 5.5}}, 422, "invalid_parameter"),
    "JSON under another name": (
        {"content": json.dumps({"image": BASE64}), "headers": {"Content-Type": "text/plain;charset=UTF-8"}},
        415,
        "unsupported_media_type",
    ),
    "an empty file": ({"files": form(b"")}, 400, "malformed_request"),
    "a form cut short": (
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nabc',
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        400,
        "malformed_request",
    ),
    "a form without its boundary": (
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed_request",
    ),
    "a form that is none": (
        {"content": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
        "malformed_request",
    ),
    "a form with a boundary past all measure": (
        {"content": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary=" + "x" * 300}},
        400,
        "malformed_request",
    ),
    "wrong JSON": (
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        400,
        "malformed_request",
    ),
    "JSON a million deep": (
        {"content": b"[" * 1_000_000, "headers": {"Content-Type": "application/json"}},
        400,
        "malformed_request",
    ),
    "JSON that is a list": ({"json": [BASE64]}, 400, "malformed_request"),
    "JSON without an image": ({"json": {"top_k": 1}}, 400, "malformed_request"),
    "JSON with a number for an image": ({"json": {"image": 1}}, 400, "malformed_request"),
    "JSON with a member too many": ({"json": {"image": BASE64, "topk": 1}}, 400, "malformed_request"),
    "JSON for the other path": ({"json": {"images": [BASE64]}}, 400, "malformed_request"),
    "JSON with an empty image": ({"json": {"image": ""}}, 400, "malformed_request"),
    "base64 that is none": ({"json": {"image": "!" * 40}}, 400, "invalid_base64"),
    "base64 without padding": ({"json": {"image": BASE64.rstrip("=") + "A"}}, 400, "invalid_base64"),
    "a list of data URLs": (
        {"json": {"image": f"data:image/jpeg;base64,{BASE64},data:image/jpeg;base64,{BASE64}"}},
        400,
        "invalid_base64",
    ),
    "a URL": ({"json": {"image": "http://127.0.0.1/photo.jpg"}}, 400, "invalid_base64"),
    "top_k of zero": ({"content": IMAGE, "params": {"top_k": 0}}, 422, "invalid_parameter"),
    "top_k past the classes": ({"content": IMAGE, "params": {"top_k": 1001}}, 422, "invalid_parameter"),
    "top_k that is a word": ({"content": IMAGE, "params": {"top_k": "many"}}, 422, "invalid_parameter"),
    "top_k in JSON that is a word": ({"json": {"image": BASE64, "top_k": "5"}}, 422, "invalid_parameter"),
    "a deadline that is none": (
        {"content": IMAGE, "headers": {"X-Request-Timeout-Ms": "soon"}},
        422,
        "invalid_parameter",
    ),
    "text": ({"content": b"<html>not an image</html>"}, 415, "unsupported_image_format"),
    "an encoded body": ({"content": IMAGE, "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported_encoding"),
    "half a photo": ({"content": IMAGE[: len(IMAGE) // 2]}, 422, "image_corrupt"),
    "more bytes than are read": ({"content": bytes(10_000_001)}, 413, "body_too_large"),
    "more bytes than are read, uncounted": (
        {"content": Chunks([bytes(1_000_000)] * 11)},
        413,
        "body_too_large",
    ),
}


@pytest.mark.parametrize("parameters", [{}, {"unknown": "1"}], ids=["plain", "beside another parameter"])
@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_told_what_is_wrong(client: httpx.Client, name: str, parameters: dict[str, str]) -> None:
    """Each bad request gets the status and code of its fault, as a problem that names the request."""
    arguments, status, code = BAD_REQUESTS[name]
    answer = client.post("/predict", **{**arguments, "params": arguments.get("params", {}) | parameters})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    check_problem(answer)
    assert best(client.post("/predict", content=IMAGE)) == null_classes(IMAGE)[0]


def check_problem(answer: httpx.Response) -> None:
    """RFC 9457, and this service's own members."""
    document = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert document["type"] == f"/docs/errors#{document['code']}"
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert document["title"]
    assert document["detail"].endswith((".", "…", "}", "jpg"))
    assert isinstance(document["retryable"], bool)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("kind", [None, "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"])
def test_a_content_type_that_is_missing_is_named(client: httpx.Client, path: str, kind: str | None) -> None:
    """JSON and forms that come under no name, or under the one that fetch and curl -d give, are told which header."""
    form_body = httpx.Request("POST", "http://test", files=form(IMAGE)).read()
    headers = {} if kind is None else {"Content-Type": kind}
    for body, said in (
        (json.dumps({"image": BASE64}).encode(), "Content-Type: application/json"),
        (b"\xef\xbb\xbf \n{\n" + json.dumps({"images": [BASE64]}).encode()[1:], "Content-Type: application/json"),
        (form_body, "Content-Type: multipart/form-data"),
    ):
        answer = client.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert said in answer.json()["detail"]
        check_problem(answer)


def test_a_form_field_that_is_not_known_is_named(client: httpx.Client) -> None:
    """A misspelt field is an error that repeats its name; a form without a file is told what a file is."""
    answer = client.post("/predict", files=form(IMAGE), data={"topk": "3"})
    assert '"topk"' in answer.json()["detail"]
    answer = client.post("/predict", files={"image": (None, b"text")})
    assert "no part has a file name" in answer.json()["detail"]
    answer = client.post("/predict", files=[("image", ("", b"", "application/octet-stream"))])
    assert "left empty" in answer.json()["detail"]


def test_top_k_in_a_form(client: httpx.Client) -> None:
    """top_k may be a form's field, on both paths."""
    for path in ("/predict", "/predict/batch"):
        document = client.post(path, files=form(IMAGE), data={"top_k": "2"}).json()
        assert len((document if path == "/predict" else document["results"][0])["predictions"]) == 2


def test_two_files_are_sent_to_the_batch_path(client: httpx.Client) -> None:
    """Whoever sends two images to /predict is told where they go."""
    for arguments in ({"files": form(IMAGE, IMAGE)}, {"json": {"images": [BASE64]}}):
        assert "/predict/batch" in client.post("/predict", **arguments).json()["detail"]  # type: ignore[arg-type]


def test_unknown_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    """The framework's own 404 and 405 have the service's one error shape."""
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/static/..%2f..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/healthz", 405),
        ("PUT", "/predict", 405),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status
        check_problem(answer)


def test_what_is_not_http_is_a_problem_too(null_server: RunningServer) -> None:
    """Bytes that are no HTTP request get a 400 in the service's one error shape, and the connection closes."""
    import socket

    host, port = null_server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"NOT HTTP AT ALL\r\n\r\n")
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "malformed_request"


def test_batch_answers_in_the_order_sent(client: httpx.Client) -> None:
    """Several files come back as one result each, in their order."""
    images = [make_jpeg(seed) for seed in range(20, 28)]
    answer = client.post("/predict/batch", files=form(*images), params={"top_k": 1})
    assert answer.status_code == 200
    document = answer.json()
    assert document["model"]["name"] == "null"
    assert [result["predictions"][0]["class_id"] for result in document["results"]] == [
        null_classes(image)[0] for image in images
    ]
    assert all(result["status"] == 200 and len(result["predictions"]) == 1 for result in document["results"])
    assert {"Server-Timing", "X-Batch-Size", "X-Request-ID"} <= {
        name.title().replace("Id", "ID") for name in answer.headers
    }


def test_batch_takes_json_too(client: httpx.Client) -> None:
    """A list of base64 images is a batch, with top_k for all of them."""
    answer = client.post("/predict/batch", json={"images": [BASE64, BASE64], "top_k": 2})
    assert [len(result["predictions"]) for result in answer.json()["results"]] == [2, 2]


def test_a_bad_image_in_a_batch_fails_alone(client: httpx.Client) -> None:
    """Each image has its own status: a damaged one is a problem between good answers."""
    texts = [BASE64, "###", base64.b64encode(b"text").decode(), base64.b64encode(IMAGE[:900]).decode(), "", BASE64]
    answer = client.post("/predict/batch", json={"images": texts})
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["status"] for result in results] == [200, 400, 415, 422, 400, 200]
    assert [result.get("code") for result in results[1:5]] == [
        "invalid_base64",
        "unsupported_image_format",
        "image_corrupt",
        "malformed_request",
    ]
    assert all(result["request_id"] == answer.headers["X-Request-ID"] for result in results[1:5])
    assert results[0] == results[5]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        ({"files": form(*[IMAGE] * 65)}, 413, "too_many_images"),
        ({"json": {"images": ["x"] * 65}}, 413, "too_many_images"),
        ({"json": {"images": []}}, 400, "malformed_request"),
        ({"json": {"image": BASE64}}, 400, "malformed_request"),
        ({"content": IMAGE}, 415, "unsupported_media_type"),
        ({"content": b""}, 415, "unsupported_media_type"),
        ({"files": form(IMAGE), "params": {"top_k": 2000}}, 422, "invalid_parameter"),
    ],
)
def test_bad_batches_are_told_what_is_wrong(
    client: httpx.Client, arguments: dict[str, Any], status: int, code: str
) -> None:
    """A batch that is wrong as a whole is refused as a whole."""
    answer = client.post("/predict/batch", **arguments)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    check_problem(answer)


def test_batch_has_a_body_limit_of_its_own(client: httpx.Client) -> None:
    """A batch may be larger than a single image's body."""
    images = [bytes(6_000_000), bytes(6_000_000), IMAGE]
    answer = client.post("/predict/batch", files=form(*images))
    assert [result["status"] for result in answer.json()["results"]] == [415, 415, 200]


def test_other_clients_are_understood(null_server: RunningServer) -> None:
    """The standard library's client and requests send a body in pieces, bytes without a file name and fields beside."""
    requests = pytest.importorskip("requests")
    host, port = null_server.address.removeprefix("http://").split(":")
    expected = null_classes(IMAGE)[0]

    def best_of(document: Any) -> int:
        return int(document["predictions"][0]["class_id"])

    for files in ({"image": IMAGE}, {"image": (None, IMAGE)}, {"image": ("früh.jpg", IMAGE, "image/jpeg")}):
        answer = requests.post(f"{null_server.address}/predict", files=files, data={"top_k": 1}, timeout=30)
        assert (answer.status_code, best_of(answer.json())) == (200, expected)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    for body, headers in (
        (iter([IMAGE[:100], IMAGE[100:]]), {}),
        (json.dumps({"image": BASE64}), JSON),
    ):
        connection.request("POST", "/predict", body, headers)
        assert best_of(json.loads(connection.getresponse().read())) == expected
    connection.close()
