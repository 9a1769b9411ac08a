"""The photo domain: which classes it may see, how it reads folders, and its way from folders to a usable stack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from click.testing import CliRunner  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tinyforge.cli import program  # noqa: E402
from tinyforge.embedded import pretrain  # noqa: E402
from tinyforge.embedded.network import build  # noqa: E402
from tinyforge.embedded.pretrain import (  # noqa: E402
    DESIGNS,
    autoencoder,
    captions,
    held_out_measures,
    photos,
    teacher,
    train_domain,
)

SPLITS = Path(photos.__file__).parents[2] / "fewshot" / "splits"


def novel_classes():
    """The validation and test classes of CIFAR-FS and miniImageNet, from the lists that `evaluate` uses."""
    lists = (SPLITS / "cifar-fs.txt", SPLITS / "mini-imagenet.txt")
    return [line for file in lists for line in file.read_text().partition("[val]")[2].split() if line[0] != "["]


def write_class(folder, colour, count=8, size=64):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    for i in range(count):
        noise = rng.integers(-20, 20, (size, size, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def roots(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_class(first / "n02123394" / "images", (200, 40, 40))  # Persian cat, a level deeper as in Tiny-ImageNet
    write_class(first / "orange", (220, 140, 30), size=32)
    write_class(second / "orange", (220, 140, 30))
    write_class(first / "My Garden!", (40, 200, 40))
    write_class(first / "beetle", (20, 20, 20))
    write_class(first / "n02129165", (180, 160, 90))  # lion: miniImageNet test
    return [first, second]


def test_no_novel_class_is_trained_on():
    known = photos.known_folders()
    assert len(novel_classes()) == 36 + 36
    for folder in novel_classes():
        assert known[folder].role in ("val", "excluded"), folder
        assert known[folder].why, folder
    for kin in ("n02165456", "n03179701", "n02437312", "lion", "wolf", "bus", "girl"):
        assert known[kin].role == "excluded", f"{kin} contains or is contained in a novel class"
    novel = {known[folder].name for folder in novel_classes()}
    assert not novel & {row.name for row in known.values() if row.role == "train"}


def test_folders_of_one_name_are_one_class(roots):
    groups = photos.listed(roots)
    assert {key: len(files) for key, files in photos.used(groups).items()} == {
        ("train", "mygarden"): 8, ("train", "orange"): 16, ("train", "persiancat"): 8, ("val", "beetle"): 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no class folders"):
        photos.listed([roots[0] / "orange"])


def test_a_pool_leaves_out_what_it_cannot_read(roots, tmp_path):
    (roots[0] / "orange" / "broken.png").write_bytes(b"not an image")
    source = photos.load_photos(tmp_path / "pool", roots)
    assert source.counts.tolist() == [8, 16, 8, 8]
    assert source.held_out == [source.names.index("beetle")]
    drawn = source.draw(torch.tensor([source.names.index("persiancat")] * 3), torch.Generator().manual_seed(0), "unet")
    assert drawn.shape == (3, 3, 64, 64)
    assert drawn.mean((0, 2, 3)).tolist() == pytest.approx([200 / 255, 40 / 255, 40 / 255], abs=0.02)


def test_what_benchmarks_test_on_is_told_and_trained_on_only_when_asked_for(roots, tmp_path):
    told = []
    photos.ensure_pool(roots, tmp_path / "pool", tell=told.append)
    assert told == [
        "not trained on, as few-shot benchmarks test on them (--every-class does): "
        "only measured on: beetle; left out: lion"
    ]
    every = photos.load_photos(tmp_path / "every", roots, every_class=True)
    assert sorted(every.names) == ["beetle", "lion", "mygarden", "orange", "persiancat"]
    assert every.held_out == []
    with pytest.raises(ValueError, match="was made from other files"):
        photos.ensure_pool(roots, tmp_path / "every")


def test_folders_that_leave_nothing_to_train_on_say_so(roots, tmp_path):
    write_class(tmp_path / "lions" / "lion", (180, 160, 90))
    with pytest.raises(ValueError, match=r"no class to train on; .* \(--every-class does\): left out: lion"):
        photos.ensure_pool([tmp_path / "lions"], tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_views_stay_images_and_repeat_by_seed():
    x = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for part, view in photos.VIEWS.items():
        once, again = (view(x, torch.Generator().manual_seed(2)) for _ in range(2))
        assert torch.equal(once, again)
        assert 0 <= once.min() <= once.max() <= 1
        assert once.shape[-1] == (32 if "half" in part else 64)
    whole = photos.varied(x, torch.Generator().manual_seed(2), 64, least=1.0)
    assert whole.std() > 0.1


def of_numbers(*counts):
    """A source whose classes are held out and whose n-th image is grey n / 255."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)
    classes = [{"role": "val", "name": f"class{c}"} for c in range(len(counts))]
    return photos.photo_source(classes, labels, 4, lambda rows: pixels[rows])


