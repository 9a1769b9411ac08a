"""Stable Diffusion as five plain functions: encode, decode, embed, eps, schedule.

The only file that imports diffusers and transformers. A backbone is never changed after loading: learned vectors are
handed to ``embed`` and put beside the text encoder's table for that call (``torch.func.functional_call``).
Images are [0, 1] outside and [-1, 1] inside. Latents, conditions and gradients have the caller's dtype; ``dtype`` is
that of the networks' weights and activations.
Legend: B batch, C H W pixels, h w latent, L tokens, D width, N classes, K vectors.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from tinyforge.diffusion.architectures import TINY, Architecture
from tinyforge.diffusion.ddim import trailing_timesteps
from tinyforge.diffusion.engine import Engine, eager, open_engine
from tinyforge.diffusion.memory import Plan, plan_for, settle, visiting
from tinyforge.diffusion.sources import Located, choose_backbone, locate
from tinyforge.diffusion.textual_inversion import Concept
from tinyforge.errors import MissingError, RecipeError, UsageError

__all__ = ["Backbone", "choose_backbone", "load_backbone", "random_backbone", "save_backbone", "tiny_backbone"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded latent diffusion model; see ``signature.Denoiser`` for what the algorithms ask of it."""

    name: str
    fingerprint: str
    licence: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: dict[str, Any]
    alphas_cumprod: Tensor  # (T_train,) float32, on the CPU
    final_alpha: float
    prediction_type: str  # 'epsilon' or 'v_prediction'
    device: torch.device
    dtype: torch.dtype
    plan: Plan
    engine: Engine
    table: tuple[str, Tensor] = field(init=False, repr=False)  # the text encoder's input vectors: name, (tokens, D)
    encoding: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        weight = self.text_encoder.get_input_embeddings().weight
        name = next(name for name, parameter in self.text_encoder.named_parameters() if parameter is weight)
        object.__setattr__(self, "table", (name, weight))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def image_size(self) -> int:
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def schedule(self, num_steps: int) -> list[int]:
        """``num_steps`` descending timesteps with 'trailing' spacing. Raises RecipeError for too many."""
        try:
            return trailing_timesteps(len(self.alphas_cumprod), num_steps)
        except ValueError as fault:
            raise RecipeError(f"invert.num_steps: {fault}") from fault

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Square images (B, 3, H, W) in [0, 1] of ``image_size`` -> latents (B, C, h, w).

        The latents are the posterior's mean times the scaling factor. Raises ValueError for another size.
        """
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"expected images (B, 3, {self.image_size}, {self.image_size}), not {tuple(images.shape)}")
        with visiting(self.vae, self.device, self.plan.offload):
            posterior = self.vae.encode(self._inward(2.0 * images - 1.0)).latent_dist
        return posterior.mean.to(images.dtype) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W), clipped to [0, 1]."""
        with visiting(self.vae, self.device, self.plan.offload):
            pixels = self.vae.decode(self._inward(latents / self.vae.config.scaling_factor)).sample
        return (0.5 + 0.5 * pixels.to(latents.dtype)).clamp(0.0, 1.0)

    def eps(self, z: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        """The noise predicted in z (B, C, h, w) at timestep t (an int or (B,)) under cond (B, L, D).

        A v-prediction is converted: eps = sqrt(abar) v + sqrt(1 - abar) z.
        Source: Salimans & Ho 2022, arXiv 2202.00512, appendix D.
        """
        steps = torch.as_tensor(t, device=self.device).expand(len(z))
        inputs = self._inward(z), steps, self._inward(cond)
        for_gradient = torch.is_grad_enabled() and (z.requires_grad or cond.requires_grad)
        predict = self.engine.descend if for_gradient else self.engine.predict
        output = (predict or eager(self.unet))(*inputs).to(z.dtype)
        if self.prediction_type == "epsilon":
            return output
        abar = self.alphas_cumprod[torch.as_tensor(t).cpu()].to(z).reshape(-1, 1, 1, 1)
        return abar.sqrt() * output + (1.0 - abar).sqrt() * z

    def embed(self, prompts: list[str], concept: Concept | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Prompts -> (B, L, D), the text encoder's last hidden state; differentiable in ``embeddings`` (N, K, D).

        A placeholder of ``concept`` in a prompt becomes its K vectors, or those of ``embeddings``. Only the rows that
        the prompts use are gathered into the table of this call. Raises RecipeError when a prompt has too many tokens.
        """
        vectors = concept.embeddings if concept is not None and embeddings is None else embeddings
        name, weight = self.table
        for_gradient = torch.is_grad_enabled() and vectors is not None and vectors.requires_grad
        # One thread at a time: tokenizers want it, and the table of a call stands in the text encoder while it runs.
        with self.encoding, visiting(self.text_encoder, self.device, self.plan.offload and not for_gradient):
            ids = torch.tensor([self.token_ids(prompt, concept) for prompt in prompts], device=self.device)
            used, ids = ids.unique(return_inverse=True)  # ascending, so the learned ones come last
            table = weight[used[used < len(weight)]]
            if vectors is not None:
                learned = self._inward(vectors.flatten(0, 1))[used[used >= len(weight)] - len(weight)]
                table = torch.cat([table, learned])
            output = functional_call(self.text_encoder, {name: table}, (ids,), {"return_dict": False})
        return output[0].to(table.dtype if vectors is None else vectors.dtype)

    def word_vectors(self, text: str) -> Tensor:
        """The input vectors (n, D), float32, of the known tokens of ``text``; n is 0 when there is none."""
        marks = {self.tokenizer.unk_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        ids = [token for token in self._encode_text(text) if token not in marks]
        return self.table[1][ids].float().clone()

    def _inward(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.dtype)

    def _encode_text(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def token_ids(self, prompt: str, concept: Concept | None) -> list[int]:
        """L ids; vector k of class n is the id beyond the vocabulary, table rows + n K + k."""
        placeholders = concept.placeholders if concept is not None else ()
        rows = len(self.table[1])
        ids = [self.tokenizer.bos_token_id]
        for piece in re.split("(" + "|".join(map(re.escape, placeholders)) + ")", prompt) if placeholders else [prompt]:
            if piece in placeholders:
                count = concept.embeddings.shape[1]
                first = rows + placeholders.index(piece) * count
                ids += range(first, first + count)
            else:
                ids += self._encode_text(piece)
        ids.append(self.tokenizer.eos_token_id)
        if len(ids) > self.max_tokens:
            raise RecipeError(
                f"the prompt '{prompt}' has {len(ids)} tokens, more than the {self.max_tokens} of {self.name}"
            )
        return ids + [self.tokenizer.pad_token_id] * (self.max_tokens - len(ids))


def load_backbone(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    offline: bool = False,
    plan: Plan | None = None,
    engine: str = "eager",
    memory: Path | None = None,
) -> Backbone:
    """Load a diffusers Stable Diffusion folder, a hub name ('owner/name') or an alias ('sd15', 'sd21').

    ``device`` may be 'auto' (CUDA where there is one) and ``dtype`` 'auto' (float32). Only safetensors; 'fp16' files
    are read where there are no others, or where dtype is float16. plan: how it is held in memory; None: by what is
    free. engine, memory: see ``engine.open_engine``. Raises MissingError when something is not here, UsageError for a
    model of another kind.
    """
    precision = _dtype(dtype)
    found = locate(source, offline=offline, prefer_fp16=precision == torch.float16)
    _refuse_other_kinds(found)
    try:
        unet = _load_part(UNet2DConditionModel, found, "unet", precision)
        vae = _load_part(AutoencoderKL, found, "vae", precision)
        with _no_progress_bar():
            text_encoder = _load_part(CLIPTextModel, found, "text_encoder", precision)
        tokenizer = CLIPTokenizer.from_pretrained(found.folder / "tokenizer", local_files_only=True)
        scheduler = json.loads((found.folder / "scheduler/scheduler_config.json").read_bytes())
    except FileNotFoundError as fault:
        raise MissingError(f"{found.name}: {fault}; the folder is incomplete, fetch it again") from fault
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as fault:
        first = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        told = f"{found.name} cannot be loaded as Stable Diffusion: {first}; if it is damaged, fetch it again"
        raise UsageError(told) from fault
    identity = found.name, found.fingerprint, found.licence
    parts = unet, vae, text_encoder, tokenizer
    loaded = _assemble(identity, parts, scheduler, _device(device), precision, plan)
    if engine == "eager":
        return loaded
    opened = open_engine(engine, unet, loaded.plan.batch_size, found.fingerprint, memory)
    return replace(loaded, engine=opened)


def _load_part(kind: type, found: Located, part: str, dtype: torch.dtype) -> torch.nn.Module:
    """One network. Raises UsageError where its file lacks weights, which the libraries would draw at random."""
    options: dict[str, Any] = {"variant": found.variants[part], "use_safetensors": True, "local_files_only": True}
    if kind is not CLIPTextModel and find_spec("accelerate") is None:
        options["low_cpu_mem_usage"] = False  # else diffusers warns that accelerate is missing
    module, info = kind.from_pretrained(found.folder / part, torch_dtype=dtype, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise UsageError(f"{found.name}: {part} lacks weights: {', '.join(sorted(info['missing_keys'])[:3])} ...")
    return module


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading a text encoder takes a moment; transformers' bar for it is noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _refuse_other_kinds(found: Located) -> None:
    """Raise UsageError for what has the same file names but another signature: XL, inpainting, refiners."""
    kind = json.loads((found.folder / "model_index.json").read_bytes()).get("_class_name", "nothing")
    if kind not in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"):
        raise UsageError(
            f"{found.name} is a {kind}; TinyForge runs StableDiffusionPipeline models (SD 1.x, 2.x and alike)"
        )


def _assemble(
    identity: tuple[str, str, str],
    parts: tuple[Any, ...],
    scheduler: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    plan: Plan | None,
) -> Backbone:
    """Check that the parts fit, freeze them and put them on the device."""
    unet, vae, text_encoder, _ = parts
    name = identity[0]
    if unet.config.in_channels != vae.config.latent_channels:
        raise UsageError(
            f"{name}: the UNet takes {unet.config.in_channels} channels, the VAE gives {vae.config.latent_channels}"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise UsageError(f"{name}: the UNet and the text encoder disagree on the width of a condition")
    unsupported = [
        key for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim") if unet.config.get(key)
    ]
    if unsupported:
        raise UsageError(
            f"{name}: its UNet needs more than a prompt ({', '.join(unsupported)}), which is not supported"
        )
    plan = plan_for(device, unet, vae, text_encoder) if plan is None else plan
    settle(plan, device, unet, vae, text_encoder)
    alphas_cumprod, final_alpha = noise_levels(scheduler, name)
    prediction_type = scheduler.get("prediction_type", "epsilon")
    kept = scheduler, alphas_cumprod, final_alpha, prediction_type
    return Backbone(*identity, *parts, *kept, device, dtype, plan, Engine("eager"))


def noise_levels(scheduler: dict[str, Any], name: str) -> tuple[Tensor, float]:
    """(alphas_cumprod (T_train,), abar at t < 0) of a scheduler's configuration, whichever scheduler it names.

    Raises UsageError for what DDIM on latents cannot follow: other predictions, thresholding, zero terminal SNR.
    Clipping of samples (``clip_sample``) is for pixels; latents are never clipped, as in diffusers' pipelines.
    """
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UsageError(f"{name}: prediction_type '{prediction_type}' is not supported, only epsilon and v_prediction")
    refused = [key for key in ("thresholding", "rescale_betas_zero_snr") if scheduler.get(key)]
    if refused:
        raise UsageError(f"{name}: its scheduler uses {refused[0]}, which DDIM inversion cannot follow")
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    try:
        ddim = DDIMScheduler(**{key: scheduler[key] for key in keys if scheduler.get(key) is not None})
    except NotImplementedError as fault:
        raise UsageError(f"{name}: {fault}") from fault
    to_one = scheduler.get("set_alpha_to_one", scheduler.get("_class_name") != "PNDMScheduler")
    return ddim.alphas_cumprod.float(), 1.0 if to_one else float(ddim.alphas_cumprod[0])


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("backbone.device is 'cuda', but this machine has no CUDA device; use 'auto' or 'cpu'")
    return torch.device(name)


def _dtype(name: str) -> torch.dtype:
    """A torch dtype; 'auto' is float32, the precision of the published results."""
    known = ("auto", "bfloat16", "float16", "float32", "float64")
    if name not in known:
        raise RecipeError(f"backbone.dtype '{name}' is none of {list(known)}")
    return torch.float32 if name == "auto" else getattr(torch, name)


def save_backbone(backbone: Backbone, folder: Path, *, variant: str | None = None) -> None:
    """Write a diffusers Stable Diffusion folder that ``load_backbone`` and diffusers' own pipelines read."""
    for part in ("unet", "vae", "text_encoder"):
        getattr(backbone, part).save_pretrained(folder / part, variant=variant)
    backbone.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(backbone.scheduler, indent=1) + "\n")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", backbone.scheduler.get("_class_name", "DDIMScheduler")],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def random_backbone(
    architecture: Architecture,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    text_gain: float = 1.0,
    plan: Plan | None = None,
) -> Backbone:
    """An untrained backbone of real diffusers classes with seeded weights, for tests and benchmarks.

    Its tokenizer knows CLIP's 512 byte tokens and no merges. ``text_gain`` multiplies the output of the
    cross-attentions, since an untrained UNet hardly listens to its prompt. The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**architecture.unet)
        vae = AutoencoderKL(**architecture.vae)
        text_encoder = CLIPTextModel(CLIPTextConfig(**architecture.text_encoder))
    for module in (unet, vae, text_encoder):
        torch.nn.Module.to(module, dtype=_dtype(dtype))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn2.to_out.0." in name:
                parameter *= text_gain
    config = architecture.text_encoder
    tokenizer = byte_tokenizer(config["bos_token_id"], config["eos_token_id"], config["max_position_embeddings"])
    content = json.dumps([asdict(architecture), seed, text_gain, dtype]).encode()
    identity = architecture.name, hashlib.sha256(content).hexdigest(), "Apache-2.0"
    parts = unet, vae, text_encoder, tokenizer
    return _assemble(identity, parts, dict(architecture.scheduler), _device(device), _dtype(dtype), plan)


def tiny_backbone(
    seed: int = 0, *, dtype: str = "float32", prediction_type: str = "epsilon", plan: Plan | None = None
) -> Backbone:
    """A random Stable Diffusion that is built in a moment: 8 px images, (4, 4, 4) latents, 24 tokens of width 32."""
    scheduler = {**TINY.scheduler, "prediction_type": prediction_type}
    architecture = Architecture(TINY.name, TINY.unet, TINY.vae, TINY.text_encoder, scheduler)
    return random_backbone(architecture, seed=seed, dtype=dtype, text_gain=2.0, plan=plan)


def byte_tokenizer(bos_token_id: int, eos_token_id: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer of the 256 byte symbols, alone and at a word's end, in CLIP's order, and no merges; the rest of
    its table, up to the two marks, are words that no text has.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
    vocabulary = {token: index for index, token in enumerate([*symbols, *(symbol + "</w>" for symbol in symbols)])}
    vocabulary |= {f"<unused-{index}>": index for index in range(len(vocabulary), bos_token_id)}
    vocabulary |= {"<|startoftext|>": bos_token_id, "<|endoftext|>": eos_token_id}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)
