"""Images made to do harm, over a socket, to a service in a process of its own: status, code, time and memory."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests import images_made as made
from tests.mutations import corpus
from tests.photos import encode, make_jpeg, null_classes
from tests.process_costs import MEGABYTE, growth, least_cpu, quickest, ready_service
from tests.running import ServiceProcess

PHOTO = made.photo()
HELPERS = ("gs", "gswin64c", "convert", "magick", "djpeg", "dwebp", "inkscape", "rsvg-convert", "ffmpeg")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A ready service. Whatever helper program it might start would leave a mark beside itself."""
    folder = tmp_path_factory.mktemp("service")
    for name in HELPERS:
        program = folder / name
        program.write_text(f"#!/bin/sh\ntouch {folder}/mark\n", encoding="ascii")
        program.chmod(0o755)
    with ready_service(folder, environment={"PATH": f"{folder}:{os.environ['PATH']}"}) as service:
        yield service
        assert not (folder / "mark").exists()


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=60) as client:
        # Its decoders have loaded what they need.
        for data in corpus().values():
            assert client.post("/predict", content=data).status_code == 200
        yield client


def outcome(client: httpx.Client, data: bytes) -> tuple[int, str]:
    answer = client.post("/predict", content=data)
    return answer.status_code, answer.json().get("code", "")


def text_chunk(kind: bytes, packed: bytes) -> bytes:
    """A PNG with one packed text in front of its pixels."""
    chunks = made.chunks_of_png(encode(PHOTO, "PNG"))
    head = b"Comment\0\0" if kind == b"zTXt" else b"Comment\0\x01\0\0\0"
    return made.png_of_chunks([chunks[0], (kind, head + packed), *chunks[1:]])


