"""Work side by side: in order, stopped together, and with the results of one piece after another."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tinyforge.cores import available_bytes, granted_cores
from tinyforge.device.machine import usable_cores
from tinyforge.diffusion import backbone as backbones
from tinyforge.diffusion import engine, null_text, sample, textual_inversion
from tinyforge.diffusion import plain as plain_path
from tinyforge.diffusion.memory import Plan
from tinyforge.distill import train
from tinyforge.stages import advance
from tinyforge.stages import crew as crews
from tinyforge.stages.crew import Stopped, crew

from .test_trial import road_for


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(crews, "granted_cores", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("cpu_max", "limit"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_s_quota_limits_the_cores(cpu_max, limit, tmp_path):
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert granted_cores(tmp_path) == (limit or usable_cores())


def test_a_quota_of_cgroup_v1_counts_too(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("90000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert granted_cores(tmp_path) == 1


MEMINFO = "MemTotal:  9000 kB\nMemAvailable:  8000 kB\n"


def test_memory_is_the_system_s_or_what_a_container_leaves(tmp_path):
    meminfo, own = tmp_path / "meminfo", tmp_path / "cgroup"
    assert available_bytes(own, meminfo) is None
    meminfo.write_text(MEMINFO)
    assert available_bytes(own, meminfo) == 8000 * 1024
    for folder, names in (
        (own, ("memory.max", "memory.current", "inactive_file")),
        (own / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ):
        folder.mkdir()
        (folder / names[0]).write_text("max\n")
        (folder / names[1]).write_text("3000000\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} 1000000\n")
        assert available_bytes(own, meminfo) == 8000 * 1024
        (folder / names[0]).write_text("5000000\n")
        assert available_bytes(own, meminfo) == 3_000_000
        (folder / names[0]).write_text("max\n")


@pytest.mark.parametrize("side_by_side", [True, False])
def test_no_more_threads_than_cores_are_granted(side_by_side, monkeypatch):
    monkeypatch.setattr(crews, "granted_cores", lambda: 1)
    torch.set_num_threads(3)
    with crew(side_by_side, "cpu"):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)


def test_two_hands_work_at_once_each_on_one_thread_and_answer_in_order(two_cores):
    meeting = threading.Barrier(2, timeout=60)  # broken where one waits for the other to end

    def work(item):
        meeting.wait()
        return item, torch.get_num_threads()

    with crew(True, "cpu") as hands:
        assert hands.each(work, range(4)) == [(item, 1) for item in range(4)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("side_by_side", "device"), [(False, "cpu"), (True, "cuda"), (False, "cuda")])
def test_switched_off_or_on_a_gpu_the_work_is_done_at_once(side_by_side, device, two_cores):
    with crew(side_by_side, device) as hands:
        assert hands.ask(threading.current_thread).result() is threading.current_thread()


def test_a_gpu_goes_on_while_files_are_written(two_cores, monkeypatch):
    monkeypatch.setattr(crews, "MOST_UNWRITTEN", 2)
    going_on, written = threading.Event(), []

    def write(item):
        assert going_on.wait(60)  # for what comes after: a crew that wrote at once would wait in vain
        written.append(item)

    def work(item):
        hands.later(write, item)
        if item == 1:
            assert written == []
            going_on.set()

    with crew(True, "cuda") as hands:
        hands.each(work, range(9))
        assert sorted(written) == list(range(9))


@pytest.mark.parametrize(("side_by_side", "device"), [(False, "cuda"), (True, "cpu"), (False, "cpu")])
def test_elsewhere_files_are_written_at_once(side_by_side, device, two_cores):
    written = []

    def work(item):
        hands.later(written.append, item)
        return list(written)

    with crew(side_by_side, device) as hands:
        assert hands.each(work, [5]) == [[5]]


def test_a_file_that_cannot_be_written_ends_the_work(two_cores):
    def full(item):
        raise OSError("no space left")

    with crew(True, "cuda") as hands, pytest.raises(OSError, match="no space left"):
        hands.each(lambda item: hands.later(full, item), range(3))


def test_a_failure_ends_the_work_of_the_others(two_cores):
    ended = []

    def endless(tell):
        try:
            while True:
                tell(0, 1)
        except Stopped:
            ended.append(True)

    def fail():
        raise ValueError("enough")

    def one_fails():
        with crew(True, "cpu") as hands:
            hands.ask(endless, hands.watched(lambda done, total: None))
            hands.ask(fail).result()

    with pytest.raises(ValueError, match="enough"):
        one_fails()
    assert ended == [True]


def test_side_by_side_gives_the_bytes_of_one_after_another(forge_inputs, tmp_path, two_cores):
    singly = ("backbone.batch_size=1", "invert.ti_steps=30")
    torch.set_num_threads(1)
    alone = road_for(forge_inputs, tmp_path / "alone", *singly)
    advance(alone, "distill")
    torch.set_num_threads(2)
    beside = road_for(forge_inputs, tmp_path / "beside", *singly)
    advance(beside, "distill")
    assert contents(alone) == contents(beside)


def test_with_every_switch_off_the_pictures_are_the_same_to_rounding(forge_inputs, tmp_path, two_cores, monkeypatch):
    seen = []
    for module, name in (
        (plain_path, "learn_plainly"),
        (plain_path, "invert_plainly"),
        (sample, "generate"),
        (null_text, "null_text_invert"),
        (null_text, "ddim_reconstruct"),
        (textual_inversion, "learn_concepts"),
        (backbones, "load_backbone"),
    ):
        watch(monkeypatch, module, name, seen)
    plain = [f"speed.{name}=false" for name in ("side_by_side", "fit_memory", "reuse_condition", "stack_guidance")]
    plain += ["speed.inversion='plain'", "backbone.batch_size=1"]
    roads = [road_for(forge_inputs, tmp_path / name, *more) for name, more in (("fast", []), ("plain", plain))]
    calls = []
    for road in roads:
        advance(road, "synthesize")
        calls.append({(name, how.get("stacked"), how.get("reuse"), how.get("plan")) for name, how in seen})
        seen.clear()
    assert calls[0] == {
        ("load_backbone", None, None, None),
        ("learn_concepts", None, None, None),
        ("null_text_invert", None, True, None),
        ("generate", True, None, None),
        ("ddim_reconstruct", True, None, None),
    }
    assert calls[1] == {
        ("load_backbone", None, None, Plan()),
        ("learn_plainly", None, None, None),
        ("invert_plainly", None, None, None),
        ("generate", False, None, None),
        ("ddim_reconstruct", False, None, None),
    }
    fast, slow = (road.done["invert"].json("invert.json") for road in roads)
    for name in ("psnr_db", "latent_mse", "plain_ddim_latent_mse"):
        assert fast[name] == pytest.approx(slow[name], rel=1e-3)
    folders = [road.done["synthesize"].path for road in roads]
    files = sorted(file.relative_to(folders[0]) for file in folders[0].rglob("*.png"))
    assert len(files) == 16
    for file in files:
        one, other = (np.asarray(Image.open(folder / file)).astype(int) for folder in folders)
        assert abs(one - other).max() <= 1


def test_a_student_trained_without_savings_is_the_same_to_rounding(forge_inputs, tmp_path, two_cores, monkeypatch):
    seen, more = [], "distill.dtype='float32'"
    watch(monkeypatch, train, "train_student", seen)
    histories = []
    for how in ("fast", "plain"):
        road = road_for(forge_inputs, tmp_path / how, f"speed.training='{how}'", more)
        advance(road, "distill")
        histories.append(road.done["distill"].json("distill.json")["histories"])
        assert all((given["look"] is None) == (how == "fast") for _, given in seen)
        seen.clear()
    fast, plain = ({name: [epoch["loss"] for epoch in one] for name, one in made.items()} for made in histories)
    assert fast.keys() == plain.keys() >= {"support-hard", "support-kd", "tint-teacher"}
    for name, losses in fast.items():
        assert losses == pytest.approx(plain[name], rel=1e-3), name


def watch(monkeypatch, module, name, seen):
    """Have the keyword arguments of each call of module.name in ``seen``."""
    work = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **how: seen.append((name, how)) or work(*given, **how))


def test_openvino_is_asked_by_both_hands_at_once(forge_inputs, tmp_path, two_cores, monkeypatch):
    import openvino as ov

    opened = []
    compile_model = ov.Core.compile_model

    def watched(core, model, device, how):
        opened.append(how)
        return compile_model(core, model, device, how)

    monkeypatch.setattr(ov.Core, "compile_model", watched)
    monkeypatch.setattr(engine, "granted_cores", lambda: 2)
    road = road_for(forge_inputs, tmp_path, "speed.engine='openvino'")
    assert road.backbone.engine.name == "openvino"
    advance(road, "synthesize")
    assert [(how["NUM_STREAMS"], how["INFERENCE_NUM_THREADS"]) for how in opened] == [(2, 2)]


def contents(road):
    """File -> sha256 of all that the finished stages hold."""
    manifests = {stage: json.loads((one.path / "manifest.json").read_text()) for stage, one in road.done.items()}
    return {f"{stage}/{one['path']}": one["sha256"] for stage, m in manifests.items() for one in m["files"]}
