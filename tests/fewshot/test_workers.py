"""What a worker process tells its parent of a fault: the same kind of error, and so the same exit code."""

import errno
import pickle
import queue

import pytest

from tinyforge.errors import MissingError, NotDownloadedError, StorageError, TinyForgeError
from tinyforge.stages.evaluate import workers


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EINVAL, "odd"), TinyForgeError),
        (ModuleNotFoundError("No module named 'timm'"), MissingError),
        (NotDownloadedError("timm:vit_small", "timm/vit_small"), NotDownloadedError),
        (ZeroDivisionError("oh"), TinyForgeError),
    ],
)
def test_a_fault_keeps_its_kind(monkeypatch, fault, kind):
    def fail(request):
        raise fault

    monkeypatch.setattr(workers, "open_lab", fail)
    told = queue.Queue()
    workers._work(None, queue.Queue(), told)
    arrived = pickle.loads(pickle.dumps(told.get_nowait()))
    assert type(arrived) is kind
    assert str(fault).split("] ")[-1].lower() in str(arrived).lower()
