"""What a finished build tells of itself: report, provenance, licences, notes."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from tinyforge.device.certificate import certificate
from tinyforge.device.conditions import BUSY_LOAD
from tinyforge.device.machine import describe_machine, usable_cores
from tinyforge.device.preprocess import decode
from tinyforge.device.report import counted
from tinyforge.loading import recipe_toml
from tinyforge.stages.origins import origins
from tinyforge.stages.road import Road

LIBRARIES = ("torch", "diffusers", "transformers", "timm", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "pillow")
METHODS = {
    "support-hard": "student on the supports alone, class labels",
    "support-kd": "student on the supports alone, the teacher's labels too",
    "tint-class": "student on supports and synthetic images, class labels",
    "tint-teacher": "student on supports and synthetic images, the teacher's labels too",
    "teacher": "the teacher itself",
}


def report(
    road: Road,
    scores: Mapping[str, Any],
    answers: Mapping[str, Any],
    latency: Mapping[str, Any],
    table: Sequence[Any],
    chosen: str,
    machine: Mapping[str, Any],
    remarks: Sequence[str],
    budget: Mapping[str, Any] | None = None,
    candidates: int = 1,
) -> str:
    """report.html. machine: where ``latency`` was measured. remarks: what a reader must know. candidates: among how
    many models the test images chose.
    """
    from tinyforge.report.html import Report, render_report

    compressed, classes = road.done["compress"].json("compress.json"), road.inputs.support.classes
    verdicts = {one["name"]: one for one in compressed["verdicts"]}
    why_lost = {one.name: one.why_lost for one in table}
    percentiles = ("p50_ms", "p90_ms", "p99_ms")
    rows = [
        {
            **one,
            **verdicts[one["name"]],
            "why_lost": why_lost[one["name"]],
            **{key: latency.get(one["name"], {}).get(key) for key in percentiles},
        }
        for one in compressed["variants"]
    ]
    return render_report(
        Report(
            name=road.recipe.name,
            target=road.job.target.name,
            classes=classes,
            chosen=chosen,
            certificate=statement(chosen, answers, latency, machine, candidates),
            budget=budget,
            scores=[{"method": method, "note": note_on(method, road), **one} for method, one in scores.items()],
            variants=rows,
            tried=[{"variant": one["name"], **tried} for one in compressed["variants"] for tried in one["tried"]],
            trial=trial(road),
            alphas=road.recipe.synthesize.preview_alphas,
            pictures=pictures(road),
            confusion=confusion(answers[chosen], len(classes)) if chosen in answers else None,
            warnings=road.warnings,
            known=remarks,
            provenance={title: dict(one) for title, one in provenance(road).items()},
            licences=licences(road),
            recipe_lock=recipe_toml(road.recipe),
        )
    )


def statement(
    chosen: str, answers: Mapping[str, Any], latency: Mapping[str, Any], machine: Mapping[str, Any], candidates: int
) -> str:
    """What the bundle's certificate will say, worked out from the same raw data by the same function."""
    own = answers.get(chosen)
    rows = {chosen: list(zip(own["names"], own["labels"], own["predicted"], strict=True))} if own else {}
    return certificate(chosen, rows, {chosen: {**latency[chosen], "machine": machine}}, candidates)["statement"]


def note_on(method: str, road: Road) -> str:
    """What a row of the accuracy table is, and whether it is the student that ships."""
    known = METHODS.get(method) or next((text for name, text in METHODS.items() if method.startswith(f"{name}-")), None)
    if known is None:
        return "exported model"
    if method.startswith("tint-teacher") and len(road.inputs.unlabelled):
        known = known.replace("synthetic images", "further images (synthetic, distill.unlabelled)")
    shipped = road.done["distill"].json("distill.json")["shipped"]
    return f"{known}; this student is exported" if method == shipped else known


def trial(road: Road) -> dict[str, Any]:
    """The outcome of the trial for the report and the end of a build: the student that ships, why, and what was
    dropped. record: None where the recipe forced the method.
    """
    distilled = road.done["distill"].json("distill.json")
    dropped = distilled["agreement"]
    counts = dropped and {key: sum(dropped[key]) for key in ("total", "kept", "rejected", "duplicates")}
    forced = f"{distilled['shipped']} ships, as the recipe's distill.labels asks; no trial was held"
    record = distilled["trial"]
    return {
        "shipped": distilled["shipped"],
        "why": record["why"] if record else forced,
        "dropped": counts,
        "record": record,
    }


