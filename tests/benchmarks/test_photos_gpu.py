"""benchmarks/photos_gpu.py, on a processor: what is carried there and back, and what is told of the training."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyforge.embedded.network import load_teacher_network


@pytest.fixture
def gpu(script):
    return script("photos_gpu")


def photos_in(root, names, each=3, size=80):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


def test_parts_hold_small_images_of_the_classes_that_may_be_trained_on(gpu, tmp_path, monkeypatch):
    root = photos_in(tmp_path / "data", ["apple", "beetle", "lion"])
    (root / "apple" / "broken.jpg").write_bytes(b"no image")
    monkeypatch.setattr(gpu, "PART_BYTES", 25_000)
    gpu.pack([root], tmp_path / "parts")
    found = {}
    for part in sorted((tmp_path / "parts").iterdir()):
        assert part.stat().st_size <= 25_000
        with tarfile.open(part) as archive:
            found |= {one.name: Image.open(archive.extractfile(one)).size for one in archive.getmembers()}
    assert {name.split("/")[0] for name in found} == {"apple", "beetle"}, "a lion is a test class of miniImageNet"
    assert list(found.values()) == [(64, 64)] * 6
    assert len(list((tmp_path / "parts").iterdir())) > 1


def test_pieces_are_put_together_unless_one_is_changed(gpu, tmp_path, monkeypatch):
    out, pieces = tmp_path / "out", tmp_path / "pieces"
    for name in ("backbone/unet", "teacher", "students/conv4"):
        (out / name).mkdir(parents=True)
        (out / name / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(9_000))
    (out / "classes.txt").write_text("apple\t\tteacher\n")
    monkeypatch.setattr(gpu, "PIECE_BYTES", 10_000)
    gpu.split(out, pieces)
    assert len(list(pieces.glob("weights.*"))) > 1
    gpu.join(pieces, tmp_path / "here")
    for name in ("teacher", "students/conv4"):
        file = Path(name) / "model.safetensors"
        assert (out / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    (pieces / "weights.001").write_bytes(b"cut short")
    with pytest.raises(SystemExit, match="is missing or changed"):
        gpu.join(pieces, tmp_path / "again")


def test_a_training_that_stops_before_its_end_is_told_so(gpu, tmp_path, capsys):
    parts, out = tmp_path / "parts", tmp_path / "out"
    parts.mkdir()
    process = gpu.start(parts, out, 0.1, "cpu", [])
    gpu.watch(out, 0)
    assert capsys.readouterr().out.endswith("under way\n")
    with pytest.raises(SystemExit, match="a training is under way there"):
        gpu.start(parts, out, 0.1, "cpu", [])
    gpu.watch(out, 120)
    assert "no class folders" in (told := capsys.readouterr().out)
    assert told.endswith("stopped before its end: start again to go on\n")
    assert process.wait() == 1


def test_a_student_is_trained_at_one_size(gpu, tmp_path):
    with pytest.raises(SystemExit, match="each student's weights have one place"):
        gpu.train(tmp_path, tmp_path / "out", 0.1, "cpu", [("conv4", "32", "1"), ("conv4", "64", "1")])


@pytest.mark.slow
def test_models_trained_there_come_back(gpu, tmp_path, capsys):
    root = photos_in(tmp_path / "data", ["apple", "clock", "train"], each=8)
    gpu.pack([root], tmp_path / "parts")
    process = gpu.start(tmp_path / "parts", tmp_path / "out", 0.5, "cpu", [("conv4", "16", "2")])
    gpu.watch(tmp_path / "out", 1_800)
    assert capsys.readouterr().out.endswith("finished\n")
    assert process.wait() == 0
    gpu.split(tmp_path / "out", tmp_path / "pieces")
    gpu.join(tmp_path / "pieces", tmp_path / "photos")
    assert load_teacher_network(tmp_path / "photos" / "teacher")[1]["embedding_dim"] == 256
    assert (tmp_path / "photos" / "backbone" / "unet").is_dir()
    assert (tmp_path / "photos" / "students" / "conv4" / "start.json").is_file()
