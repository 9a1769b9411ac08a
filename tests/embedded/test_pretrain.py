"""Pretraining: the class rules, the drawing of instances, the maths, and kill-and-resume equality of every part."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("scipy")

from PIL import ImageFont  # noqa: E402

from tinyforge.embedded.pretrain import autoencoder, captions, export, fonts, glyphs, loop, omniglot, teacher, unet  # noqa: E402
from tinyforge.embedded.pretrain.design import DESIGNS, LETTER_TEMPLATES  # noqa: E402
from tinyforge.embedded.pretrain.source import glyph_source  # noqa: E402
from tinyforge.embedded.pretrain.swap import swap  # noqa: E402

LETTERS = "ABCEHKRSTXYZ"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool() -> glyphs.Pool:
    """Twelve capitals of Pillow's own font, each at four sizes."""
    bitmaps, labels = [], []
    for size in (40, 56, 72, 88):
        font = ImageFont.load_default(size)
        for label, char in enumerate(LETTERS):
            bitmap = fonts.draw(font, char)
            assert bitmap is not None
            bitmaps.append(bitmap)
            labels.append(label)
    stack = np.stack(bitmaps)
    lines = glyphs.skeleton(stack.reshape(-1, 48, 2, 48, 2).mean((2, 4)) > 100)
    fields = np.stack([glyphs.distance_fields(b, line) for b, line in zip(stack, lines, strict=True)])
    return glyphs.Pool(
        torch.from_numpy(fields),
        torch.ones(len(fields), dtype=torch.bool),
        torch.tensor(labels),
        tuple(f"letter{c.lower()}" for c in LETTERS),
        tuple(LETTERS),
    )


def test_no_candidate_is_a_number():
    for char in "0123456789²½①一二三十Ⅷ٣३๕":
        assert not fonts.allowed(char), char
    chosen = fonts.candidates()
    assert len(chosen) == len(set(chosen)) > 1000
    assert all(fonts.allowed(c) for c in chosen)
    assert {"a", "Z", "б", "あ", "&"} <= set(chosen)


def test_skeleton_of_a_bar_is_a_line():
    image = np.zeros((1, 48, 48), bool)
    image[0, 10:38, 20:27] = True
    line = glyphs.skeleton(image)[0]
    assert line.any()
    assert (line <= image[0]).all()
    assert line[16:32].sum(1).max() == 1


def test_strokes_are_parsed_and_redrawn():
    strokes = omniglot.parse("START\n10,-10,0\n10,-90,10\nBREAK\n10,-50,20\n60,-50,30\nBREAK\n")
    assert [s.shape for s in strokes] == [(2, 2), (2, 2)]
    picture = omniglot.draw(strokes)
    rows, _columns = np.nonzero(picture)
    assert np.ptp(rows) in range(78, 82)
    assert picture.shape == (96, 96)
    again = omniglot.another_hand(strokes, np.random.default_rng(0), strength=0.0)
    assert all(np.allclose(a, b) for a, b in zip(strokes, again, strict=True))
    assert omniglot.name_of("Latin/character02") == "b"
    assert omniglot.name_of("Early_Aramaic/character01") == "omniglotearlyaramaicaa"


