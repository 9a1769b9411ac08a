import subprocess
from dataclasses import replace

import pytest

from tinyforge.remote.facts import Facts, Needs, faults, parse_facts, probe, warnings

ANSWER = """Welcome to my board, x=1
architecture=aarch64
system=Linux
model=Raspberry Pi 4 Model B Rev 1.4
python=3.11.2
venv=yes
disk=/dev/mmcblk0p2  30358328 5123456  23956789      18% /
writable=yes
memory=MemTotal:        3884532 kB
available=MemAvailable:    3412008 kB
end=here
"""
PI = Facts("aarch64", "Linux", "Raspberry Pi 4 Model B Rev 1.4", (3, 11, 2), True, 23395, True, 3793, 3332)
NEEDS = Needs("aarch64", 800, 90, 1024, "Raspberry Pi 4", False)


def test_parse():
    assert parse_facts(ANSWER) == PI
    assert parse_facts(ANSWER.replace("aarch64", "arm64")).architecture == "aarch64"
    assert parse_facts("This account is not available.\n") is None
    assert faults(PI, NEEDS, "~", "python3") == []


def test_a_bare_answer_leaves_facts_out():
    bare = parse_facts(
        "architecture=\nsystem=\nmodel=\npython=\nvenv=\ndisk=\nwritable=\nmemory=\navailable=\nend=here\n"
    )
    assert bare == Facts("", "", "", None, False, None, False, None, None)


def test_the_script_runs_here_in_a_folder_that_is_not_there_yet(tmp_path):
    script = probe(str(tmp_path / "it's new" / "x"), "python3")
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    found = parse_facts(done.stdout)
    assert found.system == "Linux"
    assert found.disk_mib > 0
    assert found.writable
    assert found.available_mib <= found.memory_mib


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": None, "venv": False}, "no python3: install Python 3.9"),
        ({"python": (3, 7, 3)}, "Python is 3.7.3"),
        ({"venv": False}, "apt install python3-venv"),
        ({"disk_mib": 100}, "100 MiB are free at ~/.tinyforge, 800 MiB are needed"),
        ({"available_mib": 50}, "the model takes about 90 MiB"),
        ({"architecture": "x86_64"}, "it is x86_64, the bundle is for Raspberry Pi 4 (aarch64)"),
        ({"system": "Darwin"}, "it runs Darwin, not Linux"),
        ({"writable": False}, "cannot be written"),
    ],
)
def test_what_keeps_a_bundle_away(change, words):
    (fault,) = faults(replace(PI, **change), NEEDS, "~/.tinyforge", "python3")
    assert words in fault


def test_all_reasons_at_once_and_none_for_what_is_not_told():
    assert len(faults(replace(PI, disk_mib=0, available_mib=0, venv=False), NEEDS, "~", "python3")) == 3
    untold = replace(PI, disk_mib=None, available_mib=None, memory_mib=None)
    assert faults(untold, NEEDS, "~", "python3") == warnings(untold, NEEDS) == []


def test_own_python_needs_no_venv_and_any_board_no_architecture():
    needs = replace(NEEDS, own_python=True, architecture="any")
    assert faults(replace(PI, venv=False, architecture="riscv64"), needs, "~", "python3") == []


def test_less_memory_than_the_target_is_a_warning():
    assert warnings(replace(PI, memory_mib=906), NEEDS) == []
    assert "it has 426 MiB" in warnings(replace(PI, memory_mib=426), NEEDS)[0]
