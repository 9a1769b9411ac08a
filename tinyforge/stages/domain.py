"""Which embedded models a task gets, and whether they know such images: their autoencoders tell, on the supports."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tinyforge import embedded

USUAL_FLOOR_DB = 20.0
NUM_IMAGES = 24


def choose_domain(wanted: str, images: Sequence[np.ndarray], domains: Iterable[str] | None = None) -> tuple[str, str]:
    """(domain, reason): the one asked for by name, else that whose autoencoder holds the images best.

    images: uint8 (H, W, 3), of which at most NUM_IMAGES, evenly spread, are tried. domains: those to choose from, by
    default every one that ships.
    """
    names = list(embedded.domains()) if domains is None else list(domains)
    if wanted in names:
        return wanted, f"the domain '{wanted}', as asked"
    if len(names) == 1:
        return names[0], f"'{names[0]}' is the only domain here"
    places = np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES).round().astype(int))
    held = {name: held_db(embedded.path(name, "backbone"), [images[i] for i in places]) for name in names}
    best = max(names, key=lambda name: held[name])
    others = ", ".join(f"{name} {db:.1f} dB" for name, db in held.items() if name != best)
    return best, f"the domain '{best}': its autoencoder holds these images to {held[best]:.1f} dB ({others})"


def held_db(folder: Path, images: Sequence[np.ndarray]) -> float:
    """The median PSNR in dB of uint8 (H, W, 3) images after a backbone's autoencoder."""
    from tinyforge.diffusion.backbone import load_backbone
    from tinyforge.diffusion.sample import psnr
    from tinyforge.stages.pictures import as_batch

    backbone = load_backbone(folder)
    x = as_batch(images, backbone.image_size)
    return float(np.median(psnr(backbone.decode(backbone.encode(x)), x).numpy()))


def floor_db(source: str) -> float:
    """An autoencoder that holds the supports less well than this was made for other images.

    An embedded backbone's card tells its own floor: the mean PSNR on its own images minus two standard deviations.
    """
    for name, card in embedded.domains().items():
        if str(embedded.path(name, "backbone")) == source:
            return float(card["floor_db"])
    return USUAL_FLOOR_DB
