"""Is the disk full? Libraries that write models say so in many ways, or write a short file and say nothing."""

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

COPIES = 8  # of the fp32 model: all kinds of it, and what the quantisers write on their way
MARGIN = 1 << 20
PIECE = 1 << 20


def require_room(model: Path, folders: Iterable[Path | None] = (None,)) -> None:
    """Raise OSError, as the system gives it, when the work on ``model`` has no room in one of ``folders``.

    None is the folder of temporary files. The bytes are written, since free space does not tell of quotas.
    """
    needed = COPIES * model.stat().st_size + MARGIN
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for start in range(0, needed, PIECE):
                    file.write(bytes(min(PIECE, needed - start)))
                file.flush()
        except OSError as fault:
            where = str(folder or tempfile.gettempdir())
            raise OSError(fault.errno or errno.EIO, os.strerror(fault.errno or errno.EIO), where) from fault
