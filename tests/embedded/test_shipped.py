"""The shipped weights: present, small enough, loadable with ordinary classes, without digits and novel classes."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import tinyforge.embedded as embedded

torch = pytest.importorskip("torch")
HERE = Path(embedded.__file__).parent
FOLDER = HERE / "glyphs"
MOST_BYTES = {"glyphs": 20 * 2**20, "photos": 64 * 2**20}
both = pytest.mark.parametrize("domain", sorted(MOST_BYTES))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_importing_embedded_does_not_import_torch():
    code = "import sys, tinyforge.embedded as e; e.domains(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_path_and_domains():
    assert embedded.path("glyphs", "backbone") == FOLDER / "backbone"
    card = embedded.domains()["glyphs"]
    assert card["parts"] == ["backbone", "teacher"]
    assert card["image_size"] == 32
    with pytest.raises(ValueError, match="backbone, teacher"):
        embedded.path("glyphs", "student")


@both
def test_size_and_file_kinds(domain):
    files = [p for p in (HERE / domain).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES[domain]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".md", ".png"}


@both
def test_weights_are_half_precision_and_finite(domain):
    from safetensors.torch import load_file

    for file in (HERE / domain).rglob("*.safetensors"):
        for name, value in load_file(file).items():
            if value.is_floating_point():
                assert value.dtype == torch.float16, (file, name)
                assert value.isfinite().all(), (file, name)


def test_no_class_is_a_digit():
    lines = (FOLDER / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 500
    assert len({line.split("\t")[0] for line in lines}) == len(lines)
    for line in lines:
        name, character, parts = line.split("\t")
        assert parts in {"held out", "teacher", "teacher, backbone"}
        assert name.isascii()
        assert name.isalpha()
        for c in unicodedata.normalize("NFKC", character) if len(character) == 1 else "":
            assert unicodedata.category(c)[0] != "N", line
            assert unicodedata.numeric(c, None) is None, line


def test_no_class_of_the_photos_is_a_novel_one():
    from tinyforge.embedded.pretrain.photos import known_folders

    from .test_photos import novel_classes

    known = known_folders()
    novel = {known[folder].name for folder in novel_classes()} | set(novel_classes())
    rows = [line.split("\t") for line in (HERE / "photos" / "classes.txt").read_text(encoding="utf-8").splitlines()]
    trained = {name for name, _, parts in rows if parts != "held out"}
    assert len(trained) > 200
    assert not trained & novel


@both
def test_backbone_is_a_diffusers_folder_and_generates(domain):
    diffusers = pytest.importorskip("diffusers")
    size = embedded.domains()[domain]["image_size"]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        embedded.path(domain, "backbone"), safety_checker=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.prediction_type if hasattr(pipeline.unet.config, "prediction_type") else True
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.vae.config.scaling_factor != pytest.approx(0.18215)
    tokenizer = pipeline.tokenizer
    assert len(tokenizer("a photo of an object").input_ids) == 7
    assert len(tokenizer("a letter, a sign").input_ids) == 7
    assert tokenizer.add_tokens(["<new>"]) == 1
    images = pipeline(
        "a photo of an object",
        num_inference_steps=2,
        height=size,
        width=size,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images.shape == (1, size, size, 3)
    assert images.min() >= 0
    assert images.max() <= 1


def test_latents_have_unit_scale():
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(embedded.path("glyphs", "backbone") / "vae", dtype=torch.float32)
    strokes = torch.full((8, 3, 32, 32), -1.0)
    for i in range(8):
        strokes[i, :, 3:29, 6 + 2 * i : 10 + 2 * i] = 1.0
    with torch.no_grad():
        z = vae.encode(strokes).latent_dist.mean * vae.config.scaling_factor
        back = vae.decode(z / vae.config.scaling_factor).sample
    assert z.shape == (8, 4, 8, 8)
    assert 0.3 < float(z.std()) < 3
    assert float((back - strokes).square().mean()) < 0.1


@both
def test_teacher_loads_and_gives_finite_features(domain):
    from tinyforge.embedded.network import load_teacher_network

    folder = embedded.path(domain, "teacher")
    network, config = load_teacher_network(folder)
    assert config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    x = torch.rand(4, 3, *config["input"]["size"], generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(network(x), dim=-1)
    assert features.shape == (4, config["embedding_dim"])
    assert features.isfinite().all()
    assert torch.allclose(features.norm(dim=-1), torch.ones(4), atol=1e-4)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_a_name_brings_its_own_character():
    """Token ids and embedding rows belong together: a K drawn by name crosses the middle, a C does not."""
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        embedded.path("glyphs", "backbone"), safety_checker=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    letters = {"latincapitalletterk": None, "latincapitalletterc": None}
    for name in letters:
        letters[name] = pipeline(
            [f"a photo of an {name}"] * 8,
            num_inference_steps=8,
            guidance_scale=3.0,
            height=32,
            width=32,
            output_type="np",
            generator=torch.Generator().manual_seed(1),
        ).images.mean(-1)
    k, c = (abs(x - x[:, :1, :1]) for x in letters.values())
    right, middle = (slice(None), slice(12, 20), slice(20, 30)), (slice(None), slice(12, 20), slice(10, 22))
    assert c[right].mean() < c.mean(), "a C is open to the right"
    assert k[middle].mean() > c[middle].mean(), "a K crosses the middle, a C does not"


@pytest.mark.parametrize(("student", "size"), [("conv4", 32), ("timm:lcnet_050", 64)])
def test_the_starting_weights_of_both_students_fit_and_suit_their_size(student, size):
    from tinyforge.distill.start import begin
    from tinyforge.distill.students import build_student
    from tinyforge.recipe import Distill
    from tinyforge.stages.starts import start_of, start_size

    wanted = Distill(student=student, start="photos")
    assert start_size(wanted) == size
    network = begin(build_student(student, 5, input_size=size), start_of(wanted)).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)
