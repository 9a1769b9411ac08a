import json
import shutil
from dataclasses import fields, replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tinyforge.diffusion.architectures import SD15, TINY
from tinyforge.diffusion.backbone import (
    Backbone,
    byte_tokenizer,
    load_backbone,
    noise_levels,
    random_backbone,
    save_backbone,
    tiny_backbone,
)
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import generate
from tinyforge.diffusion.textual_inversion import Concept, learn_concepts
from tinyforge.errors import MissingError, RecipeError, UsageError
from tinyforge.recipe import Invert

from .gaussian import normal

PROMPT = "A photo of an ape"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "tiny"
    save_backbone(tiny, path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def latents(backbone: Backbone, count: int = 2) -> torch.Tensor:
    return normal(count, *backbone.latent_shape).float()


def test_its_sizes(tiny):
    assert (tiny.image_size, tiny.latent_shape, tiny.max_tokens) == (8, (4, 4, 4), 24)
    assert tiny.embed([PROMPT, ""]).shape == (2, 24, 32)
    assert tiny.schedule(5) == [999, 799, 599, 399, 199]
    assert all(torch.diff(tiny.alphas_cumprod) < 0)


def test_a_saved_folder_loads_to_the_same_functions(tiny, folder, images):
    loaded = load_backbone(folder, offline=True)
    z, cond = latents(tiny), tiny.embed([PROMPT, "high"])
    assert torch.equal(loaded.embed([PROMPT, "high"]), cond)
    assert torch.equal(loaded.eps(z, 500, cond), tiny.eps(z, 500, cond))
    assert torch.equal(loaded.encode(images), tiny.encode(images))
    assert torch.equal(loaded.decode(z), tiny.decode(z))
    assert torch.equal(loaded.alphas_cumprod, tiny.alphas_cumprod)
    assert (loaded.name, loaded.final_alpha, loaded.licence) == ("tiny", tiny.final_alpha, "unknown")


def test_encode_is_the_posterior_mean_and_pixels_stay_in_range(tiny, images):
    mean = tiny.vae.encode(2 * images - 1).latent_dist.mean * tiny.vae.config.scaling_factor
    assert torch.equal(tiny.encode(images), mean)
    pixels = tiny.decode(20 * latents(tiny))
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 8\), not \(6, 3, 4, 8\)"):
        tiny.encode(images[:, :, :4])


def test_generation_is_that_of_the_diffusers_pipeline(tiny, folder):
    """With the ordinary null prompt at every step, ``generate`` is Stable Diffusion under DDIM."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, low_cpu_mem_usage=False, local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    pipeline.set_progress_bar_config(disable=True)
    z = latents(tiny, 1)
    theirs = pipeline(
        PROMPT, latents=z, num_inference_steps=5, guidance_scale=3.0, height=8, width=8, output_type="pt"
    ).images
    null = tiny.embed([""])[:, None].expand(1, 5, -1, -1)
    ours = generate(tiny, z, tiny.embed([PROMPT]), null, Invert(num_steps=5, guidance_scale=3.0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


class VelocityUNet(torch.nn.Module):
    """What a v-prediction network with the same knowledge as an eps network would say."""

    def __init__(self, unet: torch.nn.Module, alphas_cumprod: torch.Tensor):
        super().__init__()
        self.unet, self.alphas_cumprod = unet, alphas_cumprod

    def forward(self, z, t, **options):
        (eps,) = self.unet(z, t, **options)
        abar = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return ((eps - (1 - abar).sqrt() * z) / abar.sqrt(),)


@pytest.mark.parametrize("t", [0, 500, 999, torch.tensor([3, 700])])
def test_v_prediction_is_the_eps_path(tiny, t):
    unet = VelocityUNet(tiny.unet, tiny.alphas_cumprod)
    velocity = replace(tiny, unet=unet, prediction_type="v_prediction")
    z, cond = latents(tiny), tiny.embed([PROMPT, ""])
    torch.testing.assert_close(velocity.eps(z, t, cond), tiny.eps(z, t, cond), rtol=1e-4, atol=1e-5)


def test_a_v_prediction_folder_is_read_as_one(tmp_path):
    save_backbone(tiny_backbone(prediction_type="v_prediction"), tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.prediction_type == "v_prediction"
    z, cond = latents(loaded), loaded.embed([PROMPT, ""])
    assert not torch.allclose(loaded.eps(z, 500, cond), tiny_backbone().eps(z, 500, cond), atol=1e-2)


def test_learned_vectors_take_the_place_of_words(tiny):
    """A placeholder with the vectors of a word's tokens reads as the word; the table is not touched."""
    vectors = tiny.word_vectors("ape")
    concept = Concept(("x",), ("<class-000>",), vectors[None])
    table = tiny.text_encoder.get_input_embeddings().weight.clone()
    assert torch.equal(
        tiny.embed(["A photo of an <class-000> at sea"], concept), tiny.embed(["A photo of an ape at sea"])
    )
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight, table)


def test_embeddings_override_the_concept_and_carry_gradients(tiny):
    concept = Concept(("a", "b"), ("<class-000>", "<class-001>"), normal(2, 2, 32).float())
    rows = normal(2, 2, 32, seed=1).float().requires_grad_()
    cond = tiny.embed(["A <class-001>"], concept, rows)
    assert not torch.allclose(cond, tiny.embed(["A <class-001>"], concept))
    (gradient,) = torch.autograd.grad(cond.square().sum() + cond.sum(), rows)
    assert torch.all(gradient[0] == 0)
    assert torch.all(gradient[1].abs().sum(dim=1) > 0)


