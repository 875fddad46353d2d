"""doctor: what it shows, what it calls wrong and with which way out, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import __version__, outbound
from app.doctor import diagnose, machine, outside
from app.doctor.report import Report
from app.errors import SettingError
from app.settings import Settings, load_settings
from tests.checkpoints_made import make_network, save_pth
from tests.conftest import REPOSITORY
from tests.running import RunningServer, clean_environment

SECTIONS = ["machine", "software", "network", "settings", "address", "cache", "model"]
SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own, and a folder without checkpoints."""
    for name in (*outbound.PROXIES, "NO_PROXY", *outbound.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("PORT", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "resnet_serve.py"), "doctor", *arguments],
        cwd=folder,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def report_of(**settings: Any) -> Report:
    return diagnose(load_settings(**{"port": "0", **settings}), None)


def test_where_nothing_is_wrong_it_says_so(tmp_path: Path) -> None:
    """The report has every section, in text and in JSON alike, and the exit status is 0."""
    shown = run("--backend", "null", "--port", "0", folder=tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert [line for line in shown.stdout.splitlines() if line in SECTIONS] == SECTIONS
    assert shown.stdout.splitlines()[-1] == "Nothing is wrong."
    as_json = run("--backend", "null", "--port", "0", "--json", folder=tmp_path)
    document = json.loads(as_json.stdout)
    assert [*document] == [*SECTIONS, "problems", "notes"]
    assert document["problems"] == []
    assert document["software"]["resnet-serve"] == __version__
    assert document["machine"]["cpus"].startswith(f"{len(os.sched_getaffinity(0))} of")
    assert document["settings"]["RESNET_BACKEND"] == "null"


def test_secrets_are_left_out(tmp_path: Path) -> None:
    """No password of a proxy or a mirror, and no variable that is none of the service's, is shown."""
    given = {
        "RESNET_DOWNLOAD_MIRROR": f"https://me:{SECRET}@mirror.example.com/weights",
        "RESNET_API_KEY": SECRET,
        "HTTPS_PROXY": f"http://me:{SECRET}@proxy.example.com:port",
        "HTTP_PROXY": f"http://me:{SECRET}/x@proxy.example.com:3128",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_TOKEN": SECRET,
    }
    for flags in ((), ("--json",)):
        shown = run(*flags, folder=tmp_path, RESNET_PORT="0", **given)
        assert SECRET not in shown.stdout + shown.stderr
        assert "https://***@mirror.example.com/weights" in shown.stdout
        assert "HTTPS_PROXY is http://***@proxy.example.com:port" in shown.stdout
        assert "RESNET_API_KEY is not a setting" in shown.stdout
        assert shown.returncode == 1


def test_wrong_settings_are_part_of_the_report(tmp_path: Path) -> None:
    """Where a setting is wrong, the machine is shown all the same, and the setting is among what is wrong."""
    shown = run("--json", folder=tmp_path, RESNET_PORT="many", RESNET_DECODE="fastest")
    document = json.loads(shown.stdout)
    assert shown.returncode == 1
    assert document["machine"]["cpus"]
    assert [line.split()[0] for line in document["problems"]] == ["RESNET_PORT", "RESNET_DECODE"]


@pytest.mark.parametrize(
    ("environment", "settings", "said"),
    [
        ({"SSL_CERT_FILE": "/there/is/none"}, {}, "SSL_CERT_FILE is /there/is/none, which cannot be read"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {}, "ALL_PROXY is socks5://proxy:1080, a SOCKS proxy"),
        ({}, {"weights": "/there/is/none.pth"}, "RESNET_WEIGHTS is /there/is/none.pth, and there is no such file"),
        ({}, {"weights": "IMAGENET1K_V2", "download_mirror": "mirror/x"}, "RESNET_DOWNLOAD_MIRROR is mirror/x, which"),
        ({}, {"device": "cuda"}, "RESNET_DEVICE is cuda, and no CUDA device can be used"),
        ({}, {"backend": "onnx", "device": "cuda"}, "RESNET_DEVICE is cuda, but ONNX graphs are served on the CPU"),
        ({}, {"cache_dir": "/dev/null/cache"}, "Nothing can be written to the cache folder /dev/null/cache"),
        ({}, {"decode_threads": "100000"}, "RESNET_DECODE_THREADS"),
        ({}, {"host": "203.0.113.1"}, "Cannot listen on 203.0.113.1:0"),
    ],
)
def test_what_is_wrong_is_named_with_a_way_out(
    environment: dict[str, str], settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing that is wrong is one line that names it and says what to do."""
    monkeypatch.setattr("app.doctor.model.cuda_device_count", lambda: 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    problems = [line for line in report_of(**settings).problems if said in line]
    assert len(problems) == 1
    assert "\n" not in problems[0]
    assert len(problems[0].split(". ")) > 1 or ":" in problems[0]


def test_a_damaged_checkpoint_is_wrong(tmp_path: Path) -> None:
    """What would be served is read, and what its reader says of it is the line."""
    (tmp_path / "model_weights").mkdir()
    (tmp_path / "model_weights" / "mine.pth").write_bytes(b"no checkpoint")
    report = report_of()
    assert "mine.pth: RESNET_WEIGHTS is not set, and model_weights/ has this one" in report.facts["model"]["weights"]
    assert [line for line in report.problems if "mine.pth is no checkpoint" in line]


def test_what_would_be_served_is_told_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a good checkpoint: what it is, by what it would be served, and that its export is still to be made."""
    monkeypatch.setattr("app.backends.choice.cuda_device_count", lambda: 0)
    path = save_pth(make_network("resnet18", 5).state_dict(), tmp_path / "small.pth")
    report = report_of(weights=str(path), architecture="resnet18", cache_dir=str(tmp_path / "cache"))
    model = report.facts["model"]
    assert report.problems == []
    assert model["weights"] == f"{path}: RESNET_WEIGHTS is {path}"
    assert (model["classes"], model["backend"]) == ("5", "onnx, on the CPU")
    assert model["architecture"] == "resnet18 (because of RESNET_ARCHITECTURE)"
    assert model["export"] == "made at the next start"
    # Looking changes nothing.
    assert not (tmp_path / "cache").exists()


def test_a_port_that_the_service_itself_has_is_not_wrong(null_server: RunningServer) -> None:
    """Beside a running service its port is taken by itself; another program's port is a problem."""
    port = null_server.address.rpartition(":")[2]
    own = report_of(port=port)
    assert own.facts["address"]["free"].startswith("no: this service answers there (")
    assert not [line for line in own.problems if "listen" in line]
    with socket.create_server(("127.0.0.1", 0)) as other:
        outside_port = str(other.getsockname()[1])
        report = Report()
        outside._ANSWER_SECONDS, kept = 0.2, outside._ANSWER_SECONDS
        try:
            outside.see_address(load_settings(port=outside_port), report)
        finally:
            outside._ANSWER_SECONDS = kept
    assert [line for line in report.problems if f"Cannot listen on 127.0.0.1:{outside_port}" in line]


def test_limits_of_the_machine_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few open files, little memory, no temporary files, a driver without devices and a full disk are each a line."""
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (256, 512))
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 500_000_000)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: "/there/is/none")
    monkeypatch.setattr(machine, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(machine, "_DEVICE", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    report = Report()
    machine.see_machine(report)
    for said in ("At most 512 files", "of memory, and a first start", "TMPDIR", "CUDA_VISIBLE_DEVICES is ''"):
        assert len([line for line in report.problems if said in line]) == 1, said
    monkeypatch.setattr(outside.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    outside.see_cache(Settings(cache_dir=tmp_path / "cache"), report)
    assert [line for line in report.problems if "0 MB of room" in line]


def test_the_platforms_port_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT of a cloud platform without RESNET_PORT is a note, and none where the port is set."""
    monkeypatch.setenv("PORT", "8080")
    assert [line for line in diagnose(Settings(backend="null"), None).notes if line.startswith("PORT is 8080")]
    assert not [line for line in report_of(backend="null").notes if line.startswith("PORT")]


def test_the_process_may_lack_files(tmp_path: Path) -> None:
    """doctor itself runs with few open files, and says what holds."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = subprocess.run(
        ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", sys.executable, str(REPOSITORY / "resnet_serve.py"), "doctor"],
        cwd=tmp_path,
        env=clean_environment() | {"RESNET_BACKEND": "null", "RESNET_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert shown.returncode == 1
    assert "At most 200 files and connections" in shown.stdout


def test_a_settings_error_alone_makes_a_report() -> None:
    """Without settings there is nothing of address, cache and model to show."""
    report = diagnose(None, SettingError("RESNET_X cannot be y.\nRESNET_Z cannot be z."))
    assert [*report.facts] == SECTIONS[:4]
    assert report.problems[-2:] == ["RESNET_X cannot be y.", "RESNET_Z cannot be z."]
