"""Commands, envelopes and exit codes. The pipeline itself is tested elsewhere: here it is a function that is called."""

import errno
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tinyforge import __version__, cli, stages
from tinyforge.cli import running
from tinyforge.cli.progress import Progress
from tinyforge.device.bundle import BundleFault
from tinyforge.device.preprocess import DecodeFault
from tinyforge.device.runtime import MissingRuntime, RuntimeFault
from tinyforge.errors import DataError, DeviceError, GateError, MissingError, RecipeError, TinyForgeError

COMMANDS = ["build", "invert", "synthesize", "distill", "compress", "bench", "predict", "inspect", "verify"]
COMMANDS += ["recipes", "targets", "doctor", "evaluate", "pretrain"]
FORGED = {"stages": {"invert": "forge/store/invert-0"}, "seconds": {"invert": 1.5}, "warnings": ["out of domain"]}


def run(*arguments):
    return CliRunner().invoke(cli.program, [str(argument) for argument in arguments])


def run_process(*arguments, **options):
    command = [sys.executable, "-m", "tinyforge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def shell(line):
    """The line in a shell that knows ``tinyforge``."""
    script = f"tinyforge() {{ '{sys.executable}' -m tinyforge \"$@\"; }}; {line}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)


def envelope(result):
    """The one JSON object on stdout; its shape is part of the contract."""
    found = json.loads(result.stdout)
    assert found.keys() == {"ok", "command", "result" if found["ok"] else "error"}
    if not found["ok"]:
        assert found["error"].keys() - {"details"} == {"type", "message", "exit_code"}
        assert found["error"]["exit_code"] == getattr(result, "exit_code", getattr(result, "returncode", None))
    return found


@pytest.fixture
def forge(monkeypatch):
    """Stands where the pipeline is called, and records the call."""
    calls = []

    def recorded(recipe, target, out, **how):
        calls.append({"recipe": recipe, "target": target, "out": out, **how})
        print("chatter of a library")
        how["log"]("invert: done")
        return FORGED

    monkeypatch.setattr(stages, "forge", recorded)
    return calls


class TestHelp:
    def test_lists_every_command_in_the_order_of_work(self):
        listed = run("--help").stdout.split("Commands:")[1]
        assert [line.split()[0] for line in listed.strip().splitlines()] == COMMANDS

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout
        (line,) = [line for line in run("--help").stdout.splitlines() if line.startswith(f"  {command} ")]
        assert line.endswith(".")
        assert "..." not in line  # not cut

    def test_every_option_is_explained(self):
        for name, command in cli.program.commands.items():
            for option in command.params:
                if isinstance(option, click.Option):
                    assert option.help, (name, option.name)

    def test_version(self):
        assert __version__ in run("--version").stdout

    def test_no_command_is_wrong_usage_and_shows_help(self):
        result = run()
        assert result.exit_code == 2
        assert "Commands:" in result.stderr


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [("bild",), ("build", "--recipes", "x"), ("predict",), ("build", "--seed", "x"), ("bench", "x", "--runs", "0")],
    )
    def test_exits_with_2_and_an_envelope(self, arguments):
        assert run(*arguments).exit_code == 2
        found = envelope(run(*arguments, "--json"))
        assert found["command"] == arguments[0]
        assert found["error"]["message"]

    def test_recipe_faults_come_before_any_work(self, forge):
        result = run("build", "--recipe", "smoke", "-o", "distill.epoch=3", "--json")
        assert result.exit_code == 2
        assert "did you mean 'distill.epochs'?" in envelope(result)["error"]["message"]
        assert forge == []


