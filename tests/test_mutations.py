"""Damaged images, over a socket, with good requests beside them; `make hostile` sends thousands more."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile_run import faults, report, run
from tests.mutations import corpus, gets_past_the_header, mutated
from tests.photos import null_classes
from tests.running import RunningServer, service_process


def test_every_file_of_the_corpus_is_served(client: httpx.Client) -> None:
    """What the damage is done to is good: each file is answered as its pixels ask for."""
    for name, data in corpus().items():
        answer = client.post("/predict", content=data)
        assert answer.status_code == 200, name
        assert answer.json()["predictions"][0]["class_id"] == null_classes(data)[0], name


def test_damage_reaches_the_decoders() -> None:
    """Most damaged files still pass for images of their format, and no two runs of a seed differ."""
    first = list(mutated(300, 7))
    assert first == list(mutated(300, 7))
    assert sum(gets_past_the_header(data) for _, data in first) > 150


def test_damaged_images_harm_nobody(tmp_path: Path) -> None:
    """Each gets a prediction or a typed 4xx; good requests beside them are all answered right, the process lives and
    its memory is back."""
    with service_process("--backend", "null", folder=tmp_path) as service:
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        outcome = asyncio.run(run(found[0], service, 400, 11, 1.0, None))
        assert faults(outcome) == [], report(outcome, 400)
        assert outcome.past_header > 200
        assert sum(outcome.answers.values()) == 400
        assert len(outcome.answers) >= 4
        assert service.stop() == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=4096),
    head=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\x20\0\0\0WEBPVP8 "]),
    kind=st.sampled_from(
        ["", "image/jpeg", "application/json", "multipart/form-data; boundary=x", "text/plain", "\xff"]
    ),
    path=st.sampled_from(["/predict", "/predict/batch"]),
)
def test_any_bytes_get_an_answer(null_server: RunningServer, body: bytes, head: bytes, kind: str, path: str) -> None:
    """A prediction or a typed 4xx, whatever the bytes and whatever they are called."""
    headers = {"Content-Type": kind.encode("latin-1")} if kind else {}
    answer = httpx.post(f"{null_server.address}{path}", content=head + body, headers=headers, timeout=30)
    assert answer.status_code in (200, 400, 415, 422)
    assert answer.status_code == 200 or answer.json()["code"]
