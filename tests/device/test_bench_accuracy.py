from unicodedata import normalize

import pytest

from tinyforge.device.accuracy import bench_accuracy, labelled_images
from tinyforge.device.bundle import load_bundle
from tinyforge.device.folder import BundleFault

from .conftest import CLASSES, colour_picture, encode


@pytest.fixture
def folder(tmp_path):
    """Two of each class; one red picture lies with the blue ones."""
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for seed in range(2):
            (tmp_path / name / f"{seed}.png").write_bytes(encode(colour_picture(label, seed=seed)))
    (tmp_path / "blue/1.png").write_bytes(encode(colour_picture(0)))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "red/.DS_Store").write_text("x")
    return tmp_path


def test_every_variant_on_the_same_images(built_bundle, folder):
    found = bench_accuracy(load_bundle(built_bundle), folder, ["onnx-fp32", "openvino-fp16"])
    assert found["predictions"]["openvino-fp16"] == {
        "names": ["blue/0.png", "blue/1.png", "green/0.png", "green/1.png", "red/0.png", "red/1.png"],
        "labels": [2, 2, 1, 1, 0, 0],
        "predicted": [2, 0, 1, 1, 0, 0],
    }
    assert {name: (one["n"], one["correct"]) for name, one in found["variants"].items()} == {
        "onnx-fp32": (6, 5),
        "openvino-fp16": (6, 5),
    }
    (pair,) = found["pairs"]
    assert (pair["difference"], pair["p"]) == (0.0, 1.0)
    assert pair["low"] < 0 < pair["high"]


def test_what_a_build_passes_over_is_passed_over_here(tmp_path):
    decomposed = normalize("NFD", "Käse")
    for name in (
        f"{decomposed}/a.PNG",
        f"{decomposed}/Thumbs.db",
        "Brot/notes.txt",
        "Brot/deep/b.jpg",
        "Brot/.old/c.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    assert labelled_images(tmp_path, ["Brot", "Käse"]) == [("Brot/deep/b.jpg", 0), (f"{decomposed}/a.PNG", 1)]
    (tmp_path / "Brot" / "d.heic").touch()
    assert len(labelled_images(tmp_path, ["Brot", "Käse"])) == 3, "a picture that cannot be read is told, not left out"


def test_what_is_no_labelled_folder(folder, tmp_path):
    (folder / "violet").mkdir()
    with pytest.raises(BundleFault, match="violet: no class of this bundle, which has red, green, blue"):
        labelled_images(folder, CLASSES)
    with pytest.raises(BundleFault, match="there is no such folder of test images"):
        labelled_images(tmp_path / "absent", CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleFault, match="holds no images"):
        labelled_images(tmp_path / "empty", CLASSES)


def test_all_unusable_images_are_named(built_bundle, folder):
    for name in ("red/a.png", "green/b.png"):
        (folder / name).touch()
    with pytest.raises(BundleFault, match=r"green/b\.png: empty file\nred/a\.png: empty file"):
        bench_accuracy(load_bundle(built_bundle), folder)
