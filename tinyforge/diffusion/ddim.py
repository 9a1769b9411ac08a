"""Deterministic DDIM, up and down: one stepper over explicit pairs of timesteps.

Source: Song, Meng, Ermon 2021, "Denoising Diffusion Implicit Models", arXiv 2010.02502, eq. 12 with sigma = 0.
Legend: B batch, C h w latent, L tokens, D width, T steps; abar is the cumulative product of alphas, in (0, 1].
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from tinyforge.diffusion.signature import Denoiser

CLEAN = -1  # the timestep of a latent without noise
EVERYWHERE = (0.0, 1.0)


def ddim_step(z: Tensor, eps: Tensor, abar_from: float, abar_to: float) -> Tensor:
    """Move z (B, C, h, w) from one noise level to another along the noise ``eps``; up and down alike.

    z0 = (z - sqrt(1 - abar_from) eps) / sqrt(abar_from);  z_to = sqrt(abar_to) z0 + sqrt(1 - abar_to) eps,
    gathered into one factor for each of z and eps, so that a step up and the same step down cancel to rounding.
    """
    scale = sqrt(abar_to / abar_from)
    return scale * z + (sqrt(1.0 - abar_to) - scale * sqrt(1.0 - abar_from)) * eps


def add_noise(z0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Samples of the forward process: sqrt(abar) z0 + sqrt(1 - abar) noise, with one abar (B,) per sample."""
    abar = abar.to(z0)[:, None, None, None]
    return abar.sqrt() * z0 + (1.0 - abar).sqrt() * noise


def guide(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): uncond + w (cond - uncond)."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def is_guided(backbone: Denoiser, timestep: int, interval: Sequence[float]) -> bool:
    """Whether the timestep lies within ``interval``, in shares of the noisiest one; outside it w is 1, which needs no
    null prediction. Source: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", arXiv 2404.07724.
    Differs: the interval is one of timesteps, not of noise levels.
    """
    return interval[0] <= timestep / (len(backbone.alphas_cumprod) - 1) <= interval[1]


def trailing_timesteps(num_train_timesteps: int, num_steps: int) -> list[int]:
    """``num_steps`` descending timesteps that start at the noisiest one, evenly spaced ('trailing').

    Source: Lin et al. 2024, arXiv 2305.08891, table 2. Raises ValueError when there are more steps than timesteps.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be between 1 and {num_train_timesteps}, not {num_steps}")
    spacing = num_train_timesteps / num_steps
    return [round(num_train_timesteps - index * spacing) - 1 for index in range(num_steps)]


def timestep_pairs(timesteps: list[int]) -> list[tuple[int, int]]:
    """(from, to) of each denoising step; the last one lands on CLEAN. Inversion walks the same pairs backwards."""
    return list(pairwise([*timesteps, CLEAN]))


def abar(backbone: Denoiser, timestep: int) -> float:
    """The cumulative alpha of a timestep; of CLEAN, what the scheduler's configuration says (1, or that of t = 0)."""
    return float(backbone.alphas_cumprod[timestep]) if timestep >= 0 else backbone.final_alpha


@torch.no_grad()
def ddim_invert(backbone: Denoiser, z0: Tensor, cond: Tensor, timesteps: list[int]) -> list[Tensor]:
    """The trajectory [z_0, ..., z_T] of T + 1 latents (B, C, h, w) that DDIM takes upwards, without guidance.

    The noise is predicted at the timestep the step goes to. Source: Mokady et al. 2023, arXiv 2211.09794, section 3.2.
    """
    trajectory = [z0]
    for high, low in reversed(timestep_pairs(timesteps)):
        eps = backbone.eps(trajectory[-1], high, cond)
        trajectory.append(ddim_step(trajectory[-1], eps, abar(backbone, low), abar(backbone, high)))
    return trajectory


@torch.no_grad()
def ddim_denoise(
    backbone: Denoiser,
    z: Tensor,
    cond: Tensor,
    null: Tensor,
    timesteps: list[int],
    guidance_scale: float,
    interval: Sequence[float] = EVERYWHERE,
    *,
    stacked: bool = True,
) -> Tensor:
    """Latents z_T (B, C, h, w) down to z_0, guided within ``interval``; condition and null in one forward pass if
    ``stacked``.

    ``cond`` is (B, L, D). ``null`` is (B, T, L, D), one embedding per step, or (1 or B, L, D), one for all steps.
    """
    for index, (high, low) in enumerate(timestep_pairs(timesteps)):
        uncond = null[:, index] if null.dim() == 4 else null.expand_as(cond)
        if not is_guided(backbone, high, interval):
            eps = backbone.eps(z, high, cond)
        elif stacked:
            eps_uncond, eps_cond = backbone.eps(torch.cat([z, z]), high, torch.cat([uncond, cond])).chunk(2)
            eps = guide(eps_uncond, eps_cond, guidance_scale)
        else:
            eps = guide(backbone.eps(z, high, uncond), backbone.eps(z, high, cond), guidance_scale)
        z = ddim_step(z, eps, abar(backbone, high), abar(backbone, low))
    return z
