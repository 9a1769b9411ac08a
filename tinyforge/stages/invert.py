"""invert: learn one concept per class (textual inversion), then invert every support (null-text inversion).

::

    concept.json concept.safetensors          what was learned of the classes
    supports/<NNNN>.safetensors               one inverted support: z_T and its null embeddings
    reconstructions/<NNNN>.png                what comes back at alpha = 0
    invert.json                               losses, reconstruction errors in the order of the supports
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyforge.stages.crew import Crew, crew
from tinyforge.stages.domain import floor_db
from tinyforge.stages.pictures import as_batch, as_pixels, write_picture
from tinyforge.stages.road import Road, short_name
from tinyforge.store import Partial


def settings(road: Road) -> dict[str, Any]:
    upscaler = {} if road.upscaler is None else {"upscaler": hashlib.sha256(road.upscaler.read_bytes()).hexdigest()}
    return upscaler | {
        "invert": road.recipe.invert.model_dump(mode="json", exclude={"upscale"}),
        "backbone": road.recipe.backbone.model_dump(mode="json", exclude={"name", "auto_folder"}),
        "speed": road.recipe.speed.model_dump(mode="json"),
        "fingerprint": road.backbone.fingerprint,
        "seed": road.recipe.seed,
        "supports": road.support_hash,
    }


def support_file(index: int) -> str:
    return f"supports/{index:04d}.safetensors"


def work(road: Road, partial: Partial) -> None:
    with crew(road.recipe.speed.side_by_side and not is_plain(road), road.device) as hands:
        images = as_batch(enlarged(road), road.backbone.image_size)
        z0 = encoded(road, images)
        given = images.to(road.backbone.device) if is_plain(road) else z0
        concept = learned_concept(road, partial, given, hands)
        cond = concept.conditions(road.backbone, road.recipe.invert.prompt)[road.inputs.support.labels]
        hands.each(lambda rows: invert_rows(road, partial, given, cond, rows, hands), parts(road))
        judge(road, partial, images, z0, cond, hands)


def is_plain(road: Road) -> bool:
    """Whether inversion is asked for as its sources write it; it then takes images where it takes latents else."""
    return road.recipe.speed.inversion == "plain"


def parts(road: Road) -> list[range]:
    """The supports that share forward passes, which decides the last bits: the same after an interruption."""
    from tinyforge.diffusion.parts import even_parts

    return even_parts(len(road.inputs.support), road.batch_size)


def encoded(road: Road, images: Any) -> Any:
    """The latents (B, C, h, w) of all supports."""
    import torch

    from tinyforge.diffusion.parts import retreat

    def encode(rows: range) -> Any:
        with torch.inference_mode():
            return road.backbone.encode(images[rows.start : rows.stop].to(road.backbone.device))

    count, size = len(images), road.batch_size
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return torch.cat([part.clone() for rows in batches for part in retreat(encode, rows)])


def invert_rows(road: Road, partial: Partial, given: Any, cond: Any, rows: range, hands: Crew) -> None:
    """Invert these supports, unless all of them are there."""
    from tinyforge.diffusion.null_text import null_text_invert
    from tinyforge.diffusion.plain import invert_plainly

    if all(partial.has(support_file(row)) for row in rows):
        return
    part = slice(rows.start, rows.stop)
    what = road.backbone, given[part], cond[part], road.recipe.invert
    progress = hands.watched(road.progress("null-text inversion"))
    if is_plain(road):
        inverted = invert_plainly(*what, progress=progress)
    else:
        reuse = road.recipe.speed.reuse_condition
        inverted = null_text_invert(*what, batch_size=len(rows), reuse=reuse, progress=progress)
    for index, row in enumerate(rows):
        partial.write(support_file(row), inverted.support_bytes(index))


def judge(road: Road, partial: Partial, images: Any, z0: Any, cond: Any, hands: Crew) -> None:
    """Draw every support again, and write how near that comes, beside the autoencoder alone and plain DDIM."""
    import torch

    from tinyforge.diffusion.null_text import ddim_reconstruct, load_supports
    from tinyforge.diffusion.parts import retreat
    from tinyforge.diffusion.sample import generate, psnr

    backbone, support = road.backbone, road.inputs.support
    saved = load_supports([partial.path / support_file(i) for i in range(len(support))])
    how = {"batch_size": road.batch_size, "stacked": road.recipe.speed.stack_guidance}

    def redraw(rows: range) -> tuple[Any, Any, Any]:
        own = slice(rows.start, rows.stop)
        z_T, null = (x[own].to(backbone.device) for x in (saved.z_T, saved.null_embeddings))
        rebuilt = generate(backbone, z_T, cond[own], null, road.recipe.invert, **how)
        for row, rgb in zip(rows, as_pixels(rebuilt), strict=True):
            hands.later(write_picture, partial, f"reconstructions/{row:04d}.png", rgb)
        with torch.inference_mode():
            plain = ddim_reconstruct(backbone, z_T, cond[own], road.recipe.invert, **how)
            around = torch.cat(retreat(lambda part: backbone.decode(z0[part.start : part.stop]), rows))
        return rebuilt, plain, around

    rebuilt, plain, around = map(torch.cat, zip(*hands.each(redraw, parts(road)), strict=True))
    partial.write_json(
        "invert.json",
        {
            "supports": list(support.names),
            "labels": support.labels.tolist(),
            "psnr_db": rounded(psnr(rebuilt.cpu(), images)),
            "autoencoder_psnr_db": rounded(psnr(around.float().cpu(), images)),
            "latent_mse": rounded(saved.error),
            "plain_ddim_latent_mse": rounded((plain - z0).square().mean(dim=(1, 2, 3))),
        },
    )


def learned_concept(road: Road, partial: Partial, given: Any, hands: Crew) -> Any:
    """The concept of the partial folder, learned now if it is not there."""
    import torch

    from tinyforge.diffusion.plain import learn_plainly
    from tinyforge.diffusion.textual_inversion import Concept, learn_concepts

    if not partial.has("concept.safetensors"):
        support, recipe = road.inputs.support, road.recipe
        labels, classes = torch.from_numpy(support.labels), list(support.classes)
        what = road.backbone, given, labels, classes, recipe.invert, recipe.seed
        progress = hands.watched(road.progress("textual inversion"))
        if is_plain(road):
            concept, history = learn_plainly(*what, progress=progress)
        else:
            concept, history = learn_concepts(*what, batch_size=road.batch_size, each=hands.each, progress=progress)
        partial.write_json("losses.json", {"textual_inversion": history.mean(dim=1).double().numpy().round(6).tolist()})
        for name, content in concept.to_files().items():
            partial.write(name, content)
    return Concept.load(partial.path)


def enlarged(road: Road) -> Sequence[np.ndarray]:
    """The supports, passed through the recipe's super-resolution where they are smaller than the backbone's images."""
    if road.upscaler is None:
        return road.inputs.support.rgb
    from tinyforge.diffusion.upscale import upscale

    images = list(road.inputs.support.rgb)
    small = [i for i, rgb in enumerate(images) if min(rgb.shape[:2]) < road.backbone.image_size]
    for index, rgb in zip(small, upscale([images[i] for i in small], road.upscaler, device=road.device), strict=True):
        images[index] = rgb
    return images


def rounded(values: Any) -> list[float]:
    """A tensor (B,) as JSON numbers of six significant digits; infinite becomes 999."""
    return [float(f"{min(float(value), 999.0):.6g}") for value in values]


def held_db(road: Road) -> float:
    """The median PSNR of the supports after the autoencoder alone, in dB."""
    return float(np.median(road.done["invert"].json("invert.json")["autoencoder_psnr_db"]))


def in_domain(road: Road) -> bool:
    """Whether the backbone's autoencoder knows such images."""
    return held_db(road) >= floor_db(road.backbone_choice.source)


def check_domain(road: Road) -> None:
    """Warn when the images are outside the backbone's domain: what it synthesizes will not resemble them."""
    if not in_domain(road):
        source, held = road.backbone_choice.source, held_db(road)
        road.warn(
            f"these images are outside the domain of the backbone {short_name(source)}: its autoencoder holds them to "
            f"{held:.1f} dB (below {floor_db(source):.0f}); use --backbone with a model of such images, e.g. sd15"
        )
