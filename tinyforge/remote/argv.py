"""Command lines for OpenSSH, and what its complaints mean. Pure functions.

The user's own ~/.ssh/config applies; what is set here takes precedence: keys of hosts are never accepted unseen, and
nothing is asked on the terminal.
"""

import shlex
from collections.abc import Container
from pathlib import Path

from .address import Address

OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
BOOTSTRAP = "import sys; i = sys.stdin.buffer; exec(compile(i.read(int(i.readline())), 'agent', 'exec'))"


def _options(address: Address, config: Path | None, control: Path, master: str, port_flag: str) -> list[str]:
    words = ["-F", str(config)] if config else []
    shared = {} if master == "yes" else {"ProxyCommand": "false"}  # no other connection when the shared one is gone
    for name, value in {**OPTIONS, **shared, "ControlPath": str(control), "ControlMaster": master}.items():
        words += ["-o", f"{name}={value}"]
    return words + ([port_flag, str(address.port)] if address.port else [])


def master_argv(address: Address, config: Path | None, control: Path) -> list[str]:
    """The connection itself, which stays in the foreground and carries all commands."""
    options = _options(address, config, control, "yes", "-p")
    return ["ssh", "-N", "-T", *options, "-o", "ControlPersist=no", "--", address.destination]


def ssh_argv(address: Address, config: Path | None, control: Path, command: list[str]) -> list[str]:
    """A command there, each word quoted for the shell there."""
    options = _options(address, config, control, "no", "-p")
    return ["ssh", "-T", *options, "--", address.destination, shlex.join(command)]


def sftp_argv(address: Address, config: Path | None, control: Path) -> list[str]:
    """sftp, reading its commands from stdin and stopping at the first that fails."""
    return ["sftp", "-q", "-b", "-", *_options(address, config, control, "no", "-P"), "--", address.destination]


def agent_command(python: str) -> list[str]:
    """What starts a Python program there that comes on stdin: its length on a line, then its bytes."""
    return [python, "-I", "-c", BOOTSTRAP]


def sftp_commands(local: Path, remote: str, names: list[str], partial: Container[str] = ()) -> str:
    """Send files of ``local`` into ``remote``, those in ``partial`` from where an earlier attempt stopped.

    A file has its own name when it is whole. ``names`` are hexadecimal: neither sftp's patterns nor its quoting matter.
    """
    lines = [f"lcd {_sftp_quoted(str(local))}", f"cd {_sftp_quoted(remote)}"]
    for name in names:
        lines += [f"put {'-a ' if name in partial else ''}{name} {name}.partial", f"rename {name}.partial {name}"]
    return "\n".join(lines) + "\n"


def _sftp_quoted(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def explain(complaint: str, address: Address) -> str:
    """What to do about ssh's complaint: one message that names the command."""
    last = (complaint.strip().splitlines() or ["the connection was lost"])[-1].strip()
    port = f"-p {address.port} " if address.port else ""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in complaint:
        return (
            f"{address}: its host key has CHANGED: another machine answers there, or it was set up anew. "
            f"If you know why: ssh-keygen -R '{address.known_as}', then ssh {port}{address.destination}"
        )
    if "Host key verification failed" in complaint or "host key is known" in complaint:
        return (
            f"{address}: its host key is not known here. Compare its fingerprint with the board's: "
            f"ssh-keyscan {port}{address.host} | ssh-keygen -lf -; accept it by logging in once: "
            f"ssh {port}{address.destination}"
        )
    if "Permission denied" in complaint:
        return (
            f"{address}: it lets nobody in without a password; give it a key: ssh-copy-id {port}{address.destination}"
        )
    return f"{address}: cannot be reached: {last}"