def test_prompts_keep_their_places_in_a_batch(tiny64):
    concept = Concept(("a", "b"), ("<class-000>", "<class-001>"), normal(2, 1, 32))
    prompts = ["A <class-001> here", "", "a photo", "<class-000>"]
    together = tiny64.embed(prompts, concept)
    for prompt, row in zip(prompts, together, strict=True):
        torch.testing.assert_close(tiny64.embed([prompt], concept)[0], row, rtol=0, atol=1e-12)


def test_too_long_a_prompt_is_refused(tiny):
    with pytest.raises(RecipeError, match="has 32 tokens, more than the 24"):
        tiny.embed(["x" * 30])


def test_words_without_a_known_token_have_no_vectors(tiny):
    assert tiny.word_vectors("").shape == (0, 32)
    assert tiny.word_vectors("<|endoftext|>").shape == (0, 32)
    assert tiny.word_vectors("三").shape[0] > 0  # bytes are always known


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_close_and_keeps_the_callers_dtype(tiny, folder, dtype):
    low = load_backbone(folder, dtype=dtype)
    z, cond = latents(tiny), tiny.embed([PROMPT, ""])
    eps = low.eps(z, 500, cond)
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps, tiny.eps(z, 500, cond), rtol=0, atol=0.05)


def test_fp16_files_are_read_where_there_are_no_others(tiny, tmp_path):
    save_backbone(tiny, tmp_path)
    for path in [*tmp_path.rglob("*.safetensors")]:
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    loaded = load_backbone(tmp_path)
    assert loaded.dtype == torch.float32
    z, cond = latents(tiny), tiny.embed([PROMPT, ""])
    torch.testing.assert_close(loaded.eps(z, 500, cond), tiny.eps(z, 500, cond), rtol=0, atol=0.01)


def test_random_weights_depend_on_their_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = tiny_backbone(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second, other = tiny_backbone(seed=1), tiny_backbone(seed=2)
    z, cond = latents(first), first.embed([PROMPT, ""])
    assert torch.equal(first.eps(z, 9, cond), second.eps(z, 9, cond))
    assert not torch.equal(first.eps(z, 9, cond), other.eps(z, 9, cond))
    assert first.fingerprint == second.fingerprint != other.fingerprint


def change(folder, file: str, **values) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "is a StableDiffusionXLPipeline"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "sigmoid"),
        ("text_encoder/config.json", {"hidden_size": 16}, "cannot be loaded|lacks weights"),
        ("vae/config.json", {"latent_channels": 3}, "cannot be loaded|lacks weights"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(copy, file, values, message):
    change(copy, file, **values)
    with pytest.raises(UsageError, match=message):
        load_backbone(copy)


def test_weights_that_are_not_in_the_file_are_not_made_up(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"conv_in\.weight"):
        load_backbone(copy)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_a_truncated_file_is_named(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UsageError, match="copy cannot be loaded"):
        load_backbone(copy)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "unet/config.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises((MissingError, UsageError), match="config"):
        load_backbone(copy)


def test_devices_and_dtypes_that_are_not_there_are_refused(folder):
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="no CUDA device"):
            load_backbone(folder, device="cuda")
    with pytest.raises(RecipeError, match="int4"):
        load_backbone(folder, dtype="int4")
    assert load_backbone(folder, device="auto", dtype="auto").dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "final"),
    [
        ({"_class_name": "PNDMScheduler"}, "first"),
        ({"_class_name": "DDIMScheduler"}, 1.0),
        ({"_class_name": "DDPMScheduler"}, 1.0),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "first"),
        ({"_class_name": "PNDMScheduler", "set_alpha_to_one": True}, 1.0),
    ],
)
def test_the_last_level_follows_the_configuration(config, final):
    alphas, final_alpha = noise_levels({"beta_schedule": "linear", **config}, "test")
    assert final_alpha == (float(alphas[0]) if final == "first" else final)


def test_trained_betas_are_used():
    betas = [0.1, 0.2, 0.3]
    alphas, _ = noise_levels({"trained_betas": betas, "num_train_timesteps": 3}, "test")
    torch.testing.assert_close(alphas, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))


def test_the_byte_tokenizer_has_clips_ids():
    tokenizer = byte_tokenizer(49406, 49407, 77)
    # "a" and "!" of CLIP's vocabulary, and their forms at a word's end
    assert tokenizer("aa !").input_ids == [49406, 64, 320, 256, 49407]
    assert tokenizer("").input_ids == [49406, 49407]
    assert len(tokenizer) == 49408  # as many as the table has rows: other programs cut it to the tokenizer's length


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_configuration_of_sd15_runs():
    """860 M parameters in the UNet; the whole method for one image at a small latent."""
    backbone = random_backbone(SD15)
    counts = {
        part: sum(p.numel() for p in getattr(backbone, part).parameters()) for part in ("unet", "text_encoder", "vae")
    }
    assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert (backbone.image_size, backbone.latent_shape, backbone.max_tokens) == (512, (4, 64, 64), 77)
    z0 = normal(2, 4, 16, 16).float()
    settings = Invert(ti_steps=1, num_steps=1, nti_inner_steps=1)
    concept, losses = learn_concepts(backbone, z0, torch.tensor([0, 1]), ["ape", "bee"], settings, seed=0)
    assert torch.isfinite(losses).all()
    cond = concept.conditions(backbone, settings.prompt)
    inverted = null_text_invert(backbone, z0, cond, settings)
    assert inverted.null_embeddings.shape == (2, 1, 77, 768)
    assert torch.isfinite(inverted.error).all()
    images = generate(backbone, inverted.z_T, cond, inverted.null_embeddings, settings)
    assert images.shape == (2, 3, 128, 128)


def test_the_tiny_architecture_is_a_backbone_with_every_field(tiny):
    assert tiny.name == TINY.name
    assert all(getattr(tiny, field.name) is not None for field in fields(Backbone))
