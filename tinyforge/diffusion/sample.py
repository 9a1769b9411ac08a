"""New images from an inverted support: the norm-guided blend, then DDIM with the support's null embeddings.

Source: Landolsi & Kahl 2024, "Tiny models from tiny data: Textual and null-text inversion for few-shot distillation",
arXiv 2406.03146; the blend follows Samuel et al. 2023, arXiv 2306.08687.
Legend: B batch, C H W pixels, h w latent, L tokens, D width, T steps, A alphas.
"""

import torch
from torch import Tensor

from tinyforge.diffusion.ddim import ddim_denoise
from tinyforge.diffusion.parts import in_parts
from tinyforge.diffusion.seeding import item_generator
from tinyforge.diffusion.signature import Denoiser
from tinyforge.recipe import Invert


def rms(x: Tensor) -> Tensor:
    """Root mean square over all but the first dimension, shaped (B, 1, 1, 1) for x (B, C, h, w)."""
    return x.square().mean(dim=tuple(range(1, x.dim())), keepdim=True).sqrt()


def blend(z_T: Tensor, noise: Tensor, alpha: float | Tensor) -> Tensor:
    """Between the inverted support (alpha 0) and new noise (alpha 1), at the blended norm.

    z' = (1 - a) z_T + a noise;  z = z' / rms(z') * [(1 - a) rms(z_T) + a rms(noise)], each (B, C, h, w).
    ``alpha`` in [0, 1] is one number or (B,). A blend of opposite latents, z' = 0, stays 0.
    """
    a = torch.as_tensor(alpha, dtype=z_T.dtype, device=z_T.device).reshape(-1, 1, 1, 1)
    mixed = (1.0 - a) * z_T + a * noise
    norm = (1.0 - a) * rms(z_T) + a * rms(noise)
    return mixed * (norm / rms(mixed).clamp_min(torch.finfo(mixed.dtype).tiny))


def draw_noise(backbone: Denoiser, seed: int, class_name: str, index: int) -> Tensor:
    """The standard normal latent (C, h, w) of one image, the same whatever else is drawn and on every device."""
    generator = item_generator(seed, "noise", class_name, index)
    return torch.randn(backbone.latent_shape, generator=generator).to(backbone.device)


def generate(
    backbone: Denoiser,
    z_T: Tensor,
    cond: Tensor,
    null_embeddings: Tensor,
    settings: Invert,
    *,
    batch_size: int = 64,
    stacked: bool = True,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from latents z_T (B, C, h, w), conditions (B, L, D), null embeddings (B, T, L, D).

    ``settings`` must be those of the inversion: its steps and guidance are used again. Runs at most ``batch_size``
    images at a time; give the same images in the same order to get the same bytes. ``stacked``: see ``ddim_denoise``.
    Raises ValueError when T differs from num_steps.
    """
    if null_embeddings.shape[1] != settings.num_steps:
        raise ValueError(f"null embeddings of {null_embeddings.shape[1]} steps, but num_steps is {settings.num_steps}")
    timesteps = backbone.schedule(settings.num_steps)

    def part(rows: range) -> Tensor:
        rows = slice(rows.start, rows.stop)
        with torch.inference_mode():
            z = ddim_denoise(
                backbone, z_T[rows], cond[rows], null_embeddings[rows], timesteps, settings.guidance_scale,
                settings.guidance_interval, stacked=stacked,
            )  # fmt: skip
            pixels = backbone.decode(z)
        return pixels.clone()

    return torch.cat(in_parts(part, len(z_T), batch_size))


def alpha_grid(
    backbone: Denoiser,
    z_T: Tensor,
    cond: Tensor,
    null_embeddings: Tensor,
    noise: Tensor,
    alphas: list[float],
    settings: Invert,
    *,
    batch_size: int = 64,
    stacked: bool = True,
) -> Tensor:
    """The picture grid (B, A, 3, H, W) in [0, 1]: each of B inverted supports blended with its noise at each alpha.

    Shapes as in ``generate``; ``noise`` is (B, C, h, w), the same for all alphas of a row, so that a row morphs.
    """
    count = len(alphas)
    repeated = [x.repeat_interleave(count, dim=0) for x in (z_T, noise, cond, null_embeddings)]
    start = blend(repeated[0], repeated[1], torch.tensor(alphas).repeat(len(z_T)))
    images = generate(backbone, start, repeated[2], repeated[3], settings, batch_size=batch_size, stacked=stacked)
    return images.unflatten(0, (len(z_T), count))


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images in [0, 1]; infinite where they are equal."""
    return -10.0 * (images - references).square().mean(dim=(1, 2, 3)).log10()
