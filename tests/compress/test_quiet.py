"""What libraries say of their own while they quantise is not the user's."""

import os
import subprocess
import sys

SCRIPT = """
from tinyforge.compress.nncf_int8 import _nncf
_nncf()
import torch.utils.cpp_extension
"""


def test_no_word_of_a_gpu_that_is_not_there(tmp_path):
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
