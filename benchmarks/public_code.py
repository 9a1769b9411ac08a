"""Drives the public code of TINT (github.com/pixwse/tiny2) from a checkout that the person who runs it brings.

Every computation is the checkout's own: ``DiffModel``, ``train_textinv``, ``NullInversion`` and ``TintGenerator``,
called in the order in which its ``TintGenerator.specialize`` and ``batch_generate`` call them, one class, one support
and one image at a time. What is adapted, and why that does not slow it down:

* The package ``hat`` (super-resolution) is imported by the checkout but not used here: where it is not installed, empty
  modules take its place.
* Newer transformers have no ``CLIPTextModel.text_model``; the attribute is set to the encoder itself, which has the
  members that the checkout freezes.
* The size of images (512 px, 8 px per latent) is written into ``DiffModel``; it is set to the backbone's.
* Its textual inversion runs whole epochs of 500 steps; an epoch is made as long as the number of steps, so that any
  number can be asked for. One epoch is one pass of its own loader.
* The prompt's initial word, steps, guidance, and rate, inner steps and tolerance of null-text inversion are set through
  its own parameters; ``TintGenerator`` reads none of the latter, so its parts are called one by one.
* Its generator draws a support and noise from global state: the support is fixed by its own debugging field, and the
  global generator is seeded for each image, so that on a CPU both programs start from the same noise.
* Images are returned at the backbone's size and not written to files.
"""

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from measure import took
from our_code import STAGES, Made
from torch import Tensor

from tinyforge.errors import UsageError
from tinyforge.recipe import Invert
from tinyforge.stages.synthesize import Plan

PLACEHOLDER = "#object"
ABSENT = ("hat", "hat.archs", "hat.archs.hat_arch", "hat.data", "hat.models")


def open_checkout(folder: Path) -> Any:
    """The checkout's package, imported from ``folder``. Raises UsageError where there is none."""
    if not (folder / "tiny2/diffusion/textinv.py").is_file():
        raise UsageError(f"{folder} is no checkout of pixwse/tiny2; clone https://github.com/pixwse/tiny2 and name it")
    if importlib.util.find_spec("hat") is None:
        sys.modules.update({name: types.ModuleType(name) for name in ABSENT})
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("tiny2.fsc")
        return importlib.import_module("tiny2")
    finally:
        sys.path.remove(str(folder))


def open_model(code: Any, source: Path, settings: Invert, side: int, factor: int, device: str) -> Any:
    """Its diffusion model for one class, as fresh as its own generator makes it. factor: pixels per latent."""
    model = code.diffusion.DiffModel(str(source), device=torch.device(device))
    if not hasattr(model.text_encoder, "text_model"):
        vars(model.text_encoder)["text_model"] = model.text_encoder  # no submodule of itself
    model.width = model.height = side
    model.vae_block_size = factor
    model.nof_iterations = settings.num_steps
    model.cf_guidance = settings.guidance_scale
    return model


def learn(code: Any, model: Any, supports: Tensor, settings: Invert) -> Tensor:
    """Its textual inversion of one class: the learned vector (D,)."""
    params = code.diffusion.TextinvParams()
    params.nof_steps, params.min_timestep = settings.ti_steps, settings.ti_min_timestep
    module = importlib.import_module("tiny2.diffusion.textinv")
    whole = module.TextInvDataset
    module.TextInvDataset = functools.partial(whole, dataset_size=settings.ti_steps)
    try:
        token = code.diffusion.TokenConfig(PLACEHOLDER, "shared", settings.initializer)
        logger, prompt = code.utils.get_null_logger(), settings.prompt.format(PLACEHOLDER)
        return module.train_textinv(model, supports, prompt, [token], logger, params)[PLACEHOLDER].detach()
    finally:
        module.TextInvDataset = whole


def invert(code: Any, model: Any, supports: Tensor, settings: Invert) -> tuple[Any, list[Any]]:
    """Its null-text inversion, support by support: the engine, and what it made of each."""
    params = code.diffusion.NullInvParams()
    params.nof_inner_steps, params.lr, params.epsilon = (
        settings.nti_inner_steps,
        settings.nti_lr,
        settings.nti_tolerance,
    )
    engine = code.diffusion.NullInversion(model, params)
    prompt = settings.prompt.format(PLACEHOLDER)
    return engine, [engine.invert(supports[index : index + 1], prompt) for index in range(len(supports))]


def make(code: Any, engine: Any, inverted: list[Any], planned: list[tuple[Plan, int]], side: int) -> Tensor:
    """Its images (n, 3, H, W): of each plan and the seed of its noise. A plan's support counts within the class."""
    generator = code.fsc.TintGenerator(code.fsc.TintParams())
    generator.base_generator.diffmodel, generator.base_generator.image_size = engine.diffmodel, (side, side)
    generator.nulltext_module, generator.nullinv_data = engine, inverted
    images = []
    for one, seed in planned:
        generator.debug_fixed_support_no, generator.params.alpha = one.support, one.alpha
        torch.manual_seed(seed)
        images.append(generator())
    return torch.cat(images)


def run_class(
    code: Any, source: Path, supports: Tensor, settings: Invert, planned: list[tuple[Plan, int]], factor: int, seed: int
) -> Made:
    """One class from its supports (K, 3, H, W) on their device to its images, each stage timed."""
    device, side, done, times = str(supports.device), supports.shape[-1], {}, {}
    stages = (
        lambda: open_model(code, source, settings, side, factor, device),
        lambda: learn(code, done["load"], supports, settings),
        lambda: invert(code, done["load"], supports, settings),
        lambda: make(code, *done["null-text inversion"], planned, side),
    )
    code.utils.set_random_seed(seed)
    for name, stage in zip(STAGES, stages, strict=True):
        times[name] = took(lambda name=name, stage=stage: done.update({name: stage()}), device)
    inverted = done["null-text inversion"][1]
    return Made(
        vectors=done["textual inversion"][None],
        z_T=torch.cat([one.latents for one in inverted]),
        null_embeddings=torch.stack([torch.cat(one.unc_embeddings) for one in inverted]),
        images=done["generation"],
        took=times,
    )
