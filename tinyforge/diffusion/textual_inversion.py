"""Textual inversion of all classes of a task at once.

Source: Gal et al. 2022, "An Image is Worth One Word", arXiv 2208.01618, eq. 2, in the setting of Landolsi & Kahl 2024,
arXiv 2406.03146 (AdamW, constant rate, timesteps in [250, 1000)).
Options beyond it: a cosine schedule of the rate, and a class that has stopped improving on held-back noise leaves the
batch with its best vectors.
Differs: all classes share each forward pass. No class sees another: each has its own rows, its own generator and its
own mean loss, and AdamW is elementwise, so the result is that of learning each class alone, to rounding.
Legend: B batch, C h w latent, L tokens, D width, N classes, K vectors, S steps.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import cos, inf, pi
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from tinyforge.diffusion.ddim import add_noise
from tinyforge.diffusion.parts import Each, in_parts
from tinyforge.diffusion.seeding import item_generator
from tinyforge.diffusion.signature import Denoiser, Progress
from tinyforge.errors import DataError, RecipeError
from tinyforge.recipe import Invert

WEIGHT_DECAY = 1e-2  # AdamW's default, which the public code leaves in place
CHECK_STEPS, HELD_BACK = 10, 8  # with patience: how often, and on how many noisy samples of a class
LOSS_SCALE = 2.0**10  # keeps float16 gradients above underflow; a power of two, so exact in float32


@dataclass(frozen=True, eq=False)
class Concept:
    """What was learned: K vectors (N, K, D) per class, and the placeholder that stands for them in a prompt."""

    classes: tuple[str, ...]
    placeholders: tuple[str, ...]
    embeddings: Tensor

    def prompts(self, template: str) -> list[str]:
        """One prompt per class; '{}' of the template becomes the class's placeholder."""
        return [template.replace("{}", placeholder) for placeholder in self.placeholders]

    def conditions(self, backbone: Denoiser, template: str) -> Tensor:
        """The conditions (N, L, D) of the classes; index them by label."""
        with torch.no_grad():
            return backbone.embed(self.prompts(template), self)

    def only(self, part: range) -> "Concept":
        """Of some classes alone."""
        rows = slice(part.start, part.stop)
        return Concept(self.classes[rows], self.placeholders[rows], self.embeddings[rows])

    def to_files(self) -> dict[str, bytes]:
        """File name -> content, for an atomic writer."""
        about = {"schema_version": 1, "classes": self.classes, "placeholders": self.placeholders}
        return {
            "concept.json": (json.dumps(about, ensure_ascii=False, indent=1) + "\n").encode(),
            "concept.safetensors": safetensors.torch.save({"embeddings": self.embeddings.cpu().contiguous()}),
        }

    def save(self, folder: Path) -> None:
        for name, content in self.to_files().items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> "Concept":
        """Raises DataError when the folder holds no concept that this version can read."""
        try:
            about = json.loads((folder / "concept.json").read_bytes())
            embeddings = safetensors.torch.load((folder / "concept.safetensors").read_bytes())["embeddings"]
            return cls(tuple(about["classes"]), tuple(about["placeholders"]), embeddings)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as fault:
            raise DataError(f"{folder}: not a saved concept ({fault}); run 'tinyforge invert' again") from fault


