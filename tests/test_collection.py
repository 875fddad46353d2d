"""Nothing large waits for Python's garbage collector: whoever holds a body or pixels drops them, in error too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.photos import encode, make_jpeg
from tests.process_costs import MEGABYTE, memory_bytes
from tests.running import ServiceProcess, service_process

# As the service, with the collector off, and images of more than one shade failing on the device where it is told to.
PROGRAM = """
import gc
from app.server import process
from app.backends import null
from app.cli import main

infer = null.NullBackend.infer

def fail(backend, batch, want):
    if int(batch[0, 0, 0, 0]) > 250:
        raise ValueError("the device does not like white")
    return infer(backend, batch, want)

null.NullBackend.infer = fail
process.spare_requests_from_collection = gc.disable
main()
"""
JPEG = make_jpeg(1)
WHITE = encode(Image.new("RGB", (64, 64), "white"))
PADDING = bytes(4 * MEGABYTE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process("--backend", "null", folder=tmp_path_factory.mktemp("service"), program=PROGRAM) as service:
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        service.address = found[0]
        yield service


@pytest.mark.parametrize(
    ("name", "body", "headers", "status"),
    [
        ("an answer", JPEG + PADDING, {}, 200),
        ("a corrupt image", JPEG[:500] + PADDING, {}, 422),
        ("no image", b"text" + PADDING, {}, 415),
        ("a batch that fails", WHITE + PADDING, {}, 500),
        ("a form without files", b"--b--" + PADDING, {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        ("JSON that is none", b"{" + PADDING, {"Content-Type": "application/json"}, 400),
    ],
)
def test_bodies_are_gone_with_their_answers(
    service: ServiceProcess, name: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Sixty bodies of 4 MB, the collector off: the service holds no more than a few of them afterwards."""
    with httpx.Client(base_url=service.address, timeout=30) as client:
        for _ in range(5):
            assert client.post("/predict", content=body, headers=headers).status_code == status
        before = memory_bytes(service, "VmRSS")
        for _ in range(60):
            assert client.post("/predict", content=body, headers=headers).status_code == status
    assert memory_bytes(service, "VmRSS") - before < 60 * MEGABYTE
