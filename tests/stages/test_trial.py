"""The trial within a build: what it leaves, that a stop in it changes nothing, and what is done without evidence."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tinyforge.distill.teacher import fold_of
from tinyforge.distill.verdict import Judgement, Prior, posterior
from tinyforge.embedded import path
from tinyforge.loading import load_recipe, load_target
from tinyforge.recipe import Trial
from tinyforge.stages import Job, advance, start
from tinyforge.stages.trial import (
    ABROAD,
    Way,
    bar,
    first_round,
    forced,
    judge_teacher,
    misleads,
    prior,
    second_round,
    trusted,
    why,
)
from tinyforge.summary import trial_text

from .test_forge import manifests, recipe_for


def road_for(inputs, out, *more):
    recipe = recipe_for(inputs, *more)
    return start(Job(recipe, load_target(recipe.target), out, log=lambda text: None))


@pytest.fixture(scope="module")
def tried(forge_inputs, tmp_path_factory):
    road = road_for(forge_inputs, tmp_path_factory.mktemp("trial"))
    advance(road, "distill")
    return road


def record(road):
    return road.done["distill"].json("distill.json")


def test_every_support_was_asked_about_once_in_each_way(tried):
    trial = record(tried)["trial"]
    assert trial["held_out"] == len(tried.inputs.support) == 6
    assert [one["name"] for one in trial["ways"]] == ["support-hard", "support-kd", "tint-class", "tint-teacher"]
    assert all(one["score"]["n"] == 6 for one in trial["ways"])
    files = sorted(path.name for path in (tried.done["distill"].path / "trial").glob("tint-teacher-[0-9].json"))
    assert files == [f"tint-teacher-{fold}.json" for fold in range(trial["folds"])]


def test_the_record_can_be_worked_out_from_the_answers(tried):
    trial, folder = record(tried)["trial"], tried.done["distill"].path / "trial"
    labels = tried.inputs.support.labels
    folds = fold_of(torch.from_numpy(labels), tried.recipe.trial.folds).numpy()
    for one in trial["ways"]:
        right = 0
        for fold in range(trial["folds"]):
            logits = np.array(json.loads((folder / f"{one['name']}-{fold}.json").read_text()))
            right += int((logits.argmax(1) == labels[folds == fold]).sum())
        assert right == one["score"]["correct"]


def test_the_chosen_student_is_there_and_so_are_the_others(tried):
    made, folder = record(tried), tried.done["distill"].path
    assert (folder / "students" / made["shipped"] / "student.safetensors").is_file()
    for method in ("support-hard", "support-kd", "tint-teacher"):
        assert (folder / "predictions" / f"{method}.json").is_file()
    assert made["shipped"] == made["trial"]["shipped"]


def test_counts_of_what_was_dropped_add_up(tried):
    counts = record(tried)["agreement"]
    for total, kept, rejected, copies in zip(
        *(counts[k] for k in ("total", "kept", "rejected", "duplicates")), strict=True
    ):
        assert max(rejected, copies) <= total - kept <= rejected + copies


def test_a_stop_within_the_trial_ends_with_the_same_bytes(tried, forge_inputs, tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage == "trial" and done == 1:
            raise Stopped

    road = road_for(forge_inputs, tmp_path)
    road.job = replace(road.job, progress=stop)
    with pytest.raises(Stopped):
        advance(road, "distill")
    assert (
        len(list(tmp_path.glob("store/distill-*.partial/trial/*.json"))) == 4
    )  # the teacher of every fold, one student
    again = road_for(forge_inputs, tmp_path)
    advance(again, "distill")
    assert manifests(tmp_path) == manifests(tried.job.out)


def test_with_one_support_per_class_outside_the_domain_nothing_is_risked(forge_inputs, tmp_path):
    images, _, overrides = forge_inputs
    recipe = load_recipe("smoke", [*overrides, f'data.path="{images}"', "data.shots=1", "distill.epochs=1"])
    road = start(Job(recipe, load_target(recipe.target), tmp_path, log=lambda text: None))
    advance(road, "distill")
    trial = record(road)["trial"]
    assert (trial["held_out"], trial["in_domain"], trial["shipped"]) == (0, False, "support-hard")
    assert "nothing could be held out" in trial["why"]


def test_a_recipe_can_force_the_method(forge_inputs, tmp_path):
    road = road_for(forge_inputs, tmp_path, 'distill.labels="class"', "distill.epochs=1")
    advance(road, "distill")
    assert (record(road)["shipped"], record(road)["trial"]) == ("tint-class", None)


def test_what_is_expected_holds_in_the_domain_only():
    wanted = Trial(expected_gains={"tint-teacher": 0.3}, expected_sd=0.2, overstated_gains={"tint-teacher": 0.1})
    assert prior("tint-teacher", wanted, True) == Prior(0.3, 0.2, 0.1)
    assert prior("support-kd", wanted, True).mean == 0
    assert (prior("tint-teacher", wanted, False).mean, prior("tint-teacher", wanted, False).overstated) == (0, 0)


def test_what_the_photo_models_expect_yields_to_what_25_supports_say():
    told = json.loads((path("photos", "backbone") / "tinyforge.json").read_text())["trial"]
    loss = np.tile([-0.75, 0.25], 13)[:25] - 0.02  # a quarter of a nat lost, half a nat from support to support
    for name, gain in (("support-kd", loss), ("tint-teacher", loss + 0.1)):
        assert posterior(gain, prior(name, Trial(**told), True))[1] < 0.5
        assert posterior(np.zeros(0), prior(name, Trial(**told), True))[1] > 0.5


def test_a_teacher_that_knows_more_lowers_the_bar_for_what_it_labels_and_for_nothing_else():
    labels = np.arange(30) % 5
    good, poor = 4 * np.eye(5)[labels], np.tile([1.0, 0, 0, 0, 0], (30, 1))
    knows, does_not = judge_teacher(good, poor, labels, 0.9), judge_teacher(poor, good, labels, 0.9)
    assert (trusted(knows), trusted(does_not)) == (True, False)
    neutral, hopeful = Prior(0.0, 0.2), Prior(0.1, 0.2)
    assert [bar(method, neutral, knows, 0.9) for method in ("support-kd", "tint-teacher", "tint-class")] == [
        0.5,
        0.5,
        0.9,
    ]
    assert bar("support-kd", neutral, does_not, 0.9) == 0.9
    assert bar("tint-class", hopeful, does_not, 0.9) == 0.5
    alone = judge_teacher(np.zeros((0, 5)), np.zeros((0, 5)), np.zeros(0, int), 0.9)
    assert not trusted(alone)
    assert not misleads(alone)


def test_of_a_teacher_that_knows_less_nothing_is_expected():
    labels = np.arange(30) % 5
    good, poor = 4 * np.eye(5)[labels], np.tile([1.0, 0, 0, 0, 0], (30, 1))
    assert [misleads(judge_teacher(*who, labels, 0.9)) for who in ((poor, good), (good, poor), (good, good))] == [
        True, False, False,
    ]  # fmt: skip
    wanted = Trial(expected_gains={"support-kd": 0.3}, expected_sd=0.05)
    assert prior("support-kd", wanted, True, misled=True) == ABROAD


def test_ways_and_mixes():
    assert [way.name for way in first_round(0)] == ["support-hard", "support-kd"]
    assert [way.name for way in first_round(0, 5)] == ["support-hard", "support-kd", "tint-teacher"]
    assert [forced(labels, 0, 5).name for labels in ("class", "teacher")] == ["support-hard", "tint-teacher"]
    names = [way.name for way in second_round(Way("tint-teacher"), [0.5, 0.75], 0.5, [0.3, 0.7, 0.3])]
    assert names == ["tint-teacher", "tint-teacher-share0.75", "tint-teacher-alpha0.3", "tint-teacher-alpha0.7"]
    assert second_round(Way("tint-class"), [], 0.5, [0.3]) == [Way("tint-class")]
    assert [forced(labels, n).name for labels in ("class", "teacher") for n in (0, 9)] == [
        "support-hard", "tint-class", "support-kd", "tint-teacher",
    ]  # fmt: skip


def test_the_outcome_is_told_with_numbers():
    counted = {"n": 30, "correct": 20, "accuracy": 20 / 30, "low": 0.49, "high": 0.81}
    ways = [
        Judgement("support-hard", counted, 1.0, None, Prior(0.0, 0.2), 0.0, 0.5, 0.9),
        Judgement("tint-teacher", counted, 0.8, (0.2, 0.05, 0.35), Prior(0.13, 0.15, 0.1), 0.18, 0.97, 0.9),
    ]
    told = why("tint-teacher", ways, True)
    assert "+0.20 nats [+0.05, +0.35] on 30 held-out supports (short students overstate it by 0.10)" in told
    assert "where +0.13 ± 0.15 were expected; together better with probability 0.97" in told
    assert "no other way was shown to be better" in why("support-hard", ways, False)
    dropped = {"total": 60, "kept": 50, "rejected": 4, "duplicates": 6}
    whole = {"record": {"ways": [asdict(one) for one in ways], "mixes": []}, "shipped": "tint-teacher", "why": told}
    text = trial_text({**whole, "dropped": dropped})
    assert "50 kept, 4 rejected, 6 duplicates, of 60" in text
    row = next(line for line in text.splitlines() if line.startswith("tint-teacher"))
    assert row.split()[1] == "*"
    assert next(line for line in text.splitlines() if line.startswith("support-hard")).split()[1].isdigit()
