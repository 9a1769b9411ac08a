"""timm networks by name, with safetensors weights from the hub cache, the hub, or a file."""

import difflib
from pathlib import Path
from typing import Any

import timm
from torch import nn

from tinyforge.distill.extractor import PREFIX
from tinyforge.errors import MissingError, NotDownloadedError, RecipeError

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.safetensors", "open_clip_model.safetensors")


def check_name(model: str) -> None:
    """Raises RecipeError with near misses when timm has no such architecture, or no such tag after its '.'."""
    known = timm.list_models() + timm.list_models(pretrained=True)  # the latter with their tags
    if model in known:
        return
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(PREFIX + name for name in near)}?" if near else ""
    raise RecipeError(f"timm has no model {model!r}{hint}")


def create(model: str, *, num_classes: int, input_size: int | None = None, weights: Path | None = None) -> nn.Module:
    """A timm network; ``num_classes=0`` gives pooled features. Random unless ``weights`` (a safetensors file) is given.

    input_size reaches only architectures that are built for one size (transformers). Raises RecipeError, MissingError.
    """
    check_name(model)
    options: dict[str, Any] = {}
    if input_size is not None and _is_built_for_one_size(model):
        options["img_size"] = input_size
    if weights is not None:
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    try:
        return timm.create_model(model, pretrained=weights is not None, num_classes=num_classes, **options)
    except (RuntimeError, AssertionError, KeyError, ValueError) as fault:
        raise RecipeError(f"{PREFIX}{model} cannot be built at {input_size} px: {fault}") from fault


def find_weights(model: str, *, offline: bool) -> Path:
    """The safetensors file of timm's pretrained weights: from the hub's cache, else (unless ``offline``) downloaded.

    Raises MissingError when the model has none, or they are not here and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    check_name(model)
    config = timm.get_pretrained_cfg(model)
    repository = config.hf_hub_id if config else None
    if not repository:
        raise MissingError(
            f"timm offers no pretrained weights for {model!r}; name one with a tag, such as 'resnet18.a1_in1k'"
        )
    why = "the hub could not be reached: check the connection"
    for filename in WEIGHTS_NAMES:
        try:
            return Path(hf_hub_download(repository, filename, local_files_only=offline))
        except LocalEntryNotFoundError:  # older versions count it among the hub's answers
            continue
        except HfHubHTTPError as fault:
            why = f"the hub answers with status {fault.response.status_code}"
        except OSError:
            continue
    if offline:
        raise NotDownloadedError(f"the weights of {PREFIX}{model} are not in the hub cache", repository)
    raise MissingError(
        f"the weights of {PREFIX}{model} ({repository}) are not on this machine: {why}, or give a file: "
        f"{PREFIX}{model}@weights.safetensors"
    )


def _is_built_for_one_size(model: str) -> bool:
    config = timm.get_pretrained_cfg(model)
    return bool(config and config.fixed_input_size)
