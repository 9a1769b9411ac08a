import shutil

import pytest
import torch
from huggingface_hub import constants

from tinyforge.diffusion.backbone import load_backbone, save_backbone
from tinyforge.diffusion.sources import (
    ALIASES,
    cached_snapshot,
    choose_backbone,
    fingerprint,
    licence_of,
    locate,
    weight_files,
    weight_variants,
)
from tinyforge.errors import MissingError, RecipeError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("domain") / "glyphs" / "backbone"
    save_backbone(tiny, path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, laid out and read by huggingface_hub itself."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(hub_cache, folder, repository: str):
    home = hub_cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT)
    return shutil.copytree(folder, home / "snapshots" / COMMIT)


def test_auto_is_the_embedded_one_without_a_gpu(folder, hub_cache):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    source, reason = choose_backbone("auto", domain_folder=folder, offline=False)
    assert source == str(folder)
    assert "no CUDA device" in reason


def test_auto_on_a_gpu_host_takes_the_folder_given_then_the_hub_cache(folder, copy, hub_cache, monkeypatch):
    def auto(**given):
        return choose_backbone("auto", domain_folder=folder, offline=True, **given)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # asked, and nothing else done with it
    assert auto()[0] == str(folder)
    assert "not in the hub cache" in auto()[1]
    put_in_cache(hub_cache, folder, ALIASES["sd15"])
    assert auto()[0] == ALIASES["sd15"]
    assert auto(auto_folder=str(copy))[0] == str(copy)
    with pytest.raises(MissingError, match="no folder nowhere"):
        auto(auto_folder="nowhere")


def test_names_of_the_embedded_one(folder):
    for name in ("embedded", "glyphs"):
        assert choose_backbone(name, domain_folder=folder, offline=True)[0] == str(folder)


def test_a_folder_is_itself(folder, copy):
    assert choose_backbone(str(copy), domain_folder=folder, offline=True)[0] == str(copy)


def test_a_hub_name_that_is_not_here_may_be_downloaded_or_not(folder, hub_cache):
    source, reason = choose_backbone("sd15", domain_folder=folder, offline=False)
    assert source == ALIASES["sd15"]
    assert "downloaded" in reason
    for call in (
        lambda: choose_backbone("sd15", domain_folder=folder, offline=True),
        lambda: locate("sd15", offline=True),
    ):
        with pytest.raises(MissingError, match="--offline forbids the download; run once without"):
            call()


def test_a_near_miss_is_named(folder):
    with pytest.raises(RecipeError, match="did you mean 'sd15'"):
        choose_backbone("sd1.5", domain_folder=folder, offline=True)


def test_an_absent_domain_folder_is_missing(tmp_path):
    with pytest.raises(MissingError, match="tinyforge pretrain"):
        choose_backbone("embedded", domain_folder=tmp_path / "glyphs/backbone", offline=True)
    with pytest.raises(MissingError, match="no backbone folder"):
        locate(tmp_path / "glyphs/backbone", offline=True)


def test_the_hub_cache_is_used_without_the_network(folder, hub_cache):
    repository = ALIASES["sd15"]
    put_in_cache(hub_cache, folder, repository)
    source, reason = choose_backbone("sd15", domain_folder=folder, offline=True)
    assert (source, "hub cache" in reason) == (repository, True)
    found = locate("sd15")
    assert found.fingerprint == f"{repository}@{COMMIT}"
    assert (found.name, found.licence) == (repository, "creativeml-openrail-m")
    assert load_backbone("sd15", offline=True).fingerprint == found.fingerprint


def test_an_incomplete_snapshot_does_not_count(folder, hub_cache):
    snapshot = put_in_cache(hub_cache, folder, "someone/model")
    assert cached_snapshot("someone/model") == snapshot
    (snapshot / f"{UNET}.safetensors").unlink()
    assert cached_snapshot("someone/model") is None
    with pytest.raises(MissingError, match="someone/model is not in the hub cache"):
        locate("someone/model", offline=True)


def test_weight_files_of_every_naming():
    names = [
        f"{UNET}.safetensors", f"{UNET}.fp16.safetensors", f"{UNET}.non_ema.safetensors", f"{UNET}.bin",
        f"{UNET}-00001-of-00002.safetensors", f"{UNET}.fp16-00001-of-00002.safetensors",
        f"{UNET}-00001-of-00002.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert weight_files(names, "unet", None) == [names[4], names[0]]
    assert weight_files(names, "unet", "fp16") == [names[6], names[5], names[1]]


def test_full_precision_unless_fp16_is_preferred():
    both = ["model_index.json"]
    for stem in (UNET, "vae/diffusion_pytorch_model", "text_encoder/model"):
        both += [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    assert set(weight_variants(both, False, "x").values()) == {None}
    assert set(weight_variants(both, True, "x").values()) == {"fp16"}


def test_pickles_are_never_an_alternative(copy):
    (copy / f"{UNET}.safetensors").rename(copy / f"{UNET}.bin")
    with pytest.raises(MissingError, match="only pickle files, which are never loaded"):
        locate(copy)


def test_an_ordinary_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no model_index\.json"):
        locate(tmp_path)


def test_the_fingerprint_follows_what_is_loaded_and_only_that(copy):
    variants = dict.fromkeys(("unet", "vae", "text_encoder"))
    first = fingerprint(copy, variants)
    (copy / "README.md").write_text("hello")
    (copy / "tinyforge.json").write_text("{}")
    (copy / f"{UNET}.fp16.safetensors").write_bytes(b"unused")
    assert fingerprint(copy, variants) == first
    weights = copy / f"{UNET}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = fingerprint(copy, variants)
    assert second != first
    (copy / "scheduler/scheduler_config.json").write_text("{}")
    assert fingerprint(copy, variants) not in (first, second)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ntags:\n- a\nlicense: openrail++\n---\n# Model", "openrail++"),
        ("# Model\nlicense: mit\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_is_read_from_the_card(tmp_path, card, licence):
    if card:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "no JSON object"), ("7", "no JSON object")])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_broken_configuration_is_named(copy, name, text, message):
    (copy / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name}: .*{message}"):
        load_backbone(copy)


def test_a_backbone_without_a_tokenizer_is_told_that(copy):
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(MissingError, match="has no tokenizer"):
        locate(copy)