def pictures(road: Road) -> list[Any]:
    """Per class its supports, their reconstructions, and the preview of one support over the recipe's alphas: as many
    as the report shows.
    """
    from tinyforge.report.html import MAX_CELL, MAX_GRID_CLASSES, ClassPictures

    support, inverted, synthetic = road.inputs.support, road.done["invert"].path, road.done["synthesize"].path
    columns = range(len(road.recipe.synthesize.preview_alphas))
    rows = []
    for label, name in enumerate(support.classes[:MAX_GRID_CLASSES]):
        own = np.flatnonzero(support.labels == label)[:MAX_CELL].tolist()
        rebuilt = [decode(inverted / "reconstructions" / f"{i:04d}.png") for i in own]
        preview = [[decode(synthetic / "preview" / f"{label:03d}-{column}.png")] for column in columns]
        rows.append(ClassPictures(name, [support.items[i].rgb for i in own], rebuilt, preview))
    return rows


def confusion(answers: Mapping[str, list[int]], num_classes: int) -> np.ndarray:
    """(N, N) counts, rows true, columns predicted."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (answers["labels"], answers["predicted"]), 1)
    return counts


def provenance(road: Road) -> dict[str, dict[str, Any]]:
    """Where everything comes from. No time of day, no path of this machine."""
    known = origins(road)
    distilled, inverted = road.done["distill"].json("distill.json"), road.done["invert"].json("invert.json")
    calibrated = road.done["compress"].json("compress.json")["calibration_sha256"]
    return {
        "recipe": {"name": road.recipe.name, "seed": road.recipe.seed, "target": road.job.target.name},
        "data": {**road.inputs.describe(), "support_sha256": road.support_hash},
        "backbone": {
            **known["backbone"],
            "fingerprint": road.backbone.fingerprint,
            "reason": road.backbone_choice.reason,
        },
        "teacher": {
            **known["teacher"],
            "fingerprint": road.extractor.fingerprint,
            "reason": road.teacher_choice.reason,
            **distilled["teacher"],
        },
        "inversion": {
            "median_psnr_db": float(np.median(inverted["psnr_db"])),
            "median_autoencoder_psnr_db": float(np.median(inverted["autoencoder_psnr_db"])),
            "mean_latent_mse": float(np.mean(inverted["latent_mse"])),
            "mean_plain_ddim_latent_mse": float(np.mean(inverted["plain_ddim_latent_mse"])),
        },
        "synthetic": {"shipped_student": distilled["shipped"], "agreement": distilled["agreement"]},
        "calibration": {
            "images": len(calibrated),
            "sha256": hashlib.sha256("".join(calibrated).encode()).hexdigest(),  # of the inputs' own, in order
        },
        "stages": {name: one.key for name, one in road.done.items()},
        "machine": describe_machine(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def licences(road: Road) -> list[dict[str, str]]:
    """Of what the bundle is made from. The images are the user's."""
    made_from = [
        {**one, "name": one["name"] if one["name"].endswith(part) else f"{part} {one['name']}"}
        for part, one in origins(road).items()
    ]
    return [*made_from, {"name": "tinyforge_device", "licence": "Apache-2.0"}]


def notes(road: Road, measured: str | None = None) -> list[str]:
    """What a reader of the numbers must know. measured: where latency was, if not here."""
    target, used = road.job.target, min(road.job.target.threads, usable_cores())
    asked = "" if used == target.threads else f" ({target.threads} asked for, it has {counted(used, 'core')})"
    here = (
        f"Latency was measured on the machine that built the bundle, with {counted(used, 'thread')}{asked}, "
        f"not on the target {target.title}."
    )
    told = [*road.warnings, measured or here]
    if road.inputs.test is None:
        told.append("No accuracy was measured: there were no test images.")
    return told


def busy_note(latency: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """What to know of latencies that were measured beside other work; '' on a machine that was at rest."""
    busy = max((one.get("busy_cores") or 0.0 for one in latency.values()), default=0.0)
    if busy <= BUSY_LOAD:
        return ""
    return (
        f"Other work was running when latency was measured on {machine['cpu']}: {busy:g} of its "
        f"{counted(machine['cores'], 'core')} were busy. The latencies are too high, and the choice of the model may "
        "be another at rest: measure again with `tinyforge bench`."
    )