class TestBuild:
    def test_passes_on_what_was_asked(self, forge, tmp_path):
        result = run(
            *("build", "--recipe", "smoke", "--data", "5", "--test", 'te"st', "--target", "generic-cpu"),
            *(
                "--backbone",
                "glyphs",
                "--teacher",
                "timm:x",
                "--seed",
                "7",
                "-o",
                "distill.epochs=9",
                "-o",
                "name=mine",
            ),
            *("--out", tmp_path, "--offline", "--overwrite", "--no-resume"),
        )
        assert result.exit_code == 0, result.stderr
        (call,) = forge
        recipe = call["recipe"]
        assert (recipe.name, recipe.seed, recipe.distill.epochs, recipe.target) == ("mine", 7, 9, "generic-cpu")
        assert (recipe.data.path, recipe.data.test) == ("5", 'te"st')
        assert (recipe.backbone.name, recipe.teacher.name) == ("glyphs", "timm:x")
        assert call["target"].name == "generic-cpu"
        assert (call["out"], call["until"]) == (tmp_path, "bench")
        assert (call["offline"], call["overwrite"], call["resume"]) == (True, True, False)

    def test_defaults(self, forge):
        assert run("build").exit_code == 0
        (call,) = forge
        assert (call["recipe"].name, call["recipe"].data.path, str(call["out"])) == ("raspi", None, "forge")
        assert (call["offline"], call["overwrite"], call["resume"]) == (False, False, True)

    @pytest.mark.parametrize("stage", ["invert", "synthesize", "distill", "compress"])
    def test_a_stage_alone_stops_there(self, forge, stage):
        assert run(stage).exit_code == 0
        assert forge[0]["until"] == stage

    def test_results_go_to_stdout_and_all_else_to_stderr(self, forge):
        result = run("build", "--json")
        assert envelope(result)["result"] == FORGED
        assert "chatter of a library" in result.stderr
        assert "invert: done" in result.stderr
        text = run("build").stdout
        assert "forge/store/invert-0" in text
        assert "warning: out of domain" in text

    def test_shows_the_bundle_it_made(self, forge, whole_bundle, monkeypatch):
        made = {**FORGED, "bundle": str(whole_bundle)}
        monkeypatch.setattr(stages, "forge", lambda *_, **__: made)
        text = run("build").stdout
        assert f"bundle: {whole_bundle}" in text
        assert "onnx-fp32 *" in text
        assert "83.3 %" in text

    def test_dry_run_shows_the_plan_only(self, forge, monkeypatch):
        plan = [{"stage": "invert", "key": "0" * 64, "folder": "forge/store/invert-0", "state": "missing"}]
        monkeypatch.setattr(stages, "dry_run", lambda *_, **__: plan)
        assert "missing" in run("build", "--dry-run").stdout
        assert envelope(run("build", "--dry-run", "--json"))["result"] == plan
        assert forge == []


ERRORS = [
    (TinyForgeError("broken"), 5),
    (GateError("parity missed"), 1),
    (RecipeError("no such key"), 2),
    (DataError("a.png: empty"), 2),
    (MissingError("no weights"), 3),
    (DeviceError("unreachable"), 4),
    (BundleFault("not a bundle"), 2),
    (DecodeFault("truncated"), 2),
    (RuntimeFault("cannot open"), 2),
    (MissingRuntime("openvino is not installed"), 3),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), 3),
    (ModuleNotFoundError("No module named 'timm.x'", name="timm.x"), 3),
    (ModuleNotFoundError("No module named 'tinyforge.gone'", name="tinyforge.gone"), 5),
    (ZeroDivisionError("division by zero"), 5),
    (OSError(errno.ENOSPC, "No space left on device"), 2),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), 2),
    (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 5),
    (KeyboardInterrupt(), 130),
]


