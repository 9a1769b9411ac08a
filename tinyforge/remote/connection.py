"""One connection to a board: OpenSSH's client as a process, and its commands through it."""

import json
import subprocess
import tempfile
import time
from collections.abc import Container
from pathlib import Path
from shutil import which
from typing import Any

from tinyforge.errors import DeviceError, MissingError

from .address import Address
from .argv import agent_command, explain, master_argv, sftp_argv, sftp_commands, ssh_argv

AGENT = Path(__file__).with_name("agent.py")
ANSWER = "TINYFORGE-ANSWER "
LOST = 255  # ssh's own exit code
OPENING_SECONDS = 60.0


class Connection:
    """Opened on entry, closed on exit. ``config`` stands in for the user's ~/.ssh/config.

    Every method raises DeviceError when the board cannot be reached, or no longer.
    """

    def __init__(self, address: Address, config: Path | None = None) -> None:
        self.address, self._config = address, config
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._ended = False

    def __enter__(self) -> "Connection":
        missing = [program for program in ("ssh", "sftp") if not which(program)]
        if missing:
            raise MissingError(f"{missing[0]} is not installed here: install OpenSSH's client")
        self._folder = tempfile.TemporaryDirectory(prefix="tf-")
        with self._log.open("wb") as stream:
            argv = master_argv(self.address, self._config, self._control)
            self._master = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        if self._ended:
            self._master.terminate()
        try:
            self._wait_until_open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return self._master is not None and self._master.poll() is None

    def hang_up(self) -> None:
        """End the connection from another thread, also one yet to be opened: what waits for it raises DeviceError."""
        self._ended = True
        if self._master:
            self._master.terminate()

    def close(self) -> None:
        if self._master:
            self._master.terminate()
            self._master.wait()
        if self._folder:
            self._folder.cleanup()

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log"

    @property
    def _control(self) -> Path:
        return Path(self._folder.name) / "c"

    def _wait_until_open(self) -> None:
        """The client makes its socket when it is logged in, and ends when it cannot."""
        start = time.monotonic()
        while not self._control.exists():
            if self._master.poll() is not None or time.monotonic() - start > OPENING_SECONDS:
                raise self._fault(self._log.read_text(errors="replace"))
            time.sleep(0.02)

    def _fault(self, complaint: str) -> DeviceError:
        return DeviceError(explain(complaint, self.address))

    def shell(self, script: str) -> str:
        """Run a POSIX shell script there; its output, however it ends."""
        argv = ssh_argv(self.address, self._config, self._control, ["sh"])
        done = subprocess.run(argv, input=script.encode(), capture_output=True)
        if done.returncode == LOST:
            raise self._lost(done.stderr)
        return done.stdout.decode(errors="replace")

    def agent(self, python: str, job: dict[str, Any]) -> dict[str, Any]:
        """Have the agent do a job there and return its answer; it gives up when this end is gone."""
        argv = ssh_argv(self.address, self._config, self._control, agent_command(python))
        program = AGENT.read_bytes()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            with process:
                try:
                    process.stdin.write(b"%d\n%s%s\n" % (len(program), program, json.dumps(job).encode()))
                    process.stdin.flush()
                except BrokenPipeError:
                    pass  # its answer, or its end, says why
                output = process.stdout.read().decode(errors="replace")
            errors.seek(0)
            complaint = errors.read()
        answers = [line[len(ANSWER) :] for line in output.splitlines() if line.startswith(ANSWER)]
        if answers:
            return json.loads(answers[-1])
        if process.returncode == LOST:
            raise self._lost(complaint)
        last = (complaint.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"{self.address}: {python} there ended with code {process.returncode}: {last}")

    def send(self, local: Path, remote: str, names: list[str], partial: Container[str]) -> None:
        """Send files of a folder, continuing those that are there in part; see ``sftp_commands``."""
        argv = sftp_argv(self.address, self._config, self._control)
        commands = sftp_commands(local, remote, names, partial)
        done = subprocess.run(argv, input=commands.encode(), capture_output=True)
        if done.returncode == 0:
            return
        complaint = done.stderr.decode(errors="replace")
        if self._master.poll() is not None or "onnection" in complaint:
            raise self._lost(done.stderr)
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"{self.address}: files cannot be sent to {remote} there: {last}")

    def _lost(self, complaint: bytes) -> DeviceError:
        own = self._log.read_text(errors="replace").strip()
        last = (complaint.decode(errors="replace").strip() or own or "no message").splitlines()[-1].strip()
        return DeviceError(
            f"{self.address}: the connection was lost ({last}); the same command continues where this one stopped"
        )
