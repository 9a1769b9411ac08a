"""The conditional UNet, trained on cached latents and on what the frozen text encoder says of the captions.

Source: Ho et al. 2020, arXiv 2006.11239 (epsilon prediction); Rombach et al. 2021, arXiv 2112.10752; Hang et al. 2023,
arXiv 2303.09556 (min-SNR weighting); Ho & Salimans 2022, arXiv 2207.12598 (dropping the prompt for guidance).
Legend: B batch, C h w latent, L tokens, D text width, T = 1000 timesteps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, DDIM, trailing spacing."""
    return DDIMScheduler(**SCHEDULE, timestep_spacing="trailing")


def build(
    size: int = 8, widths: tuple[int, ...] = (48, 96), text_width: int = 128, channels: int = 4
) -> UNet2DConditionModel:
    """Plain convolutions at full resolution, where attention is dear; cross-attention below."""
    attend = [False] + [True] * (len(widths) - 1)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attend),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


class Denoiser(nn.Module):
    """The UNet as a plain module: (noisy latents, timesteps, contexts (B, L, D)) → predicted noise."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(z, t, encoder_hidden_states=context).sample.float()


@torch.no_grad()
def contexts(text: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids (R, templates, L) → what the frozen text encoder says of each, once: (R, templates, L, D)."""
    states = [text(part).last_hidden_state for part in ids.flatten(0, 1).split(512)]
    return torch.cat(states).unflatten(0, ids.shape[:2])


def min_snr(alphas_cumprod: Tensor, gamma: float = 5.0, most: float = 8.0) -> Tensor:
    """(T,) loss weights for epsilon prediction, SNR = a / (1 - a): min(SNR, gamma) / SNR above SNR 1.

    Differs: below SNR 1 the weight rises as 1 / SNR up to `most`: there the noise is nearly all of the input, and what
    is left to predict, the class and the coarse shape, would hardly count.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return torch.where(snr > 1, snr.clamp(max=gamma) / snr, (1 / snr).clamp(max=most))


def add_noise(z: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """z_t = sqrt(a) z_0 + sqrt(1 - a) noise, a (B,)."""
    a = alphas_cumprod[:, None, None, None]
    return a.sqrt() * z + (1 - a).sqrt() * noise


def loss_function(
    latents: Tensor,
    labels: Tensor,
    context: Tensor,
    batch: int,
    device: str = "cpu",
    *,
    drop: float = 0.1,
    generic: float = 0.08,
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """Weighted noise error, for loop.train.

    latents (M, C, h, w) scaled; labels (M,); context (R, templates, L, D) of the R rows of
    captions.caption_ids: drop of the batch gets the empty prompt (last row), generic of it the
    generic words (the row before).
    """
    alphas = scheduler().alphas_cumprod.to(device)
    weights, latents, context = min_snr(alphas), latents.to(device), context.to(device)

    def loss_of(model: nn.Module, step: int, gen: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=gen)
        chance = torch.rand(batch, generator=gen)
        which = torch.where(
            chance < drop, len(context) - 1, torch.where(chance < drop + generic, len(context) - 2, labels[rows])
        )
        template = torch.randint(context.shape[1], (batch,), generator=gen)
        t = torch.randint(len(alphas), (batch,), generator=gen).to(device)
        z, tokens = latents[rows.to(device)].float(), context[which.to(device), template.to(device)]
        noise = torch.randn(z.shape, generator=gen).to(device)
        error = (model(add_noise(z, noise, alphas[t]), t, tokens) - noise).square().mean((1, 2, 3))
        return (error * weights[t]).mean()

    return loss_of
