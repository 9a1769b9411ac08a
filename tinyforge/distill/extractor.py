"""Feature extractors for the teacher: the embedded one, any timm model, or a local checkpoint of one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from tinyforge.device.spec import RESIZE_RULES, InputSpec
from tinyforge.errors import MissingError, RecipeError
from tinyforge.registry import near_miss

PREFIX = "timm:"
WORDS = ("auto", "embedded", "glyphs", "photos")


@dataclass(frozen=True)
class Extractor:
    """module: standardised (B, 3, h, w) -> features (B, D). fingerprint: sha256 of its weights."""

    module: nn.Module
    spec: InputSpec
    name: str
    fingerprint: str


def load_teacher(source: str | Path, *, offline: bool = True) -> Extractor:
    """A folder (config.json, model.safetensors), 'timm:<model>' (pretrained), or 'timm:<model>@<file.safetensors>'.

    Raises RecipeError (no such source), MissingError (its weights are not here).
    """
    check_teacher(source, offline=offline)
    if not str(source).startswith(PREFIX):
        return _embedded_extractor(Path(source))
    model, _, file = str(source).removeprefix(PREFIX).partition("@")
    return _timm_extractor(model, Path(file) if file else None, offline)


def check_teacher(source: str | Path, *, offline: bool = True, fetch: bool = False) -> None:
    """Raise what ``load_teacher`` would of names that are nothing and files that are missing or cut short.

    Builds no network. fetch: downloads the hub's weights where they are not here; otherwise nothing is downloaded.
    """
    text, folder = str(source), Path(source)
    if text.startswith(PREFIX):
        from tinyforge.distill.timm_models import check_name, find_weights

        model, _, file = text.removeprefix(PREFIX).partition("@")
        check_name(model)
        if file:
            _check_checkpoint(Path(file))
        elif offline or fetch:
            find_weights(model, offline=offline)
    elif (folder / "config.json").is_file():
        _check_config(folder / "config.json")
        _check_checkpoint(folder / "model.safetensors")
    elif folder.suffix == ".safetensors":
        raise RecipeError(f"which network is {text!r} of? Write 'timm:<model>@{text}'")
    else:
        raise RecipeError(
            f"no teacher at {text!r}{near_miss(text, WORDS)}: expected {', '.join(WORDS)}, a folder with config.json, "
            "or 'timm:<model>' such as timm:vit_small_patch16_224.dino"
        )


def _check_config(file: Path) -> None:
    try:
        config = json.loads(file.read_bytes())
        lacking = [key for key in ("architecture", "input") if key not in config]
    except (TypeError, ValueError) as fault:
        raise RecipeError(f"{file}: is no JSON of a teacher: {fault}") from fault
    if lacking:
        raise RecipeError(f"{file}: has no {lacking[0]!r}, as a teacher's must")


def _check_checkpoint(file: Path) -> None:
    """The header of a safetensors file tells how long it must be."""
    if not file.is_file():
        raise MissingError(f"no checkpoint {file}")
    if file.suffix != ".safetensors":
        raise RecipeError(f"{file.name}: only .safetensors checkpoints are read; pickled ones can run programs")
    try:
        with safe_open(str(file), "pt"):
            pass
    except SafetensorError as fault:
        raise RecipeError(f"{file}: is damaged or cut short ({fault}); fetch it again") from fault


def _embedded_extractor(folder: Path) -> Extractor:
    from tinyforge.embedded.network import load_teacher_network

    try:
        module, config = load_teacher_network(folder)
        spec = InputSpec.from_json(config["input"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as fault:
        raise RecipeError(f"{folder / 'config.json'}: {fault}") from fault
    return as_extractor(module, spec, str(config.get("name", folder.name)))


def _timm_extractor(model: str, file: Path | None, offline: bool) -> Extractor:
    from tinyforge.distill.timm_models import create, find_weights  # takes seconds, and most builds need none of it

    if file is None:
        module = create(model, num_classes=0, weights=find_weights(model, offline=offline))
    else:
        module = create(model, num_classes=0)
        _load_local(module, model, file)
    return as_extractor(module, timm_spec(module), PREFIX + model)


def _load_local(module: nn.Module, model: str, file: Path) -> None:
    """Weights without the classifier; everything else must fit."""
    try:
        fault = module.load_state_dict(load_file(file), strict=False)
    except RuntimeError as error:
        raise RecipeError(f"{file.name} does not fit timm:{model}: {error}") from error
    classifiers = module.pretrained_cfg.get("classifier") or "head"
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    extra = [key for key in fault.unexpected_keys if not key.startswith(tuple(f"{name}." for name in classifiers))]
    if fault.missing_keys or extra:
        odd = ", ".join([*fault.missing_keys, *extra][:4])
        raise RecipeError(f"{file.name} does not fit timm:{model}: missing or unknown {odd}")


def timm_spec(module: nn.Module) -> InputSpec:
    """The preprocessing that timm records for a network: size, resampling, centre crop, mean and std."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=module)
    rule = config["interpolation"] if config["interpolation"] in RESIZE_RULES else "bicubic"
    fit = "stretch" if config["crop_mode"] == "squash" else "crop"
    size, mean, std = config["input_size"][1:], config["mean"], config["std"]
    return InputSpec(size=size, resize=rule, fit=fit, crop_pct=config["crop_pct"], mean=mean, std=std)


def as_extractor(module: nn.Module, spec: InputSpec, name: str) -> Extractor:
    """float32, eval mode, with the fingerprint of its weights."""
    module = module.float().eval()
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return Extractor(module, spec, name, digest.hexdigest())
