"""The VAE of a backbone: RGB → 8 x 8 latents, from 32 px with 4 channels or from 64 px with 8, and a light KL.

Source: Kingma & Welling 2013, arXiv 1312.6114; Rombach et al. 2021, arXiv 2112.10752 (KL-regularised, no GAN here);
Zhang et al. 2018, arXiv 1801.03924 (the perceptual error).
Legend: B batch, H W pixels, h w latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinyforge.embedded.network import GlyphNet

from .teacher import Draw


def build(size: int = 32, widths: tuple[int, ...] = (16, 32, 64), channels: int = 4) -> AutoencoderKL:
    """A diffusers AutoencoderKL with one residual block per level, one halving between levels; channels of z."""
    levels = len(widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        sample_size=size,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


class Reconstruction(nn.Module):
    """The VAE as a module whose forward is one training pass: x (B, 3, H, W) in [-1, 1] → (output, mean, logvar)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=gen).to(x.device)
        z = posterior.mean + posterior.std * noise
        return self.vae.decode(z).sample.float(), posterior.mean.float(), posterior.logvar.float()


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), mean over all latent numbers."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def edges(x: Tensor) -> Tensor:
    """Differences to the right and lower neighbours, padded, along the channels: (B, 2C, H, W)."""
    return torch.cat([F.pad(x[..., 1:] - x[..., :-1], (0, 1)), F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))], 1)


def perceptual(network: GlyphNet, out: Tensor, x: Tensor) -> Tensor:
    """Squared distance of the unit feature vectors at every place, mean over places and blocks; images (B, 3, H, W).

    Differs from LPIPS: the network is the domain's own teacher, and all its channels count alike.
    """
    with torch.no_grad():
        wanted = network.maps(x)
    pairs = zip(network.maps(out), wanted, strict=True)
    return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).mean()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-6)


def loss_function(
    draw: Draw,
    weights: Tensor,
    batch: int,
    kl_weight: float = 2e-4,
    device: str = "cpu",
    *,
    seer: GlyphNet | None = None,
    perceptual_weight: float = 1.0,
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """Squared error + half L1 + edge error + kl_weight * KL, for loop.train.

    seer: adds perceptual_weight * the perceptual error in the eyes of this frozen network.
    """

    def loss_of(model: nn.Module, step: int, gen: torch.Generator) -> Tensor:
        labels = torch.multinomial(weights, batch, replacement=True, generator=gen)
        x = (draw(labels, gen) * 2 - 1).to(device)
        out, mean, logvar = model(x, gen)
        fit = F.mse_loss(out, x) + 0.5 * F.l1_loss(out, x) + F.mse_loss(edges(out), edges(x))
        if seer is not None:
            fit = fit + perceptual_weight * perceptual(seer, out, x)
        return fit + kl_weight * kl(mean, logvar)

    return loss_of


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over images of 10 log10(1 / MSE) in dB; images (B, 3, H, W) in [0, 1]."""
    outs = torch.cat([vae.decode(vae.encode(p * 2 - 1).latent_dist.mean).sample for p in images.split(256)])
    error = (((outs + 1) / 2).clamp(0, 1) - images).square().mean((1, 2, 3))
    values = -10 * error.clamp(min=1e-10).log10()
    return float(values.mean()), float(values.std())


def cached_latents(
    vae: AutoencoderKL, draw: Draw, num_classes: int, count: int, seed: int, file: Path
) -> tuple[Tensor, Tensor, float]:
    """count fresh images encoded once: (scaled posterior means (M, C, h, w) fp16, labels (M,), scaling_factor).

    Kept in file in 8 bits, and read from there as long as the autoencoder's weights, count and seed are the same.
    """
    key = f"8 bits {fingerprint(vae, num_classes, count, seed)}"
    if not (file.is_file() and _key_of(file) == key):
        latents, labels = encode_many(vae, draw, num_classes, count, seed)
        partial = file.with_suffix(".partial")
        save_file(in_8_bits(latents) | {"labels": labels}, partial, metadata={"key": key})
        partial.replace(file)
    kept = load_file(file)
    latents = kept["levels"] * kept["step"] + kept["low"]
    scale = float(1 / latents.std())
    return (latents * scale).half(), kept["labels"], scale


def in_8_bits(latents: Tensor) -> dict[str, Tensor]:
    """levels (M, C, h, w) uint8 with low and step (1, C, 1, 1) of each channel: latents are levels * step + low."""
    low, high = (f(latents.float(), dim=(0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    step = (high - low).clamp(min=1e-6) / 255
    levels = torch.cat([((part.float() - low) / step).round().to(torch.uint8) for part in latents.split(10_000)])
    return {"levels": levels, "low": low, "step": step}


def fingerprint(network: nn.Module, *settings: int) -> str:
    """The sha256 of its weights and of the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _key_of(file: Path) -> str | None:
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get("key")


@torch.no_grad()
def encode_many(
    vae: AutoencoderKL, draw: Draw, num_classes: int, count: int, seed: int, chunk: int = 500
) -> tuple[Tensor, Tensor]:
    """Posterior means (count, C, h, w) fp16 of fresh images of evenly drawn classes, and their labels (count,)."""
    device = next(vae.parameters()).device
    latents, labels = [], []
    for start in range(0, count, chunk):
        gen = torch.Generator().manual_seed(seed * 1_000_003 + 77_000_000 + start)
        chosen = torch.randint(num_classes, (min(chunk, count - start),), generator=gen)
        latents.append(vae.encode((draw(chosen, gen) * 2 - 1).to(device)).latent_dist.mean.cpu().half())
        labels.append(chosen)
    return torch.cat(latents).contiguous(), torch.cat(labels)
