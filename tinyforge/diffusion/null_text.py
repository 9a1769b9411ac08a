"""Null-text inversion of many images at once.

Source: Mokady et al. 2023, "Null-text Inversion for Editing Real Images using Guided Diffusion Models",
arXiv 2211.09794, algorithm 1, with the constants of Landolsi & Kahl 2024, arXiv 2406.03146 (Adam at 1e-2, at most 10
inner steps, stop at MSE 1e-5, all three the same at every timestep).
Differs: images share each forward pass. None sees another: the loss is a sum of per-image means, Adam is elementwise,
and an image that has converged leaves the batch with its embedding as it is; so the result is that of one image at a
time, to rounding. An image stops *before* the step that it no longer needs, since Adam's next step would move a
converged embedding by the whole learning rate. The prediction that ends the inner loop also advances the latent, and
the conditional prediction, which does not depend on the null embedding, is computed once per timestep.
Options beyond the paper: a start from the condition, which without inner steps is negative-prompt inversion (Miyake et
al. 2023, arXiv 2305.16807), and timesteps without guidance, where there is nothing to fit (``ddim.is_guided``).
Legend: B batch, C h w latent, L tokens, D width, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from tinyforge.diffusion.ddim import abar, ddim_denoise, ddim_invert, ddim_step, guide, is_guided, timestep_pairs
from tinyforge.diffusion.parts import in_parts
from tinyforge.diffusion.signature import Denoiser, Progress
from tinyforge.errors import DataError
from tinyforge.recipe import Invert

LOSS_SCALE = 2.0**12  # keeps float16 gradients above underflow; a power of two, so exact in float32
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class NullText:
    """Inverted images, each enough to reconstruct its image, or to vary it, without inverting again."""

    z_T: Tensor  # (B, C, h, w) the latents at the noisiest timestep
    null_embeddings: Tensor  # (B, T, L, D) from the noisiest timestep to the last
    mse: Tensor  # (B, T) distance to the recorded trajectory after each step
    error: Tensor  # (B,) mean squared error of the reconstructed z_0

    def support_bytes(self, index: int) -> bytes:
        """One image's inversion as the content of a safetensors file, to be written by an atomic writer."""
        tensors = {field.name: getattr(self, field.name)[index].cpu().contiguous() for field in fields(self)}
        return safetensors.torch.save(tensors)

    @classmethod
    def concatenate(cls, parts: list["NullText"]) -> "NullText":
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


def load_supports(paths: list[Path]) -> NullText:
    """Inversions saved one by one, as one batch in the order of ``paths``. Raises DataError for an unreadable file."""
    images = []
    for path in paths:
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            images.append(NullText(**{name: tensor[None] for name, tensor in tensors.items()}))
        except (OSError, TypeError, safetensors.SafetensorError) as fault:
            raise DataError(f"{path}: not a saved inversion ({fault}); run 'tinyforge invert' again") from fault
    return NullText.concatenate(images)


def null_text_invert(
    backbone: Denoiser,
    z0: Tensor,
    cond: Tensor,
    settings: Invert,
    *,
    batch_size: int = 64,
    reuse: bool = True,
    progress: Progress = None,
) -> NullText:
    """Invert images z0 (B, C, h, w), each under its own condition (B, L, D), at most ``batch_size`` at a time.
    ``reuse``: predict the conditional noise once per timestep, not at every inner step.

    To resume bit-exactly, cut the images into the same batches again (e.g. consecutive runs of ``batch_size``) and
    leave out whole batches: other batches give the same result only to rounding.
    """
    timesteps = backbone.schedule(settings.num_steps)
    with torch.no_grad():
        null = backbone.embed([""]).to(cond.dtype)  # Adam's steps are lost in half precision

    def invert(rows: range) -> NullText:
        def tick(done: int) -> None:
            if progress:
                progress(rows.start * len(timesteps) + len(rows) * done, len(z0) * len(timesteps))

        part = slice(rows.start, rows.stop)
        return _invert_batch(backbone, z0[part], cond[part], null, timesteps, settings, reuse, tick)

    return NullText.concatenate(in_parts(invert, len(z0), batch_size))


