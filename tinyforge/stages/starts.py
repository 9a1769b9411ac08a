"""Starting weights of a student from the photo pool: what `pretrain photos --student NAME` makes.

They are trained on the photo domain's classes: those that CIFAR-FS and miniImageNet keep for testing have no part in
them.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge import embedded
from tinyforge.errors import RecipeError
from tinyforge.folders import check_out
from tinyforge.recipe import Distill

BATCH = 128
ABOUT = "start.json"  # written last: the weights are there


def student_folder(domain: Path, student: str) -> Path:
    """Where a domain's folder has the starting weights of a student: students/timm-lcnet_050 of 'timm:lcnet_050'."""
    return domain / "students" / student.replace(":", "-")


def shipped_start(student: str) -> Path | None:
    """The folder of the starting weights that ship for a student, None where none do."""
    folder = student_folder(embedded.HERE / "photos", student)
    return folder if (folder / ABOUT).is_file() else None


def start_folder(wanted: Distill) -> Path | None:
    """Where the recipe's starting weights are; None for none, or where the student begins from timm's own
    (``distill.pretrained``). Raises RecipeError for a folder without any, or with those of another student.
    """
    if wanted.start == "random":
        return None
    if wanted.start == "photos":
        return None if wanted.pretrained else shipped_start(wanted.student)
    if wanted.pretrained:
        raise RecipeError("distill.start and distill.pretrained are two beginnings for one student: leave one out")
    if not Path(wanted.start, ABOUT).is_file():
        raise RecipeError(f"distill.start: {wanted.start}: no starting weights there (no {ABOUT})")
    if student_of(Path(wanted.start)) != wanted.student:
        raise RecipeError(
            f"distill.start: {wanted.start} has starting weights of {student_of(Path(wanted.start))}, but the student "
            f"is {wanted.student}"
        )
    return Path(wanted.start)


def student_of(folder: Path) -> str:
    """The student that a folder's starting weights are of. Raises RecipeError where they do not say."""
    try:
        return str(json.loads((folder / ABOUT).read_bytes())["student"])
    except (KeyError, TypeError, ValueError) as fault:
        raise RecipeError(f"{folder / ABOUT}: does not say which student the weights are of ({fault})") from fault


def start_for(student: str, wanted: Distill) -> str:
    """``distill.start`` for another student than the recipe's: 'random' where its folder is of the recipe's own."""
    return wanted.start if wanted.start in ("random", "photos") or student == wanted.student else "random"


def start_size(wanted: Distill) -> int:
    """Pixels that the recipe's starting weights were trained at; 0 where there are none."""
    folder = start_folder(wanted)
    return 0 if folder is None else json.loads((folder / ABOUT).read_text(encoding="utf-8"))["input"]["size"][0]


def start_fingerprint(wanted: Distill) -> str | None:
    """sha256 of the recipe's starting weights, None where there are none."""
    folder = start_folder(wanted)
    return None if folder is None else hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()


def start_of(wanted: Distill) -> Any:
    """The recipe's starting weights (distill.start.Start), None where there are none."""
    from tinyforge.distill.start import load_start

    folder = start_folder(wanted)
    return None if folder is None else load_start(folder, wanted.student)


def pretrain_student(
    student: str,
    data: list[Path],
    out: Path,
    *,
    epochs: int,
    size: int,
    seed: int = 0,
    device: str = "cpu",
    every_class: bool = False,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train ``student`` on every training class of the pool in out/work/pool (read from ``data`` where it is not
    there yet) and write out/students/<name>; continues from its last checkpoint. size: pixels that it sees.
    every_class: see photos.listed.

    Raises ValueError without data, for a pool of other data and an unknown device, RecipeError for an unknown student,
    UsageError for an ``out`` that is no folder.
    """
    from tinyforge.distill.pixels import pack
    from tinyforge.distill.pretraining import train_start
    from tinyforge.distill.students import check_student, default_spec
    from tinyforge.embedded.pretrain.origin import check_device
    from tinyforge.embedded.pretrain.photos import ensure_pool

    check_out(out)
    check_device(device)
    check_student(student)
    pool, folder = out / "work" / "pool", student_folder(out, student)
    spec = default_spec(student, size)
    ensure_pool(data, pool, every_class=every_class, tell=log)
    images, labels, names = training_images(pool)
    log(f"{student}: {len(labels)} images of {len(names)} classes, {epochs} epochs at {size} px")
    settings = Distill(
        student=student, input_size=size, epochs=epochs, steps_per_epoch=-(-len(labels) // BATCH), batch_size=BATCH,
        augment="light", flip=True, ema_decay=0.998,
    )  # fmt: skip
    train_start(
        pack(images, spec), labels, names, spec, settings, folder, seed=seed, device=device, progress=progress
    )  # fmt: skip
    return folder


def training_images(pool: Path) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """uint8 (n, H, W, 3) of the classes that may be trained on, their labels, counted anew, and the class names."""
    classes = json.loads((pool / "classes.json").read_text(encoding="utf-8"))
    labels = np.load(pool / "labels.npy")
    wanted = [index for index, one in enumerate(classes) if one["role"] == "train"]
    rows = np.flatnonzero(np.isin(labels, wanted))
    pixels = np.load(pool / "images.npy", mmap_mode="r")
    return pixels[rows], np.searchsorted(wanted, labels[rows]).tolist(), tuple(classes[i]["name"] for i in wanted)