def test_held_out_images_are_drawn_once_before_any_comes_again():
    source, gen = of_numbers(40, 6), torch.Generator().manual_seed(0)
    drawn = source.draw(torch.tensor([0, 1] * 12), gen, "held_out")[:, 0, 0, 0].mul(255).round().int()
    first, second = (drawn[c::2].tolist() for c in (0, 1))
    assert len(set(first)) == 12
    assert max(first) < 40
    assert sorted(second[:6]) == sorted(second[6:]) == [40, 41, 42, 43, 44, 45]


def test_no_query_of_the_held_out_measures_is_one_of_its_supports(monkeypatch):
    seen = []

    def few_shot(network, stacks, *_, **how):
        seen.append([len(stack.flatten(1).unique(dim=0)) for stack in stacks])
        return torch.full((how["episodes"],), 0.5)

    monkeypatch.setattr(teacher, "few_shot", few_shot)
    assert held_out_measures(None, of_numbers(100, 14, 15, 40), 3).keys() == {"3-way 1-shot", "3-way 5-shot"}
    assert seen == [[100, 15, 40]] * 2, "a class of 14 is too small for five supports and ten queries"
    assert held_out_measures(None, of_numbers(100, 14, 15, 40), 4) == {}


SMALL = replace(
    DESIGNS["photos"], batch={"teacher": 12, "autoencoder": 2, "unet": 2}, latents=8, each=4,
    network={"widths": [8, 8], "depth": 1, "embedding_dim": 16}, vae_widths=(8, 8, 8, 8), unet_widths=(16, 32),
    half_size=0.5,
)  # fmt: skip


def trained(roots, out, steps=None, **how):
    source = photos.load_photos(out / "pool", roots)
    steps = dict.fromkeys(SMALL.batch, 2) | (steps or {})
    return train_domain(replace(source, counts=source.counts * 10), out, SMALL, steps=steps, **how)


def test_any_folder_name_is_one_token_of_its_own(tmp_path):
    folders = [
        "class1",
        "class2",
        "001.Black_footed_Albatross",
        "n02085620",
        "тигр",
        "тигрёнок",
        "虎",
        "Käse",
        "²",
        "--",
    ]
    names = [photos.word_of(folder) for folder in folders]
    assert names[0] == "classone"
    assert names[-3:] == ["kase", "two", "thing"]
    assert len(set(names)) == len(folders)
    tokenizer = captions.train_tokenizer(names, tmp_path)
    ids = [tokenizer(name, add_special_tokens=False).input_ids for name in names]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(folders)
    with pytest.raises(ValueError, match="letters a to z: class1"):
        captions.train_tokenizer(["class1", "fish"], tmp_path)


