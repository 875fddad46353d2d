"""A listening socket that is about to close: what was begun arrives, what comes later is refused, nothing is reset."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from app.server.listening import address_of, admit_no_more, listen, listen_together
from app.settings import Settings


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no sockets for both")
@pytest.mark.parametrize("count", [1, 2])
def test_all_addresses_of_ipv6_take_ipv4_along(count: int) -> None:
    """RESNET_HOST=:: is reached by both, from one process and from several."""
    settings = Settings(host="::", port=0)
    listeners = [listen(settings)] if count == 1 else listen_together(settings, count)
    port = listeners[0].getsockname()[1]
    try:
        assert address_of(settings, listeners[0]) == f"http://[::1]:{port}"
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=10).close()
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filters are Linux's")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_connection_is_made_after_the_last_one_is_admitted(host: str) -> None:
    """Connections that were made stay whole; who comes later is refused once the socket is closed, not reset."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=8) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address, timeout=10) as early:
            early.sendall(b"first")
            admit_no_more(listener)
            failures: list[Exception] = []

            def come_late() -> None:
                try:
                    socket.create_connection(address, timeout=10).close()
                except Exception as error:
                    failures.append(error)

            with socket.socket(family) as impatient:
                impatient.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    impatient.connect(address)
            late = threading.Thread(target=come_late)
            late.start()
            accepted, _ = listener.accept()
            with accepted:
                listener.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                listener.close()
                assert accepted.recv(5) == b"first"
                early.sendall(b"second")
                assert accepted.recv(6) == b"second"
            late.join(20)
    assert [type(failure) for failure in failures] == [ConnectionRefusedError]
