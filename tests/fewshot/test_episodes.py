"""Episodes: drawn, saved, replayed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyforge.errors import DataError
from tinyforge.fewshot.episodes import (
    Protocol,
    draw_episodes,
    episode_seed,
    extended,
    load_episodes,
    save_episodes,
)

FILES = {f"class {c}": tuple(f"class {c}/{i:03d}.png" for i in range(20 + c)) for c in range(8)}


def draw(count=3, seed=0, files=FILES, **protocol):
    return draw_episodes("folder", "test", files, Protocol(**{"way": 5, "shot": 3, **protocol}), seed, count)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 5), st.none() | st.integers(1, 9), st.integers(0, 99))
def test_supports_extra_images_and_queries_are_apart_and_as_many_as_asked(way, shot, extra, queries, seed):
    episode = draw(1, seed, way=way, shot=shot, extra=extra, queries=queries)[0]
    assert len(set(episode.classes)) == way
    for name, *parts in zip(episode.classes, episode.support, episode.extra, episode.queries, strict=True):
        together = [file for part in parts for file in part]
        assert len(set(together)) == len(together)
        assert set(together) <= set(FILES[name])
        rest = len(FILES[name]) - shot - extra
        assert list(map(len, parts)) == [shot, extra, rest if queries is None else queries]


def test_the_same_seed_draws_the_same_and_a_longer_list_begins_with_the_shorter():
    short, long = draw(3), draw(10)
    assert long.draws[:3] == short.draws
    assert draw(3, seed=1).draws != short.draws


@pytest.mark.parametrize("queries", [None, 4])
def test_a_saved_list_replays(tmp_path, queries):
    episodes = draw(4, queries=queries, extra=2)
    save_episodes(episodes, tmp_path / "episodes.json")
    loaded = load_episodes(tmp_path / "episodes.json")
    assert [loaded[i] for i in range(4)] == [episodes[i] for i in range(4)]
    assert loaded[2].fingerprint == episodes[2].fingerprint != episodes[1].fingerprint


def test_all_queries_are_not_written_out(tmp_path):
    save_episodes(draw(200), tmp_path / "episodes.json")
    assert (tmp_path / "episodes.json").stat().st_size < 60_000


def test_labels_stand_class_after_class():
    episode = draw(1)[0]
    assert np.bincount(episode.labels).tolist() == [len(names) for names in episode.queries]
    assert (np.diff(episode.labels) >= 0).all()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"way": 9}, "need 9 classes; there are 8"),
        ({"shot": 20}, r"fewer than 21 images .*class 0 \(20\)$"),
        ({"shot": 10, "extra": 5, "queries": 7}, r"fewer than 22 images .*class 0 \(20\), class 1 \(21\)$"),
    ],
)
def test_too_little_is_told(protocol, message):
    with pytest.raises(DataError, match=message):
        draw(**protocol)


def test_a_list_grows_but_does_not_change():
    assert len(extended(draw(3), draw(5))) == len(extended(draw(5), draw(3))) == 5
    for other, field in (
        (draw(3, seed=1), "seed"),
        (draw(3, shot=2), "protocol"),
        (draw(3, files={**FILES, "more": FILES["class 7"]}), "files"),
    ):
        with pytest.raises(DataError, match=f"their {field} differs; choose another --out"):
            extended(draw(3), other)


def test_a_list_drawn_by_other_means_is_refused(tmp_path):
    save_episodes(draw(3), tmp_path / "episodes.json")
    record = json.loads((tmp_path / "episodes.json").read_text())
    record["draws"] = record["draws"][::-1]
    (tmp_path / "episodes.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="drawn differently"):
        extended(load_episodes(tmp_path / "episodes.json"), draw(3))


@pytest.mark.parametrize("damage", ["", "{}", '{"schema_version": 9}', "[]"])
def test_a_damaged_list_is_told(tmp_path, damage):
    (tmp_path / "episodes.json").write_text(damage)
    with pytest.raises(DataError, match="not an episode list"):
        load_episodes(tmp_path / "episodes.json")


@pytest.mark.parametrize(("key", "value"), [("draws", []), ("files", [])])
def test_a_list_without_episodes_or_files_is_told(tmp_path, key, value):
    save_episodes(draw(1), tmp_path / "episodes.json")
    record = json.loads((tmp_path / "episodes.json").read_text())
    (tmp_path / "episodes.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(DataError, match="not an episode list"):
        load_episodes(tmp_path / "episodes.json")


def test_an_index_beyond_a_class_is_told(tmp_path):
    save_episodes(draw(1), tmp_path / "episodes.json")
    record = json.loads((tmp_path / "episodes.json").read_text())
    record["draws"][0]["support"][0][0] = 999
    (tmp_path / "episodes.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="not an episode list"):
        load_episodes(tmp_path / "episodes.json")


def test_every_episode_learns_from_a_seed_of_its_own():
    seeds = {episode_seed(seed, index) for seed in range(10) for index in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= one < 2**32 for one in seeds)