def test_instances_are_bounded_seeded_and_varied(pool):
    rows = torch.arange(24)
    first, again, other = (glyphs.instances(pool, rows, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (24, 1, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    light = glyphs.instances(pool, rows, torch.Generator().manual_seed(3), dark_share=0.0)
    dark = glyphs.instances(pool, rows, torch.Generator().manual_seed(3), dark_share=1.0)
    assert light.mean() < 0.5 < dark.mean()
    filled = (light > 0.3).flatten(1).any(1)
    assert filled.all()


def test_pool_is_cached_without_pickle(pool, tmp_path):
    glyphs.save_pool(pool, tmp_path)
    back = glyphs.load_pool(tmp_path)
    assert torch.equal(back.fields, pool.fields)
    assert back.names == pool.names


def test_every_name_is_one_token(tmp_path):
    names = ["latinsmalllettera", "latinsmallletterb", "hiraganalettera"]
    tokenizer = captions.train_tokenizer(names, tmp_path)
    for word in [*names, *captions.GENERIC, "photo"]:
        assert len(tokenizer(word).input_ids) == 3, word
    again = captions.train_tokenizer(names[::-1], tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    ids = captions.caption_ids(tokenizer, names, LETTER_TEMPLATES)
    assert ids.shape == (5, len(LETTER_TEMPLATES), captions.LENGTH)
    assert tokenizer.unk_token_id not in tokenizer("quixotic Zebra 7?!").input_ids[1:-1]


def test_every_position_after_the_name_says_which(tmp_path):
    names = [f"name{chr(97 + i)}{chr(97 + j)}" for i in range(4) for j in range(4)]
    tokenizer = captions.train_tokenizer(names, tmp_path)
    torch.manual_seed(0)
    text = captions.text_encoder(tokenizer)
    prototypes = torch.randn(16, 64)
    prototypes[1] = prototypes[0] + 0.1 * torch.randn(64)
    codes = captions.prototype_codes(prototypes)
    assert codes.shape == (16, 127)
    assert (codes[0] - codes[1]).norm() < 0.6 * (codes[0] - codes[2]).norm()
    captions.name_classes(text, tokenizer, names, codes)
    context = unet.contexts(text, captions.caption_ids(tokenizer, names, LETTER_TEMPLATES))[:16, 0]
    spread = context.std(0).mean(-1)
    assert spread[:5].max() < 1e-5, "a photo of an"
    assert spread[5:].min() > 0.4, "the name and all after it"
    assert not any(p.requires_grad for p in text.parameters())


def test_min_snr_and_noise():
    alphas = torch.tensor([0.99, 0.5, 0.01])
    assert torch.allclose(unet.min_snr(alphas), torch.tensor([5 / 99, 1.0, 8.0]), atol=1e-4)
    z, noise = torch.ones(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    assert torch.allclose(unet.add_noise(z, noise, alphas).flatten(), alphas.sqrt())


def test_prototype_logits_are_scaled_cosines():
    support = torch.eye(3)[:, None] * 7
    assert torch.allclose(teacher.prototype_logits(support, torch.eye(3) * 2), 10 * torch.eye(3))


def _parts(source, folder):
    """Each part as (model factory, loss, plan arguments), at its smallest."""
    generous = {"warmup": 1, "save_every": 2, "log_every": 1}

    def classifier():
        torch.manual_seed(0)
        from tinyforge.embedded.network import GlyphNet

        return teacher.CosineClassifier(GlyphNet((8, 8), 1, 16), len(source.names), 16)

    def vae():
        torch.manual_seed(0)
        return autoencoder.Reconstruction(autoencoder.build(32, (8, 8, 8)))

    tokenizer = captions.train_tokenizer(list(source.names), folder / "tokenizer")

    def denoiser():
        torch.manual_seed(0)
        return unet.Denoiser(unet.build(8, (16, 32), 32))

    def draw(part):
        return lambda labels, gen: source.draw(labels, gen, part)

    latents = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    labels = torch.arange(16) % len(source.names)
    torch.manual_seed(0)
    ids = captions.caption_ids(tokenizer, list(source.names), LETTER_TEMPLATES)
    context = unet.contexts(captions.text_encoder(tokenizer, 32, 1), ids)
    return {
        "teacher": (
            classifier,
            teacher.loss_function(draw("teacher"), source.weights, teacher.Stage(2, 12, 4, 1), lambda x: x),
        ),
        "autoencoder": (vae, autoencoder.loss_function(draw("autoencoder"), source.weights, 4)),
        "unet": (denoiser, unet.loss_function(latents, labels, context, 4)),
    }, generous


@pytest.mark.parametrize("part", ["teacher", "autoencoder", "unet"])
def test_a_stopped_run_ends_bit_equal(part, pool, tmp_path):
    parts, settings = _parts(glyph_source(pool), tmp_path)
    make, loss_of = parts[part]
    plan = loop.Plan(steps=4, lr=1e-3, **settings)
    whole = loop.train(make(), loss_of, plan, tmp_path / "whole")

    def stopping(model, step, gen):
        if step == 3:
            raise KeyboardInterrupt
        return loss_of(model, step, gen)

    with pytest.raises(KeyboardInterrupt):
        loop.train(make(), stopping, plan, tmp_path / "stopped")
    resumed = loop.train(make(), loss_of, plan, tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == ["state.json", "state.safetensors"]


def test_only_a_run_of_the_same_settings_is_continued(tmp_path):
    def train(width=2, **settings):
        plan = loop.Plan(**{"steps": 2, "lr": 1e-3, "seed": 0, "save_every": 2, **settings})
        loop.train(torch.nn.Linear(width, 1), lambda model, step, gen: model.weight.sum(), plan, tmp_path / "unet")
        return json.loads((tmp_path / "unet" / "state.json").read_text())["step"]

    assert (train(), train(steps=4, save_every=1, log_every=1)) == (2, 4)
    assert train(steps=3) == 4, "the steps that were cut are done"
    for settings, message in (
        ({"seed": 1}, "seed 0, now 1"),
        ({"lr": 5e-4, "dtype": "bfloat16"}, "lr 0.001, now 0.0005; dtype float32, now bfloat16"),
        ({"batch": 64}, "batch 0, now 64"),
        ({"learns_from": "another autoencoder"}, "learns from , now another autoencoder"),
        ({"width": 3}, "a network of another size"),
    ):
        with pytest.raises(ValueError, match=f"unet: began with other settings .{message}.; choose another --out"):
            train(**settings)


def test_two_steps_of_everything_export_a_usable_folder(pool, tmp_path):
    from diffusers import StableDiffusionPipeline

    from tinyforge.embedded.network import load_teacher_network
    from tinyforge.embedded.pretrain import train_domain

    steps = {"teacher": 2, "autoencoder": 2, "unet": 2}
    small = replace(DESIGNS["glyphs"], batch={"teacher": 12, "autoencoder": 2, "unet": 2}, latents=8)
    out = train_domain(glyph_source(pool), tmp_path, small, steps=steps)
    pipeline = StableDiffusionPipeline.from_pretrained(out / "backbone", safety_checker=None, dtype=torch.float32)
    assert pipeline.tokenizer.model_max_length == captions.LENGTH
    network, config = load_teacher_network(out / "teacher")
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, config["embedding_dim"])
    assert (out / "classes.txt").read_text().startswith("lettera\tA\tteacher, backbone\n")


def test_replacing_a_folder_keeps_its_settings(tmp_path):
    folder = tmp_path / "teacher"
    export.replace(folder, lambda place: (place / "old").write_text("old"))
    (folder / "tinyforge.json").write_text("{}")
    export.replace(folder, lambda place: (place / "new").write_text("new"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "teacher", "tinyforge.json"]


def stop(place):
    raise KeyboardInterrupt


def stop_before_rename(number, call, *arguments):
    """The process is killed inside the call, before its number-th rename."""
    rename, numbers = Path.rename, itertools.count(1)

    def stopping(self, target):
        if next(numbers) == number:
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", stopping)
        with pytest.raises(KeyboardInterrupt):
            call(*arguments)


@pytest.mark.parametrize(("number", "newest"), [(1, 1), (2, 2)])
def test_a_checkpoint_outlives_a_kill_at_any_moment(tmp_path, number, newest):
    folder, tensors = tmp_path / "unet", {"x": torch.zeros(1)}
    loop.save_checkpoint(folder, tensors, {"step": 1})
    stop_before_rename(number, loop.save_checkpoint, folder, tensors, {"step": 2})
    with pytest.raises(KeyboardInterrupt):
        swap(folder, stop)
    assert loop.load_checkpoint(folder)[1] == {"step": newest}


@pytest.mark.parametrize("number", [1, 2])
def test_the_settings_of_a_folder_outlive_a_kill_at_any_moment(tmp_path, number):
    folder = tmp_path / "teacher"
    export.replace(folder, lambda place: (place / "old").write_text("old"))
    (folder / "tinyforge.json").write_text("{}")
    stop_before_rename(number, export.replace, folder, lambda place: (place / "new").write_text("new"))
    with pytest.raises(KeyboardInterrupt):
        export.replace(folder, stop)
    export.replace(folder, lambda place: (place / "newer").write_text("newer"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["newer", "teacher", "tinyforge.json"]
