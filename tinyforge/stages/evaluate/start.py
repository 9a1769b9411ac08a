"""The starting weights of '+pretrained' students: trained on the base classes when they are not there yet."""

from collections.abc import Callable
from pathlib import Path

from tinyforge import embedded
from tinyforge.errors import UsageError
from tinyforge.stages.evaluate.gallery import decoded
from tinyforge.stages.evaluate.request import Request
from tinyforge.stages.starts import folder_name


def start_folder(request: Request) -> Path:
    """Where the starting weights are, or will be: in the folder asked for, the embedded one, or with the results."""
    shipped = embedded.HERE / "photos" / "students" / folder_name(request.recipe.distill.student)
    return request.start or (shipped if shipped.is_dir() else request.out / "start")


def make_start(request: Request, log: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
    """Train the starting weights that ``request`` needs, unless they are there; an interrupted training continues."""
    from tinyforge.distill.start import ABOUT, train_start

    folder, base = start_folder(request), request.base
    if not any(one.pretrained for one in request.methods) or (folder / ABOUT).is_file():
        return
    if base is None:
        raise UsageError("+pretrained needs base classes: name their folder with --base")
    import torch

    from tinyforge.distill.pixels import pack
    from tinyforge.distill.students import default_spec

    torch.set_num_threads(request.threads)
    wanted = request.recipe.distill
    spec = default_spec(wanted.student, base_size(request))
    names = [(label, file) for label, files in enumerate(base.files.values()) for file in files]
    log(f"starting weights: {wanted.student} on {len(names)} images of {len(base.files)} base classes")
    pixels = pack(decoded(base.root, (file for _, file in names)), spec)
    steps = -(-len(names) // wanted.batch_size)
    settings = wanted.model_copy(update={"epochs": request.start_epochs, "steps_per_epoch": steps})
    train_start(
        pixels, [label for label, _ in names], tuple(base.files), spec, settings, folder,
        seed=request.recipe.seed, device="cuda" if torch.cuda.is_available() else "cpu",
        progress=lambda done, total: progress("starting weights", done, total),
    )  # fmt: skip


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
