"""Every error that TinyForge raises on purpose, each with the exit code of the command line.

::

    TinyForgeError            5  internal: a fault of TinyForge itself
    ├── GateError             1  everything ran, but a promised gate failed
    ├── UsageError            2  what the user gave cannot be used
    │   ├── RecipeError       2  a recipe or target file, or an override
    │   ├── DataError         2  images, labels, folders
    │   ├── BundleError       2  a bundle that cannot be read or is not one
    │   └── StorageError      2  a full disk, or a path that cannot be read or written
    ├── MissingError          3  a dependency, a model or weights are not here
    │   └── NotDownloadedError   3  weights of the hub, which may not be downloaded now
    └── DeviceError           4  the device cannot be reached or used

``tinyforge.device`` travels without this package; its ``BundleFault`` and ``DecodeFault`` are mapped to these by the
callers. What the system says of files and disks becomes a StorageError in ``storage_error``, and nowhere else.
"""

import errno
import tempfile


class TinyForgeError(Exception):
    """Base of all. The message says what is wrong and what to do, in one or a few lines."""

    exit_code = 5


class GateError(TinyForgeError):
    exit_code = 1


class UsageError(TinyForgeError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class BundleError(UsageError):
    pass


class StorageError(UsageError):
    pass


class MissingError(TinyForgeError):
    exit_code = 3


class NotDownloadedError(MissingError):
    """Weights that the hub has and this machine has not. what: which; repository: of the hub."""

    def __init__(self, what: str, repository: str) -> None:
        super().__init__(
            f"{what}, and --offline forbids the download; run once without --offline, or 'hf download {repository}', "
            "or name a folder of this machine"
        )
        self.what, self.repository = what, repository

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """A worker's error reaches its parent."""
        return type(self), (self.what, self.repository)


class DeviceError(TinyForgeError):
    exit_code = 4


_FULL = "no space is left there; free some, then give the same command again, without --overwrite: it continues"
_DENIED = "choose another path, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "choose a path that can be written",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "mend the links",
    errno.ENOTDIR: "a file is where a folder should be; choose another path",
    errno.EISDIR: "a folder is where a file should be; choose another path",
    errno.EIO: "the disk fails; choose another one",
}


def storage_error(error: OSError) -> StorageError | None:
    """What the user can do about it; None where it is not about a path or a disk."""
    if error.errno not in _REMEDIES:
        return None
    place = str(error.filename or f"the results folder, or that for temporary files ({tempfile.gettempdir()}, TMPDIR)")
    shown = place if len(place) <= 120 else f"{place[:117]}..."
    return StorageError(f"{shown}: {(error.strerror or 'cannot be used').lower()}: {_REMEDIES[error.errno]}")
