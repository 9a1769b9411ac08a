"""glibc keeps what is freed: the pages of a large block are fetched once, not at every allocation."""

import ctypes
import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
import numpy as np
from tinyforge.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**26, np.uint8)
before = faults()
for _ in range(8):
    np.ones(2**26, np.uint8)  # 64 MiB
print(json.dumps([kept, faults() - before]))
"""


def run(how: str) -> list:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")
def test_large_blocks_are_not_fetched_again():
    kept, faults = run("kept")
    assert kept is True
    assert faults < 1000
    assert run("as it is")[1] > 10 * faults
