"""TINT by its parts: throughput, peak memory, operations, and the share of what this machine reached in the same run.

    python benchmarks/tint.py                                            # both embedded backbones, about two minutes
    python benchmarks/tint.py --backbone sd15 --batch 1 --classes 1 --shots 1      # Stable Diffusion 1.5's size, random
                                                                         # weights, a step of each part, on the CPU
    python benchmarks/tint.py --backbone sd15 --device cuda --dtype bfloat16 --whole --classes 1 --shots 5 --images 64
                                                                         # the paper's step counts, on a GPU
    python benchmarks/tint.py --count                                    # operations of Stable Diffusion 1.5, not run

``--whole`` runs as many steps as the backbone's settings say (Stable Diffusion 1.5: those of the paper); else a few,
and what a task would take with all of them is worked out and called extrapolated. No inner step of null-text inversion
is saved by its tolerance here, so its times are those of the worst case.
Operations are counted by torch (matmuls, convolutions, attention) on one image, in eager PyTorch; a multiplication and
an addition are two. The ceiling is measured right before each part: the better of a large matmul and of a 3x3
convolution as wide as the UNet's first block, in the same dtype with the same threads. On a CPU both count processor
seconds, so that other programs on the machine change the rates per second, but hardly the share. Memory is the
process's on a CPU, allocated on a GPU.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from measure import Took, ceilings, cost, count_flops, machine, peak_mib, reset_peak, spread, took

from tinyforge import embedded
from tinyforge.device.report import table
from tinyforge.diffusion.architectures import SD15, Architecture
from tinyforge.diffusion.backbone import Backbone, load_backbone, random_backbone
from tinyforge.diffusion.engine import Engine, open_engine
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import generate
from tinyforge.diffusion.textual_inversion import learn_concepts
from tinyforge.distill.extractor import Extractor, as_extractor, load_teacher, timm_spec
from tinyforge.distill.prototypes import Teacher
from tinyforge.distill.students import build_student, default_spec
from tinyforge.distill.teacher import adapt
from tinyforge.distill.timm_models import create
from tinyforge.distill.train import methods, train_student, training_set
from tinyforge.recipe import Distill, Invert, with_defaults
from tinyforge.recipe import Teacher as TeacherSettings
from tinyforge.store import write_atomic

DINO = "vit_small_patch16_224.dino"
PATIENCE = 10.0  # seconds; a part that takes longer is run once, and counted while it is timed
STUDENT_PIXELS = 32
FEW = {"glyphs": (10, 5, 5), "photos": (10, 5, 5), "sd15": (1, 1, 1)}
"""Steps of textual inversion, DDIM steps, and inner steps of null-text inversion that are run without --whole."""


@dataclass(frozen=True)
class Part:
    """One thing to time. ``run`` does ``units`` of them: images, or samples or supports times steps."""

    name: str
    unit: str
    units: int
    run: Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """How much is run at a time."""

    classes: int
    shots: int
    images: int
    batch: int


def measured(
    part: Part, few: Part, device: str, dtype: torch.dtype, shape: tuple[int, int, int, int], least: float
) -> dict:
    """One row of the result. few: the same part on less, whose operations are counted, which makes it slow and large.
    ``least``: seconds to spend on the part, after one call that warms up; that of a long one is the only one.
    """
    flops = count_flops(few.run) / few.units * part.units
    ceiling = ceilings(device, dtype, shape)
    reset_peak(device)
    times = [took(part.run, device)]
    if cost(times[0], device) <= PATIENCE:
        times.clear()
        while len(times) < 3 or sum(cost(one, device) for one in times) < least:
            times.append(took(part.run, device))
    return row(part, times, flops, ceiling, peak_mib(device), device)


def row(
    part: Part, times: list[Took], flops: float, ceiling: dict[str, float], peak: float | None, device: str
) -> dict[str, Any]:
    """Rates from median times; the share is that of the better ceiling."""
    seconds = spread([one.wall for one in times])
    rate = flops / statistics.median(cost(one, device) for one in times)
    return {
        "part": part.name,
        "unit": part.unit,
        "units": part.units,
        "seconds": seconds,
        "processor_s": spread([one.processor for one in times]),
        "per_s": part.units / seconds["median"],
        "gflop_per_unit": flops / part.units / 1e9,
        "gflop_s": rate / 1e9,
        "ceiling_gflop_s": {name: value / 1e9 for name, value in ceiling.items()},
        "share": rate / max(ceiling.values()),
        "peak_mib": peak,
    }


def diffusion_parts(backbone: Backbone, settings: Invert, size: Size) -> list[Part]:
    """The backbone's parts at ``settings``, whose steps are those that are run."""
    generator = torch.Generator().manual_seed(0)
    side, count = backbone.image_size, size.classes * size.shots
    images = torch.rand(size.batch, 3, side, side, generator=generator).to(backbone.device)
    z = torch.randn(max(size.batch, size.images, count), *backbone.latent_shape, generator=generator)
    z, labels = z.to(backbone.device), torch.arange(count) % size.classes
    names = [f"class {index}" for index in range(size.classes)]
    with torch.no_grad():
        cond = backbone.embed([settings.prompt.format("object")]).expand(len(z), -1, -1)
    null = cond[: size.images, None].expand(-1, settings.num_steps, -1, -1)
    exhaustive = settings.model_copy(update={"nti_tolerance": 0.0})

    @torch.inference_mode()
    def forward() -> None:
        backbone.eps(z[: size.batch], 500, cond[: size.batch])

    def learn() -> None:
        learn_concepts(backbone, z[:count], labels, names, settings, 0, batch_size=size.batch)

    def invert() -> None:
        null_text_invert(backbone, z[:count], cond[:count], exhaustive, batch_size=size.batch)

    def make() -> None:
        generate(backbone, z[: size.images], cond[: size.images], null, settings, batch_size=size.batch)

    return [
        Part("VAE encode", "image", size.batch, lambda: backbone.encode(images)),
        Part("VAE decode", "image", size.batch, lambda: backbone.decode(z[: size.batch])),
        Part("UNet forward", "image", size.batch, forward),
        Part("textual inversion", "sample step", size.classes * settings.ti_batch_size * settings.ti_steps, learn),
        Part("null-text inversion", "support step", count * settings.num_steps, invert),
        Part("generation", "image", size.images, make),
    ]


