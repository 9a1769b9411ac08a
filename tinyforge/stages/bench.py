"""bench: measure every model that the target may run, choose by measurement, and pack the bundle. Never cached."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyforge.device.bench import Arm, bench_arms, summary
from tinyforge.device.machine import describe_machine
from tinyforge.device.spec import InputSpec
from tinyforge.device.stats import score
from tinyforge.loading import recipe_toml
from tinyforge.stages.pictures import JPEG_START, travelling
from tinyforge.stages.road import Road
from tinyforge.stages.telling import busy_note, licences, notes, provenance, report

GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Raced:
    """A race that was held already, see ``stages.budget``: nothing is measured again, and its choice ships.

    latency: variant -> report with its raw latencies, on ``machine``. remarks: for the model card and the report.
    budget: for the report's section of that name. candidates: among how many models the test images chose.
    """

    chosen: str
    latency: Mapping[str, Any]
    machine: Mapping[str, Any]
    remarks: Sequence[str]
    budget: Mapping[str, Any]
    candidates: int = 1

    def choice(self, contenders: Sequence[Any]) -> tuple[str, list[Any]]:
        """As ``choose_variant`` answers."""
        told = {one.name: f"failed its gate: {one.reason}" if one.reason else "see the budget" for one in contenders}
        told[self.chosen] = ""
        return self.chosen, [replace(one, why_lost=told[one.name]) for one in contenders]


def run(road: Road, raced: Raced | None = None) -> dict[str, Any]:
    """The bundle's folder, the chosen model, scores, and what was measured of every model. Raises GateError when none
    can ship.
    """
    from tinyforge.compress.bundle import Contents, bundle_digest, write_bundle
    from tinyforge.compress.selection import choose_variant
    from tinyforge.compress.variants import REFERENCE, Variant

    started, job, compressed = time.monotonic(), road.job, road.done["compress"].json("compress.json")
    models = road.done["compress"].path / "models"
    made = [Variant.from_json(one) for one in compressed["variants"]]
    spec = InputSpec.from_json(compressed["input"])
    for text in compressed["warnings"]:
        road.warn(text)
    golden = golden_images(road)
    latency = raced.latency if raced else in_turns(road, models, made, spec, golden)
    machine = raced.machine if raced else describe_machine()
    answers = raw_predictions(road)
    scores = {method: score(correct(one), len(one["labels"])) for method, one in answers.items()}
    contenders = [contender(one, latency, scores, compressed["verdicts"]) for one in made]
    chosen, table = raced.choice(contenders) if raced else choose_variant(contenders, job.target.models)
    left_out = {one.name for one in made} - {chosen, REFERENCE}
    warn_of_chance(road, chosen, scores)
    warn_of_loss(road, chosen, compressed["verdicts"])
    remarks = remarks_of(road, raced, compressed, busy_note(latency, machine))
    budget, candidates = (raced.budget, raced.candidates) if raced else (None, 1)
    contents = Contents(
        name=road.recipe.name,
        target=job.target.name,
        classes=road.inputs.support.classes,
        spec=spec,
        threads=job.target.threads,
        chosen=chosen,
        models=models,
        made=made,
        golden_images=golden,
        recipe_lock=recipe_toml(road.recipe),
        report_html=report(road, scores, answers, latency, table, chosen, machine, remarks, budget, candidates),
        predictions={method: one for method, one in answers.items() if method not in left_out},
        latency={name: one for name, one in latency.items() if name not in left_out},
        providers=job.target.providers,
        exact_int8=job.target.exact_int8,
        machine=machine,
        provenance=provenance(road),
        licences=licences(road),
        notes=remarks,
        candidates=candidates,
    )
    folder = write_bundle(road.bundle_path, contents, overwrite=job.overwrite)
    road.seconds["bench"] = round(time.monotonic() - started, 2)
    job.log(f"bench: done in {road.seconds['bench']:.1f} s; bundle: {folder}")
    return {
        "bundle": str(folder),
        "digest": bundle_digest(folder),
        "chosen": chosen,
        "scores": scores,
        "variants": [{**one.to_json(), **(summary(latency[one.name]) if one.name in latency else {})} for one in table],
        "machine": machine,
    }


def warn_of_loss(road: Road, chosen: str, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Where the test images show the chosen model to lose more than its gate allowed. They warn, they don't choose."""
    drop = next((one["drop"] for one in verdicts if one["name"] == chosen), None)
    if drop and drop["low"] > 0 and drop["drop"] > road.recipe.compress.max_drop:
        road.warn(
            f"{chosen} loses {drop['drop']:.1%} accuracy [{drop['low']:.1%}, {drop['high']:.1%}] against fp32 on the "
            f"{drop['num_images']} test images, though its gate allows {road.recipe.compress.max_drop:.1%}: "
            "compress.precisions=['onnx-fp32'] ships the exact one"
        )


