"""TINT's inversions as their sources write them: one class, one sample, one image at a time.

What ``textual_inversion`` and ``null_text`` save is compared with this, by the tests and by whoever asks for it with
``speed.inversion = "plain"``. Plain means: a support is encoded again wherever it is used; the text encoder's whole
token table learns, and all its rows but the learned ones are put back after each step; the UNet's weights collect
gradients that nobody reads; both predictions are made at every inner step; the optimizers are torch's.
Draws and options are those of the fast path, and so are the results, to rounding. Sources: see there.
Legend: B batch, C H W pixels, h w latent, L tokens, D width, N classes, K vectors, S steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from tinyforge.diffusion.backbone import Backbone
from tinyforge.diffusion.ddim import abar, ddim_invert, ddim_step, guide, is_guided, timestep_pairs
from tinyforge.diffusion.null_text import LOSS_SCALE, NullText
from tinyforge.diffusion.parts import in_parts
from tinyforge.diffusion.signature import Progress
from tinyforge.diffusion.textual_inversion import (
    CHECK_STEPS,
    WEIGHT_DECAY,
    Concept,
    Watch,
    class_watch,
    learning_rate,
    new_concept,
    noise_losses,
    sample_stream,
)
from tinyforge.recipe import Invert


def learn_plainly(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    classes: list[str],
    settings: Invert,
    seed: int,
    *,
    progress: Progress = None,
) -> tuple[Concept, Tensor]:
    """``learn_concepts`` on the support images (B, 3, H, W) themselves: the concept, and the losses (S, N)."""
    concept, losses = new_concept(backbone, classes, settings), torch.zeros(settings.ti_steps, len(classes))

    def learn(part: range) -> Tensor:
        (index,) = part
        own, name = images[labels == index], classes[index]
        latents, alone = backbone.encode(own), concept.only(range(index, index + 1))
        stream = sample_stream(latents, name, settings, seed)
        watch = class_watch([latents], [name], settings, seed, alone)
        table, last = Table(backbone, alone, settings), 0.0
        for step in range(settings.ti_steps):
            if watch is not None and step % CHECK_STEPS == 0 and table.has_stopped(watch, step):
                losses[step:, index] = last
                break
            _, noise, t = stream.draw(step)
            samples = zip(own[stream.picks[step]].split(1), noise.split(1), t.split(1), strict=True)
            last = table.learn(step, [(backbone.encode(image), *drawn) for image, *drawn in samples])
            losses[step, index] = last
            if progress:
                progress(index * settings.ti_steps + step + 1, len(classes) * settings.ti_steps)
        else:
            if watch is not None:
                table.has_stopped(watch, settings.ti_steps)
        return table.rows() if watch is None else watch.best_rows

    return Concept(concept.classes, concept.placeholders, torch.cat(in_parts(learn, len(classes), 1))), losses


class Table:
    """The token table of a text encoder with the rows of one class's ``concept`` below, all of it learning."""

    def __init__(self, backbone: Backbone, concept: Concept, settings: Invert):
        name, weight = backbone.table
        self.backbone, self.concept, self.settings, self.name, self.words = backbone, concept, settings, name, weight
        vectors = concept.embeddings.flatten(0, 1)
        self.table = torch.cat([weight.to(vectors), vectors]).requires_grad_()
        self.optimizer = torch.optim.AdamW([self.table], lr=settings.ti_lr, weight_decay=WEIGHT_DECAY)

    def rows(self) -> Tensor:
        """What the class has learned, (1, K, D)."""
        return self.table.detach()[len(self.words) :].clone()[None]

    def condition(self) -> Tensor:
        """(1, L, D)."""
        backbone, (prompt,) = self.backbone, self.concept.prompts(self.settings.prompt)
        ids = torch.tensor([backbone.token_ids(prompt, self.concept)], device=backbone.device)
        table = {self.name: self.table.to(backbone.dtype)}
        output = functional_call(backbone.text_encoder, table, (ids,), {"return_dict": False})
        return output[0].to(self.table.dtype)

    def learn(self, step: int, samples: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """One step on samples of one latent each; the mean loss."""
        losses = []
        self.optimizer.zero_grad()
        with weights_collecting_gradients(self.backbone):
            for sample in samples:
                loss = noise_losses(self.backbone, self.condition(), [sample])[0]
                (LOSS_SCALE * loss / len(samples)).backward()
                losses.append(loss.item())
        self.table.grad /= LOSS_SCALE
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.settings, step)
        self.optimizer.step()
        with torch.no_grad():
            self.table[: len(self.words)] = self.words.to(self.table)
        return sum(losses) / len(losses)

    def has_stopped(self, watch: Watch, step: int) -> bool:
        with torch.no_grad():
            return not watch.look(self.backbone, self.condition(), step, [0], self.rows())


@contextmanager
def weights_collecting_gradients(backbone: Backbone) -> Iterator[None]:
    """As those of a network do that nobody has frozen."""
    backbone.unet.requires_grad_()
    try:
        yield
    finally:
        backbone.unet.requires_grad_(False).zero_grad()


def invert_plainly(
    backbone: Backbone, images: Tensor, cond: Tensor, settings: Invert, *, progress: Progress = None
) -> NullText:
    """``null_text_invert`` on the images (B, 3, H, W) themselves, each under its own condition (B, L, D)."""

    def invert(part: range) -> NullText:
        own = slice(part.start, part.stop)
        inverted = _invert(backbone, images[own], cond[own], settings)
        if progress:
            progress(part.stop * settings.num_steps, len(images) * settings.num_steps)
        return inverted

    return NullText.concatenate(in_parts(invert, len(images), 1))


def _invert(backbone: Backbone, image: Tensor, cond: Tensor, settings: Invert) -> NullText:
    timesteps = backbone.schedule(settings.num_steps)
    trajectory = ddim_invert(backbone, backbone.encode(image), cond, timesteps)
    with torch.no_grad():
        u = cond if settings.nti_start == "condition" else backbone.embed([""]).to(cond.dtype)
    z, embeddings, errors = trajectory[-1], [], []
    for index, (high, low) in enumerate(timestep_pairs(timesteps)):
        target, levels = trajectory[-2 - index], (abar(backbone, high), abar(backbone, low))

        def arrive(u: Tensor, z: Tensor = z, high: int = high, levels: tuple[float, float] = levels) -> Tensor:
            scale = settings.guidance_scale if is_guided(backbone, high, settings.guidance_interval) else 1.0
            return ddim_step(z, guide(backbone.eps(z, high, u), backbone.eps(z, high, cond), scale), *levels)

        if is_guided(backbone, high, settings.guidance_interval):
            u = u.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([u], lr=settings.nti_lr)
            for _ in range(settings.nti_inner_steps):
                with weights_collecting_gradients(backbone):
                    loss = (arrive(u) - target).square().mean()
                    if loss.item() < settings.nti_tolerance:
                        break
                    optimizer.zero_grad()
                    (LOSS_SCALE * loss).backward()
                u.grad /= LOSS_SCALE
                optimizer.step()
        with torch.no_grad():
            z = arrive(u)
        embeddings.append(u.detach())
        errors.append((z - target).square().mean())
    error = (z - backbone.encode(image)).square().mean()
    return NullText(trajectory[-1], torch.stack(embeddings, dim=1), torch.stack(errors)[None], error[None])
