"""The whole way, over a real sshd on loopback."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from getpass import getuser
from pathlib import Path

import pytest
from device.conftest import colour_picture, encode

from tinyforge.device.bundle import load_bundle
from tinyforge.errors import DeviceError, TinyForgeError, UsageError
from tinyforge.remote import Wish, bench_board, bench_boards
from tinyforge.remote.board import cargo
from tinyforge.remote.connection import Connection

QUICK = ("--seconds", "0", "--runs", "64", "--warmup", "2")


@pytest.fixture
def wish(bundle):
    """With this Python, which has the packages."""
    return Wish(bundle, options=QUICK, python=sys.executable)


@pytest.fixture
def test_folder(tmp_path):
    for label, name in enumerate(("red", "green", "blue")):
        (tmp_path / "test" / name).mkdir(parents=True)
        for seed in range(2):
            picture = colour_picture(label, seed=seed)
            (tmp_path / "test" / name / f"it's {seed} *.png").write_bytes(encode(picture))
    return tmp_path / "test"


def tinyforge(board, bundle, *options):
    url = f"ssh://{getuser()}@127.0.0.1:{board.port}"
    command = [
        "bench",
        bundle,
        "--device",
        url,
        "--ssh-config",
        board.config,
        "--board-python",
        sys.executable,
        *options,
    ]
    argv = [sys.executable, "-m", "tinyforge", *map(str, command)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_pushed_tested_measured_brought_back_and_cleaned_up(board, bundle, test_folder):
    done = tinyforge(board, bundle, "--variant", "all", "--test", test_folder, "--json", *QUICK)
    assert done.returncode == 0, done.stderr + done.stdout
    (found,) = json.loads(done.stdout)["result"]["devices"]
    assert found["selftest"]["ok"]
    assert found["sent"]["there_before"] == 0
    assert {name: one["runs"] >= 64 for name, one in found["bench"]["variants"].items()} == {
        "onnx-fp32": True,
        "openvino-fp16": True,
    }
    accuracy = found["bench"]["accuracy"]
    assert [one["correct"] for one in accuracy["variants"].values()] == [6, 6]
    assert accuracy["predictions"]["onnx-fp32"]["names"][0] == "blue/it's 0 *.png"
    assert accuracy["pairs"][0]["p"] == 1.0
    assert not (board.home / ".tinyforge").exists()


def test_what_is_kept_is_not_sent_again(board, wish):
    first = bench_board(board.address, replace(wish, keep=True), config=board.config)
    again = bench_board(board.address, wish, config=board.config)
    assert first["sent"]["files"] == again["sent"]["there_before"] > 10
    assert again["sent"]["files"] == again["sent"]["bytes"] == 0
    assert not (board.home / ".tinyforge").exists()


def test_a_lost_connection_ends_the_work_there_and_the_next_run_continues(board, wish):
    long = replace(wish, options=("--seconds", "3600"))
    cutter = threading.Thread(target=cut_when_measuring, args=(board,))
    cutter.start()
    with pytest.raises(DeviceError, match=r"connection was lost.*continues where") as error:
        bench_board(board.address, long, config=board.config)
    cutter.join()
    assert error.value.exit_code == 4
    marker = str(board.home).encode()
    deadline = time.monotonic() + 30
    while any(marker in command for command in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(board.home.rglob("*.new")) + list(board.home.rglob("*.partial"))
    assert bench_board(board.address, wish, config=board.config)["sent"]["files"] == 0


@pytest.mark.parametrize("tidy", [True, False])
def test_what_is_kept_after_a_failure(board, wish, tidy):
    failing = replace(wish, options=("--variant", "nothing"), keep=True, tidy=tidy)
    with pytest.raises(TinyForgeError, match="ended there with code 2"):
        bench_board(board.address, failing, config=board.config)
    assert (board.home / ".tinyforge").exists() != tidy


def test_an_interrupt_before_the_connection_is_open_is_not_lost(board):
    connection = Connection(board.address, board.config)
    connection.hang_up()
    with pytest.raises(DeviceError), connection:
        pytest.fail("opened all the same")


def test_a_connection_lost_between_two_steps_is_not_made_anew(board, wish):
    with pytest.raises(DeviceError, match="connection was lost"):
        bench_board(
            board.address, wish, config=board.config, log=lambda line: board.cut() if line == "measuring" else None
        )


def cut_when_measuring(board):
    wait_until_measuring(board)
    board.cut()


def wait_until_measuring(board):
    marker = str(board.home).encode()
    while not any(marker in command and b"tinyforge_device.worker" in command for command in command_lines()):
        time.sleep(0.1)


def command_lines():
    """Of every process, with the folder that it runs in."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes() + bytes((folder / "cwd").readlink())
        except OSError:
            continue


