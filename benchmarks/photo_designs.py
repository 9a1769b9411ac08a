"""Designs of the photo UNet, each trained from scratch for the same processor minutes, by the quality of its samples.

    python benchmarks/photo_designs.py --models tinyforge/embedded/photos --pool photos/work/pool --out designs
    python benchmarks/photo_designs.py ... --only ships wider       # some of them, in a process of their own

All learn from the same latents of the shipped autoencoder, with the same text encoder, in float32 on one thread. A
second process may start once latents.safetensors is there. How many steps fit is found by timing a few, in processor
seconds. Measured are Fréchet distances of samples (guidance 3, 20 steps) to real images of the trained classes, as on
the models' card. One JSON per design; what is there is kept.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from photos_card import distances

from tinyforge.device.report import table
from tinyforge.diffusion.backbone import load_backbone
from tinyforge.embedded.network import load_teacher_network
from tinyforge.embedded.pretrain import autoencoder, captions, export, loop, photos, unet
from tinyforge.embedded.pretrain.design import DESIGNS, PHOTO_TEMPLATES
from tinyforge.store import write_atomic


@dataclass(frozen=True)
class Way:
    """widths of the UNet's levels. target: what it predicts, 'noise' or 'v'. weights of the timesteps: 'ships' as
    unet.min_snr, 'min-snr' as published, 'even'.
    """

    widths: tuple[int, ...] = DESIGNS["photos"].unet_widths
    target: str = "noise"
    weights: str = "ships"
    batch: int = 128
    seed: int = 0


WAYS = {
    "ships": Way(),
    "ships, seed 1": Way(seed=1),
    "even weights": Way(weights="even"),
    "min-SNR as published": Way(weights="min-snr"),
    "v-prediction": Way(target="v", weights="min-snr"),
    "batch 64": Way(batch=64),
    "narrower": Way(widths=(48, 96)),
    "wider": Way(widths=(96, 192)),
}


def weights_of(way: Way, alphas: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """(T,) of the timesteps. Source of 'min-snr': Hang et al. 2023, arXiv 2303.09556, for noise and for v."""
    snr = alphas / (1 - alphas)
    published = snr.clamp(max=gamma) / (snr if way.target == "noise" else snr + 1)
    return {"ships": unet.min_snr(alphas), "min-snr": published, "even": torch.ones_like(snr)}[way.weights]


def loss_function(way: Way, latents: torch.Tensor, labels: torch.Tensor, context: torch.Tensor) -> loop.LossOf:
    """As unet.loss_function, with the way's target and weights."""
    alphas = unet.scheduler().alphas_cumprod
    weights = weights_of(way, alphas)

    def loss_of(model: torch.nn.Module, step: int, gen: torch.Generator) -> torch.Tensor:
        rows, chance = torch.randint(len(latents), (way.batch,), generator=gen), torch.rand(way.batch, generator=gen)
        named = torch.where(chance < 0.18, len(context) - 2, labels[rows])
        which = torch.where(chance < 0.1, len(context) - 1, named)
        template = torch.randint(context.shape[1], (way.batch,), generator=gen)
        t = torch.randint(len(alphas), (way.batch,), generator=gen)
        z, noise = latents[rows].float(), torch.randn(way.batch, *latents.shape[1:], generator=gen)
        a = alphas[t][:, None, None, None]
        target = noise if way.target == "noise" else a.sqrt() * noise - (1 - a).sqrt() * z
        error = (model(unet.add_noise(z, noise, alphas[t]), t, context[which, template]) - target).square()
        return (error.mean((1, 2, 3)) * weights[t]).mean()

    return loss_of


