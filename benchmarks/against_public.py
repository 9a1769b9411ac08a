"""The public code of TINT beside ours: same backbone folder, supports, steps, samples per step, precision and noise.

    git clone https://github.com/pixwse/tiny2
    python benchmarks/against_public.py --public tiny2 --out benchmarks/results/against_public/glyphs.json

    python benchmarks/against_public.py --public tiny2 --backbone sd15-random --device cuda --dtype bfloat16 \\
        --paper --ti-steps 500 --classes 1 --images 20 --repeats 3 --out benchmarks/results/against_public/sd15.json

The second is for a GPU: Stable Diffusion 1.5's architecture at 512 px with random weights (a folder with real weights
goes the same way), the public code in fp32, as it comes, ours in bfloat16; ``--dtype float32`` for both in fp32.

The default is ten digits with five supports each, 100 images a class. Textual inversion takes 500 steps of one sample
at 1e-3, since the public code takes one sample a step and never reads its rate; all other settings are the backbone's
own (``--paper``: the paper's). Ours runs all classes at once, the public code one after another; our runs are
interleaved between its classes, so that both meet the same machine. The ratio is taken block by block (the classes
before one of our runs, scaled up to all of them), its interval is Student's over the logarithms of the blocks.
Each stage is timed by the wall and by the processor; on a machine that others use too, only the latter is worth much.
Quality is measured by the same functions on what either made: the loss of the learned vectors on held-back samples,
the latent error and the PSNR of the supports after guided DDIM with their null embeddings, and how many images the
teacher takes for their class. ``same_vectors``: our inversion and generation with the public code's vectors, and our
generation with its inversions too, image by image against its own (on a CPU; on a GPU the two draw different noise).
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import public_code
import torch
from measure import Took, machine, spread
from our_code import STAGES, Made, Task, as_concept, make, noise_seed, run_ours
from torch import Tensor

from tinyforge import embedded
from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval, paired_difference, wilson
from tinyforge.diffusion.architectures import SD15
from tinyforge.diffusion.backbone import Backbone, load_backbone, random_backbone, save_backbone
from tinyforge.diffusion.ddim import ddim_denoise
from tinyforge.diffusion.sample import psnr
from tinyforge.diffusion.seeding import item_generator
from tinyforge.diffusion.textual_inversion import noise_losses
from tinyforge.distill.teacher import adapt, load_teacher
from tinyforge.images import ImageSet, read_images
from tinyforge.recipe import Invert, with_defaults
from tinyforge.recipe import Teacher as TeacherSettings
from tinyforge.splits import k_shot_split
from tinyforge.stages.crew import Crew
from tinyforge.stages.pictures import as_batch, as_pixels
from tinyforge.stages.synthesize import Plan, plan
from tinyforge.store import write_atomic

HELD_BACK = 64  # samples per class on which the learned vectors are judged


def run_public(code: Any, task: Task, label: int, factor: int) -> Made:
    """One class by the public code."""
    members = task.members(label)
    first, name = int(members[0]), task.supports.classes[label]
    assert members.tolist() == list(range(first, first + len(members))), "supports are in the order of their classes"
    own = [
        (Plan(one.file, label, one.index, one.support - first, one.alpha), noise_seed(task.seed, name, one.index))
        for one in task.planned
        if one.label == label
    ]
    images = task.images[members].contiguous()  # the layout in which it reads them itself; its noise follows it
    return public_code.run_class(code, task.source, images, task.settings, own, factor, task.seed + label)


def joined(parts: list[Made]) -> Made:
    """Classes one after another as one."""
    fields = ("vectors", "z_T", "null_embeddings", "images")
    return Made(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


@torch.no_grad()
def quality(backbone: Backbone, task: Task, made: Made, teacher: Any) -> dict[str, Any]:
    """What was made, judged in fp32: per class, per support and per image."""
    settings, labels = task.settings, task.labels
    cond = as_concept(made.vectors.float(), task.supports.classes).conditions(backbone, settings.prompt)
    z0 = torch.cat([backbone.encode(part) for part in task.images.split(task.batch)])
    batches = zip(
        made.z_T.split(task.batch), labels.split(task.batch), made.null_embeddings.split(task.batch), strict=True
    )
    timesteps, scale = backbone.schedule(settings.num_steps), settings.guidance_scale
    z = torch.cat([ddim_denoise(backbone, z, cond[y], null, timesteps, scale) for z, y, null in batches])
    rebuilt = torch.cat([backbone.decode(part) for part in z.split(task.batch)])
    answers = teacher.predict_logits(list(as_pixels(made.images))).argmax(axis=1)
    wanted = np.array([one.label for one in task.planned])
    return {
        "ti_loss": losses(backbone, task, made.vectors.float()),
        "latent_mse": (z - z0).square().mean(dim=(1, 2, 3)).tolist(),
        "psnr_db": psnr(rebuilt, task.images).tolist(),
        "agrees": (answers == wanted).tolist(),
    }


@torch.no_grad()
def losses(backbone: Backbone, task: Task, vectors: Tensor) -> list[float]:
    """Per class, of its vector (N, D)."""
    cond = as_concept(vectors, task.supports.classes).conditions(backbone, task.settings.prompt)
    z0 = torch.cat([backbone.encode(part) for part in task.images.split(task.batch)])
    return [
        held_back_loss(backbone, z0[task.members(n)], cond[n], task.seed, n, task.settings) for n in range(len(cond))
    ]


def held_back_loss(backbone: Backbone, z0: Tensor, cond: Tensor, seed: int, label: int, settings: Invert) -> float:
    """The noise's mean squared error under one class's condition (L, D), on samples that nobody trained on."""
    generator = item_generator(seed, "held back", label)
    rows = torch.arange(HELD_BACK) % len(z0)
    noise = torch.randn(HELD_BACK, *z0.shape[1:], generator=generator).to(z0)
    t = torch.randint(settings.ti_min_timestep, settings.ti_max_timestep, (HELD_BACK,), generator=generator)
    parts = zip(z0[rows].split(8), noise.split(8), t.split(8), strict=True)
    return float(torch.stack([noise_losses(backbone, cond[None], [part]) for part in parts]).mean())


def compare(ours: dict[str, Any], public: dict[str, Any]) -> dict[str, Any]:
    """Both, and ours minus public with its 95 % interval, paired by class, support and image."""
    found = {}
    for name in ("ti_loss", "latent_mse", "psnr_db"):
        a, b = ours[name], public[name]
        found[name] = {"n": len(a), "ours": float(np.mean(a)), "public": float(np.mean(b))}
        if len(a) > 1:
            found[name]["difference"] = mean_interval([x - y for x, y in zip(a, b, strict=True)])
    a, b = ours["agrees"], public["agrees"]
    found["teacher_agreement"] = {"n": len(a), "ours": np.mean(a).item(), "public": np.mean(b).item()}
    found["teacher_agreement"] |= {
        "difference": paired_difference(a, b),
        "ours_interval": wilson(sum(a), len(a)),
        "public_interval": wilson(sum(b), len(b)),
    }
    return found


def ratios(
    public: list[dict[str, Took]], ours: list[dict[str, Took]], classes: int, what: str, clock: str
) -> dict[str, Any]:
    """How many times faster ours is, in one stage or 'all': seconds of both, and the ratio over the blocks.

    public: per class, perhaps not of all. ours: per run of all classes, each after one block of the public code's.
    clock: 'wall' or 'processor'.
    """
    theirs = [seconds(one, what, clock) for one in public]
    mine = [seconds(one, what, clock) for one in ours]
    edges = [round(index * len(public) / len(ours)) for index in range(len(ours) + 1)]
    blocks = [np.mean(theirs[a:b]) * classes / m for (a, b), m in zip(pairwise(edges), mine, strict=True)]
    found = {
        "public_per_class": spread(theirs),
        "public_all_classes": sum(theirs) / len(theirs) * classes,
        "ours_all_classes": spread(mine),
        "ratio_by_block": [float(block) for block in blocks],
        "ratio": math.exp(float(np.mean(np.log(blocks)))),
    }
    if len(blocks) > 1:
        found["ratio_interval"] = [
            math.exp(value) for value in mean_interval([math.log(block) for block in blocks])[1:]
        ]
    return found


def seconds(one: dict[str, Took], what: str, clock: str) -> float:
    return sum(getattr(value, clock) for name, value in one.items() if what in (name, "all"))


def same_vectors(task: Task, public: Made) -> dict[str, Any]:
    """Ours on what the public code made: with its vectors, and with its vectors and inversions; image by image."""
    vectors = public.vectors.to(task.device)
    ours = run_ours(task, vectors)
    backbone = load_backbone(task.source, device=task.device)
    cond = as_concept(vectors, task.supports.classes).conditions(backbone, task.settings.prompt)
    images = make(task, {"load": backbone, "cond": cond, "null-text inversion": public}, Crew())
    return {
        "z_T_max_abs_difference": float((ours.z_T - public.z_T).abs().max()),
        "null_embeddings_rms": float(public.null_embeddings.square().mean().sqrt()),
        "null_embeddings_rms_difference": float((ours.null_embeddings - public.null_embeddings).square().mean().sqrt()),
        "image_psnr_db_own_inversions": nearness(ours.images, public.images),
        "image_psnr_db_same_inversions": nearness(images, public.images),
    }


def nearness(images: Tensor, others: Tensor) -> dict[str, Any]:
    distance = psnr(images.float(), others.float()).clamp_max(999.0)  # infinite where they are equal
    return {"median": float(distance.median()), "lowest": float(distance.min()), "n": len(distance)}


def interleave(code: Any, task: Task, count: int, repeats: int, factor: int) -> Iterator[tuple[list[Made], list[Made]]]:
    """The public code's first ``count`` classes and our runs of all classes, in turns: all there is after each turn."""
    edges = [round(index * count / repeats) for index in range(repeats + 1)]
    public, ours = [], []
    for first, last in pairwise(edges):
        for label in range(first, last):
            public.append(run_public(code, task, label, factor))
            tell(f"public, class {label}", public[-1])
        ours.append(run_ours(task))
        tell(f"ours, all {len(task.supports.classes)} classes", ours[-1])
        yield public, ours