def warn_of_chance(road: Road, chosen: str, scores: Mapping[str, Any]) -> None:
    """Where the test images do not show the chosen model to be better than guessing."""
    if chosen in scores and scores[chosen]["low"] <= 1 / len(road.inputs.support.classes):
        road.warn(
            f"{chosen} is not shown to be better than guessing: more images per class, or fewer classes, would help"
        )


def remarks_of(road: Road, raced: Raced | None, compressed: Mapping[str, Any], busy: str) -> list[str]:
    """What a reader must know. ``busy``: of other work while latency was measured, a warning too."""
    for text in [*compressed["x86_warnings"], *([busy] if busy else [])]:
        road.warn(text)
    return list(dict.fromkeys([*raced.remarks, *road.warnings] if raced else notes(road)))


def in_turns(
    road: Road,
    models: Path,
    made: Sequence[Any],
    spec: InputSpec,
    images: Mapping[str, bytes],
    *,
    threads: Sequence[int] | None = None,
    min_runs: int | None = None,
) -> dict[str, Any]:
    """Arm -> its latency report, of every model that was made: in fresh processes, in turns, as the target would run
    them.

    threads: arms are named 'onnx-int8@2' (None: the target's, arms named by variant). min_runs: None is the recipe's.
    """
    target, wanted = road.job.target, road.recipe.bench
    arms = [
        Arm(
            one.name if threads is None else f"{one.name}@{count}", models / one.files[0], one.runtime, count,
            tuple(target.providers.get(one.runtime, ())), target.exact_int8,
        )
        for one in made if one.files
        for count in threads or [target.threads]
    ]  # fmt: skip
    runs = min_runs or wanted.min_runs
    road.job.log(f"bench: {', '.join(arm.name for arm in arms)} in turns, {runs} runs or more of each")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in images]
        for path, encoded in zip(paths, images.values(), strict=True):
            path.write_bytes(encoded)
        found = bench_arms(arms, paths, spec, seconds=wanted.seconds, min_runs=runs, warmup=wanted.warmup)
    return found["variants"]


def contender(one: Any, latency: Mapping[str, Any], scores: Mapping[str, Any], verdicts: Sequence[Any]) -> Any:
    """A ``Variant`` with what was measured of it."""
    from tinyforge.compress.selection import Contender

    reasons = {verdict["name"]: verdict["reason"] for verdict in verdicts}
    p50_ms, accuracy = latency.get(one.name, {}).get("p50_ms"), scores.get(one.name, {}).get("accuracy")
    return Contender(one.name, one.model_bytes, p50_ms, accuracy, reasons[one.name])


def golden_images(road: Road) -> dict[str, bytes]:
    """A few supports, from as many classes as there is room for, as their files are: see ``travelling``."""
    support = road.inputs.support
    first = {int(label): index for index, label in reversed(list(enumerate(support.labels)))}
    chosen = [first[label] for label in sorted(first)][:GOLDEN_IMAGES]
    encoded = [travelling(support.items[index]) for index in chosen]
    return {f"{number:02d}.{'jpg' if one.startswith(JPEG_START) else 'png'}": one for number, one in enumerate(encoded)}


def raw_predictions(road: Road) -> dict[str, dict[str, list[Any]]]:
    """Method or variant -> {names, labels, predicted} on the test set; empty when there is none."""
    folders = [road.done[stage].path / "predictions" for stage in ("distill", "compress")]
    return {file.stem: json.loads(file.read_bytes()) for folder in folders for file in sorted(folder.glob("*.json"))}


def correct(answers: Mapping[str, list[Any]]) -> int:
    return sum(label == found for label, found in zip(answers["labels"], answers["predicted"], strict=True))
