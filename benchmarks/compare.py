"""This service and others on the same work, turn about: `python -m benchmarks.compare [PEER ...]`.

The same photos, the same ResNet-50 from one file, the same clients, each server alone on the machine. The servers take
turns for a few rounds, so that a machine that changes its pace changes it for all; figures are medians of the rounds,
and a ratio is the median of the rounds' ratios. Each peer is installed into an environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.clients import NO_ANSWER, NONE, Clients, Tally, percentile_ms, post, ratios_of
from tests.photos import make_jpeg

_HERE = Path(__file__).parent
_ENVIRONMENTS = Path(".venv-peers")
_WARM_UP_SECONDS = 3.0
_START_SECONDS = 120.0
_BOUNDARY = b"a-boundary-that-no-photo-holds"


def _raw(path: str) -> Callable[[bytes], bytes]:
    return lambda image: post(path, image, "image/jpeg")


def _base64(image: bytes) -> bytes:
    return post("/predict", b'{"image": "%b"}' % base64.b64encode(image), "application/json")


def _form(image: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = b"--%b\r\n%b%b\r\n--%b--\r\n" % (_BOUNDARY, head, image, _BOUNDARY)
    return post("/predict", body, f"multipart/form-data; boundary={_BOUNDARY.decode()}")


@dataclass(frozen=True)
class Peer:
    """A server: what it needs, how it starts (`{bin}` its environment's programs), what it is sent."""

    packages: tuple[str, ...]
    command: str
    request: Callable[[bytes], bytes]


PEERS = {
    "plain-fastapi": Peer(
        ("fastapi", "uvicorn[standard]"),
        "{bin}/python -m uvicorn plain_fastapi:app --log-level error --port {port}",
        _raw("/predict"),
    ),
    "litserve": Peer(("litserve",), "{bin}/python litserve_server.py {port}", _base64),
    "mosec": Peer(("mosec",), "{bin}/python mosec_server.py --timeout 60000 --port {port}", _raw("/inference")),
    "bentoml": Peer(("bentoml",), "{bin}/bentoml serve bentoml_server:Classifier --port {port}", _form),
}
_USUAL = ("plain-fastapi", "litserve", "mosec")


def install(name: str, peer: Peer) -> Path:
    """The programs of the peer's environment: its packages, and behind them this environment's, for PyTorch."""
    home = _ENVIRONMENTS / name
    if not (home / ".ready").exists():
        print(f"installing {name} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        (site,) = home.glob("lib/python3*/site-packages")
        own = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "torch.pth").write_text(own + "\n", encoding="utf-8")
        subprocess.run([home / "bin/pip", "install", "--quiet", *peer.packages], check=True)
        (home / ".ready").touch()
    return home.absolute() / "bin"


class Contestant:
    """One server to be measured."""

    def __init__(
        self, name: str, command: Sequence[str], request: Callable[[bytes], bytes], images: list[bytes], folder: Path
    ) -> None:
        self.name = name
        self.rounds: list[Tally] = []
        self.start_seconds: list[float] = []
        self._command = command
        self._requests = [request(image) for image in images]
        self._folder = folder

    def measure(self, environment: dict[str, str], clients: int, seconds: float) -> None:
        """Start it, warm it up, load it, end it. Raises RuntimeError where it does not come to answer."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [part.replace("{port}", str(port)) for part in self._command]
        log_path = Path(tempfile.gettempdir()) / f"compare-{self.name}.log"
        with log_path.open("wb") as log:
            began = time.monotonic()
            server = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                asyncio.run(self._load(f"http://127.0.0.1:{port}", server, began, clients, seconds))
            except RuntimeError:
                raise RuntimeError(f"{self.name} did not answer; {log_path} has what it said") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    server.wait(20)
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()

    async def _load(
        self, address: str, server: subprocess.Popen[bytes], began: float, clients: int, seconds: float
    ) -> None:
        load = Clients(address, self._requests)
        while True:
            if server.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise RuntimeError
            if await load.ask() == 200:
                break
            await asyncio.sleep(0.1)
        self.start_seconds.append(time.monotonic() - began)
        await load.closed_loop(clients, _WARM_UP_SECONDS)
        self.rounds.append(await load.closed_loop(clients, seconds))
        load.close()


def table(contestants: Sequence[Contestant]) -> str:
    """Medians over the rounds; ratios to the first contestant, the median of each round's."""
    first = contestants[0]
    lines = [
        f"| server | images/s | {first.name} is | p50 ms | p99 ms | first answer after s | errors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in contestants:
        ratios = ratios_of(first.rounds, each.rounds)
        rates = [tally.rate for tally in each.rounds if tally.is_good]
        errors: defaultdict[str, int] = defaultdict(int)
        for tally in each.rounds:
            for status, count in tally.statuses.items():
                if status != 200:
                    errors["no answer" if status == NO_ANSWER else str(status)] += count
        lines.append(
            f"| {each.name} | {_median(rates, '.1f')} | {_median(ratios, '.2f', 'x')} | "
            f"{percentile_ms(each.rounds, 50)} | {percentile_ms(each.rounds, 99)} | "
            f"{_median(each.start_seconds, '.1f')} | {dict(errors) or 0} |"
        )
    return "\n".join(lines)


def _median(values: Sequence[float], digits: str, unit: str = "") -> str:
    return f"{statistics.median(values):{digits}}{unit}" if values else NONE


def photos(folder: Path | None) -> list[bytes]:
    """The JPEGs of a folder, or twenty that are made: noise of 500×375, which compresses like no photo does."""
    if folder is None:
        return [make_jpeg(seed, (500, 375)) for seed in range(20)]
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"There is no .jpg or .jpeg in {folder}.")
    return [path.read_bytes() for path in found]


def make_weights(path: Path) -> None:
    """A ResNet-50 as it is before training: speed does not depend on what it has learnt."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    torch.manual_seed(0)
    save_file(resnet50().state_dict(), path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # No `choices`: with "*" argparse holds the default, as one value, against them.
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; {' '.join(_USUAL)}")
    parser.add_argument("--null", action="store_true", help="no network: what the servers alone cost")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs to send; without it, made ones")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each server and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--int8", type=Path, help="a quantized model of this service's, measured beside the others")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"there is no peer {', '.join(unknown)}; choose from {', '.join(PEERS)}")
    options.peers = options.peers or list(_USUAL)
    return options


def main() -> None:
    options = parse()
    images = photos(options.photos)
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "resnet50.safetensors"
        if not options.null:
            make_weights(weights)
        environment = os.environ | {
            "PEER_WEIGHTS": "" if options.null else str(weights),
            "CUDA_VISIBLE_DEVICES": "",
            "BENTOML_DO_NOT_TRACK": "True",
        }
        serve = [sys.executable, "-m", "app", "serve", "--port", "{port}", "--log-level", "warning"]
        own = ["--backend", "null"] if options.null else ["--weights", str(weights)]
        root = _HERE.parent
        contestants = [Contestant("resnet-serve", [*serve, *own], _raw("/predict"), images, root)]
        if options.int8:
            flags = ["--weights", str(options.int8.absolute())]
            contestants.append(Contestant("resnet-serve int8", [*serve, *flags], _raw("/predict"), images, root))
        for name in options.peers:
            command = PEERS[name].command.format(bin=install(name, PEERS[name]), port="{port}").split()
            contestants.append(Contestant(name, command, PEERS[name].request, images, _HERE / "peers"))
        for number in range(options.rounds):
            for each in contestants:
                print(f"round {number + 1}: {each.name} …", file=sys.stderr, flush=True)
                try:
                    each.measure(environment, options.clients, options.seconds)
                except RuntimeError as error:
                    # The others' rounds are not lost with it.
                    print(error, file=sys.stderr, flush=True)
                    each.rounds.append(Tally(statuses=Counter({NO_ANSWER: 1})))
    sizes = statistics.median(len(image) for image in images)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, PyTorch {version('torch')}"
    )
    print(f"{len(images)} images, {sizes / 1e3:.0f} kB at the median; {options.clients} closed-loop clients;")
    print(f"medians of {options.rounds} rounds of {options.seconds:g} s, the servers in turn\n")
    print(table(contestants))


if __name__ == "__main__":
    main()