def seconds_of(model: torch.nn.Module, loss_of: loop.LossOf, passes: int = 8) -> float:
    """Processor seconds of a step of loop.train: the median of a few."""
    tried, seconds = deepcopy(model), []
    optimizer = torch.optim.AdamW(tried.parameters())
    for step in range(passes):
        began = time.process_time()
        loss_of(tried, step, loop.generator(0, step)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    return sorted(seconds)[passes // 2]


def measure(way: Way, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one design; {steps, images, core minutes, parameters, frechet}."""
    source = photos.load_photos(options.pool, [])
    backbone = load_backbone(options.models / "backbone")
    classes = torch.nonzero(source.weights).flatten()
    latents, labels, scale = autoencoder.cached_latents(
        backbone.vae, lambda chosen, gen: source.draw(classes[chosen], gen, "unet"),
        len(classes), options.latents, 0, options.out / "latents.safetensors",
    )  # fmt: skip
    latents = latents.float() * (backbone.vae.config.scaling_factor / scale)
    names = [source.names[i] for i in classes.tolist()]
    ids = captions.caption_ids(backbone.tokenizer, names, PHOTO_TEMPLATES)
    context = unet.contexts(backbone.text_encoder, ids)
    torch.manual_seed(way.seed)
    model = unet.Denoiser(unet.build(latents.shape[-1], way.widths, channels=latents.shape[1]))
    loss_of = loss_function(way, latents, labels, context)
    steps = int(options.minutes * 60 / seconds_of(model, loss_of))
    began = time.process_time()
    plan = loop.Plan(steps=steps, lr=1.5e-3, ema=min(0.999, 1 - 20 / steps), floor=0.05, seed=way.seed)
    model.load_state_dict(loop.train(model, loss_of, plan, folder / "checkpoint"))
    minutes = (time.process_time() - began) / 60
    tokenizer = options.models / "backbone" / "tokenizer"
    export.write_backbone(folder / "backbone", backbone.vae, model.unet, backbone.text_encoder, tokenizer)
    if way.target == "v":
        file = folder / "backbone" / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    network, _ = load_teacher_network(options.models / "teacher")
    found = distances(load_backbone(folder / "backbone"), network, source, options)
    return {
        "way": asdict(way), "steps": steps, "images": steps * way.batch, "core_minutes": minutes,
        "parameters": sum(one.numel() for one in model.parameters()), "frechet": found,
    }  # fmt: skip


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A row per design."""
    eyes = [who for who, one in next(iter(found.values()))["frechet"].items() if isinstance(one, dict)]
    rows = [
        [name, one["parameters"], one["steps"], f"{one['core_minutes']:.1f}",
         *(f"{one['frechet'][who]['samples']:.3f}" for who in eyes)]
        for name, one in found.items()
    ]  # fmt: skip
    return table(["design", "parameters", "steps", "core minutes", *(f"in the eyes of {who}" for who in eyes)], rows)


def study(
    parser: argparse.ArgumentParser,
    ways: Mapping[str, Any],
    measure: Callable[[Any, argparse.Namespace, Path], dict[str, Any]],
    summary: Callable[[dict[str, dict[str, Any]]], str],
    minutes: float,
) -> None:
    """Measure the ways that are asked for and not in --out yet, one JSON each, and print the summary of all there."""
    parser.add_argument("--pool", type=Path, required=True, help="The pool that 'tinyforge pretrain photos' built.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(ways), default=list(ways))
    parser.add_argument("--minutes", type=float, default=minutes, help="Of one core, for each.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in options.only:
        file = options.out / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not file.is_file():
            work = options.out / "work" / file.stem
            shutil.rmtree(work, ignore_errors=True)  # begun anew: its steps and its core minutes are of one go
            record = measure(ways[name], options, work)
            write_atomic(file, (json.dumps({"name": name, **record}) + "\n").encode())
    records = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    print(summary({one["name"]: one for one in records}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="Folder with backbone/, teacher/ and students/.")
    parser.add_argument("--latents", type=int, default=40_000)
    parser.add_argument("--samples", type=int, default=440)
    parser.set_defaults(steps=20, guidance=3.0)
    study(parser, WAYS, measure, summary, minutes=6.0)


if __name__ == "__main__":
    main()
