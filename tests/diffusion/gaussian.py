"""A backbone with an exact answer: its data are Gaussian, so its noise prediction has a closed form."""

from math import sqrt

import torch
from torch import Tensor

from tinyforge.diffusion.ddim import trailing_timesteps


class GaussianBackbone:
    """Latents z_0 ~ N(mu, s^2 I), where mu (C, h, w) is the condition itself, L = 1 and D = C h w.

    Then z_t ~ N(sqrt(abar) mu, v I) with v = abar s^2 + 1 - abar, the exact noise prediction is
    sqrt(1 - abar) (z - sqrt(abar) mu) / v, and along the probability flow (z - sqrt(abar) mu) / sqrt(v) stays constant.
    """

    def __init__(self, s: float = 0.5, num_train_timesteps: int = 1000, shape: tuple[int, int, int] = (3, 2, 2)):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, num_train_timesteps, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1.0 - betas * 1000 / num_train_timesteps).cumprod(0)
        self.final_alpha = float(self.alphas_cumprod[0])
        self.s, self.latent_shape, self.device = s, shape, torch.device("cpu")
        self.words = {"object": 0.0, "high": 1.0, "low": -1.0}

    @property
    def width(self) -> int:
        return self.latent_shape[0] * self.latent_shape[1] * self.latent_shape[2]

    def schedule(self, num_steps: int) -> list[int]:
        return trailing_timesteps(len(self.alphas_cumprod), num_steps)

    def encode(self, images: Tensor) -> Tensor:
        return 4.0 * (images - 0.5)

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 + 0.25 * latents).clamp(0.0, 1.0)

    def word_vectors(self, text: str) -> Tensor:
        known = [torch.full((1, self.width), self.words[word]) for word in text.split() if word in self.words]
        return torch.cat([*known, torch.empty(0, self.width)]).double()

    def embed(self, prompts: list[str], concept=None, embeddings: Tensor | None = None) -> Tensor:
        rows = []
        for prompt in prompts:
            named = [i for i, p in enumerate(concept.placeholders if concept else ()) if p in prompt]
            table = embeddings if embeddings is not None else concept.embeddings if concept else None
            rows.append(table[named[0]].mean(dim=0) if named else torch.zeros(self.width, dtype=torch.float64))
        return torch.stack(rows)[:, None]

    def eps(self, z: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        abar = self.alphas_cumprod[torch.as_tensor(t)].reshape(-1, 1, 1, 1)
        mu = cond.reshape(len(z), *self.latent_shape)
        return (1 - abar).sqrt() * (z - abar.sqrt() * mu) / (abar * self.s**2 + 1 - abar)

    def flow(self, z: Tensor, mu: Tensor, abar_from: float, abar_to: float) -> Tensor:
        """Where the exact probability flow takes z."""
        v_from, v_to = (abar * self.s**2 + 1 - abar for abar in (abar_from, abar_to))
        return sqrt(abar_to) * mu + sqrt(v_to / v_from) * (z - sqrt(abar_from) * mu)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
