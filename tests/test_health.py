"""/healthz, /readyz and /metrics tell the truth, from the first second to the last."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import loading
from app.errors import CheckpointError
from app.images import decode
from app.pool import LoadedModel
from app.settings import Settings
from tests.photos import make_jpeg
from tests.raw_http import ask
from tests.running import RunningServer, running_server, wait_until
from tests.test_predict import check_problem


def test_a_ready_service_says_what_it_serves(client: httpx.Client) -> None:
    """Alive and ready answer 200 with the model, its backend and its device."""
    for path in ("/healthz", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 200
        document = answer.json()
        assert (document["state"], document["ready"], document["status"]) == ("ready", True, "ok")
        assert document["model"] == {"name": "null", "version": "00000000"}
        assert (document["backend"], document["decode"], document["warnings"]) == ("null", "exact", [])
        assert client.head(path).status_code == 200
        assert "X-Request-ID" in answer.headers


def test_while_it_loads_it_is_alive_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is loaded /healthz is 200, /readyz and /predict are 503 not_ready, retryable."""
    may_load = threading.Event()
    load = loading.null_checkpoint

    def slow_load() -> object:
        assert may_load.wait(30)
        return load()

    monkeypatch.setattr(loading, "null_checkpoint", slow_load)
    settings = Settings(backend="null", port=0, log_level="error")
    with running_server(settings, wait=False) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        health = client.get("/healthz")
        assert (health.status_code, health.json()["state"], health.json()["ready"]) == (200, "loading", False)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["code"], ready.json()["state"]) == (503, "not_ready", "loading")
        check_problem(ready)
        for path in ("/predict", "/predict/batch"):
            refused = client.post(path, content=make_jpeg(1))
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
            assert refused.json()["retryable"] is True
            assert int(refused.headers["Retry-After"]) >= 1
            count = f'resnet_requests_total{{code="not_ready",route="{path}",status="503"}} 1.0'
            assert count in client.get("/metrics").text
        assert "resnet_ready 0.0" in client.get("/metrics").text
        may_load.set()
        assert isinstance(server.wait_until_loaded(), LoadedModel)
        assert client.get("/readyz").status_code == 200
        assert client.post("/predict", content=make_jpeg(1)).status_code == 200
        assert "resnet_ready 1.0" in client.get("/metrics").text