def tell(what: str, made: Made) -> None:
    print(
        what,
        {name: f"{one.wall:.1f} s, processor {one.processor:.1f} s" for name, one in made.took.items()},
        flush=True,
    )


def measure(code: Any, task: Task, teacher: Any, count: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The result after each turn. The public code runs ``count`` of the classes; on these, quality is compared."""
    backbone = load_backbone(task.source, device=task.device)
    about = {
        "machine": machine(task.device),
        "device": task.device,
        "dtype": {"ours": task.dtype, "public": "float32"},
        "settings": task.settings.model_dump(mode="json"),
        "classes": len(task.supports.classes),
        "supports": len(task.supports),
        "images": len(task.planned),
        "engine": task.engine,
        "seed": task.seed,
        "batch": task.batch,
    }
    same = None
    for public, ours in interleave(code, task, count, repeats, backbone.image_size // backbone.latent_shape[1]):
        same = same or same_vectors(task.first(1), public[0])
        judged = judge(backbone, task.first(len(public)), ours[0], joined(public), teacher)
        about |= {"classes_of_public": len(public), "turns": len(ours)}
        yield {**about, "timing": timing(public, ours), "quality": judged, "same_vectors": same}


def timing(public: list[Made], ours: list[Made]) -> dict[str, Any]:
    """By clock and stage."""
    times = [one.took for one in public], [one.took for one in ours], len(ours[0].vectors)
    return {clock: {what: ratios(*times, what, clock) for what in (*STAGES, "all")} for clock in ("wall", "processor")}


def judge(backbone: Backbone, task: Task, ours: Made, public: Made, teacher: Any) -> dict[str, Any]:
    """Both compared on the classes of ``task``, and the loss of the word that both started from."""
    untrained = backbone.word_vectors(task.settings.initializer)[:1].expand(len(task.supports.classes), -1)
    found = compare(quality(backbone, task, task.part(ours), teacher), quality(backbone, task, public, teacher))
    return {**found, "ti_loss_of_initial_word": float(np.mean(losses(backbone, task, untrained)))}


def text(result: dict[str, Any]) -> str:
    """The tables."""
    rows = []
    for clock, stages in result["timing"].items():
        for name, one in stages.items():
            low, high = one.get("ratio_interval", [math.nan, math.nan])
            around, theirs = one["ours_all_classes"], one["public_all_classes"]
            mine = f"{around['median']:.1f} ({around['low']:.1f} to {around['high']:.1f} of {around['runs']})"
            rows.append([clock, name, f"{theirs:.1f}", mine, f"{one['ratio']:.2f}", f"{low:.2f} to {high:.2f}"])
    head = ["clock", "stage", "public s", "ours s, median (range)", "times as fast", "95 % interval"]
    quality_rows = []
    for name, one in result["quality"].items():
        if isinstance(one, dict):
            around = one.get("difference", [math.nan] * 3)
            values = [f"{one['public']:.4g}", f"{one['ours']:.4g}", f"{around[0]:+.3g}"]
            quality_rows.append([name, str(one["n"]), *values, f"{around[1]:+.3g} to {around[2]:+.3g}"])
    more = ["quality", "n", "public", "ours", "ours minus public", "95 % interval"]
    return f"{table(head, rows)}\n\n{table(more, quality_rows)}\n\nsame vectors: {result['same_vectors']}"


def equal_settings(folder: Path, options: argparse.Namespace) -> Invert:
    """The backbone's settings, or the paper's, with the steps, the one sample and the rate that the public code has."""
    own = folder / "tinyforge.json"
    known = json.loads(own.read_bytes()).get("invert", {}) if own.is_file() and not options.paper else {}
    fixed = {"ti_steps": options.ti_steps, "ti_batch_size": 1, "ti_lr": 1e-3, "ti_max_timestep": 1000}
    if options.ddim_steps is not None:
        fixed["num_steps"] = options.ddim_steps
    return with_defaults(Invert(), known).model_copy(update=fixed)


def backbone_folder(name: str, scratch: Path) -> Path:
    """Of an embedded backbone, of random weights written for the occasion, or the folder itself."""
    if name == "sd15-random":
        folder = scratch / "sd15-random" / "backbone"
        folder.mkdir(parents=True)
        save_backbone(random_backbone(SD15), folder)
        return folder
    return embedded.path(name, "backbone") if name in embedded.domains() else Path(name)


def set_up(options: argparse.Namespace, scratch: Path) -> tuple[Task, Any]:
    """The task, and the teacher that judges the images: prototypes of the supports, not fine-tuned."""
    source = backbone_folder(options.backbone, scratch)
    drawn, _ = k_shot_split(read_images(options.data), options.shots, options.seed)
    chosen = [i for i, label in enumerate(drawn.labels) if label < options.classes]
    few = drawn.subset(sorted(chosen, key=lambda i: int(drawn.labels[i])))
    supports = ImageSet(few.classes[: options.classes], few.items)
    side = load_backbone(source).image_size
    planned = plan(supports.labels, len(supports.classes), options.images, options.alphas)
    task = Task(
        source, equal_settings(source, options), supports, as_batch(supports.rgb, side).to(options.device), planned,
        options.seed, options.device, options.dtype, options.batch, options.engine,
    )  # fmt: skip
    judge = "glyphs" if options.backbone == "glyphs" else "photos"
    fixed = TeacherSettings(fine_tune_lrs=[0.0])
    teacher = adapt(load_teacher(embedded.path(judge, "teacher")), supports.rgb, supports.labels, fixed, seed=0)
    return task, teacher


def quiet() -> None:
    """The libraries' bars and remarks, which the public code does not silence."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a checkout of github.com/pixwse/tiny2")
    parser.add_argument("--backbone", default="glyphs", help="glyphs, photos, sd15-random or a folder")
    parser.add_argument("--data", default="digits", help="digits, or a folder with a folder for each class")
    parser.add_argument("--paper", action="store_true", help="the paper's settings, not those of the backbone")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of ours")
    parser.add_argument("--engine", default="eager", choices=["eager", "compiled", "openvino", "auto"], help="of ours")
    parser.add_argument("--threads", type=int, help="of torch, for both; default: as many as it chooses")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="per class")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--ti-steps", type=int, default=500)
    parser.add_argument("--ddim-steps", type=int, help="default: as many as the backbone suggests, or the paper")
    parser.add_argument("--batch", type=int, default=32, help="images per forward pass of ours")
    parser.add_argument("--public-classes", type=int, help="that the public code runs; its time is scaled to all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours between the public code's classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(argv)
    options.public_classes = min(options.public_classes or options.classes, options.classes)
    options.repeats = min(options.repeats, options.public_classes)
    return options


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    code = public_code.open_checkout(options.public)
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        task, teacher = set_up(options, Path(scratch))
        for found in measure(code, task, teacher, options.public_classes, options.repeats):
            result = {"backbone": Path(options.backbone).name, "data": Path(options.data).name, **found}
            if options.out:
                write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
            print(text(result), flush=True)


if __name__ == "__main__":
    main()
