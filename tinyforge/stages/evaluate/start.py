"""The starting weights of '+pretrained' students: trained on the base classes when they are not there yet."""

import json
from collections.abc import Callable
from pathlib import Path

from tinyforge.errors import DataError
from tinyforge.fewshot.datasets import BENCHMARKS
from tinyforge.stages.evaluate.gallery import decoded
from tinyforge.stages.evaluate.request import Request
from tinyforge.stages.starts import ABOUT, shipped_start


def start_folder(request: Request) -> Path:
    """Where the starting weights are, or will be: in the folder asked for, the shipped one, or with the results."""
    return request.start or shipped_start(request.recipe.distill.student) or request.out / "start"


def make_start(request: Request, log: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
    """Train the starting weights that ``request`` needs, unless they are there; an interrupted training continues."""
    folder, base = start_folder(request), request.base
    wants_it = any(one.pretrained for one in request.methods)
    if wants_it and (folder / ABOUT).is_file():
        log(f"starting weights: {folder}")
    if base is None or not wants_it or (folder / ABOUT).is_file():
        return
    import torch

    from tinyforge.distill.arithmetic import device_of
    from tinyforge.distill.pixels import pack
    from tinyforge.distill.pretraining import train_start
    from tinyforge.distill.students import default_spec

    torch.set_num_threads(request.threads)
    wanted = request.recipe.distill
    spec = default_spec(wanted.student, base_size(request))
    names = [(label, file) for label, files in enumerate(base.files.values()) for file in files]
    log(f"starting weights: {wanted.student} on {len(names)} images of {len(base.files)} base classes")
    pixels = pack(decoded(base.root, (file for _, file in names)), spec)
    steps = -(-len(names) // wanted.batch_size)
    training = {"epochs": request.start_epochs, "steps_per_epoch": steps, "distinct_batches": 0}  # no teacher labels
    settings = wanted.model_copy(update=training)
    train_start(
        pixels, [label for label, _ in names], tuple(base.files), spec, settings, folder,
        seed=request.recipe.seed, device=device_of(request.recipe.backbone.device),
        progress=lambda done, total: progress("starting weights", done, total),
    )  # fmt: skip


def check_novel(request: Request) -> None:
    """Raises DataError where a class to be evaluated is one that the starting weights know. The shipped ones are held
    to it on benchmarks, whose splits say which classes are new; a user's own folder may well show a pizza.
    """
    folder = start_folder(request)
    own = request.start is None and not BENCHMARKS[request.episodes.benchmark].has_splits
    if own or not any(one.pretrained for one in request.methods) or not (folder / ABOUT).is_file():
        return
    from tinyforge.embedded.pretrain.photos import word_of

    known = set(map(word_of, json.loads((folder / ABOUT).read_text(encoding="utf-8"))["classes"]))
    both = [name for name in request.episodes.files if word_of(name) in known]
    if both:
        raise DataError(
            f"the starting weights in {folder} were trained on classes that are evaluated: {', '.join(both[:8])}; "
            "evaluate another --split, or give other weights with --start"
        )


def base_size(request: Request) -> int:
    """The student's input in pixels: the recipe's, else as a build would choose it for the first images of each base
    class.
    """
    from tinyforge.images import ImageSet
    from tinyforge.stages.evaluate.gallery import read_set
    from tinyforge.stages.inputs import input_size

    first: ImageSet = read_set(
        request.base.root, list(request.base.files), [f[:1] for f in request.base.files.values()]
    )
    return input_size(request.recipe.distill, first)
