"""Super-resolution of small support images before inversion.

Source: Chen et al. 2023, "Activating More Pixels in Image Super-Resolution Transformer" (HAT), arXiv 2205.04437, as
used by Landolsi & Kahl 2024, arXiv 2406.03146. The networks are those of the library ``spandrel``, which also reads the
checkpoint: HAT, and every other single-image super-resolution model that it knows. Checkpoints of the ``.pth`` kind are
read by its restricted unpickler, which admits tensors only.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyforge.diffusion.signature import Progress
from tinyforge.errors import MissingError, RecipeError

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")


def upscale(
    images: list[np.ndarray], checkpoint: str | Path, *, device: str = "cpu", progress: Progress = None
) -> list[np.ndarray]:
    """Enlarge uint8 RGB images (H, W, 3) by the model's factor (HAT: 4), once. Sizes may differ: one image at a time.

    Raises MissingError when spandrel or the checkpoint is not here, RecipeError when it is no RGB model.
    """
    model = load_model(Path(checkpoint).expanduser()).to(torch.device(device)).eval()
    result = []
    for index, image in enumerate(images):
        result.append(_enlarge(model, image))
        if progress:
            progress(index + 1, len(images))
    return result


def load_model(checkpoint: Path):
    """A spandrel ImageModelDescriptor that takes and gives RGB."""
    spandrel = check_upscale(checkpoint)
    try:
        model = spandrel.ModelLoader(device="cpu").load_from_file(checkpoint)
    except Exception as fault:  # spandrel lets through whatever its readers raise
        raise RecipeError(f"invert.upscale: {checkpoint} is no model that spandrel knows ({fault})") from fault
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise RecipeError(f"invert.upscale: {checkpoint} does not turn an RGB image into an RGB image")
    return model


def check_upscale(checkpoint: Path) -> Any:
    """spandrel, imported. Raises MissingError when it or the checkpoint is not here, RecipeError for another file."""
    try:
        spandrel = import_module("spandrel")
    except ImportError as fault:
        raise MissingError("invert.upscale needs spandrel: pip install 'tinyforge[host]'") from fault
    if not checkpoint.is_file():
        raise MissingError(f"invert.upscale: no file {checkpoint}; give a checkpoint such as Real_HAT_GAN_sharper.pth")
    if checkpoint.suffix not in CHECKPOINTS:
        raise RecipeError(f"invert.upscale: {checkpoint} is no checkpoint, which ends in {', '.join(CHECKPOINTS)}")
    return spandrel


@torch.inference_mode()
def _enlarge(model, image: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(np.array(image)).to(model.device).permute(2, 0, 1)[None].to(model.dtype) / 255
    y = model(x)[0].float().clamp(0, 1).permute(1, 2, 0)
    return (255 * y).round().to(torch.uint8).cpu().numpy()