def distill_parts(extractor: Extractor, size: Size, device: str, dtype: str) -> list[Part]:
    """Teacher and Conv4 student, on random images of the student's size. The student's labels are those of classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * size.batch, STUDENT_PIXELS, STUDENT_PIXELS, 3), np.uint8)
    labels = np.arange(len(pixels)) % size.classes
    count, steps = size.classes * size.shots, 5
    tuning = TeacherSettings(fine_tune_lrs=[1e-3], fine_tune_steps=steps)
    module = extractor.module.to(device)
    view = torch.from_numpy(pixels[: size.batch]).permute(0, 3, 1, 2).to(device) / 255.0
    with torch.no_grad():
        width = module(torch.zeros(1, 3, *extractor.spec.size, device=device)).shape[1]
    teacher = Teacher(extractor, torch.randn(size.classes, width).to(device), 10.0, 0.0)
    spec = default_spec("conv4", STUDENT_PIXELS)
    wanted = Distill(epochs=1, batch_size=max(2, size.batch), dtype="bfloat16" if dtype == "bfloat16" else "float32")
    packed = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    data = training_set(packed[:count], labels[:count], packed[count:], labels[count:])
    method = next(one for one in methods(wanted) if one.name == "tint-class")

    def train() -> None:
        student = build_student("conv4", size.classes, input_size=STUDENT_PIXELS)
        train_student(student, spec, data, method, wanted, seed=0, device=device)

    def tune() -> None:
        adapt(extractor, list(pixels[:count]), labels[:count], tuning, seed=0, device=device)

    return [
        Part("teacher, labels", "image", size.batch, lambda: teacher.logits(view)),
        Part("teacher, fine-tuning", "support step", count * steps, tune),
        Part("student, training", "image", wanted.batch_size * wanted.steps_per_epoch, train),
    ]


def models(name: str, device: str, dtype: str, engine: str) -> tuple[Backbone, Extractor, Invert]:
    """The backbone, the teacher that goes with it, and the settings it is used with."""
    if name == "sd15":
        module = create(DINO, num_classes=0)
        extractor = as_extractor(module, timm_spec(module), "ViT-S/16, random weights")
        backbone = random_backbone(SD15, device=device, dtype=dtype)
        opened = open_engine(engine, backbone.unet, backbone.plan.batch_size, backbone.fingerprint)
        return replace(backbone, engine=opened), extractor, Invert()
    folder = embedded.path(name, "backbone")
    own = json.loads((folder / "tinyforge.json").read_bytes())["invert"]
    backbone = load_backbone(folder, device=device, dtype=dtype, engine=engine)
    return backbone, load_teacher(embedded.path(name, "teacher")), with_defaults(Invert(), own)


def shortened(settings: Invert, name: str) -> Invert:
    few = zip(("ti_steps", "num_steps", "nti_inner_steps"), FEW[name], strict=True)
    return settings.model_copy(update={key: min(value, getattr(settings, key)) for key, value in few})


def extrapolate(rows: list[dict[str, Any]], run: Invert, settings: Invert, classes: int, shots: int) -> dict:
    """Seconds that ``classes`` of ``shots`` supports would take at ``settings``, by the rates of ``rows`` at ``run``.

    A timestep of null-text inversion is three forward passes and its inner steps; an image is its steps and a decoding.
    Raises KeyError where a row is missing.
    """
    cost = {one["part"]: 1.0 / one["per_s"] for one in rows}
    per_step = max(0.0, cost["generation"] - cost["VAE decode"]) / run.num_steps
    passes = 3 * cost["UNet forward"]
    inner = max(0.0, cost["null-text inversion"] - passes) / run.nti_inner_steps
    support = settings.num_steps * (passes + settings.nti_inner_steps * inner)
    return {
        "classes": classes,
        "shots": shots,
        "textual_inversion_s": classes * settings.ti_steps * settings.ti_batch_size * cost["textual inversion"],
        "null_text_inversion_s": classes * shots * support,
        "image_s": cost["VAE decode"] + settings.num_steps * per_step,
    }


def measure_backbone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one backbone, and what a class of five would take."""
    backbone, extractor, full = models(name, options.device, options.dtype, options.engine)
    settings = full if options.whole else shortened(full, name)
    size = Size(options.classes, options.shots, options.images, options.batch)
    shape = (size.batch, backbone.unet.config.block_out_channels[0], *backbone.latent_shape[1:])
    plain, steps = replace(backbone, engine=Engine("eager")), {"ti_steps": min(2, settings.ti_steps)}
    counted = diffusion_parts(plain, settings.model_copy(update=steps), Size(1, 1, 1, 1))
    pairs = list(zip(diffusion_parts(backbone, settings, size), counted, strict=True))
    if options.dtype in ("float32", "bfloat16"):  # the precisions that a student is trained in
        pairs += [(part, part) for part in distill_parts(extractor, size, options.device, options.dtype)]
    rows, complete = [], not options.whole and not options.parts
    for part, few in pairs:
        if options.parts and part.name not in options.parts:
            continue
        rows.append(measured(part, few, options.device, getattr(torch, options.dtype), shape, options.seconds))
        print(f"{name}: {part.name} {rows[-1]['per_s']:.3g} {part.unit}s/s", flush=True)
    return {
        "settings": settings.model_dump(mode="json"),
        "size": vars(size),
        "parts": rows,
        "extrapolated": extrapolate(rows, settings, full, 1, 5) if complete else None,
        "extrapolated_to": full.model_dump(mode="json") if complete else None,
    }


