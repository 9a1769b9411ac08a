"""Which embedded models a task gets, and whether they know such images: their autoencoders tell, on the supports."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tinyforge import embedded

USUAL_FLOOR_DB = 20.0
NUM_IMAGES = 24
COLOURLESS = 8.0
"""Images whose ``chroma`` is less have no colour."""


def choose_domain(wanted: str, images: Sequence[np.ndarray], domains: Iterable[str] | None = None) -> tuple[str, str]:
    """(domain, reason): the one asked for by name, else the one that fits the images.

    A domain fits whose autoencoder holds the images above its floor; one made for colourless images (its card says so)
    fits only these, and then comes first: a grey photo may be taken for a drawing, and only its name helps there. Of
    several, or of none that fits, the one that holds them best.
    images: uint8 (H, W, 3), of which at most NUM_IMAGES, evenly spread, are tried. domains: by default all that ship.
    """
    cards = embedded.domains()
    names = list(cards) if domains is None else list(domains)
    if wanted in names:
        return wanted, f"the domain '{wanted}', as asked"
    if len(names) == 1:
        return names[0], f"'{names[0]}' is the only domain here"
    tried = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES).round().astype(int))]
    colourless = chroma(tried) < COLOURLESS
    held = {name: held_db(embedded.path(name, "backbone"), tried) for name in names}
    special = {name for name in names if cards[name].get("colourless")}
    fitting = [name for name in names if held[name] >= cards[name]["floor_db"] and (colourless or name not in special)]
    best = max([name for name in fitting if name in special] or fitting or names, key=lambda name: held[name])
    told = ", ".join(f"{name} {db:.1f} dB" for name, db in held.items())
    return (
        best,
        f"the domain '{best}': images {'without' if colourless else 'with'} colour, autoencoders hold them to {told}",
    )


def chroma(images: Sequence[np.ndarray]) -> float:
    """How far the channels of uint8 (H, W, 3) images are apart, 0 … 255: median over images of the mean over pixels."""
    return float(np.median([np.ptp(image.astype(np.int16), axis=2).mean() for image in images]))


def held_db(folder: Path, images: Sequence[np.ndarray]) -> float:
    """The median PSNR in dB of uint8 (H, W, 3) images after a backbone's autoencoder, at the backbone's size."""
    from tinyforge.diffusion.backbone import load_backbone
    from tinyforge.diffusion.sample import psnr
    from tinyforge.stages.pictures import as_batch

    backbone = load_backbone(folder)
    x = as_batch(images, backbone.image_size)
    return float(np.median(psnr(backbone.decode(backbone.encode(x)), x).numpy()))


def floor_db(source: str) -> float:
    """An autoencoder that holds the supports less well than this was made for other images.

    An embedded backbone's card tells its own floor.
    """
    for name, card in embedded.domains().items():
        if str(embedded.path(name, "backbone")) == source:
            return float(card["floor_db"])
    return USUAL_FLOOR_DB
