"""A real sshd on loopback, with keys and a home of its own in a temporary folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from getpass import getuser
from pathlib import Path

import pytest
from device.conftest import build_bundle

from tinyforge.remote import Address

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
TOOLS = ("sh", "uname", "tr", "tail", "df", "dirname", "grep")


class Board:
    """A machine to log in to: this one, under another home. ``config`` is the client's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.config = folder, folder / "home", folder / "config"
        self.home.mkdir(parents=True)
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "client.pub", folder / "authorized")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.know((folder / "host.pub").read_text())
        self.config.write_text(
            f"IdentityFile {folder}/client\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known\n"
            "GlobalKnownHostsFile none\nStrictHostKeyChecking no\n"
        )
        self._process = None

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", getuser(), self.port)

    def know(self, public_key: str) -> None:
        """What the client takes the board's host key to be; '' for nothing."""
        line = f"[127.0.0.1]:{self.port} {public_key}" if public_key else ""
        (self.folder / "known").write_text(line)

    def start(self, path: str = os.environ["PATH"]) -> None:
        lines = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "PidFile": "none",
            "AuthorizedKeysFile": self.folder / "authorized",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "Subsystem": "sftp internal-sftp",
            "SetEnv": f"HOME={self.home} PATH={path} OMP_NUM_THREADS=1",
        }
        (self.folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it when it has the right to use it
        log = (self.folder / "sshd.log").open("w")
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log)
        log.close()
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def cut(self) -> None:
        """Every connection is lost."""
        for pid in children(self._process.pid):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self._process:
            self.cut()
            self._process.kill()
            self._process.wait()


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(after[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def asleep_board(tmp_path):
    """Not started yet."""
    if not Path(SSHD).is_file() or not shutil.which("sftp") or sys.platform != "linux":
        pytest.skip("needs Debian's openssh-server and openssh-client")
    board = Board(tmp_path / "board")
    yield board
    board.stop()


@pytest.fixture
def board(asleep_board):
    asleep_board.start()
    return asleep_board


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """Read-only."""
    return build_bundle(tmp_path_factory.mktemp("bundle") / "colour-generic-cpu")


@pytest.fixture
def tools(tmp_path):
    """A folder with what a bare system has, for the board's PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder
