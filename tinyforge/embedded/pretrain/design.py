"""The sizes of a domain's networks and how they are trained: everything that differs between domains but the images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

LETTER_TEMPLATES = (
    "a photo of an {name}",
    "a photo of a {name}",
    "an image of {name}",
    "a drawing of {name}",
    "{name}",
    "a {name}",
    "A photo of an {name}",
    "the letter {name}",
    "a written {name}",
    "a picture of the sign {name}",
)
PHOTO_TEMPLATES = (
    "a photo of an {name}",
    "a photo of a {name}",
    "an image of {name}",
    "a picture of a {name}",
    "{name}",
    "a {name}",
    "A photo of an {name}",
    "a photo of the {name}",
    "the {name}",
    "a picture of an {name}",
)


@dataclass(frozen=True)
class Design:
    """network: of the teacher; vae_widths: one halving between each two; minutes and batch: by part.

    half_size: share of the teacher's steps at half resolution. episodes: share of its steps, the last ones, that mix
    in ProtoNet episodes. ways: of the held-out measure. latents: images encoded once for the UNet. each: images per
    class for the embedding of its name. perceptual: weight of the teacher's eyes in the autoencoder's loss.
    unet_average: decay of the average of the UNet's weights.
    """

    network: dict[str, Any]
    vae_widths: tuple[int, ...]
    latent_channels: int
    unet_widths: tuple[int, ...]
    templates: tuple[str, ...]
    minutes: dict[str, float]
    batch: dict[str, int]
    latents: int
    half_size: float = 0.0
    episodes: float = 0.38
    each: int = 12
    ways: int = 10
    perceptual: float = 0.0
    unet_average: float = 0.999

    @property
    def reduction(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.vae_widths) - 1)


DESIGNS = {
    "glyphs": Design(
        network={"widths": [48, 96, 192], "depth": 2, "embedding_dim": 256},
        vae_widths=(16, 32, 64),
        latent_channels=4,
        unet_widths=(48, 96),
        templates=LETTER_TEMPLATES,
        minutes={"autoencoder": 10.0, "teacher": 40.0, "unet": 40.0},
        batch={"autoencoder": 32, "teacher": 128, "unet": 128},
        latents=100_000,
    ),
    "photos": Design(
        network={"widths": [48, 96, 192, 384], "depth": 1, "embedding_dim": 256},
        vae_widths=(16, 32, 64, 128),
        latent_channels=8,
        unet_widths=(64, 128),
        templates=PHOTO_TEMPLATES,
        minutes={"autoencoder": 20.0, "teacher": 50.0, "unet": 40.0},
        batch={"autoencoder": 32, "teacher": 128, "unet": 128},
        latents=120_000,
        half_size=0.75,
        episodes=0.0,
        each=64,
        ways=5,
        perceptual=1.0,
    ),
}


GPU_DESIGNS = DESIGNS | {
    "photos": replace(
        DESIGNS["photos"],
        vae_widths=(32, 64, 128, 128),
        unet_widths=(80, 160),
        minutes={"autoencoder": 9.0, "teacher": 1.5, "unet": 9.5},
        batch={"autoencoder": 256, "teacher": 1024, "unet": 2048},
        latents=160_000,
        half_size=0.3,
        unet_average=0.998,
    ),
}
"""Wider where a small device's build hardly feels it, and larger batches. Little time for the teacher: on an H200 three
minutes taught it each image 87 times, and it knew new classes less well than after 26 times on a processor.
"""


def design_for(domain: str, device: str) -> Design:
    """The domain's design on a processor or a GPU."""
    return (DESIGNS if device == "cpu" else GPU_DESIGNS)[domain]
