"""A build within limits, for real on tiny models: feasible, infeasible, interrupted."""

import json
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner

from tinyforge import cli
from tinyforge.device.bundle import load_bundle
from tinyforge.device.verify import verify_bundle
from tinyforge.errors import RecipeError
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages.budget import Here, begin, dry_run, forge_within, screened
from tinyforge.stages.budget.entrants import Net, nets_of
from tinyforge.stages.budget.limits import Row
from tinyforge.stages.budget.race import Measured
from tinyforge.stages.budget.verdict import judge
from tinyforge.stages.road import Job

pytestmark = pytest.mark.timeout(1200)

RACE = [
    'budget.students=["conv4"]',
    "budget.input_sizes=[8, 16]",
    "budget.threads=[2]",
    'compress.precisions=["onnx-fp32", "onnx-int8"]',
    "distill.epochs=1",
]
LIMITS = ["budget.max_ms=1000", "budget.max_mib=2", "budget.min_accuracy=0.05"]


def words(inputs, *more):
    images, test, overrides = inputs
    return [*overrides, f'data.path="{images}"', f'data.test="{test}"', *RACE, *more]


def within(inputs, out, *more, log=lambda text: None):
    recipe = load_recipe("smoke", words(inputs, *more))
    return forge_within(recipe, load_target(recipe.target), out, Here(), log=log)


def stop_at(mark):
    """A log that stands for the user's Ctrl-C when a line holds ``mark``."""

    def log(text):
        if mark in text:
            raise KeyboardInterrupt

    return log


@pytest.fixture(scope="module")
def raced(forge_inputs, tmp_path_factory):
    """(out, result, log lines): of a build that was interrupted when its second net began, and then continued."""
    out = tmp_path_factory.mktemp("budget")
    with pytest.raises(KeyboardInterrupt):
        within(forge_inputs, out, *LIMITS, log=stop_at("budget: conv4 16 px"))
    lines = []
    return out, within(forge_inputs, out, *LIMITS, log=lines.append), lines


def test_what_was_finished_before_the_interruption_is_not_made_again(raced):
    _, _, lines = raced
    text = "\n".join(lines)
    assert text.count("distill: was done before") == text.count("compress: was done before") == 1
    assert text.count("distill: done in") == text.count("compress: done in") == 1
    assert text.count("invert: was done before") == text.count("synthesize: was done before") == 1


def test_images_are_made_once_for_all(raced):
    out, _, _ = raced
    made = [path.name.partition("-")[0] for path in (out / "store").iterdir() if (path / "manifest.json").is_file()]
    assert sorted(made) == ["compress"] * 2 + ["distill"] * 2 + ["invert"] + ["screen"] * 2 + ["synthesize"]


@dataclass
class Slow:
    """A ground where every inference takes as many ms as the input has pixels on a side, within 1 %."""

    name: str = ""

    def measure(self, one, threads, min_runs):
        base = {
            "peak_rss_mib": 1.0,
            "settled": True,
            "valid": True,
            "samples": [dict.fromkeys(("load", "firmware", "throttle_events")) | {"governors": [], "cooling": []}],
        }
        infer = [1000 * one.spec.size[0] + index % 10 for index in range(min_runs)]
        reports = {
            f"{variant.name}@{count}": {**base, "threads": count, "raw_us": {"infer": infer}}
            for variant in one.legal()
            for count in threads
        }
        return Measured({"cpu": "none", "emulated": False}, reports)

    def close(self):
        """Nothing to close."""


def test_a_net_that_clearly_misses_is_not_trained_and_the_table_says_why(forge_inputs, tmp_path):
    recipe = load_recipe("smoke", words(forge_inputs, "budget.max_ms=12"))
    job = Job(recipe, load_target(recipe.target), tmp_path, log=lambda text: None)
    road, reports = begin(job), {}
    kept, rows = screened(road, nets_of(road.recipe, road.inputs), Slow(), reports)
    assert [str(net) for net in kept] == ["conv4 8 px"]
    assert [(row.input_size, row.model, row.why) for row in rows] == [
        (16, model, "clearly misses max-ms") for model in ("onnx-fp32", "onnx-int8")
    ]
    assert [row.name for row in rows] == list(reports)
    near = begin(replace(job, recipe=load_recipe("smoke", words(forge_inputs, "budget.max_ms=13"))))
    assert len(screened(near, [*kept, Net("conv4", 16)], Slow(), {})[0]) == 2  # 16 ms is less than 25 % above 13 ms


def test_every_candidate_is_measured(raced):
    _, result, _ = raced
    found = result["budget"]["candidates"]
    assert all(one["trained"] for one in found)
    names = {(one["input_size"], one["model"], one["threads"]) for one in found}
    assert names == {(s, m, t) for s in (8, 16) for m in ("onnx-fp32", "onnx-int8") for t in (2,)}
    for one in found:
        assert one["p90_low_ms"] <= one["p90_ms"] <= one["p90_high_ms"] == one["latency"]["at_most_ms"]
        assert one["accuracy"]["at_least"] <= one["accuracy"]["accuracy"]
        assert one["accuracy"]["n"] == 16
        assert one["peak_rss_mib"] > 0