def _invert_batch(
    backbone: Denoiser,
    z0: Tensor,
    cond: Tensor,
    null: Tensor,
    timesteps: list[int],
    settings: Invert,
    reuse: bool,
    tick: Callable[[int], None],
) -> NullText:
    """One batch: up by plain DDIM, then down, fitting each timestep's null embedding from the one before it."""
    trajectory = ddim_invert(backbone, z0, cond, timesteps)
    z, u = trajectory[-1], cond if settings.nti_start == "condition" else null.expand_as(cond)
    embeddings, errors = [], []
    for index, (high, low) in enumerate(timestep_pairs(timesteps)):
        abar_from, abar_to = abar(backbone, high), abar(backbone, low)
        guided, target = is_guided(backbone, high, settings.guidance_interval), trajectory[-2 - index]
        with torch.no_grad():
            eps_cond = backbone.eps(z, high, cond) if reuse or not guided else None

        def predict(u: Tensor, rows: Tensor, z=z, t=high, known=eps_cond, levels=(abar_from, abar_to)) -> Tensor:
            eps_cond = backbone.eps(z[rows], t, cond[rows]) if known is None else known[rows]
            eps = guide(backbone.eps(z[rows], t, u), eps_cond, settings.guidance_scale)
            return ddim_step(z[rows], eps, *levels)

        if guided:
            u, z, mse = fit_embedding(
                predict, u, target, lr=settings.nti_lr, steps=settings.nti_inner_steps, tolerance=settings.nti_tolerance
            )
        else:
            z = ddim_step(z, eps_cond, abar_from, abar_to)
            mse = (z - target).square().mean(dim=(1, 2, 3))
        embeddings.append(u)
        errors.append(mse)
        tick(index + 1)
    error = (z - z0).square().mean(dim=(1, 2, 3))
    return NullText(trajectory[-1], torch.stack(embeddings, dim=1), torch.stack(errors, dim=1), error)


def fit_embedding(
    predict: Callable[[Tensor, Tensor], Tensor], u: Tensor, target: Tensor, *, lr: float, steps: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit each image's embedding u (B, L, D) so that ``predict(u[rows], rows)`` lands on ``target`` (B, C, h, w).

    ``predict`` maps the embeddings of some images, named by ``rows``, to their latents. At most ``steps`` Adam steps;
    an image below ``tolerance`` leaves. Returns the embeddings, the latents that they lead to, and their MSE (B,).
    """
    fitted, result, mse = u.clone(), torch.empty_like(target), target.new_empty(len(target))
    rows = torch.arange(len(u), device=u.device)  # the images still being fitted; the rest of the state follows them
    mean, square = torch.zeros_like(fitted), torch.zeros_like(fitted)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            leaf = fitted[rows].requires_grad_(step < steps)
            predicted = predict(leaf, rows)
            losses = (predicted - target[rows]).square().mean(dim=(1, 2, 3))
        result[rows], mse[rows] = predicted.detach(), losses.detach()
        going = losses.detach() >= tolerance
        if step == steps or not going.any():
            break
        (gradient,) = torch.autograd.grad(LOSS_SCALE * losses[going].sum(), leaf)
        rows, mean, square = rows[going], mean[going], square[going]
        moved, mean, square = adam_step(leaf.detach()[going], gradient[going] / LOSS_SCALE, mean, square, step + 1, lr)
        fitted[rows] = moved
    return fitted, result, mse


def adam_step(
    u: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), ``step`` from 1: new u, mean and square."""
    mean = torch.lerp(mean, gradient, 1.0 - BETA1)
    square = BETA2 * square + (1.0 - BETA2) * gradient.square()
    denominator = square.sqrt() / sqrt(1.0 - BETA2**step) + ADAM_EPS
    return u - lr / (1.0 - BETA1**step) * mean / denominator, mean, square


def ddim_reconstruct(
    backbone: Denoiser, z_T: Tensor, cond: Tensor, settings: Invert, *, batch_size: int = 64, stacked: bool = True
) -> Tensor:
    """z_0 (B, C, h, w) by plain DDIM, with guidance and the ordinary null prompt: what NTI is compared with."""
    timesteps = backbone.schedule(settings.num_steps)
    with torch.no_grad():
        null = backbone.embed([""])

    def denoise(rows: range) -> Tensor:
        z, own = z_T[rows.start : rows.stop], cond[rows.start : rows.stop]
        scale, interval = settings.guidance_scale, settings.guidance_interval
        return ddim_denoise(backbone, z, own, null, timesteps, scale, interval, stacked=stacked)

    return torch.cat(in_parts(denoise, len(z_T), batch_size))
