"""Candidates of a budget on a board: pushed one after the other, measured, and all removed in the end."""

import sys

import pytest

from tinyforge.device.stats import runs_needed
from tinyforge.errors import DeviceError
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages.budget import board as board_of
from tinyforge.stages.budget.entrants import Net, road_of
from tinyforge.stages.budget.screen import untrained
from tinyforge.stages.budget.verdict import rows_of
from tinyforge.stages.inputs import gather
from tinyforge.stages.road import Choice, Job, Road

QUICK = ["bench.seconds=0.01", "bench.min_runs=64", "bench.warmup=2"]


@pytest.fixture
def road(tmp_path):
    recipe = load_recipe("smoke", [*QUICK, 'compress.precisions=["onnx-fp32", "onnx-int8"]'])
    inputs = gather(recipe.data, None, recipe.seed)
    job = Job(recipe, load_target(recipe.target), tmp_path / "out", log=lambda text: None)
    return Road(job, inputs, Choice("none", "not needed"), Choice("none", "not needed"))


def ground(board, **how):
    url = str(board.address)
    return board_of(url, config=board.config, python=sys.executable, any_board=True, **how)


def test_untrained_candidates_on_a_board_and_nothing_left_there(board, road):
    there, rows = ground(board), []
    for size in (8, 16):
        one = untrained(road_of(road, Net("conv4", size)), Net("conv4", size))
        measured = there.measure(one, [1, 2], runs_needed(0.9))
        rows += rows_of(one, measured, {}, raced=False)
    assert len(list((board.home / ".tinyforge").glob("tree-*"))) == 2
    there.close()
    assert not (board.home / ".tinyforge").exists()
    assert len(rows) == 8
    assert {(row.input_size, row.model, row.threads) for row in rows} == {
        (size, model, threads) for size in (8, 16) for model in ("onnx-fp32", "onnx-int8") for threads in (1, 2)
    }
    assert all(row.latency["at_most_ms"] >= row.p90_ms[0] > 0 for row in rows)


def test_a_board_that_is_gone_is_exit_code_4(asleep_board, road):
    one = untrained(road_of(road, Net("conv4", 8)), Net("conv4", 8))
    with pytest.raises(DeviceError, match="cannot be reached"):
        ground(asleep_board).measure(one, [1], 64)
