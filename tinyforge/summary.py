"""Plain text about builds and bundles, for a terminal."""

from typing import Any

from tinyforge.device.bundle import Bundle, load_bundle
from tinyforge.device.plain import plain
from tinyforge.device.report import scores_text, table

PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


def plan_text(plan: list[dict[str, Any]]) -> str:
    """What a dry run found."""
    return table(["stage", "state", "folder"], [[step["stage"], step["state"], step["folder"]] for step in plan])


def forged_text(result: dict[str, Any]) -> str:
    """What ``forge`` made: stage folders with their seconds, the bundle, the warnings."""
    seconds, folders = result["seconds"], result["stages"] | {"bench": result.get("bundle")}
    rows = [[stage, seconds[stage], folders[stage]] for stage in folders if stage in seconds]
    parts = [table(["stage", "seconds", "folder"], [*rows, ["all", round(sum(seconds.values()), 2), None]])]
    if "trial" in result:
        parts.append(trial_text(result["trial"]))
    if "bundle" in result:
        bundle = load_bundle(result["bundle"])
        parts += [bundle_text(bundle), "\n".join([*in_short(bundle), f"bundle: {result['bundle']}"])]
    return "\n\n".join([*parts, *(f"warning: {text}" for text in result["warnings"])])


def in_short(bundle: Bundle) -> list[str]:
    """One sentence: how good the model that ships is, beside guessing and beside the supports alone; none without
    test images.
    """
    scores = bundle.record["scores"]
    if bundle.chosen not in scores:
        return []
    own, alone = scores[bundle.chosen], scores.get("support-hard")
    beside = f", a student of the supports alone {100 * alone['accuracy']:.1f} %" if alone else ""
    return [
        f"in short: {bundle.chosen} answers {100 * own['accuracy']:.1f} % of {own['n']} test images rightly{beside}, "
        f"guessing {100 / len(bundle.classes):.1f} %"
    ]


def trial_text(trial: dict[str, Any]) -> str:
    """Which student ships, why, what was rejected, and what became of the synthetic images."""
    record, dropped = trial["record"] or {"ways": [], "mixes": []}, trial["dropped"]
    judged = [one for one in (*record["ways"], *record["mixes"][1:]) if one["score"]]
    rows = [
        [one["name"], "*" if one["name"] == trial["shipped"] else "", one["score"]["correct"], one["score"]["n"]]
        + ([f"{value:+.2f}" for value in (*one["gain"], one["expected"])] if one["gain"] else [None] * 4)
        + ([f"{one['probability']:.2f}"] if one["gain"] else [None])
        for one in judged
    ]
    head = ["on trial", "ships", "correct", "n", "gain_nats", "low", "high", "expected", "p_better"]
    parts = [f"trial: {trial['why']}", *([table(head, rows)] if rows else [])]
    if dropped:
        counts = ", ".join(f"{dropped[key]} {key}" for key in ("kept", "rejected", "duplicates"))
        parts.append(f"synthetic images: {counts}, of {dropped['total']}")
    return "\n".join(parts)


def budget_text(result: dict[str, Any]) -> str:
    """The table of a race, who ships or what binds, and the winner's bundle."""
    record = result["budget"]
    rows = [_candidate_row(one) for one in record["candidates"]]
    head = ["", "candidate", "accuracy_%", ">=_%", "p90_ms", "<=_ms", "mib", "rss_mib", "outcome"]
    parts = [table(head, rows), *record["dropped"]]
    if record["winner"]:
        parts.append(f"budget: {record['why']}")
    if "bundle" in result:
        parts += [bundle_text(load_bundle(result["bundle"])), f"bundle: {result['bundle']}"]
    files = "\n".join(f"{name}: {path}" for name, path in record["files"].items())
    return "\n\n".join([*parts, *(f"warning: {text}" for text in result["warnings"]), files])


def _candidate_row(one: dict[str, Any]) -> list[Any]:
    """Accuracies rounded down where they are bounds."""
    accuracy = one["accuracy"]
    shares = [round(100 * accuracy["accuracy"], 1), int(1000 * accuracy["at_least"]) / 10] if accuracy else [None, None]
    latency = [one["p90_ms"], one["latency"]["at_most_ms"]]
    return [one["number"], one["name"], *shares, *latency, one["model_mib"], one["peak_rss_mib"], one["outcome"]]


def bundle_text(bundle: Bundle) -> str:
    """Classes, models with size and latency, scores, certificate and digest of a bundle."""
    height, width = bundle.spec.size
    size = f"{len(bundle.classes)} classes, {width}x{height} pixels, {bundle.threads} threads"
    latency = bundle.record["latency"]
    rows = [
        [f"{v.name}{' *' * (v.name == bundle.chosen)}", v.runtime, v.precision, round(v.model_bytes / 1024)]
        + [latency.get(v.name, {}).get(percentile) for percentile in PERCENTILES]
        for v in bundle.variants.values()
    ]
    scores = bundle.record["scores"]
    return "\n\n".join(
        (
            f"{plain(f'{bundle.name} for {bundle.target}')}: {size}\nclasses: {plain(', '.join(bundle.classes))}",
            table(["model (* chosen)", "runtime", "precision", "size_kib", *PERCENTILES], rows),
            scores_text(scores) if scores else "no scores: there were no test images",
            f"certificate: {plain(bundle.record['certificate']['statement'])}\ndigest: {bundle.digest}",
        )
    )
