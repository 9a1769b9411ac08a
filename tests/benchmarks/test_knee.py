"""What benchmarks/knee.py varies, and how it tells of it; its rows themselves are minutes each."""

import pytest

from tinyforge.loading import load_recipe


@pytest.fixture
def knee(script):
    return script("knee")


def test_every_row_changes_one_valid_recipe(knee):
    written = [
        load_recipe("raspi", [*knee.SETTINGS, *overrides]).model_dump(exclude_unset=True)
        for overrides in knee.VARIANTS.values()
    ]
    assert [one == written[0] for one in written] == [True] + [False] * (len(written) - 1)


def test_rows_are_compared_with_the_reference_draw_by_draw(knee):
    def row(accuracy, seconds):
        stages = {"invert": seconds, "synthesize": seconds, "student": seconds}
        return {"accuracy": accuracy, "n": 100, "seconds": stages, "kept": 1.0, "latent_mse": 0.1, "psnr_db": 30.0}

    draws = [
        {
            "seed": seed,
            "shots": 1,
            "rows": {knee.REFERENCE: row(0.5 + seed / 10, 10), "paper": row(0.52 + seed / 10, 100)},
        }
        for seed in (0, 1)
    ]
    draws[0]["rows"]["6 epochs"] = row(0.4, 5)
    told = knee.summary(draws)
    assert "1 shot(s), n = 100 answers a draw" in told
    paper = next(line for line in told.splitlines() if line.startswith("paper"))
    assert "+2.00 (+2.00 to +2.00)" in paper
    assert "300.0" in paper  # seconds of all stages
    assert [line.split()[2] for line in told.splitlines() if line.startswith("6 epochs")] == ["1"]  # one draw has it
    assert f"{60 * 57 / 300:.1f}" in paper  # points a minute


def test_a_stage_found_in_the_store_costs_what_it_once_cost(knee, tmp_path, monkeypatch):
    class Done:
        path = tmp_path / "invert-1234"

    class Road:
        done = {"invert": Done}  # noqa: RUF012

    monkeypatch.setattr(knee, "advance", lambda road, stage: None)
    (tmp_path / "seconds").mkdir()
    first = knee.staged(Road, "invert", tmp_path / "seconds")
    (tmp_path / "seconds/invert-1234").write_text("12.5")
    assert first < 1
    assert knee.staged(Road, "invert", tmp_path / "seconds") == 12.5