BOMBS = {
    "PNG of 60,000 × 60,000": (made.png(60_000, 60_000, 8, made.RGB, [bytes(64)]), "image_too_large", 0.02),
    "GIF of 60,000 × 60,000": (made.forged_gif(60_000, 60_000), "image_too_large", 0.02),
    "WebP of 60,000 × 60,000": (made.forged_webp(60_000, 60_000), "image_too_large", 0.02),
    "BMP of 60,000 × 60,000": (made.forged_bmp(60_000, 60_000), "image_too_large", 0.02),
    "JPEG of 60,000 × 60,000": (made.forged_jpeg(60_000, 60_000), "image_too_large", 0.02),
    "JPEG of 1,000 scans": (made.scan_bomb((7000, 7000), 1000), "image_too_complex", 0.05),
    "65,500 × 1": (encode(Image.new("RGB", (65_500, 1)), "PNG"), "image_too_large", 0.02),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(service: ServiceProcess, client: httpx.Client, name: str) -> None:
    """422 by the header or the markers, within milliseconds and 5 MB."""
    data, code, seconds = BOMBS[name]
    assert outcome(client, data) == (422, code)
    assert quickest(lambda: client.post("/predict", content=data)) < seconds
    assert growth(service, lambda: client.post("/predict", content=data)) < 5 * MEGABYTE


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_packed_texts_are_not_unpacked(service: ServiceProcess, client: httpx.Client, kind: bytes) -> None:
    """A PNG whose text would be 200 MB shows its pixels, in their time and with 5 MB more."""
    data = text_chunk(kind, zlib.compress(bytes(200_000_000), 9))
    assert best(client, data) == null_classes(encode(PHOTO, "PNG"))[0]
    assert quickest(lambda: client.post("/predict", content=data)) < 0.1
    assert growth(service, lambda: client.post("/predict", content=data)) < 5 * MEGABYTE


def test_these_tests_see_an_image_that_takes_time_and_memory(service: ServiceProcess, client: httpx.Client) -> None:
    """A legitimate large image costs more than any bomb above."""
    data = encode(Image.new("RGB", (5000, 5000)), "PNG")
    assert outcome(client, data) == (200, "")
    assert quickest(lambda: client.post("/predict", content=data), 2) > 0.05
    assert growth(service, lambda: client.post("/predict", content=data)) > 40 * MEGABYTE


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_of_ten_thousand_frames_one_is_decoded(client: httpx.Client, image_format: str) -> None:
    """200, as for the first frame alone, and in its time: the others are not looked at."""
    first = PHOTO.resize((320, 213))
    single = encode(first, image_format, lossless=True)
    frames = [Image.new("RGB", first.size, (number % 256, number // 256, 0)) for number in range(20)]
    several: dict[str, Any] = {"save_all": True, "append_images": frames, "lossless": True}
    many = with_more_frames(encode(first, image_format, **several), image_format, 10_000)
    assert outcome(client, many) == (200, "")
    assert best(client, many) == best(client, single)
    # As large a body, with nothing behind the frame: what its bytes cost differs between machines.
    padded = single.ljust(len(many), b"\0")
    assert outcome(client, padded) == (200, "")
    allowed = 1.2 * least_cpu(lambda: client.post("/predict", content=padded), 15) + 0.002
    assert least_cpu(lambda: client.post("/predict", content=many), 15) < allowed


def best(client: httpx.Client, data: bytes) -> int:
    predictions = client.post("/predict", content=data).json()["predictions"]
    class_id: int = predictions[0]["class_id"]
    return class_id


def with_more_frames(data: bytes, image_format: str, count: int) -> bytes:
    """Its last frame again and again, until there are about `count`."""
    if image_format == "GIF":
        last = data.rindex(b"\x21\xf9\x04")
        return data[:-1] + data[last:-1] * count + b";"
    if image_format == "WEBP":
        last = data.rindex(b"ANMF")
        body = data[8:] + data[last:] * (count if len(data) - last < 900 else 900)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    chunks = made.chunks_of_png(data)
    frame = [chunk for chunk in chunks if chunk[0] in (b"fcTL", b"fdAT")][-2:]
    return made.png_of_chunks([*chunks[:-1], *(frame * (count if len(frame[1][1]) < 900 else 900)), chunks[-1]])


def psd() -> bytes:
    """A 16×16 Photoshop file."""
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 16, 16, 8, 3)
    return header + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + bytes(3 * 256)


FOREIGN = {
    "TIFF": encode(PHOTO, "TIFF"),
    "ICO": encode(PHOTO.resize((64, 64)), "ICO"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/mark) (w) file\nshowpage\n",
    "PSD": psd(),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "SVG, packed": b"\x1f\x8b\x08" + bytes(60),
    "PDF": encode(PHOTO, "PDF"),
    "JPEG 2000": encode(PHOTO, "JPEG2000"),
    "MVG": b"push graphic-context\nimage over 0,0 0,0 'https://example.com/x'\npop graphic-context\n",
    "a script": b"#!/bin/sh\ntouch /tmp/mark\n",
    "a zip": b"PK\x03\x04" + bytes(100),
    "HTML": b"<!doctype html><script>alert(1)</script>",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_refused_unopened(client: httpx.Client, name: str) -> None:
    """415, whatever they are called; no helper program is started (the service's fixture looks for their marks)."""
    for kind in ("image/jpeg", "application/octet-stream"):
        answer = client.post("/predict", content=FOREIGN[name], headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_image_format")


@pytest.mark.parametrize("name", [name for name in corpus() if "animated" not in name])
def test_a_file_cut_at_every_tenth_is_corrupt(client: httpx.Client, name: str) -> None:
    """422 wherever it was cut, never a prediction of half an image."""
    data = corpus()[name]
    for tenth in range(1, 10):
        cut = data[: len(data) * tenth // 10]
        assert outcome(client, cut) == (422, "image_corrupt"), tenth


def test_polyglots_are_what_their_first_bytes_are(client: httpx.Client) -> None:
    """A picture with a page, a script or an archive behind it, or in its texts, is that picture."""
    payload = b"<html><script>alert(document.domain)</script><?php system($_GET['c']); ?>PK\x03\x04"
    jpeg = make_jpeg(1)
    for data in (
        jpeg + payload,
        jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:],
        encode(PHOTO, "PNG") + payload,
        encode(PHOTO.quantize(16), "GIF") + payload,
    ):
        answer = client.post("/predict", content=data)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert b"script" not in answer.content
    assert outcome(client, b"GIF89a/*" + payload + b"*/=1;") == (422, "image_corrupt")
    assert outcome(client, payload + jpeg) == (415, "unsupported_image_format")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 3), (1, 16_384), (16_384, 1), (2, 2)])
@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_extreme_shapes_cost_little(
    service: ServiceProcess, client: httpx.Client, width: int, height: int, image_format: str
) -> None:
    """200 within 100 ms and 20 MB; WebP has no side over 16,383."""
    if image_format == "WEBP" and max(width, height) > 16_383:
        width, height = min(width, 16_383), min(height, 16_383)
    data = encode(Image.new("RGB", (width, height), (10, 200, 30)), image_format)
    assert outcome(client, data) == (200, "")
    assert quickest(lambda: client.post("/predict", content=data)) < 0.1
    assert growth(service, lambda: client.post("/predict", content=data)) < 20 * MEGABYTE


def test_all_eight_orientations_are_one_image(client: httpx.Client) -> None:
    """One photo stored in each of EXIF's eight ways, and with broken EXIF, has one answer."""
    stored = [
        encode(
            Image.fromarray(made.stored_turned(np.asarray(PHOTO), orientation)),
            "PNG",
            exif=made.exif_orientation(orientation),
        )
        for orientation in range(1, 9)
    ]
    answers = {best(client, data) for data in stored}
    assert answers == {null_classes(stored[0])[0]}
    chunks = made.chunks_of_png(encode(PHOTO, "PNG"))
    broken = made.png_of_chunks([chunks[0], (b"eXIf", b"MM\0*\xff\xff\xff\xff"), *chunks[1:]])
    assert best(client, broken) in answers


def test_a_deep_nest_of_metadata_costs_little(service: ServiceProcess, client: httpx.Client) -> None:
    """EXIF whose directories point at themselves, and whose entries claim gigabytes, is passed over."""
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    vast = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x010E, 2, 0xFFFFFFF0, 8) + bytes(4)
    chunks = made.chunks_of_png(encode(PHOTO, "PNG"))
    for exif in (loop, vast):
        data = made.png_of_chunks([chunks[0], (b"eXIf", exif), *chunks[1:]])
        assert outcome(client, data) == (200, "")
        assert quickest(lambda data=data: client.post("/predict", content=data)) < 0.1  # type: ignore[misc]
        assert growth(service, lambda data=data: client.post("/predict", content=data)) < 20 * MEGABYTE  # type: ignore[misc]


def test_curl_sends_what_browsers_and_scripts_send(service: ServiceProcess, tmp_path: Path) -> None:
    """The same photo by each way that curl has of sending it."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(make_jpeg(1, (1600, 1200)))
    ways = (
        ["--data-binary", f"@{photo}"],
        ["-F", f"image=@{photo}"],
        ["-T", str(photo), "-X", "POST"],
        ["--http1.0", "--data-binary", f"@{photo}"],
        ["--http2", "--data-binary", f"@{photo}"],
        ["-H", "Transfer-Encoding: chunked", "--data-binary", f"@{photo}"],
        ["-H", "Expect: 100-continue", "--data-binary", f"@{photo}"],
    )
    for way in ways:
        command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *way, f"{service.address}/predict"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "200", way
