"""classify, probe, download and help: the commands beside `serve`, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.settings import ENV_PREFIX, Settings
from tests.photos import make_jpeg, null_classes
from tests.running import RunningServer, clean_environment


def run(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env=clean_environment()
        | {"PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "200"}
        | (environment or {}),
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = []
    for number in range(3):
        files.append(tmp_path / f"photo{number}.jpg")
        files[-1].write_bytes(make_jpeg(number))
    return files


def test_classify_answers_as_the_server_does(client: httpx.Client, photos: list[Path], tmp_path: Path) -> None:
    """The command and the server give the same predictions for the same photos."""
    done = run("classify", "--backend", "null", "--json", "-k", "3", *map(str, photos), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for photo, line in zip(photos, lines, strict=True):
        assert line.pop("photo") == str(photo)
        assert line == client.post("/predict", content=photo.read_bytes(), params={"top_k": 3}).json()


def test_classify_prints_a_table(photos: list[Path], tmp_path: Path) -> None:
    """For a person each photo is a table of classes, labels and probabilities."""
    done = run("classify", "--backend", "null", "-k", "2", str(photos[0]), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    best, second = null_classes(photos[0].read_bytes())
    assert "photo0.jpg" in done.stdout
    assert re.search(rf"{best}\b.*0\.\d{{4}}", done.stdout)
    assert re.search(rf"{second}\b.*0\.\d{{4}}", done.stdout)


def test_classify_says_which_photo_is_bad(photos: list[Path], tmp_path: Path) -> None:
    """A bad photo is named with its fault, the others are classified, and the status is 1."""
    (tmp_path / "text.jpg").write_text("not a photo")
    bad = ["text.jpg", "nowhere.jpg"]
    done = run("classify", "--backend", "null", str(photos[0]), *bad, str(photos[1]), folder=tmp_path)
    assert done.returncode == 1
    assert "text.jpg: The body is not an image" in done.stderr
    assert "nowhere.jpg: Cannot be read: No such file or directory" in done.stderr
    assert "photo0.jpg" in done.stdout
    assert "photo1.jpg" in done.stdout


def test_classify_with_real_weights(example_jpeg: bytes, tmp_path: Path) -> None:
    """With the offline demo the drawn clock is a clock."""
    (tmp_path / "clock.jpg").write_bytes(example_jpeg)
    done = run("classify", "--weights", "offline-demo", "-k", "1", "clock.jpg", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clock" in done.stdout.splitlines()[-2]
    assert "tf_efficientnet_lite0" in done.stdout


def test_probe_tells_how_a_service_is(null_server: RunningServer, tmp_path: Path) -> None:
    """probe exits 0 for a service that is well, and with --ready for one that serves; 1 where nobody answers."""
    port = null_server.address.rsplit(":", 1)[1]
    for flags in ((), ("--ready",)):
        assert run("probe", *flags, "--port", port, folder=tmp_path).returncode == 0
        assert run("probe", *flags, folder=tmp_path, environment={"RESNET_PORT": port}).returncode == 0
    null_server.app.state.classifier.draining = True
    try:
        assert run("probe", "--port", port, folder=tmp_path).returncode == 0
        draining = run("probe", "--ready", "--port", port, folder=tmp_path)
        assert draining.returncode == 1
        assert "503 draining" in draining.stdout
    finally:
        null_server.app.state.classifier.draining = False
    nobody = run("probe", "--port", "9", folder=tmp_path)
    assert nobody.returncode == 1
    assert "No answer from http://127.0.0.1:9/healthz" in nobody.stderr
    wrong = run("probe", "--port", "many", folder=tmp_path)
    assert wrong.returncode == 1
    assert "RESNET_PORT (--port) cannot be 'many'" in wrong.stderr


def test_probe_needs_neither_torch_nor_the_web_framework(tmp_path: Path) -> None:
    """A health check runs every few seconds: it loads nothing heavy."""
    program = (
        "import sys; sys.argv = ['resnet-serve', 'probe', '--port', '9']\n"
        "from app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'fastapi', 'PIL', 'numpy', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment() | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_download_says_where_the_file_is_or_what_to_do(tmp_path: Path) -> None:
    """download prints the path of a file that is there, and the ways on where it cannot be had."""
    mirror = ("--download-mirror", "http://127.0.0.1:9", "--cache-dir", str(tmp_path))
    failed = run("download", "IMAGENET1K_V1", *mirror, folder=tmp_path)
    assert failed.returncode == 1
    assert "Cannot download http://127.0.0.1:9/resnet50-0676ba61.pth" in failed.stderr
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    cached = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    cached.write_bytes(b"as if it had been downloaded")
    done = run("download", "IMAGENET1K_V1", *mirror, folder=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(cached))


def test_help_shows_every_setting(tmp_path: Path) -> None:
    """`serve --help` lists each setting's flag and environment variable."""
    shown = run("serve", "--help", folder=tmp_path)
    assert shown.returncode == 0
    text = re.sub(r"[│\s]+", " ", shown.stdout)
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in text
        assert f"[{ENV_PREFIX}{name.upper()};" in text, name


def test_the_command_and_the_module_are_the_same(tmp_path: Path) -> None:
    """`resnet-serve` and `python -m app` are one command."""
    command = Path(sys.executable).parent / "resnet-serve"
    if not command.exists():
        pytest.skip("the package is not installed, only on the path")
    installed = subprocess.run(
        [command, "--version"], env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert installed.stdout == run("--version", folder=tmp_path).stdout
    assert installed.stdout.startswith("resnet-serve ")
