"""`tinyforge pretrain`: trains the backbone and the teacher of a domain from local files, and exports them.

Every part resumes from its newest checkpoint below out/work/ and ends with the same weights as an uninterrupted run.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from tinyforge.embedded.network import GlyphNet, build, load_teacher_network
from tinyforge.folders import check_out

from . import autoencoder, captions, export, loop, teacher, unet
from .design import DESIGNS, Design, design_for
from .initial import keep_beginning, load_initial, require_initial, take_captions, take_teacher
from .origin import check_device, require_origin
from .photos import load_photos
from .source import Source, glyph_origin, load_glyphs
from .swap import mend

__all__ = ["DESIGNS", "PARTS", "Design", "design_for", "pretrain", "train_domain"]

PARTS = ("teacher", "autoencoder", "unet")
"""In their order: photos' autoencoder is judged by the teacher's eyes too, and the UNet needs both."""

ALWAYS = 10**9
"""More steps than any training has."""


def pretrain(
    domain: str,
    data: list[Path],
    out: Path,
    *,
    fonts: list[Path] | None = None,
    minutes: dict[str, float] | None = None,
    parts: tuple[str, ...] = PARTS,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    initial: Path | None = None,
    every_class: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train a domain's parts and write out/backbone and out/teacher; returns out.

    data: of glyphs, Omniglot strokes_*.zip files or folders of them (may be empty); of photos, folders of class
    folders. fonts: folders searched for fonts. minutes: for each part; turned into a number of steps by timing a few,
    and kept in out/work/<part>.steps. parts: which to train now, of PARTS; also what they still lack. dtype: of the
    arithmetic, float32 or bfloat16; a run that is continued keeps the one in out/work/dtype. initial: a
    folder of earlier results: parts go on from its weights, at half the rate, and its teacher is taken where none is
    to be trained. every_class: of photos, also those that few-shot benchmarks test on.
    Raises ValueError for an unknown domain or device, glyphs without fonts, photos without data, a pool in out/work
    that was made of other files, initial weights that are missing, of another size, or not those that a checkpoint in
    out/work began from, a checkpoint there that began with another seed, design or frozen network; UsageError for an
    ``out`` that is no folder.
    """
    if domain not in DESIGNS:
        raise ValueError(f"unknown domain {domain!r}: {' or '.join(DESIGNS)}")
    if log is not None:
        handler = logging.Handler()
        handler.emit = lambda record: log(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger(__name__).addHandler(handler)
        logging.getLogger(__name__).setLevel(logging.INFO)
    check_out(out)
    check_device(device)
    if initial is not None:
        require_initial(initial)
    pool, roots = out / "work" / "pool", fonts or [Path("/usr/share/fonts")]
    if domain == "glyphs" and (fonts or data):
        origin = glyph_origin(roots, data)
        if (pool / "classes.json").is_file():
            require_origin(pool, origin)
    if domain == "photos":
        source = load_photos(pool, data, device, every_class=every_class)
    else:
        source = load_glyphs(pool, roots, data, seed)
    design = design_for(domain, device)
    minutes = design.minutes | (minutes or {})
    kept = out / "work" / "dtype"
    if not kept.is_file():
        kept.write_text(dtype)
    how = {"minutes": minutes, "parts": parts, "seed": seed, "device": device, "initial": initial}
    return train_domain(source, out, design, dtype=kept.read_text(), **how)


def train_domain(
    source: Source,
    out: Path,
    design: Design,
    *,
    minutes: dict[str, float] | None = None,
    steps: dict[str, int] | None = None,
    parts: tuple[str, ...] = PARTS,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    initial: Path | None = None,
) -> Path:
    """The parts of any domain, one after the other; the teacher and the UNet are exported."""
    run = Run(source, out, design, minutes or design.minutes, steps or {}, seed, device, dtype, initial)
    if initial is not None and "teacher" not in parts:
        take_teacher(initial, out)
    seen = "unet" in parts or ("autoencoder" in parts and design.perceptual > 0)
    if "teacher" in parts or (seen and not (out / "teacher").is_dir()):
        run.teacher()
    if "autoencoder" in parts or "unet" in parts:
        vae_state = run.autoencoder()
    if "unet" in parts:
        run.backbone(vae_state)
        (out / "classes.txt").write_text(class_list(source), encoding="utf-8")
    return out


def named_classes(source: Source) -> list[int]:
    """The classes that the backbone learns by name: those of many images, or where there is none of these, all that
    are trained on.
    """
    return source.frequent() or torch.nonzero(source.weights).flatten().tolist()


def class_list(source: Source) -> str:
    """One line per class: name, character, and the parts that were trained on it."""
    known = set(named_classes(source))
    rows = zip(source.names, source.characters, source.weights.tolist(), strict=True)
    parts = [
        "held out" if not w else "teacher, backbone" if i in known else "teacher" for i, (_, _, w) in enumerate(rows)
    ]
    return "".join(f"{n}\t{c}\t{p}\n" for n, c, p in zip(source.names, source.characters, parts, strict=True))


class Run:
    """The settings shared by the three parts."""

    def __init__(
        self,
        source: Source,
        out: Path,
        design: Design,
        minutes: dict[str, float],
        steps: dict[str, int],
        seed: int,
        device: str,
        dtype: str,
        initial: Path | None,
    ) -> None:
        self.source, self.out, self.design, self.minutes = source, out, design, minutes
        self.seed, self.device, self.dtype, self.initial = seed, device, dtype, initial
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        for folder in (*(self.work / part for part in PARTS), out / "teacher", out / "backbone"):
            mend(folder)
        known = {part: self.work / f"{part}.steps" for part in PARTS}
        self.steps = {part: int(file.read_text()) for part, file in known.items() if file.is_file()} | steps

    def _steps(self, part: str, model: torch.nn.Module, *kinds: tuple[float, loop.LossOf]) -> int:
        """Steps that fit the part's minutes; kinds: shares of the steps and their losses. Measured once, then kept."""
        if part not in self.steps:
            seconds = sum(share * self._seconds(model, loss_of) for share, loss_of in kinds if share)
            self.steps[part] = max(10, int(self.minutes[part] * 60 / seconds))
        (self.work / f"{part}.steps").write_text(str(self.steps[part]))
        return self.steps[part]

    def _seconds(self, model: torch.nn.Module, loss_of: loop.LossOf) -> float:
        """Of a step, by a few passes of a copy.

        The passes move the statistics of batch norms: a run that knows its steps must begin where this one does.
        """
        model = copy.deepcopy(model).to(self.device).train()
        began = 0.0
        passes = 3 if self.device == "cpu" else 30
        for step in range(1 + passes):
            began = began if step > 1 else time.monotonic()
            with loop.half_precision(self.device, self.dtype):
                loss = loss_of(model, step, loop.generator(self.seed, step))
            loss.backward()
            loss.item()
        return (time.monotonic() - began) / passes

    def _train(
        self,
        part: str,
        model: torch.nn.Module,
        loss_of: loop.LossOf,
        *,
        lr: float,
        frozen: torch.nn.Module | None = None,
        **plan: Any,
    ) -> dict[str, torch.Tensor]:
        """frozen: the network whose answers it learns from."""
        plan |= {"steps": self._steps(part, model, (1.0, loss_of)), "lr": lr if self.initial is None else lr / 2}
        plan |= {"seed": self.seed, "dtype": self.dtype, "batch": self.design.batch[part]}
        chosen = loop.Plan(**plan, learns_from="" if frozen is None else autoencoder.fingerprint(frozen)[:12])
        return loop.train(model, loss_of, chosen, self.work / part, device=self.device, name=part)

    def teacher(self) -> Path:
        """Classifier, at half size first where the design says so, then episodes; measured on the held-out classes."""
        torch.manual_seed(self.seed)
        source, design = self.source, self.design
        network = build("embedded:GlyphNet", design.network)
        self._begin(network, "teacher")
        model = teacher.CosineClassifier(network, len(source.names), design.network["embedding_dim"])
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        half, whole = self._teacher_loss(ALWAYS, ALWAYS), self._teacher_loss(ALWAYS, 0)
        steps = self._steps("teacher", model, (design.half_size, half), (1 - design.half_size, whole))
        loss_of = self._teacher_loss(int((1 - design.episodes) * steps), int(design.half_size * steps))
        ema = self._train("teacher", model, loss_of, lr=2e-3, weight_decay=0.05, ema=0.998, clip=2.0, save_every=250)
        state = export.part(ema, "network.")
        network.load_state_dict(state)
        record = {"steps": steps, "held_out": held_out_measures(network.cpu(), source, design.ways)}
        return export.write_teacher(
            self.out / "teacher", state, "embedded:GlyphNet", design.network, source.size, record
        )

    def _teacher_loss(self, supervised: int, small: int) -> loop.LossOf:
        """supervised: steps before episodes are mixed in; small: steps at half size."""
        stage = teacher.Stage(supervised, self.design.batch["teacher"])

        def loss_at(part: str) -> loop.LossOf:
            def draw(labels: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
                return self.source.draw(labels, gen, part)

            return teacher.loss_function(draw, self.source.weights, stage, normalise, self.device)

        half, whole = loss_at("teacher, half size"), loss_at("teacher")
        return lambda model, step, gen: (half if step < small else whole)(model, step, gen)

    def autoencoder(self) -> dict[str, torch.Tensor]:
        """The VAE's EMA weights."""
        torch.manual_seed(self.seed + 1)
        vae, seer = self._vae(), self._seer()
        self._begin(vae, "autoencoder")
        model = autoencoder.Reconstruction(vae)

        def draw(labels: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
            return self.source.draw(labels, gen, "autoencoder")

        weights, batch = self.source.weights, self.design.batch["autoencoder"]
        loss_of = autoencoder.loss_function(
            draw, weights, batch, device=self.device, seer=seer, perceptual_weight=self.design.perceptual
        )
        plan = {"lr": 3e-3, "warmup": 50, "weight_decay": 0.0, "ema": 0.99, "save_every": 100}
        ema = self._train("autoencoder", model, loss_of, frozen=seer, **plan)
        return export.part(ema, "vae.")

    def _vae(self) -> Any:
        return autoencoder.build(self.source.size, self.design.vae_widths, self.design.latent_channels)

    def _seer(self) -> GlyphNet | None:
        """The teacher, whose features the autoencoder is to keep; None where the design does without."""
        if not self.design.perceptual:
            return None
        network = load_teacher_network(self.out / "teacher")[0].to(self.device)
        if not isinstance(network, GlyphNet):
            raise ValueError(f"{self.out / 'teacher'}: the autoencoder needs a teacher of 'tinyforge pretrain'")
        return network

    def _begin(self, network: torch.nn.Module, part: str) -> None:
        keep_beginning(self.initial, part, self.work / part)
        if self.initial is not None:
            load_initial(network, self.initial, part)

    @torch.no_grad()
    def prototypes(self, classes: list[int]) -> torch.Tensor:
        """(C, D) mean unit features of fresh images of each class, by the teacher just trained."""
        network = load_teacher_network(self.out / "teacher")[0].to(self.device)
        features = []
        for c in classes:
            gen = torch.Generator().manual_seed(self.seed * 1_000_003 + 88_000_000 + c)
            images = normalise(self.source.draw(torch.full((self.design.each,), c), gen, "unet").to(self.device))
            features.append(torch.nn.functional.normalize(network(images), dim=-1).mean(0).cpu())
        return torch.stack(features)

    def backbone(self, vae_state: dict[str, torch.Tensor]) -> Path:
        """Cached latents, then UNet and text encoder, then the Stable Diffusion folder."""
        torch.manual_seed(self.seed + 2)
        source = self.source
        vae = self._vae()
        vae.load_state_dict(vae_state)
        vae.eval().to(self.device)
        classes = named_classes(source)
        latents, labels, scale = autoencoder.cached_latents(
            vae,
            lambda chosen, gen: source.draw(torch.tensor(classes)[chosen], gen, "unet"),
            len(classes),
            min(self.design.latents, 2 * int(source.counts[classes].sum())),
            self.seed,
            self.work / "latents.safetensors",
        )
        vae.register_to_config(scaling_factor=scale)
        names = [source.names[i] for i in classes]
        text, tokenizer = self._captions(classes, names)
        design, size = self.design, source.size // self.design.reduction
        model = unet.Denoiser(unet.build(size, design.unet_widths, channels=design.latent_channels))
        self._begin(model.unet, "unet")
        context = unet.contexts(text, captions.caption_ids(tokenizer, names, design.templates))
        loss_of = unet.loss_function(latents, labels, context, self.design.batch["unet"], self.device)
        plan = {"lr": 1.5e-3, "ema": design.unet_average, "floor": 0.05, "save_every": 250}
        ema = self._train("unet", model, loss_of, frozen=vae, **plan)
        model.load_state_dict(ema)
        model.cpu()
        return export.write_backbone(self.out / "backbone", vae.cpu(), model.unet, text, self.work / "tokenizer")

    def _captions(self, classes: list[int], names: list[str]) -> tuple[CLIPTextModel, CLIPTokenizer]:
        """Those by which the initial UNet knows these names; else new ones: names are alike as prototypes are."""
        folder = self.work / "tokenizer"
        text = None if self.initial is None else take_captions(self.initial, names, folder)
        if text is not None:
            return text, CLIPTokenizer.from_pretrained(folder)
        tokenizer = captions.train_tokenizer(names, folder)
        text = captions.text_encoder(tokenizer)
        captions.name_classes(text, tokenizer, names, captions.prototype_codes(self.prototypes(classes)))
        return text, tokenizer


def normalise(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] → [-1, 1], channels last."""
    return ((x - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def held_out_measures(network: torch.nn.Module, source: Source, ways: int, episodes: int = 300) -> dict[str, Any]:
    """Few-shot accuracy with its 95 % interval over the episodes of ``held_out_scores``."""
    return {
        name: {
            "accuracy": float(each.mean()),
            "ci95": float(1.96 * each.std() / len(each) ** 0.5),
            "episodes": len(each),
        }
        for name, each in held_out_scores(network, source, ways, episodes).items()
    }


def held_out_scores(
    network: torch.nn.Module, source: Source, ways: int, episodes: int = 300
) -> dict[str, torch.Tensor]:
    """Few-shot accuracies (episodes,) on the held-out classes, of all their images up to 600 each; of 40 each where
    images are drawn without end. The same episodes for every network.

    Classes too small for five supports and ten queries are left out; {} if fewer than `ways` are left.
    """
    queries, sizes = 10, {c: 40 if source.endless else min(600, int(source.counts[c])) for c in source.held_out}
    held = [c for c in source.held_out if sizes[c] >= 5 + queries]
    if len(held) < ways:
        return {}
    gen = torch.Generator().manual_seed(999)
    stacks = [source.draw(torch.full((sizes[c],), c), gen, "held_out").cpu() for c in held]
    how = {"ways": ways, "episodes": episodes, "queries": queries, "seed": 5}
    return {
        f"{ways}-way {shots}-shot": teacher.few_shot(network, stacks, normalise, shots=shots, **how) for shots in (1, 5)
    }
