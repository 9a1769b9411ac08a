"""Records of episodes, and what is worked out from them."""

import json

import numpy as np
import pytest

from tinyforge.device.stats import mean_interval
from tinyforge.errors import DataError, UsageError
from tinyforge.fewshot.results import (
    SCHEMA_VERSION,
    labels_of,
    plan,
    plan_text,
    read_record,
    read_records,
    record_file,
    right,
    summarise,
    summary_text,
)

CLASSES, QUERIES = ["cup", "plate", "fork"], [30, 20, 10]


def record(index: int, accuracies: dict[str, float], images: dict | None = None) -> dict:
    """Answers that are right with these probabilities, the same queries being hard for every method."""
    rng = np.random.default_rng(index)
    labels = np.repeat(np.arange(3), QUERIES)
    hard = rng.random(len(labels))
    methods = {
        name: {
            "settings": {"seed": "s"},
            "predicted": np.where(hard < accuracy, labels, (labels + 1) % 3).tolist(),
            "seconds": 2.0,
        }
        for name, accuracy in accuracies.items()
    }
    return {
        "schema_version": 2, "index": index, "episode": "e", "supports": "p", "classes": CLASSES, "queries": QUERIES,
        "methods": methods, "images": images or {}, "seconds": {"images": 1.0, "learn": 5.0, "queries": 0.6},
    }  # fmt: skip


@pytest.fixture
def records():
    return [record(i, {"support-hard": 0.5, "tint-teacher": 0.7, "teacher": 0.8}) for i in range(12)]


def test_accuracy_has_its_t_interval_over_episodes(records):
    found = summarise(records)["methods"]["tint-teacher"]
    mean, low, high = mean_interval([right(one, "tint-teacher").mean() for one in records])
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((mean, low, high))
    assert (found["episodes"], found["queries"], found["queries_per_episode"]) == (12, 12 * 60, pytest.approx(60))
    assert found["within_variance"] == pytest.approx(0.21, abs=0.02)


def test_differences_are_paired_over_episodes_and_queries(records):
    methods = summarise(records)["methods"]
    gain = methods["tint-teacher"]["minus_reference"]
    assert gain["mean"] == pytest.approx(methods["tint-teacher"]["mean"] - methods["support-hard"]["mean"])
    unpaired = methods["tint-teacher"]["high"] - methods["tint-teacher"]["low"]
    assert gain["high"] - gain["low"] < unpaired
    assert methods["support-hard"]["minus_reference"] is None


def test_another_method_may_be_the_reference(records):
    summary = summarise(records, "teacher")
    loss = summary["methods"]["tint-teacher"]["minus_reference"]
    assert loss["mean"] == pytest.approx(-0.1, abs=0.05)
    assert summary["methods"]["teacher"]["minus_reference"] is None
    assert "minus teacher" in summary_text(summary)
    assert "minus teacher" in {row["of"] for row in plan(records, 0.03, "teacher")}


def test_pairs_are_only_of_episodes_that_have_both(records):
    del records[0]["methods"]["support-hard"]
    methods = summarise(records)["methods"]
    assert methods["tint-teacher"]["episodes"] == 12
    assert methods["tint-teacher"]["minus_reference"]["episodes"] == 11


def test_agreement_is_the_share_of_equal_answers(records):
    found = summarise(records)["methods"]
    expected = np.mean([
        np.mean(np.array(r["methods"]["support-hard"]["predicted"]) == r["methods"]["teacher"]["predicted"])
        for r in records
    ])  # fmt: skip
    assert found["support-hard"]["teacher_agreement"] == pytest.approx(expected)
    assert found["teacher"]["teacher_agreement"] is None


def test_accuracy_per_class_weighs_queries(records):
    found = summarise(records)["methods"]["teacher"]
    total = sum(one["accuracy"] * one["queries"] for one in found["per_class"].values())
    assert {name: one["queries"] for name, one in found["per_class"].items()} == {"cup": 360, "plate": 240, "fork": 120}
    assert total / (12 * 60) == pytest.approx(found["mean"])


def test_sets_of_images_are_averaged_where_there_are_any():
    one = record(0, {"teacher": 0.8}, {"ti": {"count": 10, "kept": 8, "teacher_agreement": 0.5, "frechet": 2.0}})
    two = record(1, {"teacher": 0.8}, {"ti": {"count": 10, "kept": 8, "teacher_agreement": 0.7, "frechet": None}})
    found = summarise([one, two, record(2, {"teacher": 0.8})])["images"]["ti"]
    assert found == {"episodes": 2, "count": 10.0, "kept": 8.0, "teacher_agreement": pytest.approx(0.6), "frechet": 2.0}


def test_one_episode_has_no_interval():
    text = summary_text(summarise([record(0, {"support-hard": 0.5, "teacher": 0.9})]))
    assert "1 episodes" in text
    assert summarise([record(0, {"teacher": 0.9})])["methods"]["teacher"]["low"] is None


def test_the_table_shows_points(records):
    text = summary_text(summarise(records))
    row = next(line for line in text.splitlines() if line.startswith("tint-teacher"))
    assert f"{100 * summarise(records)['methods']['tint-teacher']['mean']:.2f}" in row
    assert "+" in row


def test_a_plan_asks_for_more_episodes_when_more_is_wanted(records):
    coarse, fine = plan(records, 0.03), plan(records, 0.01)
    assert all(a["all"]["episodes"] <= b["all"]["episodes"] for a, b in zip(coarse, fine, strict=True))
    assert {row["of"] for row in fine} == {"accuracy", "minus support-hard"}
    for row in fine:
        assert 1 <= row["cheapest"]["queries"] <= row["all"]["queries"] == 60
        assert row["all"]["hours"] == pytest.approx(row["all"]["episodes"] * 6.6 / 3600)
    assert "±1 points" in plan_text(fine, 0.01)


def test_a_plan_needs_a_pilot(records):
    with pytest.raises(UsageError, match="3 or more"):
        plan(records[:2], 0.01)


def test_records_are_read_in_order_and_damage_is_told(tmp_path):
    assert read_record(tmp_path, 0) is None
    for index in (10, 2):
        record_file(tmp_path, index).parent.mkdir(exist_ok=True)
        record_file(tmp_path, index).write_text(json.dumps({"schema_version": SCHEMA_VERSION, "index": index}))
    assert [one["index"] for one in read_records(tmp_path)] == [2, 10]
    record_file(tmp_path, 2).write_text('{"schema_version": 1')
    with pytest.raises(DataError, match=r"00002\.json: not the record"):
        read_records(tmp_path)


def test_labels_follow_the_counts():
    assert labels_of({"queries": [2, 1]}).tolist() == [0, 0, 1]
