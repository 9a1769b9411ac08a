"""Measures trained photo models and writes what their card needs: measures.json, samples.png and classes.webp.

    python benchmarks/photos_card.py --models photos --pool photos/work/pool --out card
    python benchmarks/photos_card.py --models photos --pool photos/work/pool --out card --starts

On CIFAR-FS validation classes, which no part was trained on: the teacher's few-shot accuracy and the autoencoder's
PSNR. On trained classes: PSNR, and Fréchet distance between real images and samples, what the autoencoder makes of
other real images, and these themselves, in the features of the teacher, and of the students' starting weights where
there are any (they had no part in the training); a grid with a row of samples for each of eight classes, and three
samples of every class.
With --against, a folder of earlier models, also how much better the teacher is than theirs, paired by episode.
With --starts only the features of the students' starting weights, as the teacher's: starts.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tinyforge.device.spec import InputSpec
from tinyforge.device.stats import mean_interval
from tinyforge.diffusion.backbone import Backbone, load_backbone
from tinyforge.diffusion.ddim import ddim_denoise
from tinyforge.distill.pixels import fit_to, standardise
from tinyforge.distill.start import begin, body_features, classifier_of, load_start
from tinyforge.distill.students import build_student
from tinyforge.embedded.network import load_teacher_network
from tinyforge.embedded.pretrain import autoencoder, held_out_measures, held_out_scores, normalise, photos
from tinyforge.embedded.pretrain.source import Source
from tinyforge.fewshot.frechet import frechet_distance

SHOWN = ("persiancat", "goldfish", "orange", "sportscar", "pizza", "suspensionbridge", "lakeside", "sunflower")


@torch.no_grad()
def samples(backbone: Backbone, names: list[str], steps: int, guidance: float, seed: int) -> torch.Tensor:
    """One image per name (B, 3, H, W) from new noise, by its class name."""
    noise = torch.randn(len(names), *backbone.latent_shape, generator=torch.Generator().manual_seed(seed))
    cond = backbone.embed([f"a photo of a {name}" for name in names])
    z = ddim_denoise(backbone, noise, cond, backbone.embed([""]), backbone.schedule(steps), guidance)
    return backbone.decode(z)


@torch.no_grad()
def features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.nn.functional.normalize(network(normalise(x)), dim=-1) for x in images.split(256)])


def real(source: Source, labels: list[int], seed: int) -> torch.Tensor:
    return source.draw(torch.tensor(labels), torch.Generator().manual_seed(seed), "held_out")


def starts(models: Path) -> list[Path]:
    """The folders of the students' starting weights."""
    return sorted(file.parent for file in models.glob("students/*/start.json"))


class Body(torch.nn.Module):
    """What a student with starting weights sees before its classifier: [-1, 1] (B, 3, H, W) -> (B, D)."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        about = json.loads((folder / "start.json").read_text())
        self.spec = InputSpec.from_json(about["input"])
        student = build_student(about["student"], len(about["classes"]), input_size=self.spec.size[0])
        self.student = begin(student, load_start(folder, about["student"])).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = standardise(fit_to(x / 2 + 0.5, self.spec.size), self.spec)
        return body_features(self.student, classifier_of(self.student), pixels)


def distances(backbone: Backbone, network: torch.nn.Module, source: Source, options: Any) -> dict[str, Any]:
    """Fréchet distances to real images, all sets of one size and class by class alike; PSNR of the reconstructions."""
    eyes = {"teacher": network} | {folder.name: Body(folder) for folder in starts(options.models)}
    trained = torch.nonzero(source.weights).flatten().tolist()
    labels = [trained[i % len(trained)] for i in range(options.samples)]
    drawn = [
        samples(backbone, [source.names[i] for i in labels[k : k + 100]], options.steps, options.guidance, seed=k)
        for k in range(0, len(labels), 100)
    ]
    others = real(source, labels, 2)
    with torch.no_grad():
        rebuilt = torch.cat([backbone.decode(backbone.encode(part)) for part in others.split(100)])
    sets = {"samples": torch.cat(drawn), "reconstructions": rebuilt, "real": others}
    wanted, found = real(source, labels, 1), {}
    for who, seen in eyes.items():
        there = features(seen, wanted)
        found[who] = {name: frechet_distance(there, features(seen, images)) for name, images in sets.items()}
    psnr_db = autoencoder.psnr(backbone.vae, others)[0]
    return found | {"psnr_db": psnr_db, "n": len(labels), "steps": options.steps, "guidance": options.guidance}


def grid(backbone: Backbone, options: Any, columns: int = 8) -> Image.Image:
    rows = [samples(backbone, [name] * columns, options.steps, options.guidance, seed=7) for name in SHOWN]
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def sheet(backbone: Backbone, names: list[str], options: Any, each: int = 3, across: int = 12) -> Image.Image:
    """``each`` samples of every class side by side, ``across`` classes in a line, in the order of ``names``."""
    wanted = [name for name in names for _ in range(each)]
    drawn = [
        samples(backbone, wanted[k : k + 100], options.steps, options.guidance, seed=k)
        for k in range(0, len(wanted), 100)
    ]
    tiles = torch.cat(drawn)
    blank = tiles.new_ones(-len(tiles) % (each * across), *tiles.shape[1:])
    lines = torch.cat([tiles, blank]).split(each * across)
    pixels = torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1)
    return Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def against(network: torch.nn.Module, before: Path, source: Source) -> dict[str, tuple[float, float, float]]:
    """(gain, low, high) of the teacher's accuracy over that of an earlier one, on the same 600 episodes."""
    new, old = (held_out_scores(one, source, 5, 600) for one in (network, load_teacher_network(before / "teacher")[0]))
    return {name: mean_interval((new[name] - old[name]).double().numpy()) for name in new}


def report(measures: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(measures, indent=1) + "\n")
    print(json.dumps(measures, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="Folder with backbone/ and teacher/.")
    parser.add_argument("--pool", type=Path, required=True, help="The pool that 'tinyforge pretrain photos' built.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="Earlier models, to compare the teacher with.")
    parser.add_argument("--starts", action="store_true", help="Only the students' starting weights.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    source = photos.load_photos(options.pool, [])
    if options.starts:
        found = {one.name: held_out_measures(Body(one), source, 5, episodes=600) for one in starts(options.models)}
        return report(found, options.out / "starts.json")
    backbone = load_backbone(options.models / "backbone")
    network, _ = load_teacher_network(options.models / "teacher")
    held_out = real(source, [c for c in source.held_out for _ in range(min(50, int(source.counts[c])))], 3)
    mean, deviation = autoencoder.psnr(backbone.vae, held_out)
    grid(backbone, options).save(options.out / "samples.png")
    trained = [source.names[i] for i in torch.nonzero(source.weights).flatten().tolist()]
    sheet(backbone, trained, options).save(options.out / "classes.webp", quality=70, method=6)
    measures = {
        "psnr_db": mean, "psnr_deviation_db": deviation, "psnr_images": len(held_out),
        "teacher": held_out_measures(network, source, 5, episodes=600),
        "frechet": distances(backbone, network, source, options),
        "parameters": {
            part: sum(p.numel() for p in module.parameters())
            for part, module in {"vae": backbone.vae, "unet": backbone.unet, "text_encoder": backbone.text_encoder,
                                 "teacher": network}.items()
        },
    }  # fmt: skip
    if options.against:
        measures["teacher_gain"] = against(network, options.against, source)
    report(measures, options.out / "measures.json")


if __name__ == "__main__":
    main()
