"""For every test: one thread, so that sums are taken in one order, and no network beyond this machine."""

import os
import socket
import sys

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def _refuse_beyond_loopback(host: object) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and host and not host.startswith(LOOPBACK):
        raise AssertionError(f"a test tried to reach the network: {host}")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """``connect`` and name look-ups fail outside loopback; Unix sockets (worker processes) still work."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded(call):
        def guard(self, address, *rest):
            if isinstance(address, tuple):
                _refuse_beyond_loopback(address[0])
            return call(self, address, *rest)

        return guard

    def guarded_getaddrinfo(host, *rest, **options):
        _refuse_beyond_loopback(host)
        return getaddrinfo(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Only where torch is imported already: most tests never import it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