def test_the_winner_ships_with_the_race_s_own_numbers(raced):
    out, result, _ = raced
    bundle = load_bundle(result["bundle"])
    (winner,) = [one for one in result["budget"]["candidates"] if one["name"] == result["budget"]["winner"]]
    assert bundle.root == out / "smoke-raspi4"
    assert verify_bundle(bundle.root).ok
    assert result["failure"] == ""
    assert winner["misses"] == []
    assert (bundle.chosen, bundle.threads) == (winner["model"], winner["threads"])
    assert bundle.spec.size == (winner["input_size"],) * 2
    certificate = bundle.record["certificate"]
    assert certificate["latency"]["at_most_ms"] == winner["p90_high_ms"]
    assert certificate["accuracy"]["at_least"] == winner["accuracy"]["at_least"]
    report = (bundle.root / "report.html").read_text(encoding="utf-8")
    assert "<h2>Budget</h2>" in report
    assert "<svg" in report
    assert "the best of 4 models" in (bundle.root / "README.md").read_text(encoding="utf-8")


def test_the_race_is_stored_beside_the_bundle(raced):
    out, result, _ = raced
    folder = out / "smoke-raspi4-budget"
    stored = json.loads((folder / "budget.json").read_text(encoding="utf-8"))
    assert stored == {key: value for key, value in result["budget"].items() if key != "files"}
    assert (folder / "budget.svg").read_text(encoding="utf-8").startswith("<svg")
    assert len(list((folder / "latency").iterdir())) == len(stored["candidates"])


def command(inputs, out, *more):
    images, _, overrides = inputs
    options = ["--recipe", "smoke", "--data", images, "--out", out, *more]
    pairs = [word for override in [*overrides, *RACE] for word in ("-o", override)]
    return CliRunner().invoke(cli.program, ["build", *map(str, options), *pairs])


def test_an_accuracy_that_nobody_reaches(raced, forge_inputs):
    """16 of 16 right are no more than 82.9 % for sure. Nothing is trained again, and the bundle there is left alone."""
    out, result, _ = raced
    done = command(forge_inputs, out, "--test", forge_inputs[1], "--input-sizes", 8, "--min-accuracy", 0.99)
    assert done.exit_code == 1, done.stderr
    assert "distill: done in" not in done.stderr
    assert "error: no candidate keeps min-accuracy 0.99:" in done.stderr
    assert "min-accuracy 0.99: the most accurate candidate, conv4" in done.stderr
    assert "misses min-accuracy" in done.stdout
    assert json.loads((out / "smoke-raspi4-budget/budget.json").read_text())["winner"] is None
    assert load_bundle(result["bundle"]).digest == result["digest"]


def test_a_latency_that_nobody_reaches_is_known_before_anything_is_learned(forge_inputs, tmp_path):
    limits = ("--input-sizes", 8, "--max-ms", 0.0001, "--min-accuracy", 0.9)
    done = command(forge_inputs, tmp_path, "--test", forge_inputs[1], *limits)
    assert done.exit_code == 1, done.stderr
    assert "max-ms 0.0001: the fastest candidate, conv4 8 px" in done.stderr
    assert "min-accuracy 0.9: " not in done.stderr
    assert "not trained: clearly misses max-ms" in done.stdout
    assert [path.name.partition("-")[0] for path in (tmp_path / "store").glob("*-*")] == ["screen"]


def test_accuracy_without_test_images_is_refused_before_anything(forge_inputs, tmp_path):
    done = command(forge_inputs, tmp_path, "--recipe", "raspi", "--min-accuracy", 0.8)  # three images of each class
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --min-accuracy needs test images, and there are none: give some with --test"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--threads", 2), "--threads is of a build within limits: give --max-ms"),
        (("--max-ms", 5, "--any-board"), "--any-board is of boards: it needs --device"),
        (("--max-ms", 5, "--device", "http://pi"), "is not the address of a device"),
        (("--max-ms", 0), "budget.max_ms: must be greater than"),
        (("--min-accuracy", 80), "budget.min_accuracy: must be less than or equal to 1"),
    ],
)
def test_usage(forge_inputs, tmp_path, option, text):
    done = command(forge_inputs, tmp_path, *option)
    assert done.exit_code == 2
    assert text in done.stderr


def test_a_net_that_cannot_be_built_is_told_before_any_work(forge_inputs, tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'conv4'"):
        within(forge_inputs, tmp_path, *LIMITS, 'budget.students=["conv5"]')
    assert not list(tmp_path.iterdir())


def test_no_model_kind_that_the_target_takes(forge_inputs, tmp_path):
    with pytest.raises(RecipeError, match="raspi4 may run"):
        within(forge_inputs, tmp_path, *LIMITS, 'compress.precisions=["openvino-int8"]')


def test_a_dry_run_shows_every_net(raced, forge_inputs):
    recipe = load_recipe("smoke", words(forge_inputs, *LIMITS))
    plan = dry_run(recipe, load_target(recipe.target), raced[0], Here(), log=lambda text: None)
    states = [(step["stage"], step["state"]) for step in plan]
    nets = [("distill", "done"), ("compress", "done")] * 2
    assert states == [("invert", "done"), ("synthesize", "done"), *nets, ("race here", "never cached")]


def test_without_test_images_the_net_named_first_ships_in_its_fastest_form():
    def row(student, ms, threads=1):
        latency = {"at_most_ms": ms, "runs": 662, "reason": ""}
        return Row(student, 32, "onnx-int8", threads, model_bytes=1000, p90_ms=(ms, ms, ms), latency=latency)

    rows = [row("slow", 9.0), row("first", 3.0), row("first", 2.0, 2), row("last", 1.0)]
    verdict = judge(rows, {"max_ms": 5.0}, 0.01)
    assert verdict.winner.name == "first 32 px onnx-int8 2 threads"
    assert "no test images" in verdict.why
    assert verdict.beaten == {}
    assert [one.student for one in verdict.rows] == ["last", "first", "first", "slow"]
