"""ssh:// URLs."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tinyforge.errors import UsageError

EXAMPLE = "ssh://user@host, ssh://user@host:2222 or ssh://user@host/folder/for/its/files"
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Address:
    """Where a board is. What is None is left to the user's OpenSSH configuration; folder: to ~. Work is done in
    ``.tinyforge`` there.
    """

    host: str
    user: str | None = None
    port: int | None = None
    folder: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}{self.folder or ''}"

    @property
    def destination(self) -> str:
        """As ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def known_as(self) -> str:
        """As known_hosts has it."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host


def parse_address(text: str) -> Address:
    """ssh://[user@]host[:port][/folder]. Raises UsageError on anything else; host and user cannot pass for options."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as fault:
        raise UsageError(f"{text}: {fault}; give {EXAMPLE}") from fault
    typed, host = parts.netloc.rpartition("@")[2].lstrip("["), parts.hostname or ""
    host = typed[: len(host)]  # which ``urlsplit`` has lowered: names of an OpenSSH configuration may have capitals
    user, folder = parts.username, unquote(parts.path).rstrip("/")
    if parts.scheme != "ssh" or not host:
        raise UsageError(f"{text}: is not the address of a device; give {EXAMPLE}")
    if parts.password is not None:
        raise UsageError(f"ssh://{user}:...@{host}: no passwords in addresses; use a key: ssh-copy-id {user}@{host}")
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)) or port == 0:
        raise UsageError(f"{text}: host, user or port cannot be one; give {EXAMPLE}")
    if parts.query or parts.fragment or not folder.isprintable():
        raise UsageError(f"{text}: nothing may follow the folder; give {EXAMPLE}")
    return Address(host, user, port, folder or None)