def learn_concepts(
    backbone: Denoiser,
    latents: Tensor,
    labels: Tensor,
    classes: list[str],
    settings: Invert,
    seed: int,
    *,
    batch_size: int = 64,
    each: Each = map,
    progress: Progress = None,
) -> tuple[Concept, Tensor]:
    """Learn K vectors for each class from its support latents (B, C, h, w) with ``labels`` (B,) in [0, N).

    Each step, each class draws ``ti_batch_size`` noisy samples from its own generator; the loss is the sum over classes
    of the mean squared error of the noise. ``batch_size`` caps the samples of a forward pass: the classes are then
    learned in groups, with the same result, which ``each`` may do side by side. Returns the concept and the losses
    (S, N); of a class that has stopped, its last loss.
    Raises DataError for a class without supports, RecipeError for an initial word that has no known token.
    """
    concept, done = new_concept(backbone, classes, settings), count(1)

    def tick() -> None:
        if progress:
            progress(min(next(done), len(classes) * settings.ti_steps), len(classes) * settings.ti_steps)

    def learn(part: range) -> tuple[Tensor, Tensor]:
        own, names = [latents[labels == i] for i in part], [classes[i] for i in part]
        streams = [sample_stream(z, name, settings, seed) for z, name in zip(own, names, strict=True)]
        watch = class_watch(own, names, settings, seed, concept.only(part))
        return _learn_group(backbone, concept.only(part), streams, settings, watch, tick)

    parts = in_parts(learn, len(classes), max(1, batch_size // settings.ti_batch_size), each)
    learned, histories = zip(*parts, strict=True)
    return Concept(concept.classes, concept.placeholders, torch.cat(learned)), torch.cat(histories, dim=1)


def _learn_group(
    backbone: Denoiser,
    concept: Concept,
    streams: list["SampleStream"],
    settings: Invert,
    watch: "Watch | None",
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """The learned rows (n, K, D) and the losses (S, n) of a few classes. ``tick`` is called once per class and step."""
    rows, prompts = concept.embeddings.clone().requires_grad_(), concept.prompts(settings.prompt)
    optimizer = torch.optim.AdamW([rows], lr=settings.ti_lr, weight_decay=WEIGHT_DECAY)
    history, going = torch.zeros(settings.ti_steps, len(streams)), list(range(len(streams)))

    def look(step: int) -> list[int]:
        with torch.no_grad():
            return watch.look(backbone, backbone.embed(prompts, concept, rows), step, going, rows.detach())

    for step in range(settings.ti_steps):
        if watch is not None and step % CHECK_STEPS == 0:
            going = look(step)
            if not going:
                history[step:] = history[step - 1]
                return watch.best_rows, history
        optimizer.zero_grad()
        cond = backbone.embed(prompts, concept, rows)
        losses = noise_losses(backbone, cond[going], [streams[i].draw(step) for i in going])
        (LOSS_SCALE * losses.sum()).backward()
        history[step] = history[step - 1]
        history[step, going] = losses.detach().float().cpu()
        rows.grad /= LOSS_SCALE
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
        optimizer.step()
        for _ in streams:
            tick()
    if watch is None:
        return rows.detach().clone(), history
    look(settings.ti_steps)
    return watch.best_rows, history


def learning_rate(settings: Invert, step: int) -> float:
    """Of one step: constant, or half a cosine that would be 0 one step past the end."""
    falling = settings.ti_schedule == "cosine"
    return settings.ti_lr * (0.5 * (1.0 + cos(pi * step / settings.ti_steps)) if falling else 1.0)


class Watch:
    """The best vectors so far of each class, by its loss on noise that it does not learn from. samples: of each class
    latents, noise and timesteps, as ``SampleStream.draw`` gives them.
    """

    def __init__(self, samples: list[tuple[Tensor, Tensor, Tensor]], patience: int, rows: Tensor):
        self.samples, self.patience, self.best_rows = samples, patience, rows.clone()
        self.best_loss, self.best_step = [inf] * len(samples), [0] * len(samples)

    def look(self, backbone: Denoiser, cond: Tensor, step: int, going: list[int], rows: Tensor) -> list[int]:
        """Those of the classes still ``going`` that are to learn on, given the conditions (n, L, D) and rows (n, K, D)
        of all at this step.
        """
        losses = noise_losses(backbone, cond[going], [self.samples[i] for i in going]).tolist()
        for i, loss in zip(going, losses, strict=True):
            if loss < self.best_loss[i]:
                self.best_loss[i], self.best_step[i] = loss, step
                self.best_rows[i] = rows[i]
        return [i for i in going if step - self.best_step[i] < self.patience]


def class_watch(latents: list[Tensor], names: list[str], settings: Invert, seed: int, concept: Concept) -> Watch | None:
    """The watch over classes with these latents and initial vectors; None where patience has no end."""
    if settings.ti_patience is None:
        return None
    noise = [item_generator(seed, "textual inversion, held back", name) for name in names]
    samples = [held_back(z, drawn, settings) for z, drawn in zip(latents, noise, strict=True)]
    return Watch(samples, settings.ti_patience, concept.embeddings)


def held_back(latents: Tensor, generator: torch.Generator, settings: Invert) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy samples of one class that it does not learn from: its supports in turn, timesteps evenly over the range."""
    z0 = latents[torch.arange(HELD_BACK, device=latents.device) % len(latents)]
    noise = torch.randn(z0.shape, generator=generator, dtype=torch.float32).to(z0)
    low, high = settings.ti_min_timestep, settings.ti_max_timestep
    return z0, noise, low + (torch.arange(HELD_BACK) * (high - low) + (high - low) // 2) // HELD_BACK


class SampleStream:
    """The training samples of one class: supports in shuffled rounds, timesteps uniform in [min, max), normal noise."""

    def __init__(self, latents: Tensor, generator: torch.Generator, name: str, settings: Invert):
        if not len(latents):
            raise DataError(f"class '{name}' has no support image")
        self.latents, self.generator = latents, generator
        shape = (settings.ti_steps, settings.ti_batch_size)
        num_rounds = -(-shape[0] * shape[1] // len(latents))
        rounds = [torch.randperm(len(latents), generator=generator) for _ in range(num_rounds)]
        self.picks = torch.cat([*rounds, torch.empty(0, dtype=torch.long)])[: shape[0] * shape[1]].view(shape)
        bounds = settings.ti_min_timestep, settings.ti_max_timestep
        self.timesteps = torch.randint(*bounds, shape, generator=generator)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents and noise (b, C, h, w), timesteps (b,) of one step; steps must be drawn in order."""
        z0 = self.latents[self.picks[step].to(self.latents.device)]
        noise = torch.randn(z0.shape, generator=self.generator, dtype=torch.float32).to(z0)
        return z0, noise, self.timesteps[step]


def sample_stream(latents: Tensor, name: str, settings: Invert, seed: int) -> SampleStream:
    """The samples of the class ``name``, the same whatever other classes there are."""
    return SampleStream(latents, item_generator(seed, "textual inversion", name), name, settings)


def noise_losses(backbone: Denoiser, cond: Tensor, samples: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The mean squared error (n,) of the predicted noise of n classes, given cond (n, L, D) and their samples."""
    z0, noise, t = (torch.cat(parts) for parts in zip(*samples, strict=True))
    z = add_noise(z0, noise, backbone.alphas_cumprod[t])
    per_class = len(z0) // len(samples)
    predicted = backbone.eps(z, t.to(z.device), cond.repeat_interleave(per_class, dim=0))
    return (predicted - noise).square().unflatten(0, (len(samples), per_class)).mean(dim=(1, 2, 3, 4))


def new_concept(backbone: Denoiser, classes: list[str], settings: Invert) -> Concept:
    """What the classes are before anything is learned. Raises RecipeError as ``initial_rows`` does."""
    rows = initial_rows(backbone, classes, settings)
    return Concept(tuple(classes), tuple(f"<class-{index:03d}>" for index in range(len(classes))), rows)


def initial_rows(backbone: Denoiser, classes: list[str], settings: Invert) -> Tensor:
    """The vectors (N, K, D) that the classes start from: those of their initial words, shared out over K."""
    unknown = sorted(set(settings.initializers) - set(classes))
    if unknown:
        raise RecipeError(f"invert.initializers names {unknown}, but the classes are {list(classes)}")
    rows = []
    for name in classes:
        words = settings.initializers.get(name, settings.initializer)
        vectors = backbone.word_vectors(words)
        if not len(vectors):
            raise RecipeError(
                f"the initial word '{words}' of class '{name}' has no token that this backbone knows; "
                "set invert.initializer, or invert.initializers for this class, to a word in Latin letters"
            )
        rows.append(spread(vectors, settings.num_vectors))
    return torch.stack(rows).clone()


def spread(vectors: Tensor, count: int) -> Tensor:
    """n token vectors (n, D) as ``count`` vectors (K, D), in order: averaged where n > K, repeated where n < K."""
    n = len(vectors)
    if n <= count:
        return vectors[torch.arange(count) * n // count]
    return torch.stack([part.mean(dim=0) for part in vectors.tensor_split(count)])
