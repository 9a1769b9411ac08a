"""What the algorithms of this package ask of a diffusion model, and nothing more.

``backbone.Backbone`` is the real one; any object with these members will do, e.g. one with a closed-form eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, device

if TYPE_CHECKING:
    from tinyforge.diffusion.textual_inversion import Concept

Progress = Callable[[int, int], None] | None  # called with (done, total)


class Denoiser(Protocol):
    """A text-conditioned latent diffusion model. B batch, C h w latent, L tokens, D width, N classes, K vectors."""

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...  # (C, h, w)
    @property
    def alphas_cumprod(self) -> Tensor: ...  # (T_train,) float, on the CPU, decreasing in (0, 1)
    @property
    def final_alpha(self) -> float: ...  # abar where t < 0
    @property
    def device(self) -> device: ...

    def schedule(self, num_steps: int) -> list[int]:
        """Descending timesteps."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> latents (B, C, h, w)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
        ...

    def word_vectors(self, text: str) -> Tensor:
        """The input vectors (n, D) of the known tokens of ``text``; n is 0 when there is none."""
        ...

    def embed(self, prompts: list[str], concept: Concept | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Prompts -> conditions (B, L, D); ``embeddings`` (N, K, D) stands in for the concept's own."""
        ...

    def eps(self, z: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        """The noise predicted in z (B, C, h, w) at timestep t, an int or (B,)."""
        ...
