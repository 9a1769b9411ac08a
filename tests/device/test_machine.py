import json
import subprocess
import sys

import numpy as np
import pytest

from tinyforge.device.machine import describe_machine, peak_rss_mib, usable_cores, versions


def test_describe_machine_is_complete_and_plain():
    found = json.loads(json.dumps(describe_machine()))
    assert {"cpu", "architecture", "cores", "memory_mib", "system", "python", "numpy", "pillow"} <= set(found)
    assert found["numpy"] == np.__version__ == versions()["numpy"]
    assert found["cores"] == usable_cores() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_rss_is_of_this_process_alone():
    ballast = np.ones(50_000_000)  # 380 MiB
    assert peak_rss_mib() > ballast.nbytes / 2**20
    program = "from tinyforge.device.machine import peak_rss_mib; print(peak_rss_mib())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 200