class TestErrors:
    @pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
    def test_exit_codes(self, monkeypatch, error, code):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(stages, "forge", fail)
        plain, machine, verbose = run("build"), run("build", "--json"), run("build", "-v")
        assert (plain.exit_code, machine.exit_code, verbose.exit_code) == (code, code, code)
        assert plain.stdout == ""
        assert "Traceback" not in plain.stderr
        assert "Traceback" in verbose.stderr
        last = plain.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert envelope(machine)["error"]["message"] == last.removeprefix("error: ")

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            ([], "interrupted; the same command continues"),
            (["--overwrite"], "interrupted; without --overwrite the same command continues"),
            (["--no-resume", "--overwrite"], "interrupted; without --overwrite and --no-resume the same"),
        ],
    )
    def test_only_what_continues_is_said_to(self, monkeypatch, flags, told):
        def fail(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(stages, "forge", fail)
        assert told in run("build", *flags).stderr

    def test_a_missing_host_package_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tinyforge.stages", None)
        monkeypatch.delattr("tinyforge.stages")
        result = run("build")
        assert result.exit_code == 5  # a part of TinyForge itself is gone: that is no missing dependency
        error = ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
        assert running._message(error) == 'diffusers is not installed: pip install "tinyforge[host]"'

    def test_an_internal_fault_is_one_line_with_advice(self, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr(stages, "forge", fail)
        told = run("build").stderr.splitlines()
        assert told[-1] == "error: RuntimeError: first line (run again with -v for the traceback)"
        assert "second line" not in "".join(told)


class TestBundle:
    def test_inspect(self, whole_bundle):
        text = run("inspect", whole_bundle).stdout
        for part in ("colour for generic-cpu", "red, green, blue", "onnx-fp32 *", "83.3 %", "n = 6"):
            assert part in text
        assert envelope(run("inspect", whole_bundle, "--json"))["result"]["name"] == "colour"

    def test_predict(self, whole_bundle, blue_picture):
        assert run("predict", whole_bundle, blue_picture).stdout.startswith(f"{blue_picture}: blue ")
        found = envelope(run("predict", whole_bundle, blue_picture, "--top", 2, "--json"))["result"]["predictions"]
        (one,) = found
        assert one["answers"][0]["class"] == "blue"
        assert len(one["answers"]) == 2

    def test_predict_answers_what_it_can_and_fails_for_the_rest(self, whole_bundle, blue_picture, tmp_path):
        (tmp_path / "bad.png").write_text("no picture")
        result = run("predict", whole_bundle, tmp_path / "bad.png", blue_picture, tmp_path / "gone.png")
        assert result.exit_code == 2
        assert result.stdout.startswith(f"{blue_picture}: blue ")
        assert "bad.png: not an image" in result.stderr
        assert "gone.png: cannot be read" in result.stderr
        found = envelope(run("predict", whole_bundle, tmp_path / "bad.png", blue_picture, "--json"))
        assert len(found["error"]["details"]["predictions"]) == 2

    def test_another_variant(self, whole_bundle, blue_picture):
        result = run("predict", whole_bundle, blue_picture, "--variant", "openvino-fp16")
        assert ": blue " in result.stdout
        result = run("predict", whole_bundle, blue_picture, "--variant", "onnx-fp3")
        assert result.exit_code == 2
        assert "it has onnx-fp32, openvino-fp16" in result.stderr

    def test_a_digest_that_is_none_is_wrong_usage(self, own_bundle):
        result = run("verify", own_bundle, "--digest", "abc")
        assert result.exit_code == 2
        assert "64 hexadecimal digits" in result.stderr

    def test_verify(self, own_bundle):
        result = run("verify", own_bundle)
        assert result.exit_code == 0, result.stdout
        assert "verify passed" in result.stdout
        (own_bundle / "predictions" / "student.json").write_text("{}")
        result = run("verify", own_bundle)
        assert result.exit_code == 1
        assert "predictions/student.json" in result.stdout
        found = envelope(run("verify", own_bundle, "--json"))
        assert (found["error"]["type"], found["error"]["details"]["ok"]) == ("GateError", False)

    def test_bench(self, whole_bundle):
        quick = ("--seconds", 0, "--runs", 64, "--warmup", 2)
        assert "p50_ms" in run("bench", whole_bundle, *quick).stdout
        found = envelope(run("bench", whole_bundle, *quick, "--variant", "all", "--json"))["result"]["variants"]
        assert list(found) == ["onnx-fp32", "openvino-fp16"]
        assert found["onnx-fp32"]["runs"] == 64
        assert found["onnx-fp32"]["p99_ms"] is None

    @pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
    def test_what_is_no_bundle_exits_with_2(self, command, tmp_path):
        assert run(command, tmp_path).exit_code == 2
        assert "is not a folder" in run(command, tmp_path / "gone").stderr


class TestCatalogue:
    @pytest.mark.parametrize("command", ["recipes", "targets"])
    def test_lists_shows_and_prints_the_schema(self, command):
        listed = envelope(run(command, "--json"))["result"]
        assert all(name in run(command).stdout for name in listed)
        name = next(iter(listed))
        assert f'name = "{name}"' in run(command, name).stdout
        assert envelope(run(command, name, "--json"))["result"] == listed[name]
        assert json.loads(run(command, "--schema").stdout) == envelope(run(command, "--schema", "--json"))["result"]

    def test_shows_a_file_of_ones_own(self, tmp_path):
        (tmp_path / "mine.toml").write_text('name = "mine"\ntarget = "raspi4"\n# a comment\n')
        assert "# a comment" in run("recipes", tmp_path / "mine.toml").stdout

    def test_unknown_names_exit_with_2(self):
        result = run("targets", "raspi6")
        assert result.exit_code == 2
        assert "did you mean" in result.stderr


class TestDoctor:
    def test_tells_what_is_missing(self, monkeypatch):
        from tinyforge import doctor

        monkeypatch.setattr(
            doctor, "requirements", lambda: [("click", ">=8", "base"), ("no-such-thing", ">=1", "host")]
        )
        result = run("doctor")
        assert result.exit_code == 3
        assert 'pip install "tinyforge[host]"' in result.stdout
        assert envelope(run("doctor", "--json"))["error"]["details"]["missing"] == ["no-such-thing"]

    def test_a_missing_extra_is_no_fault(self, monkeypatch):
        from tinyforge import doctor

        monkeypatch.setattr(doctor, "requirements", lambda: [("click", ">=8", "base"), ("no-such-thing", "", "ray")])
        assert run("doctor").exit_code == 0


class TestProgress:
    def test_plain_lines_are_throttled(self, capsys):
        now = [0.0]
        progress = Progress(clock=lambda: now[0], terminal=False)
        for step in range(100):
            now[0] = step * 0.25
            progress.count("invert", step, 100)
        progress.log("invert: done in 25 s")
        progress.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [
            "[  10.0 s] invert: 40 of 100",
            "[  20.0 s] invert: 80 of 100",
            "[  24.8 s] invert: done in 25 s",
        ]

    def test_a_terminal_gets_bars_on_stderr(self, capsys):
        progress = Progress(terminal=True)
        progress.count("invert", 1, 2)
        progress.count("invert", 2, 2)
        progress.log("invert: [done]")
        progress.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "invert: [done]" in captured.err