def test_two_steps_of_everything_export_a_usable_folder(roots, tmp_path):
    from diffusers import StableDiffusionPipeline

    out = trained(roots, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(out / "backbone", safety_checker=None, dtype=torch.float32)
    assert pipeline.vae.config.latent_channels == pipeline.unet.config.in_channels == 8
    assert "beetle\tval\theld out\n" in (out / "classes.txt").read_text()


def test_parts_trained_one_by_one_are_those_of_one_run(roots, tmp_path):
    whole = trained(roots, tmp_path / "whole")
    for parts in (("autoencoder",), ("teacher",), ("unet",)):
        single = trained(roots, tmp_path / "single", parts=parts)
        assert (single / "backbone").is_dir() == (parts == ("unet",))
    for file in ("teacher/model.safetensors", "backbone/unet/diffusion_pytorch_model.safetensors"):
        assert (single / file).read_bytes() == (whole / file).read_bytes()


def test_a_run_that_measures_its_steps_gives_the_weights_of_one_that_knows_them(roots, tmp_path):
    source = photos.load_photos(tmp_path / "pool", roots)
    how = {"design": SMALL, "parts": ("teacher",), "minutes": {"teacher": 1e-9}}
    measured = train_domain(source, tmp_path / "measured", **how)
    known = train_domain(source, tmp_path / "known", steps={"teacher": 10}, **how)
    assert (measured / "work" / "teacher.steps").read_text() == "10"
    file = "teacher/model.safetensors"
    assert (measured / file).read_bytes() == (known / file).read_bytes()


def test_a_teachers_minutes_are_shared_out_by_what_its_two_sizes_take(roots, tmp_path, monkeypatch):
    source, clock = photos.load_photos(tmp_path / "pool", roots), [0.0]

    def draw(labels, gen, part):
        clock[0] += {"teacher, half size": 1.0, "teacher": 3.0}.get(part, 0.0)
        return source.draw(labels, gen, part)

    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    out = train_domain(replace(source, draw=draw), tmp_path, SMALL, parts=("teacher",), minutes={"teacher": 1.0})
    assert (out / "work" / "teacher.steps").read_text() == "30"


def test_the_teachers_eyes_tell_a_blur_from_a_brightening():
    torch.manual_seed(0)
    seer = build("embedded:GlyphNet", SMALL.network).eval()
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    blurred, brighter = torch.nn.functional.avg_pool2d(x, 5, 1, 2), (x + 0.1).requires_grad_()
    assert autoencoder.perceptual(seer, x, x) == 0
    assert autoencoder.perceptual(seer, blurred, x) > 2 * autoencoder.perceptual(seer, brighter, x)
    autoencoder.perceptual(seer, brighter, x).backward()
    assert brighter.grad.abs().sum() > 0


def test_training_goes_on_from_earlier_weights(roots, tmp_path):
    first = trained(roots, tmp_path / "first")
    part = "backbone/{}/diffusion_pytorch_model.safetensors"

    def far(folder, name):
        old, new = (load_file(place / part.format(name)) for place in (first, folder))
        return max(float((old[k].float() - new[k].float()).abs().max()) for k in old)

    later = trained(roots, tmp_path / "later", parts=("autoencoder", "unet"), seed=1, initial=first)
    other = trained(roots, tmp_path / "other", parts=("autoencoder", "unet"), seed=1)
    assert (later / "teacher/model.safetensors").read_bytes() == (first / "teacher/model.safetensors").read_bytes()
    for name in ("vae", "unet"):
        assert 0 < far(later, name) < 0.02 < 0.1 < far(other, name)
    words = "backbone/text_encoder/model.safetensors"  # by which the UNet that goes on has learned the names
    assert (later / words).read_bytes() == (first / words).read_bytes() != (other / words).read_bytes()
    vae = later / "work" / "autoencoder"
    vae.rename(vae.with_name("autoencoder.old"))  # as a kill at the end of a checkpoint leaves it
    with pytest.raises(ValueError, match="give the same --from as then"):
        trained(roots, later, parts=("unet",), seed=1)
    before = (later / part.format("vae")).read_bytes()
    again = trained(roots, later, parts=("unet",), seed=1, initial=first)
    assert (again / part.format("vae")).read_bytes() == before


def test_weights_to_go_on_from_must_be_there_and_fit(roots, tmp_path):
    def refused(folder):
        arguments = ["--data", roots[0], "--out", tmp_path / "out", "--minutes", 0.01, "--part", "autoencoder"]
        result = CliRunner().invoke(program, ["pretrain", "photos", "--from", str(folder), *map(str, arguments)])
        assert result.exit_code == 2
        return result.output

    assert "no teacher/model.safetensors" in refused(tmp_path)
    small = trained(roots, tmp_path / "small")
    assert "not of the size to be trained here" in refused(small)
    (small / "backbone/text_encoder/model.safetensors").unlink()
    assert "no backbone/text_encoder/model.safetensors; --from takes a folder" in refused(small)


def test_a_run_of_another_design_is_not_continued(roots, tmp_path):
    out = trained(roots, tmp_path, parts=("teacher",))
    (out / "pool").rename(out / "work" / "pool")
    (out / "work" / "dtype").write_text("float16")  # kept from its beginning, whatever this machine is fast in
    result = CliRunner().invoke(program, ["pretrain", "photos", "--part", "teacher", "--seed", "1", "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert "work/teacher: began with other settings (seed 0, now 1; dtype float32, now float16; " in result.output
    assert "a network of another size); choose another --out" in result.output


@pytest.mark.parametrize(("longer", "refused"), [("teacher", "autoencoder"), ("autoencoder", "unet")])
def test_a_part_is_not_continued_on_what_another_network_tells(longer, refused, roots, tmp_path):
    trained(roots, tmp_path)
    with pytest.raises(ValueError, match=f"work/{refused}: began with other settings .learns from [0-9a-f]+, now"):
        trained(roots, tmp_path, steps={longer: 3})


def test_latents_are_encoded_once_for_each_autoencoder(roots, tmp_path):
    source, file = photos.load_photos(tmp_path / "pool", roots), tmp_path / "latents.safetensors"
    calls = []

    def draw(labels, gen):
        calls.append(len(labels))
        return source.draw(labels, gen, "unet")

    def latents(seed):
        torch.manual_seed(seed)
        vae = autoencoder.build(64, (8, 8, 8, 8), 8)
        return autoencoder.cached_latents(vae, draw, 3, 6, 0, file)

    first, again = latents(0), latents(0)
    assert calls == [6]
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, again, strict=True))
    assert first[0].float().std() == pytest.approx(1, abs=0.01)
    latents(1)
    assert calls == [6, 6]


def test_latents_in_8_bits_are_within_half_a_step_of_what_they_were():
    latents = (torch.randn(40, 2, 8, 8) * torch.tensor([0.1, 5.0]).reshape(1, 2, 1, 1) + 3).half()
    kept = autoencoder.in_8_bits(latents)
    error = (kept["levels"] * kept["step"] + kept["low"] - latents.float()).abs()
    assert kept["levels"].dtype == torch.uint8
    assert (error <= kept["step"] * 0.501).all()
    assert (error.mean((0, 2, 3)) < torch.tensor([0.002, 0.1])).all()
