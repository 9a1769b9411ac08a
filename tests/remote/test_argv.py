import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tinyforge.remote.address import Address
from tinyforge.remote.argv import agent_command, explain, master_argv, sftp_argv, sftp_commands, ssh_argv

BOARD = Address("board", "pi", 2222)
CONTROL = Path("/tmp/x/c")


@pytest.mark.parametrize("argv", [master_argv(BOARD, None, CONTROL), ssh_argv(BOARD, None, CONTROL, ["true"])])
def test_keys_are_never_accepted_unseen_and_nothing_is_asked(argv):
    pairs = dict(pairwise(argv))
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", f"ControlPath={CONTROL}"} <= set(argv)
    assert pairs["-p"] == "2222"
    assert pairs["--"] == "pi@board"


def test_the_users_configuration_applies_unless_another_is_named():
    assert "-F" not in sftp_argv(BOARD, None, CONTROL)
    argv = sftp_argv(Address("board"), Path("my config"), CONTROL)
    assert argv[argv.index("-F") + 1] == "my config"
    assert "-P" not in argv


def test_words_reach_the_shell_there_as_they_are():
    words = ["printf", "%s|", "a b", "$(reboot)", "it's", "*", "--", "ü\n;"]
    command = ssh_argv(BOARD, None, CONTROL, words)[-1]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{word}|" for word in words[2:])


def test_a_program_comes_over_stdin_with_more_behind_it():
    program = b"import sys; print(sys.stdin.buffer.readline().decode().upper(), end='')"
    done = subprocess.run(
        ["sh", "-c", shlex.join(agent_command(sys.executable))],
        input=b"%d\n%sthe job\n" % (len(program), program),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"THE JOB\n"


def test_only_what_is_there_in_part_is_continued():
    assert sftp_commands(Path('/a "b"'), "/there", ["aa", "bb"], {"bb": 7}).splitlines() == [
        'lcd "/a \\"b\\""',
        'cd "/there"',
        "put aa aa.partial",
        "rename aa.partial aa",
        "put -a bb bb.partial",
        "rename bb.partial bb",
    ]


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        ("Host key verification failed.", ["not known", "ssh-keyscan -p 2222 board", "ssh -p 2222 pi@board"]),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key ...",
            ["CHANGED", "ssh-keygen -R '[board]:2222'"],
        ),
        ("pi@board: Permission denied (publickey,password).", ["ssh-copy-id -p 2222 pi@board"]),
        ("x\nssh: connect to host board port 2222: Connection refused\n", ["cannot be reached", "Connection refused"]),
        ("", ["ssh://pi@board:2222"]),
    ],
)
def test_complaints_become_advice(complaint, words):
    told = explain(complaint, BOARD)
    assert all(word in told for word in words)
