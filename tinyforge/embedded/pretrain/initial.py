"""Weights to go on from: those that an earlier training exported, shipped ones or one's own."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel

from . import export

FILES = {
    "teacher": "teacher/model.safetensors",
    "autoencoder": "backbone/vae/diffusion_pytorch_model.safetensors",
    "unet": "backbone/unet/diffusion_pytorch_model.safetensors",
}
"""Of each part, below the folder that 'tinyforge pretrain' wrote."""

CAPTIONS = ("backbone/text_encoder/model.safetensors", "backbone/tokenizer/vocab.json")
"""What the UNet knows its classes by."""


def require_initial(folder: Path) -> None:
    """Raises ValueError for a folder without the weights of every part and the UNet's captions."""
    for file in (*FILES.values(), *CAPTIONS):
        if not (folder / file).is_file():
            raise ValueError(f"{folder}: no {file}; --from takes a folder that 'tinyforge pretrain' wrote")


def keep_beginning(folder: Path | None, part: str, checkpoint: Path) -> None:
    """Note beside a part's checkpoint which weights it began from. Raises ValueError when it began from others."""
    file = checkpoint.with_name(f"{part}.initial")
    own = "" if folder is None else hashlib.sha256((folder / FILES[part]).read_bytes()).hexdigest()
    known = file.read_text() if file.is_file() else ""
    if checkpoint.is_dir() and known != own:
        raise ValueError(
            f"{checkpoint}: did not begin from the weights given now; give the same --from as then, or another --out"
        )
    file.write_text(own)


def load_initial(network: nn.Module, folder: Path, part: str) -> None:
    """Put the exported weights of a part into its network. Raises ValueError where they are of another size."""
    state = load_file(folder / FILES[part])
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as fault:
        raise ValueError(f"{folder / FILES[part]}: not of the size to be trained here; do without --from") from fault


def take_captions(folder: Path, names: list[str], tokenizer: Path) -> CLIPTextModel | None:
    """The frozen text encoder that the UNet in folder learned with, its tokenizer copied to the folder ``tokenizer``;
    None, and nothing copied, where that UNet did not learn every one of these names.
    """
    file = folder / "classes.txt"
    rows = [row.split("\t") for row in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    if not set(names) <= {name for name, _, parts in rows if "backbone" in parts}:
        return None
    shutil.copytree(folder / "backbone/tokenizer", tokenizer, dirs_exist_ok=True)
    return CLIPTextModel.from_pretrained(folder / "backbone/text_encoder").float().requires_grad_(False).eval()


def take_teacher(folder: Path, out: Path) -> None:
    """Copy the teacher to out/teacher, unless there is one."""
    if not (out / "teacher").exists():
        export.replace(out / "teacher", lambda place: shutil.copytree(folder / "teacher", place, dirs_exist_ok=True))
