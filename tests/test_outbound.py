"""Proxies and certificates of the environment: what a download does with them, and how a wrong one is told."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app import outbound
from app.checkpoints import fetch
from app.errors import DownloadError, DownloadUnreachable
from app.outbound import OutboundError, is_excepted, proxy_for, redacted, ssl_context, wrong_in
from tests.running import service_process

VARIABLES = (*outbound.PROXIES, "NO_PROXY", *outbound.CERTIFICATES)
SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Handler(BaseHTTPRequestHandler):
    """Any path is a small file; an absolute one, as a proxy gets it, too."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"file")

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust the certificate hangs up."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server, or a proxy: to this handler they are the same."""
    yield from serving(Server())


def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def failure_of(url: str, folder: Path) -> str:
    with pytest.raises(DownloadUnreachable) as failure:
        fetch(url, folder, None)
    assert list(folder.iterdir()) == []
    assert "\n" not in str(failure.value)
    return str(failure.value)


# --- what cannot work is named


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", f"socks5://me:{SECRET}@10.0.0.1:1080", "SOCKS proxy.*pip install 'httpx\\[socks\\]'"),
        ("all_proxy", "socks5h://10.0.0.1:1080", "SOCKS proxy"),
        ("ALL_PROXY", "socks4://10.0.0.1:1080", "SOCKS proxy.*use socks5://"),
        ("HTTPS_PROXY", f"http://me:{SECRET}@proxy:port", "no address: it is written http://HOST:PORT"),
        ("https_proxy", f"http://me:{SECRET}/x@proxy:99999999", "no address"),
        ("HTTPS_PROXY", "http://", "names no host"),
        ("HTTPS_PROXY", "htp://proxy:3128", "begins with http://, https:// or socks5://"),
        ("HTTPS_PROXY", "ftp://proxy", "begins with http://, https:// or socks5://"),
        ("HTTPS_PROXY", "http://[::1", "no address"),
        ("HTTPS_PROXY", f"http://me:{SECRET}@proxy..example.com:3128", "no address"),
        ("HTTPS_PROXY", "http://xn--a.example.com:3128", "no address"),
        ("SSL_CERT_FILE", "/there/is/none.pem", "cannot be read \\(No such file or directory\\).*unset it"),
        ("SSL_CERT_FILE", "/", "cannot be read \\(Is a directory\\)"),
        ("SSL_CERT_FILE", "/dev/null", "holds no certificates"),
        ("SSL_CERT_DIR", "/there/is/none", "cannot be read.*name a folder of certificates"),
        ("REQUESTS_CA_BUNDLE", "/there/is/none.pem", "cannot be read"),
        ("CURL_CA_BUNDLE", "/there/is/none.pem", "cannot be read"),
    ],
)
def test_what_a_download_cannot_work_with_is_named(
    variable: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable and what to do; no password is in it; and a fallback is in order."""
    monkeypatch.setenv(variable, value)
    message = failure_of("https://download.invalid/weights.pth", tmp_path)
    assert f"Cannot download https://download.invalid/weights.pth: {variable} is " in message
    assert re.search(said, message), message
    assert SECRET not in message
    assert [variable] == [line.split()[0] for line in wrong_in()]


def test_what_is_not_needed_is_no_obstacle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that this request does not need may be wrong: certificates for plain HTTP, a proxy not asked."""
    monkeypatch.setenv("SSL_CERT_FILE", "/there/is/none.pem")
    monkeypatch.setenv("HTTPS_PROXY", "htp://nonsense")
    monkeypatch.setenv("ALL_PROXY", "socks5://10.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "[::1], 127.0.0.1,[fe80::1]:80")
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    assert fetch(url, tmp_path, None).read_bytes() == b"file"
    assert server.asked == ["/weights.pth"]


@pytest.mark.parametrize("is_written", ["http://127.0.0.1:{}", "127.0.0.1:{}", "http://me:word@127.0.0.1:{}/"])
def test_a_proxy_is_asked(is_written: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download goes through the proxy of its scheme, with or without http:// in front."""
    monkeypatch.setenv("http_proxy", is_written.format(server.server_port))
    monkeypatch.setenv("NO_PROXY", "[::1]")
    assert fetch("http://mirror.invalid/weights.pth", tmp_path, None).read_bytes() == b"file"
    assert server.asked == ["http://mirror.invalid/weights.pth"]


def test_a_proxy_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proxy refuses, the error says through which one it was, without its password."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@127.0.0.1:9")
    message = failure_of("https://download.invalid/weights.pth", tmp_path)
    assert "through the proxy of HTTPS_PROXY (http://***@127.0.0.1:9)" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "mirror",
    [
        f"http://me:{SECRET}@127.0.0.1:9",
        f"http://me:{SECRET}/x@127.0.0.1:9",
        f"http://me:{SECRET}@mirror:port",
        f"//me:{SECRET}@mirror",
        f"ftp://me:{SECRET}@mirror",
        f"me:{SECRET}@mirror",
    ],
)
def test_a_mirrors_password_is_never_printed(mirror: str, tmp_path: Path) -> None:
    """Whatever is wrong with a mirror's address, the error has it without user and password."""
    with pytest.raises(DownloadError) as failure:
        fetch(f"{mirror}/weights.pth", tmp_path, None)
    assert SECRET not in str(failure.value)
    assert "weights.pth" in str(failure.value)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (
            {"ALL_PROXY": f"socks5://me:{SECRET}@127.0.0.1:1080", "NO_PROXY": "[::1]"},
            "ALL_PROXY is socks5://***@127.0.0.1:1080, a SOCKS proxy",
        ),
        (
            {"RESNET_DOWNLOAD_MIRROR": f"htps://me:{SECRET}@mirror.invalid/weights"},
            "htps://***@mirror.invalid/weights/resnet50-11ad3fa6.pth: that is no address of a web server, which is "
            "written https://HOST/FOLDER. The address comes from RESNET_DOWNLOAD_MIRROR",
        ),
    ],
)
def test_the_fallback_is_served_and_the_reason_said(environment: dict[str, str], reason: str, tmp_path: Path) -> None:
    """A start that may fall back does so where what it was told makes downloads impossible, and logs by which name."""
    environment = {
        "RESNET_WEIGHTS": "IMAGENET1K_V2",
        "RESNET_WEIGHTS_FALLBACK": "offline-demo",
        "RESNET_CACHE_DIR": str(tmp_path / "cache"),
        **environment,
    }
    with service_process(folder=tmp_path, environment=environment) as service:
        assert "tf_efficientnet_lite0" in service.wait_for("Ready:", 100)
        assert service.stop() == 0
    said = "\n".join(service.lines)
    assert reason in said
    assert "Traceback" not in said
    assert SECRET not in said


