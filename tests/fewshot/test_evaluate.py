"""Whole evaluations in seconds: every method, resumed, in processes, on Ray; what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from click.testing import CliRunner
from PIL import Image

from tinyforge.cli import program
from tinyforge.errors import DataError, RecipeError, TinyForgeError, UsageError
from tinyforge.fewshot.methods import BUILDS, STUDENTS, TEACHERS
from tinyforge.fewshot.results import read_records
from tinyforge.loading import load_recipe
from tinyforge.stages.evaluate import evaluate, plan_from, prepare
from tinyforge.stages.evaluate.lab import differing
from tinyforge.stages.evaluate.workers import places
from tinyforge.store import Store

CHEAP = ["support-hard", "teacher", "teacher-tuned@0.001"]
EPISODES = {"way": 2, "shot": 2, "count": 2}


def quiet(text: str) -> None:
    pass


def ask(digits, models, out, methods, more=(), **how):
    return prepare(
        "folder", digits / "digits", out, load_recipe("smoke", [*models, *more]), methods=methods, **{**EPISODES, **how}
    )


def answers(out) -> list[dict]:
    """What must not depend on how the episodes were run: everything but times."""
    records = read_records(out)
    for record in records:
        del record["seconds"]
        for method in record["methods"].values():
            del method["seconds"]
    return records


@pytest.fixture(scope="module")
def everything(digits, tiny_models, tmp_path_factory):
    """Every method of the table, with base images and starting weights, one episode."""
    out = tmp_path_factory.mktemp("everything")
    names = [
        *STUDENTS,
        *TEACHERS,
        *BUILDS,
        "support-kd+base",
        "tint-teacher+base+pretrained",
        "support-hard+pretrained",
    ]
    how = {"base_root": digits / "base", "base_images": 20, "start_epochs": 1, "pictures": True, "alphas": [0.2, 0.8]}
    request = ask(digits, tiny_models, out, names, count=1, start=out / "start", **how)
    return request, evaluate(request, log=quiet)


class TestEveryMethod:
    def test_all_answer_the_same_queries(self, everything):
        request, summary = everything
        assert set(summary["methods"]) == {one.name for one in request.methods}
        counts = {found["queries"] for found in summary["methods"].values()}
        assert counts == {2 * (12 - 2 - request.episodes.protocol.extra)}

    def test_sets_of_images_are_described(self, everything):
        images = everything[1]["images"]
        assert set(images) == {"ti", "nti@0.2", "tint@0.2", "tint@0.8", "real", "real, halves"}
        assert images["tint@0.2"]["count"] == images["real"]["kept"] == 6
        assert all(0 <= images[name]["teacher_agreement"] <= 1 for name in ("ti", "tint@0.2", "real"))
        assert all(one["frechet"] >= -1e-6 for one in images.values())

    def test_extra_images_are_as_many_as_synthetic_ones_and_never_asked(self, everything):
        episode = everything[0].episodes[0]
        assert [len(names) for names in episode.extra] == [3, 3]
        assert not {n for names in episode.extra for n in names} & {n for names in episode.queries for n in names}

    def test_a_build_tells_what_it_would_ship(self, everything):
        shipped = read_records(everything[0].out)[0]["methods"]["build"]["shipped"]
        assert shipped.startswith(("support-hard", "support-kd", "tint-"))

    def test_a_teacher_that_is_not_tuned_answers_like_its_prototypes(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["teacher", "teacher-tuned@0", "teacher-tuned@0.01"]), log=quiet)
        for record in read_records(tmp_path):
            plain, untuned, tuned = (record["methods"][name] for name in record["methods"])
            assert untuned["predicted"] == plain["predicted"]
            assert untuned["lr"] == 0
            assert tuned["lr"] == 0.01

    def test_pictures_are_sheets_per_set(self, everything):
        files = {file.name for file in (everything[0].out / "pictures" / "00000").iterdir()}
        assert files == {"ti.png", "nti@0.2.png", "tint@0.2.png", "tint@0.8.png", "real.png"}

    def test_starting_weights_are_kept_and_work_is_not(self, everything):
        out = everything[0].out
        about = json.loads((out / "start" / "start.json").read_text())
        assert (about["student"], about["classes"], about["images"]) == ("conv4", list("56789"), 60)
        assert not (out / "work" / "00000").exists()

    def test_methods_agree_in_what_they_share_and_tell_what_they_need(self, everything):
        methods = read_records(everything[0].out)[0]["methods"].values()
        assert not any(differing(one["settings"], other["settings"]) for one in methods for other in methods)
        parts = {name: set(one["settings"]) for name, one in read_records(everything[0].out)[0]["methods"].items()}
        assert parts["support-hard"] == {"seed", "distill"}
        assert parts["teacher"] == {"seed", "scale", "teacher_model"}
        assert parts["tint-class@0.2"] - parts["support-hard"] >= {"invert", "synthesize", "backbone_model", "speed"}
        assert parts["tint-teacher@0.2+base+pretrained"] >= {"base", "start", "teacher"}
        assert parts["build"] >= {"alphas", "trial", "build"}

    def test_the_summary_is_that_of_the_file_and_names_no_path(self, everything):
        request, summary = everything
        text = (request.out / "summary.json").read_text()
        assert json.loads(text) == summary
        assert str(request.root) not in text
        assert str(request.out) not in text


class TestAgain:
    def test_a_second_run_measures_only_what_is_missing(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path / "a", CHEAP[:1]), log=quiet)
        before = read_records(tmp_path / "a")
        evaluate(ask(digits, tiny_models, tmp_path / "a", CHEAP, count=3), log=quiet)
        after = read_records(tmp_path / "a")
        assert len(after) == 3
        assert [r["methods"]["support-hard"] for r in after[:2]] == [r["methods"]["support-hard"] for r in before]
        evaluate(ask(digits, tiny_models, tmp_path / "b", CHEAP, count=3), log=quiet)
        assert answers(tmp_path / "a") == answers(tmp_path / "b")

    def test_a_saved_list_is_replayed(self, digits, tiny_models, tmp_path):
        first = ask(digits, tiny_models, tmp_path / "a", ["teacher"], queries=3)
        evaluate(first, log=quiet)
        again = ask(
            digits, tiny_models, tmp_path / "b", ["teacher"], ["seed=5"], episodes_file=first.out / "episodes.json"
        )
        evaluate(again, log=quiet)
        assert [a["methods"]["teacher"]["predicted"] for a in answers(first.out)] == [
            b["methods"]["teacher"]["predicted"] for b in answers(again.out)
        ]

    def test_other_settings_are_refused_until_overwritten(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["support-hard"], count=1), log=quiet)
        other = ask(digits, tiny_models, tmp_path, ["support-hard"], ["distill.epochs=1"], count=1)
        with pytest.raises(UsageError, match="episode 0: support-hard was measured before with other settings"):
            evaluate(other, log=quiet)
        evaluate(other, log=quiet, overwrite=True)

    def test_what_cannot_start_overwrites_nothing(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["teacher"], count=1), log=quiet)
        other = ask(digits, tiny_models, tmp_path, ["support-hard"], ["distill.student=nothing"], count=1)
        with pytest.raises(TinyForgeError, match="nothing"):
            evaluate(other, log=quiet, overwrite=True)
        assert len(read_records(tmp_path)) == 1

    def test_other_settings_of_another_method_are_refused_too(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["support-hard"], count=1), log=quiet)
        other = ask(digits, tiny_models, tmp_path, ["support-kd"], ["distill.epochs=1"], count=1)
        with pytest.raises(UsageError, match=r"support-hard was measured .* \(distill"):
            evaluate(other, log=quiet)

    def test_other_images_of_the_same_names_are_refused(self, digits, tiny_models, tmp_path):
        shutil.copytree(digits / "digits", tmp_path / "digits")
        evaluate(ask(tmp_path, tiny_models, tmp_path / "out", ["teacher"], count=1), log=quiet)
        for file in (tmp_path / "digits").glob("*/*.png"):
            Image.open(file).resize((16, 16)).save(file)
        more = ask(tmp_path, tiny_models, tmp_path / "out", ["teacher", "support-hard"], count=1)
        with pytest.raises(UsageError, match="on other images of these names"):
            evaluate(more, log=quiet)

    def test_one_at_a_time(self, digits, tiny_models, tmp_path):
        request = ask(digits, tiny_models, tmp_path, ["teacher"], count=1)
        with Store(tmp_path).in_use(alone=True), pytest.raises(UsageError, match="in use by another process"):
            evaluate(request, log=quiet)

    def test_settings_that_a_method_does_not_read_do_not_matter(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["teacher"], count=1), log=quiet)
        evaluate(ask(digits, tiny_models, tmp_path, ["teacher"], ["distill.epochs=1"], count=1), log=quiet)

    def test_other_episodes_are_refused(self, digits, tiny_models, tmp_path):
        evaluate(ask(digits, tiny_models, tmp_path, ["teacher"]), log=quiet)
        with pytest.raises(DataError, match="their seed differs; choose another --out"):
            evaluate(ask(digits, tiny_models, tmp_path, ["teacher"], ["seed=1"]), log=quiet)

    def test_a_plan_comes_from_what_is_there(self, digits, tiny_models, tmp_path):
        asked = ask(digits, tiny_models, tmp_path, ["teacher", "support-hard"], count=4)
        evaluate(asked, log=quiet)
        assert {row["method"] for row in plan_from(asked, 0.05)} == {"teacher", "support-hard"}

    def test_what_is_too_little_for_a_plan_is_told_all_the_same(self, digits, tiny_models, tmp_path):
        words = command(digits, tiny_models, tmp_path, "-m", "teacher", "--plan", 5, "--reference", "teacher")
        result = CliRunner().invoke(program, words[3:])
        assert result.exit_code == 2
        assert "teacher" in result.stdout
        assert "a plan needs a pilot of 3 or more episodes" in result.stderr


@pytest.mark.parametrize(
    ("machines", "threads", "expected"),
    [
        ([{"CPU": 6}, {"CPU": 6}], 4, 2),  # not three: the third would have to be on both
        ([{"CPU": 6}, {"CPU": 6}], 2, 6),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 64}], 2, 2),
        ([{"CPU": 2, "GPU": 4}], 1, 2),
    ],
)
def test_workers_that_fit_on_a_cluster(machines, threads, expected):
    assert places(machines, threads) == expected


@pytest.mark.parametrize(
    ("machines", "told"), [([{"CPU": 2}], "has 4 CPUs"), ([{"CPU": 2, "GPU": 1}, {"CPU": 8}], "a GPU has 4")]
)
def test_a_cluster_too_small_for_one_worker(machines, told):
    with pytest.raises(UsageError, match=f"no machine of the cluster.*{told}.*--threads 2 or fewer"):
        places(machines, 4)


class TestRefused:
    @pytest.mark.parametrize(
        ("methods", "how", "message"),
        [
            (["teachr"], {}, "did you mean 'teacher'"),
            (["support-kd+base"], {}, "name their folder with --base"),
            (["teacher"], {"way": 6}, "need 6 classes"),
            (["teacher"], {"shot": 12}, "fewer than 13 images"),
            ([], {}, "no method given"),
            (["teacher"], {"reference": "support-hard"}, "--reference support-hard: not among the methods"),
        ],
    )
    def test_before_anything_is_loaded(self, digits, tmp_path, methods, how, message):
        with pytest.raises(UsageError, match=message):
            ask(digits, [], tmp_path, methods, **how)

    def test_base_classes_that_are_evaluated(self, digits, tmp_path):
        with pytest.raises(DataError, match="must not be evaluated: 0, 1"):
            ask(digits, [], tmp_path, ["support-kd+base"], base_root=digits / "digits")

    def test_classes_that_the_starting_weights_know(self, digits, tiny_models, tmp_path):
        first = ask(digits, tiny_models, tmp_path / "a", ["support-hard+pretrained"], base_root=digits / "base",
                    start=tmp_path / "start", start_epochs=1, count=1)  # fmt: skip
        evaluate(first, log=quiet)
        (tmp_path / "as").mkdir()
        (tmp_path / "as" / "digits").symlink_to(digits / "base")
        known = ask(tmp_path / "as", tiny_models, tmp_path / "b", ["support-hard+pretrained"], start=tmp_path / "start")
        with pytest.raises(DataError, match="trained on classes that are evaluated: 5, 6, 7, 8, 9"):
            evaluate(known, log=quiet)

    def test_more_than_the_episode_list_has(self, digits, tiny_models, tmp_path):
        request = ask(digits, tiny_models, tmp_path, ["teacher"])
        evaluate(request, log=quiet)
        with pytest.raises(UsageError, match="--shot 4: the episode list has 2"):
            ask(digits, tiny_models, tmp_path, ["teacher"], shot=4, episodes_file=tmp_path / "episodes.json")
        with pytest.raises(UsageError, match="--queries 3: the episode list has all that remain"):
            ask(digits, tiny_models, tmp_path, ["teacher"], queries=3, episodes_file=tmp_path / "episodes.json")

    def test_a_student_that_is_not_known(self, digits, tiny_models, tmp_path):
        with pytest.raises(RecipeError, match="conv5"):
            evaluate(ask(digits, tiny_models, tmp_path, ["support-hard"], ["distill.student=conv5"]), log=quiet)

    def test_a_list_whose_files_are_gone(self, digits, tiny_models, tmp_path):
        request = ask(digits, tiny_models, tmp_path / "a", ["teacher"])
        evaluate(request, log=quiet)
        with pytest.raises(DataError, match="60 files of the episode list are not there"):
            prepare(
                "folder", digits / "base", tmp_path / "b", request.recipe, methods=["teacher"],
                episodes_file=request.out / "episodes.json",
            )  # fmt: skip

    def test_an_image_that_cannot_be_read(self, digits, tiny_models, tmp_path):
        folder = tmp_path / "data" / "digits"
        for name in "ab":
            (folder / name).mkdir(parents=True)
            for index in range(4):
                (folder / name / f"{index}.png").write_bytes(b"no picture")
        request = ask(tmp_path / "data", tiny_models, tmp_path / "out", ["teacher"])
        with pytest.raises(DataError, match=r"\.png: not an image"):
            evaluate(request, log=quiet)
        (folder / request.episodes[0].support[0][0]).unlink()
        with pytest.raises(DataError, match=r"No such file"):
            evaluate(request, log=quiet)


def command(digits, models, out, *more) -> list[str]:
    words = [sys.executable, "-m", "tinyforge", "evaluate", "folder", "--data", digits / "digits", "--out", out]
    words += ["--recipe", "smoke", "--way", 2, "--shot", 2, "--num-episodes", 2, "--threads", 1, *more]
    return [*map(str, words), *(word for one in models for word in ("-o", one))]


METHODS = "support-hard,tint-teacher,nti,teacher"


@pytest.fixture(scope="module")
def serial(digits, tiny_models, tmp_path_factory):
    out = tmp_path_factory.mktemp("serial")
    evaluate(ask(digits, tiny_models, out, METHODS.split(",")), log=quiet)
    return answers(out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestOtherProcesses:
    def test_killed_and_continued_is_the_same(self, digits, tiny_models, tmp_path, serial):
        words = command(digits, tiny_models, tmp_path, "-m", METHODS)
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        give_up = time.monotonic() + 900
        while not list((tmp_path / "work").glob("*/store/*.partial/supports/*")):
            assert running.poll() is None, "ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        assert len(read_records(tmp_path)) < 2
        subprocess.run(words, check=True, capture_output=True)
        assert answers(tmp_path) == serial

    def test_workers_find_what_one_process_finds(self, digits, tiny_models, tmp_path, serial):
        done = subprocess.run(
            command(digits, tiny_models, tmp_path, "-m", METHODS, "--workers", 2, "--json"),
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert answers(tmp_path) == serial
        assert json.loads(done.stdout)["result"]["summary"]["episodes"] == 2

    def test_a_fault_in_a_worker_is_told(self, digits, tiny_models, tmp_path):
        request = ask(digits, tiny_models, tmp_path, ["support-hard"])
        evaluate(request, log=quiet)
        other = command(digits, tiny_models, tmp_path, "-m", "support-hard", "--workers", 2, "-o", "distill.lr=0.1")
        done = subprocess.run(other, capture_output=True, text=True, check=False)
        assert (done.returncode, "was measured before with other settings" in done.stderr) == (2, True), done.stderr

    @pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
    def test_a_ray_cluster_finds_what_one_process_finds(self, digits, tiny_models, tmp_path, serial):
        words = command(digits, tiny_models, tmp_path, "-m", METHODS, "--ray-address", "local")
        subprocess.run(words, check=True, capture_output=True)
        assert answers(tmp_path) == serial
