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


def test_a_board_is_called_by_its_name_and_an_emulator_by_its(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        3884532 kB\n")
    (tmp_path / "proc/thread-self").mkdir()
    program = tmp_path / "proc/thread-self/exe"
    program.symlink_to("/usr/bin/python3.11")
    found = describe_machine(tmp_path)
    assert (found["cpu"], found["memory_mib"], found["emulated"]) == ("Raspberry Pi 4 Model B Rev 1.4", 3793, False)
    program.unlink()
    program.symlink_to("/usr/bin/qemu-aarch64-static")
    assert describe_machine(tmp_path)["emulated"] is True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_rss_is_of_this_process_alone():
    ballast = np.ones(50_000_000)  # 380 MiB
    assert peak_rss_mib() > ballast.nbytes / 2**20
    program = "from tinyforge.device.machine import peak_rss_mib; print(peak_rss_mib())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 200
