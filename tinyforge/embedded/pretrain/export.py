"""Writes what was trained: an ordinary diffusers Stable Diffusion folder, and a teacher folder; fp16 safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tinyforge.device.spec import InputSpec

from .swap import swap
from .unet import scheduler

SETTINGS = "tinyforge.json"


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def replace(folder: Path, write: Callable[[Path], None]) -> Path:
    """See ``swap``; recipe settings that came with the old folder (tinyforge.json, written by hand) are kept."""

    def whole(place: Path) -> None:
        write(place)
        if (folder / SETTINGS).is_file():
            shutil.copy(folder / SETTINGS, place / SETTINGS)
        for file in place.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)

    swap(folder, whole)
    return folder


def half(model: nn.Module) -> nn.Module:
    """The same weights in fp16, for saving only."""
    return model.eval().half()


def write_backbone(
    folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: Path
) -> Path:
    """A folder that StableDiffusionPipeline.from_pretrained reads: vae/ unet/ text_encoder/ tokenizer/ scheduler/.

    tokenizer is the folder captions.train_tokenizer wrote. The models given are converted to fp16 in place.
    """

    def write(place: Path) -> None:
        pipeline = StableDiffusionPipeline(
            vae=half(vae),
            unet=half(unet),
            text_encoder=half(text),
            tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(place, safe_serialization=True)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tokenizer / name, place / "tokenizer" / name)

    return replace(folder, write)


def write_teacher(
    folder: Path, state: dict[str, Tensor], architecture: str, kwargs: dict[str, Any], size: int, record: dict[str, Any]
) -> Path:
    """model.safetensors (fp16) and config.json; record adds training facts and measures."""
    config = {
        "architecture": architecture,
        "kwargs": kwargs,
        "embedding_dim": kwargs.get("embedding_dim"),
        "input": InputSpec((size, size), resize="bicubic").to_json(),
        **record,
    }

    def write(place: Path) -> None:
        tensors = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    return replace(folder, write)