def operations(architecture: Architecture, settings: Invert, shots: int) -> dict[str, float]:
    """TFLOP of an architecture's parts and of ``settings``, counted on shapes alone: no weights, no arithmetic.

    The text encoder is left out (SD 1.5: about 1 % of a UNet pass with its gradient). Inner steps: all of them.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**architecture.unet).requires_grad_(False)
        vae = AutoencoderKL(**architecture.vae).requires_grad_(False)
    side, config = architecture.unet["sample_size"], unet.config
    z = torch.empty(1, config.in_channels, side, side, device="meta")
    cond = torch.empty(
        1, architecture.text_encoder["max_position_embeddings"], config.cross_attention_dim, device="meta"
    )
    x = torch.empty(1, 3, architecture.vae["sample_size"], architecture.vae["sample_size"], device="meta")
    t = torch.empty(1, device="meta")

    def descend() -> None:
        leaf = cond.clone().requires_grad_()
        torch.autograd.grad(unet(z, t, leaf).sample.sum(), leaf)

    forward, both = count_flops(lambda: unet(z, t, cond)) / 1e12, count_flops(descend) / 1e12
    encode, decode = count_flops(lambda: vae.encode(x)) / 1e12, count_flops(lambda: vae.decode(z)) / 1e12
    inversion = settings.num_steps * (3 * forward + settings.nti_inner_steps * both)
    return {
        "UNet forward": forward,
        "UNet forward and gradient": both,
        "VAE encode": encode,
        "VAE decode": decode,
        "textual inversion of a class": settings.ti_steps * settings.ti_batch_size * both,
        f"null-text inversion of {shots} supports": shots * (encode + inversion),
        "an image": 2 * settings.num_steps * forward + decode,
    }


def text(result: dict[str, Any]) -> str:
    """The tables."""
    head = [
        "part",
        "unit",
        "units",
        "seconds",
        "per s",
        "range of runs",
        "per processor s",
        "GFLOP/unit",
        "GFLOP/s",
        "ceiling",
        "share %",
        "peak MiB",
    ]
    parts = []
    for name, found in result["backbones"].items():
        rows = [cells(one) for one in found["parts"]]
        parts.append(
            f"{name}, {result['dtype']}, {result['device']}, batch {found['size']['batch']}\n{table(head, rows)}"
        )
        far = found["extrapolated"]
        if far is not None:
            parts.append(
                f"extrapolated to all steps, a class of {far['shots']}: textual inversion "
                f"{far['textual_inversion_s']:.3g} s, null-text inversion {far['null_text_inversion_s']:.3g} s, "
                f"an image {far['image_s']:.3g} s"
            )
    return "\n\n".join(parts)


def cells(one: dict[str, Any]) -> list[str]:
    seconds, units = one["seconds"], one["units"]
    around = f"{units / seconds['high']:.3g} to {units / seconds['low']:.3g} of {seconds['runs']}"
    alone = f"{units / one['processor_s']['median']:.3g}"
    rates = [
        alone,
        f"{one['gflop_per_unit']:.3g}",
        f"{one['gflop_s']:.1f}",
        f"{max(one['ceiling_gflop_s'].values()):.1f}",
    ]
    peak = "" if one["peak_mib"] is None else f"{one['peak_mib']:.0f}"
    run = [one["part"], one["unit"], str(units), f"{seconds['median']:.3g}", f"{one['per_s']:.3g}", around]
    return [*run, *rates, f"{100 * one['share']:.0f}", peak]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["glyphs", "photos"], choices=list(FEW))
    parser.add_argument("--parts", nargs="+", default=[], help="names of the table's rows; default: all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--engine", default="eager", choices=["eager", "compiled", "openvino", "auto"])
    parser.add_argument("--threads", type=int, help="of torch; default: as many as it chooses")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="generated in one go")
    parser.add_argument("--batch", type=int, default=64, help="images per forward pass")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each part")
    parser.add_argument("--whole", action="store_true", help="all steps, none extrapolated")
    parser.add_argument("--count", action="store_true", help="only count operations, of Stable Diffusion 1.5")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(argv)
    options.images = min(options.images, options.batch) if not options.whole else options.images
    return options


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.count:
        rows = [[name, f"{tflop:.3g}"] for name, tflop in operations(SD15, Invert(), 5).items()]
        print(table(["Stable Diffusion 1.5, 512 px, the paper's settings", "TFLOP"], rows))
        return
    result = {"machine": machine(options.device), "device": options.device, "dtype": options.dtype, "backbones": {}}
    for name in options.backbone:
        result["backbones"][name] = measure_backbone(name, options)
    if options.out:
        write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(text(result))


if __name__ == "__main__":
    main()
