"""The command line as a process: streams, signals, exit codes, terminals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .test_cli import envelope, run, run_process, shell


class TestProcess:
    """The real program: what a shell sees."""

    def test_exit_codes_and_streams(self, whole_bundle, tmp_path):
        assert run_process("inspect", whole_bundle).returncode == 0
        wrong = run_process("inspect", tmp_path, "--json")
        assert (wrong.returncode, wrong.stderr) == (2, "")
        assert envelope(wrong)["command"] == "inspect"
        usage = run_process("build", "--no-such-option")
        assert (usage.returncode, usage.stdout) == (2, "")

    def test_a_missing_dependency_exits_with_3(self, tmp_path):
        (tmp_path / "sklearn.py").write_text("raise ModuleNotFoundError(\"No module named 'sklearn'\", name='sklearn')")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        result = run_process("build", "--data", "digits", "--out", tmp_path / "forge", env=environment)
        assert result.returncode == 3, result.stderr
        assert 'pip install "tinyforge[host]"' in result.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("wait", [0.15, 5])
    def test_interrupted_exits_with_130(self, whole_bundle, number, wait):
        """While it still imports, and in the middle of its work."""
        code = f"import signal; signal.signal({int(number)}, signal.default_int_handler)\n"  # may be inherited ignored
        code += "print(flush=True)\nfrom tinyforge.__main__ import main\nmain()"
        command = [sys.executable, "-c", code, "bench", str(whole_bundle), "--seconds", "300"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors.strip().startswith(b"error: interrupted")

    @pytest.mark.parametrize("arguments", ["recipes --schema", "--help", "build --help", "recipes --json"])
    def test_a_reader_that_has_gone_is_no_fault(self, arguments):
        result = shell(f"tinyforge {arguments} | true; echo ${{PIPESTATUS[0]}}")
        assert (result.stdout, result.stderr) == ("0\n", "")

    def test_a_closed_pipe_is_no_traceback(self):
        result = shell("tinyforge recipes --schema | head -1")
        assert (result.stdout, result.stderr) == ("{\n", "")

    @pytest.mark.parametrize("flags", ["", "--json"])
    def test_an_answer_that_cannot_be_written_is_a_fault(self, flags):
        result = shell(f"tinyforge recipes {flags} >/dev/full")
        assert result.returncode == 2
        assert result.stderr == "error: the answer could not be written: No space left on device\n"

    @pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
    def test_nobody_need_listen(self, closed):
        assert shell(f"tinyforge inspect nope {closed}").returncode == 2
        assert shell(f"tinyforge recipes {closed}").returncode == 0

    def test_progress_outlives_its_reader(self):
        code = "from tinyforge.cli.progress import Progress; from tinyforge.cli.running import guarded_streams\n"
        code += "with guarded_streams():\n  for i in range(9999): Progress().log(str(i))\nprint(1)"
        result = shell(f"{sys.executable} -c '{code}' 2> >(head -1 >/dev/null)")
        assert (result.stdout, result.returncode) == ("1\n", 0)

    @pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
    def test_names_that_the_terminal_cannot_show(self, encoding, tmp_path):
        environment = {"PYTHONIOENCODING": encoding}
        name = tmp_path / "\U0001f600\udce9.toml"
        name.write_text('name = "mine"\ntarget = "raspi4"\ndescription = "\U0001f600"\n', encoding="utf-8")
        plain = run_process("recipes", name, env={**os.environ, **environment})
        assert (plain.returncode, "\\U0001f600" in plain.stdout) == (0, True)
        machine = run_process("recipes", name, "--json", env={**os.environ, **environment})
        assert envelope(machine)["result"]["description"] == "\U0001f600"
        assert r"\udce9.tomlx" in run_process("inspect", f"{name}x", env={**os.environ, **environment}).stderr

    def test_usage_has_no_traceback(self):
        wrong = run_process("-v")
        assert (wrong.returncode, wrong.stdout, "Traceback" in wrong.stderr) == (2, "", False)

    @pytest.mark.parametrize("length", [300, 5000])
    @pytest.mark.parametrize("place", ["--data", "--test", "--backbone", "--teacher", "--recipe", "--out"])
    def test_names_that_are_too_long(self, place, length, tmp_path):
        name = "x" * length + (".toml" if place == "--recipe" else "")
        result = run("build", "--recipe", "smoke", "--out", tmp_path / "forge", place, name, "--dry-run", "--offline")
        assert result.exit_code in (2, 3), result.stderr
        assert len(result.stderr.splitlines()[-1]) < 400

    @pytest.mark.parametrize("command", ["inspect", "verify", "recipes"])
    def test_names_that_are_too_long_anywhere_else(self, command):
        result = run(command, "x" * 5000 + ".toml")
        assert result.exit_code == 2
        assert "File name too long".lower() in result.stderr.lower()
