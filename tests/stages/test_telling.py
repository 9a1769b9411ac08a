"""What a finished build tells of itself."""

from types import SimpleNamespace

import pytest

from tinyforge.device.machine import usable_cores
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages import Job, start
from tinyforge.stages.bench import Raced, remarks_of, warn_of_loss
from tinyforge.stages.origins import licence_of_teacher, origins
from tinyforge.stages.telling import busy_note, licences, note_on, notes

MACHINE = {"cpu": "Xeon", "cores": 2}


def road_for(forge_inputs, *overrides, target="raspi4"):
    images, _, _ = forge_inputs
    recipe = load_recipe("smoke", [f'data.path="{images}"', f'target="{target}"', *overrides])
    return start(Job(recipe, load_target(recipe.target), images.parent / "out", log=lambda text: None))


@pytest.mark.parametrize("domain", ["glyphs", "photos"])
def test_models_that_ship_are_named_by_their_domain_with_their_licence(forge_inputs, domain):
    road = road_for(forge_inputs, f'backbone.name="{domain}"', f'teacher.name="{domain}"')
    assert licences(road) == [
        {"name": f"{domain} backbone", "licence": "Apache-2.0"},
        {"name": f"{domain} teacher", "licence": "Apache-2.0"},
        *({"photos": [{"name": "student conv4 (photos starting weights)", "licence": "Apache-2.0"}]}.get(domain, [])),
        {"name": "tinyforge_device", "licence": "Apache-2.0"},
    ]
    assert origins(road)["teacher"]["name"] == f"{domain} teacher"


def test_a_licence_is_told_where_it_is_recorded(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of_teacher(str(tmp_path)) == "mit"
    assert licence_of_teacher(str(tmp_path / "none")) == "unknown"
    assert licence_of_teacher("timm:vit_small_patch16_224.dino") == "apache-2.0"
    assert licence_of_teacher("timm:resnet10t@mine.safetensors") == "unknown"


@pytest.mark.parametrize(("busy", "told"), [(None, False), (0.2, False), (1.5, True)])
def test_other_work_while_measuring_is_told(busy, told):
    note = busy_note({"onnx-fp32": {"busy_cores": 0.0}, "onnx-int8": {"busy_cores": busy}}, MACHINE)
    assert ("1.5 of its 2 cores were busy" in note) == told
    assert bool(note) == told
    assert busy_note({"onnx-fp32": {}}, MACHINE) == "", "a report of an older bundle"


def test_a_busy_machine_is_a_warning_at_the_end_and_a_note_in_the_card(forge_inputs):
    road = road_for(forge_inputs)
    assert "It was busy." in remarks_of(road, None, {"x86_warnings": []}, "It was busy.")
    assert road.warnings[-1] == "It was busy."
    raced = Raced("onnx-int8", {}, MACHINE, ["Chosen in a race."], {})
    assert remarks_of(road, raced, {"x86_warnings": []}, "")[0] == "Chosen in a race."


def test_answers_that_depend_on_the_processor_are_a_warning(forge_inputs):
    road = road_for(forge_inputs, target="generic-cpu")
    remarks = remarks_of(road, None, {"x86_warnings": ["2 of 200 images get another answer"]}, "")
    assert "2 of 200 images get another answer" in remarks
    assert "2 of 200 images get another answer" in road.warnings


def test_the_note_on_latency_counts_the_threads_that_ran(forge_inputs):
    road = road_for(forge_inputs)
    used = min(road.job.target.threads, usable_cores())
    assert f"with {used} thread" in notes(road)[len(road.warnings)]


@pytest.mark.parametrize(
    ("drop", "low", "told"), [(0.02, 0.01, 1), (0.02, -0.01, 0), (0.005, 0.001, 0), (None, None, 0)]
)
def test_a_model_that_loses_more_on_the_test_images_than_its_gate_allows_is_warned_about(forge_inputs, drop, low, told):
    road = road_for(forge_inputs, "compress.max_drop=0.01")
    seen = drop and {"num_images": 1000, "drop": drop, "low": low, "high": 0.03}
    warn_of_loss(road, "onnx-int8", [{"name": "onnx-fp32", "drop": None}, {"name": "onnx-int8", "drop": seen}])
    assert sum("onnx-int8 loses 2.0% accuracy [1.0%, 3.0%]" in text for text in road.warnings) == told


@pytest.mark.parametrize(("further", "told"), [([], "supports and synthetic images"), ([0], "distill.unlabelled")])
def test_a_row_says_what_its_student_learned_from(further, told):
    done = {"distill": SimpleNamespace(json=lambda name: {"shipped": "tint-teacher"})}
    note = note_on("tint-teacher", SimpleNamespace(done=done, inputs=SimpleNamespace(unlabelled=further)))
    assert told in note
    assert note.endswith("the teacher's labels too; this student is exported")
