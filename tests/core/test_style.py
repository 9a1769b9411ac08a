"""The code passes its own linter and formatter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("check", [("check",), ("format", "--check")])
def test_ruff_is_content(check):
    done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