def test_while_it_warms_up_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded and not yet warm is not ready, and says why."""
    from app.backends.null import NullBackend

    may_warm = threading.Event()
    warming = threading.Event()

    def slow(backend: NullBackend, batch_size: int) -> None:
        warming.set()
        assert may_warm.wait(30)

    monkeypatch.setattr(NullBackend, "warm_up", slow)
    settings = Settings(backend="null", port=0, log_level="error")
    with running_server(settings, wait=False) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        assert warming.wait(30)
        answer = client.get("/readyz")
        may_warm.set()
        assert (answer.status_code, answer.json()["state"]) == (503, "warming")
        assert isinstance(server.wait_until_loaded(), LoadedModel)


def test_a_failed_load_is_not_alive(tmp_path: Path) -> None:
    """After a load that failed only a restart helps: /healthz is 503, and says no path."""
    wrong = tmp_path / "weights.pth"
    wrong.write_text("no checkpoint")
    settings = Settings(weights=str(wrong), port=0, log_level="error", cache_dir=tmp_path)
    with running_server(settings, wait=False) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        error = server.wait_until_loaded()
        assert isinstance(error, CheckpointError)
        assert str(wrong) in str(error)
        for path in ("/healthz", "/readyz"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["state"]) == (503, "failed")
            check_problem(answer)
            assert str(tmp_path) not in answer.text


def test_while_it_drains_it_is_alive_and_not_ready(null_server: RunningServer, client: httpx.Client) -> None:
    """Once told to stop, /readyz is 503 draining and /healthz stays 200."""
    null_server.app.state.classifier.draining = True
    try:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        health = client.get("/healthz")
        assert (health.status_code, health.json()["state"]) == (200, "draining")
    finally:
        null_server.app.state.classifier.draining = False


def test_when_no_decoder_is_left_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """While every decoder is held by images that do not end, it is alive and not ready and refuses at once; it is not
    alive once that has gone on for a minute, and well again when one ends."""
    hanging = threading.Event()
    clock = [0.0]

    def decode_that_hangs(data: bytes, *how: Any) -> object:
        if data == b"hang":
            hanging.wait(60)
        return decode(data, *how)

    monkeypatch.setattr("app.images.threads.decode", decode_that_hangs)
    settings = Settings(
        backend="null",
        port=0,
        log_level="error",
        decode_threads=1,
        decode_memory_bytes=900_000_000,
        decode_timeout_seconds=0.1,
    )
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        decoder = server.app.state.classifier.decoder
        monkeypatch.setattr(decoder, "_clock", lambda: time.monotonic() + clock[0])
        try:
            slow = client.post("/predict", content=b"hang")
            assert (slow.status_code, slow.json()["code"]) == (422, "image_too_complex")
            refused = client.post("/predict", content=make_jpeg(1))
            assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")
            assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)
            assert client.get("/healthz").json()["state"] == "stuck"
            assert "resnet_decode_slots_lost 1.0" in client.get("/metrics").text
            clock[0] = 61.0
            assert client.get("/healthz").status_code == 503
        finally:
            hanging.set()
        clock[0] = 0.0
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/healthz").json()["state"] == "ready"
        assert client.post("/predict", content=make_jpeg(1)).status_code == 200


def test_metrics_count_answers_and_time_stages(client: httpx.Client) -> None:
    """/metrics is Prometheus text that counts answers by route, status and code and names the model."""
    client.post("/predict", content=make_jpeg(2))
    client.post("/predict", content=b"text")
    client.get("/nowhere")
    # Refused before they are routed: those that no route has, and one whose path a client may choose, have no name.
    for path in ("/predict", "/nowhere", "/static/docs.css"):
        client.post(path, content=make_jpeg(2), headers={"Content-Encoding": "gzip"})
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    for line in (
        'resnet_requests_total{code="",route="/predict",status="200"} ',
        'resnet_requests_total{code="unsupported_image_format",route="/predict",status="415"} 1.0',
        'resnet_requests_total{code="not_found",route="unmatched",status="404"} 1.0',
        'resnet_requests_total{code="unsupported_encoding",route="/predict",status="415"} 1.0',
        'resnet_requests_total{code="unsupported_encoding",route="unmatched",status="415"} 2.0',
        'resnet_model{backend="null",device="none",name="null",version="00000000"} 1.0',
        'resnet_stage_seconds_count{model="null",stage="decode",version="00000000"} ',
        'resnet_stage_seconds_count{model="null",stage="inference",version="00000000"} ',
        'resnet_batch_size_count{model="null",version="00000000"} ',
    ):
        assert line in answer.text


def test_what_never_reaches_a_route_is_counted_by_its_path() -> None:
    """A request that ends in its body, and one behind a prefix that a proxy strips, are counted at the route that they
    were for; what has no path yet, and a path that no route has, at none."""
    bad_chunk = b"POST %b HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"
    settings = Settings(backend="null", port=0, log_level="error", root_path="/classify")
    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        for request in (bad_chunk % b"/predict", bad_chunk % b"/nowhere", b"no request\r\n\r\n"):
            (answer,) = ask(server, request)
            assert answer.status == 400
        assert client.post("/predict/batch", headers={"Content-Encoding": "gzip"}).status_code == 415
        counts = client.get("/metrics").text
    for line in (
        'resnet_requests_total{code="malformed_request",route="/predict",status="400"} 1.0',
        'resnet_requests_total{code="malformed_request",route="unmatched",status="400"} 2.0',
        'resnet_requests_total{code="unsupported_encoding",route="/predict/batch",status="415"} 1.0',
    ):
        assert line in counts