# --- certificates


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, and its key behind it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, file = tmp_path / "tls.key", tmp_path / "tls.crt"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)),
        ],
        capture_output=True,
        check=True,
    )
    file.write_text(file.read_text() + key.read_text())
    return file


@pytest.fixture
def secure_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    yield from serving(server)


@pytest.mark.parametrize("variable", [name for name in outbound.CERTIFICATES if name != "SSL_CERT_DIR"])
def test_named_certificates_are_trusted(
    variable: str, secure_server: Server, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror whose certificate nobody knows is refused with what to do, and taken once a variable names it."""
    url, folder = f"https://127.0.0.1:{secure_server.server_port}/weights.pth", tmp_path / "cache"
    folder.mkdir()
    message = failure_of(url, folder)
    assert "the certificate of 127.0.0.1 is not trusted" in message
    assert "SSL_CERT_FILE" in message
    monkeypatch.setenv(variable, str(certificate))
    assert fetch(url, folder, None).read_bytes() == b"file"


def test_a_folder_of_certificates_is_read(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_DIR and, as requests has it, REQUESTS_CA_BUNDLE may name a folder; SSL_CERT_FILE comes first."""
    for name in ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        assert ssl_context({name: str(certificate.parent)}).verify_mode is ssl.CERT_REQUIRED
    both = {"SSL_CERT_DIR": "/there/is/none", "SSL_CERT_FILE": str(certificate)}
    assert len(ssl_context(both).get_ca_certs()) == 1


# --- which proxy


@pytest.mark.parametrize(
    ("host", "port", "exceptions", "excepted"),
    [
        ("::1", 80, "[::1]", True),
        ("::1", 80, "::1", True),
        ("::1", 80, "[::1]:80", True),
        ("::1", 80, "[::1]:81", False),
        ("::2", 80, "[::1]", False),
        ("fe80::5", None, "fe80::/10", True),
        ("10.1.2.3", None, "10.0.0.0/8", True),
        ("11.1.2.3", None, "10.0.0.0/8", False),
        ("10.1.2.3", None, "10.1.2.3:443", False),
        ("10.1.2.3", 443, "10.1.2.3:443", True),
        ("mirror.example.com", None, "example.com", True),
        ("mirror.example.com", None, ".example.com", True),
        ("mirror.example.com", None, "*.example.com", True),
        ("example.com", None, "example.com", True),
        ("badexample.com", None, "example.com", False),
        ("MIRROR.example.com.", None, "Mirror.Example.COM", True),
        ("mirror", None, "*", True),
        ("mirror", None, "a, b mirror", True),
        ("mirror", None, "https://mirror", True),
        ("mirror", None, ",, ,", False),
        ("mirror", None, "", False),
        ("mirror", None, "[", False),
        ("mirror", None, ".", False),
        ("mirror", None, "10.0.0.0/99", False),
    ],
)
def test_no_proxy_is_read_as_others_read_it(host: str, port: int | None, exceptions: str, excepted: bool) -> None:
    """NO_PROXY has names, ends of domains, addresses, networks, ports and *; nonsense in it has no effect."""
    assert is_excepted(host, port, exceptions) is excepted


def test_the_schemes_own_proxy_comes_first() -> None:
    """HTTPS_PROXY is for https, ALL_PROXY for what has none, and the name in lower case is the one that counts."""
    environment = {"HTTPS_PROXY": "upper:1", "https_proxy": "lower:1", "ALL_PROXY": "all:1", "HTTP_PROXY": " "}
    secure, plain = proxy_for("https", "host", None, environment), proxy_for("http", "host", None, environment)
    assert secure is not None
    assert plain is not None
    assert (secure.variable, secure.url) == ("https_proxy", "http://lower:1")
    assert (plain.variable, plain.url) == ("ALL_PROXY", "http://all:1")
    assert proxy_for("https", "host", None, environment | {"NO_PROXY": "host"}) is None
    assert proxy_for("https", "host", None, {"https_proxy": "", "HTTPS_PROXY": "upper:1"}) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a/b", "https://host/a/b"),
        ("https://me:word@host:1/a", "https://***@host:1/a"),
        ("https://me:wo/r@d@host/a", "https://***@host/a"),
        ("me:word@host:1", "***@host:1"),
        ("https://host/a?token=1#x", "https://host/a"),
        ("https://me:wo?rd@host", "https://***@host"),
        ("https://host/a?token=x@y", "https://host/a"),
        ("https://host:80/a?token=x@y", "https://***"),
        ("https://me:word@host/a?token=x@y", "https://***"),
    ],
)
def test_addresses_are_shown_without_secrets(url: str, shown: str) -> None:
    """A user's name and password, and a query, are left out, also of an address that is no good one."""
    assert redacted(url) == shown


def test_a_client_of_one_server_reads_the_same_variables(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks a running service goes through the same proxies, and names a variable that is wrong."""

    async def ask(url: str) -> int:
        async with outbound.async_client(url, 10.0) as client:
            return (await client.get("/healthz")).status_code

    monkeypatch.setenv("NO_PROXY", "[::1]")
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{server.server_port}")
    assert asyncio.run(ask("http://service.invalid")) == 200
    assert server.asked == ["http://service.invalid/healthz"]
    monkeypatch.setenv("SSL_CERT_FILE", "/there/is/none.pem")
    with pytest.raises(OutboundError, match="SSL_CERT_FILE is"):
        asyncio.run(ask("https://service.invalid"))
