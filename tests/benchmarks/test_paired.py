"""Paired differences from raw answers, of episodes and of a bundle."""

import json

import pytest


def test_episodes_are_compared_each_with_itself(script, tmp_path):
    write_episodes(tmp_path, [([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [1, 1, 0, 1])])
    paired = script("paired")
    count, difference, low, high = paired.over_episodes(*(paired.episode_scores(tmp_path)[name] for name in "ab"))
    assert (count, difference) == (2, pytest.approx((0.25 + 0.5) / 2))
    assert low < difference < high


def test_a_method_of_fewer_episodes_is_compared_on_its_own(script, tmp_path):
    write_episodes(tmp_path, [([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [0, 1, 0, 1]), ([1, 1, 0, 0], None)])
    paired = script("paired")
    count, difference, *_ = paired.over_episodes(*(paired.episode_scores(tmp_path)[name] for name in "ab"))
    assert (count, difference) == (2, pytest.approx(0.25))
    rows = paired.table([tmp_path], ["a"]).splitlines()
    assert rows[0] == "| method | episodes | accuracy | minus `a` |"
    assert rows[2].startswith("| `a` | 3 | 58.3 [")
    assert rows[3].startswith("| `b` | 2 | 62.5 [")
    assert "| -25.0 [" in rows[3]


def test_of_several_folders_the_last_one_s_answers_count(script, tmp_path):
    write_episodes(tmp_path / "old", [([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [1, 1, 0, 1])])
    write_episodes(tmp_path / "new", [([1, 1, 0, 0], None), ([1, 1, 0, 0], None)])
    rows = script("paired").table([tmp_path / "old", tmp_path / "new"], ["b"]).splitlines()
    assert rows[2].startswith("| `a` | 2 | 0.0 [")
    assert rows[3].startswith("| `b` | 2 | 50.0 [")


def test_other_episodes_are_not_compared(script, tmp_path):
    write_episodes(tmp_path / "one", [([0, 0, 1, 1], None)] * 2)
    write_episodes(tmp_path / "other", [([0, 0, 1, 1], None)] * 2, "of another seed")
    paired = script("paired")
    with pytest.raises(SystemExit, match="fewer than two episodes in common"):
        paired.over_episodes(*(paired.episode_scores(tmp_path / name)["a"] for name in ("one", "other")))


def write_episodes(folder, answers, drawn="of seed 0") -> None:
    """(answers of a, answers of b or None) per episode, of the classes 0, 0, 1, 1."""
    (folder / "episodes").mkdir(parents=True)
    for index, pair in enumerate(answers):
        methods = {name: {"predicted": given} for name, given in zip("ab", pair, strict=True) if given is not None}
        record = {"episode": f"{index} {drawn}", "queries": [2, 2], "methods": methods}
        (folder / "episodes" / f"{index}.json").write_text(json.dumps(record))


def test_images_are_compared_each_with_itself(script, tmp_path):
    (tmp_path / "predictions").mkdir()
    for name, predicted in (("a", [0, 1, 1, 0]), ("b", [0, 0, 1, 1])):
        record = {"labels": [0, 1, 1, 1], "predicted": predicted}
        (tmp_path / "predictions" / f"{name}.json").write_text(json.dumps(record))
    count, difference, low, high = script("paired").over_images(tmp_path, "a", "b")
    assert (count, difference) == (4, pytest.approx(0))
    assert low <= difference <= high
    assert script("paired").over_images(tmp_path, "a", "b", without=0)[:2] == (3, pytest.approx(0))
    assert script("paired").over_images(tmp_path, "a", "b", without=1)[:2] == (1, pytest.approx(0))


def test_the_mean_over_bundles_counts_each_once(script, tmp_path):
    for folder, predicted in (("one", [0, 1, 1, 1]), ("two", [0, 1, 1, 0])):
        (tmp_path / folder / "predictions").mkdir(parents=True)
        for name, given in (("a", predicted), ("b", [0, 0, 0, 0])):
            record = {"labels": [0, 1, 1, 1], "predicted": given}
            (tmp_path / folder / "predictions" / f"{name}.json").write_text(json.dumps(record))
    paired = script("paired")
    count, difference, low, high = paired.over_bundles([tmp_path / "one", tmp_path / "two"], "a", "b")
    assert (count, difference) == (2, pytest.approx((0.75 + 0.5) / 2))
    assert low < 0.5 < 0.75 < high
    with pytest.raises(SystemExit, match="two bundles"):
        paired.over_bundles([tmp_path / "one"], "a", "b")
