"""Plans, growth and commands of benchmarks/build.py."""

import json

import pytest

from tinyforge.images import read_images


@pytest.fixture
def build(script):
    return script("build")


def made(build, classes, images, invert):
    stages = {"invert": invert, "synthesize": 2.0, "distill": 3.0, "compress": 4.0, "bench": 5.0}
    return build.row({"classes": classes, "shots": 5, "images": images}, stages, 20.0 + invert, 30.0)


def test_one_factor_is_varied_at_a_time_and_no_build_made_twice(build):
    tasks = build.plan([2, 10], [1, 5], [0, 60, 120])
    assert tasks[0] == {"classes": 10, "shots": 5, "images": 60}
    assert len(tasks) == len({tuple(task.items()) for task in tasks}) == 5
    assert all(sum(task[name] != tasks[0][name] for name in task) <= 1 for task in tasks)


def test_the_growth_is_the_slope_of_builds_that_differ_in_that_factor_alone(build):
    rows = [made(build, 10, 60, 41.0), made(build, 2, 60, 9.0), made(build, 5, 60, 21.0), made(build, 10, 0, 1.0)]
    assert build.growth(rows, "classes", "invert") == pytest.approx({"per_unit": 4.0, "at_none": 1.0})
    assert build.growth(rows, "classes", "compress")["per_unit"] == pytest.approx(0.0)
    assert build.growth(rows, "shots", "invert") is None


def test_what_no_stage_accounts_for_is_told(build):
    assert made(build, 2, 60, 9.0)["seconds"]["other"] == pytest.approx(6.0)
    with pytest.raises(KeyError):
        build.row({"classes": 2, "shots": 5, "images": 60}, {"invert": 1.0}, 2.0, 2.0)


def test_a_task_is_its_first_classes_as_files(build, tmp_path):
    build.write_task("digits", 2, tmp_path)
    written, digits = read_images(tmp_path), read_images("digits")
    assert written.classes == ("0", "1")
    assert len(written) == int((digits.labels < 2).sum())


def test_the_table_has_a_row_per_build_and_one_per_factor(build):
    rows = [made(build, 10, 60, 41.0), made(build, 2, 60, 9.0)]
    shown = build.text({"builds": rows, "growth": build.summary(rows)})
    assert "seconds per class " in shown
    assert "+4.000" in shown


def test_help_tells_what_can_be_asked(build, capsys):
    with pytest.raises(SystemExit) as stop:
        build.parse(["--help"])
    assert stop.value.code == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.slow
def test_a_quick_build_reports_its_stages(build, tmp_path, monkeypatch):
    out = tmp_path / "build.json"
    quick = ["build.py", "--quick", "--classes", "2", "--shots", "1", "--images", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", quick)
    build.main()
    (one,) = json.loads(out.read_bytes())["builds"]
    assert all(value > 0 for value in one["seconds"].values())