def test_an_interrupt_ends_both_sides_at_once(board, bundle):
    url = f"ssh://{getuser()}@127.0.0.1:{board.port}"
    options = ["--device", url, "--ssh-config", board.config, "--board-python", sys.executable, "--seconds", "3600"]
    program = f"import signal; signal.signal({int(signal.SIGINT)}, signal.default_int_handler)\n"  # may be ignored here
    program += "from tinyforge.__main__ import main\nmain()"
    argv = [sys.executable, "-c", program, "bench", bundle, *options]
    process = subprocess.Popen(list(map(str, argv)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    with process:
        wait_until_measuring(board)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 130
    assert time.monotonic() - started < 5
    assert "Traceback" not in said
    marker = str(board.home).encode()
    deadline = time.monotonic() + 30
    while any(marker in command for command in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_failure_there_leaves_nothing_there(board, wish, tmp_path):
    """A Python that has no packages: the bundle is there by then, and its self-test cannot run."""
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(TinyForgeError, match=r"'selftest \.' ended there"):
        bench_board(board.address, replace(wish, python=str(bare)), config=board.config)
    assert not (board.home / ".tinyforge").exists()


def test_other_files_in_the_folder_of_the_address_stay(board, wish, tmp_path):
    mine = [tmp_path / "mine" / name for name in ("blobs/mine.txt", "work.new/mine.txt", "tree-1.new")]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    found = bench_board(replace(board.address, folder=str(tmp_path / "mine")), wish, config=board.config)
    assert found["selftest"]["ok"]
    assert sorted(path for path in (tmp_path / "mine").rglob("*") if path.is_file()) == sorted(mine)


def test_half_sent_files_are_continued_and_wrong_ones_replaced(board, wish):
    bench_board(board.address, replace(wish, keep=True), config=board.config)
    blobs = sorted((board.home / ".tinyforge/blobs").iterdir(), key=lambda path: path.stat().st_size)
    content = blobs[-1].read_bytes()
    for blob, part in ((blobs[-1], content[:1000]), (blobs[-2], b"wrong")):
        blob.unlink()
        blob.with_name(f"{blob.name}.partial").write_bytes(part)
    assert bench_board(board.address, wish, config=board.config)["sent"]["files"] == 2


def test_an_unknown_host_key_is_never_accepted(board, bundle):
    board.know("")
    done = tinyforge(board, bundle)
    assert done.returncode == 4
    assert f"ssh-keyscan -p {board.port} 127.0.0.1" in done.stderr
    assert (board.folder / "known").read_text() == ""


def test_another_host_key_is_told_apart_from_an_unknown_one(board, wish):
    board.know((board.folder / "client.pub").read_text())
    with pytest.raises(DeviceError, match="CHANGED"):
        bench_board(board.address, wish, config=board.config)


def test_nobody_home(asleep_board, bundle):
    done = tinyforge(asleep_board, bundle, "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "DeviceError"
    assert "Connection refused" in error["message"]


def test_no_key_no_entry(board, wish):
    (board.folder / "authorized").write_text("")
    with pytest.raises(DeviceError, match="ssh-copy-id"):
        bench_board(board.address, wish, config=board.config)


def test_a_board_without_python(asleep_board, wish, tools):
    asleep_board.start(path=str(tools))
    with pytest.raises(DeviceError, match="no python3: install Python"):
        bench_board(asleep_board.address, replace(wish, python=None), config=asleep_board.config)


def test_too_little_disk(asleep_board, wish, tools):
    (tools / "df").unlink()
    (tools / "df").write_text("#!/bin/sh\necho '/dev/root 100000 99000 1000 99% /'\n")
    (tools / "df").chmod(0o755)
    asleep_board.start(path=str(tools))
    with pytest.raises(DeviceError, match="0 MiB are free"):
        bench_board(asleep_board.address, wish, config=asleep_board.config)


def test_several_boards_at_once_and_one_that_fails(board, wish):
    away = replace(board.address, port=1)
    found = bench_boards([board.address, away], wish, config=board.config)
    assert found[0]["selftest"]["ok"]
    assert found[1]["error"]["exit_code"] == 4
    for twin in (away, replace(away, folder="/elsewhere")):
        with pytest.raises(UsageError, match="given twice"):
            bench_boards([away, twin], wish, config=board.config)
    with pytest.raises(UsageError, match="no such OpenSSH configuration"):
        bench_boards([away], wish, config=board.folder / "absent")


def test_what_cannot_be_taken_along(bundle, tmp_path):
    loaded = load_bundle(bundle)
    for change in ({"test": tmp_path / "no"}, {"wheels": tmp_path}, {"images": (tmp_path / "no.png",)}):
        with pytest.raises(UsageError):
            cargo(loaded, Wish(bundle, **change))
