"""report.html: one self-contained file, no script, readable in light and dark. A pure function of what was measured."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from PIL import Image

THUMBNAIL = 72  # longest side of a picture in pixels
MAX_CELL = 8  # pictures of one class in one column
MAX_GRID_CLASSES = 20  # more would make the file large; the report says how many are left out
MAX_MATRIX_CLASSES = 20
NUM_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of one class, uint8 (H, W, 3). synthetic: one list per column of ``Report.alphas``."""

    name: str
    supports: Sequence[np.ndarray]
    reconstructions: Sequence[np.ndarray] = ()
    synthetic: Sequence[Sequence[np.ndarray]] = ()


@dataclass(frozen=True)
class Report:
    """All that the report shows. Every score comes with its n and interval; None stands for 'not measured'.

    scores: {method, n, correct, accuracy, low, high, note?}, shares in [0, 1].
    variants: {name, runtime, precision, model_bytes, parity {max_abs_error, agreement, num_images} | None,
    drop {drop, low, high} | None, reason (why the gate failed), why_lost, p50_ms, p90_ms, p99_ms}.
    certificate: its statement, as bundle.json has it.
    budget: of builds within limits, the race that chose the model: {record: of budget.json, plot: SVG that is safe
    inside HTML}, see ``stages.budget``.
    trial: how the shipped student was chosen: {shipped, why, dropped {total, kept, rejected, duplicates} | None,
    record | None}; record: {in_domain, held_out, folds, steps, ways, mixes, teacher}, where ways and mixes hold
    {name, score, log_loss, gain, expected, probability, bar} and teacher holds these and trusted, misleads, lr,
    rates.
    tried: {variant, rung, parity | None, drop | None, reason (why it failed, '' when it passed), kept}.
    confusion: (N, N) counts of the chosen model, rows true, columns predicted.
    known: what is known of the target. provenance: title -> {key: value}. licences: {name, licence, ...}.
    """

    name: str
    target: str
    classes: Sequence[str]
    chosen: str
    scores: Sequence[Mapping[str, Any]]
    variants: Sequence[Mapping[str, Any]]
    certificate: str = ""
    budget: Mapping[str, Any] | None = None
    trial: Mapping[str, Any] | None = None
    tried: Sequence[Mapping[str, Any]] = ()
    alphas: Sequence[float] = ()
    pictures: Sequence[ClassPictures] = ()
    confusion: np.ndarray | None = None
    warnings: Sequence[str] = ()
    known: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licences: Sequence[Mapping[str, Any]] = ()
    recipe_lock: str = ""


def render_report(report: Report) -> str:
    """The whole HTML document. All text from users is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(plain=plain, percent=percent, milliseconds=milliseconds, kib=kib, picture=data_uri)
    template = environment.from_string(files("tinyforge.report").joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        pictures=report.pictures[:MAX_GRID_CLASSES],
        known=[text for text in report.known if text not in report.warnings],
        max_cell=MAX_CELL,
        left_out=max(0, len(report.classes) - MAX_GRID_CLASSES),
        matrix=confusion_rows(report.confusion) if len(report.classes) <= MAX_MATRIX_CLASSES else None,
        confusions=most_confused(report.confusion, report.classes),
        axis=axis(report.scores),
        dropped_parts=dropped_parts(report.trial),
    )


def plain(value: Any) -> str:
    """A value of the provenance as text: records as 'key: value', lists with commas, floats to four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def milliseconds(value: float | None) -> str:
    """Three significant digits, or a dash when it was not measured or not enough runs back it."""
    return "–" if value is None else f"{value:.3g}"


def kib(num_bytes: float) -> str:
    return f"{num_bytes / 1024:,.0f}"


def data_uri(rgb: np.ndarray) -> str:
    """uint8 (H, W, 3) as a PNG data URI, at most THUMBNAIL pixels wide and high."""
    image = Image.fromarray(np.ascontiguousarray(rgb, dtype=np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def dropped_parts(trial: Mapping[str, Any] | None) -> str:
    """What became of the synthetic images, in a sentence; empty without any."""
    counts = trial and trial["dropped"]
    if not counts:
        return ""
    return (
        f"Of {counts['total']} synthetic images {counts['kept']} were kept; the teacher rejected "
        f"{counts['rejected']}, and {counts['duplicates']} were near-duplicates of a support."
    )


def confusion_rows(confusion: np.ndarray | None) -> list[list[dict[str, float]]] | None:
    """Per cell its count and its share of the row, [0, 1]."""
    if confusion is None:
        return None
    totals = np.maximum(1, confusion.sum(axis=1, keepdims=True))
    shares = confusion / totals
    return [
        [{"count": int(count), "share": float(share)} for count, share in zip(counts, row, strict=True)]
        for counts, row in zip(confusion, shares, strict=True)
    ]


def most_confused(confusion: np.ndarray | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes: {true, predicted, count, total}, at most NUM_CONFUSIONS, most first."""
    if confusion is None:
        return []
    cells = [(int(confusion[i, j]), i, j) for i, j in np.argwhere(confusion) if i != j]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [
        {"true": classes[i], "predicted": classes[j], "count": count, "total": int(confusion[i].sum())}
        for count, i, j in cells[:NUM_CONFUSIONS]
    ]


def axis(scores: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range [low, high] of accuracies that the interval bars share, in tenths."""
    if not scores:
        return 0.0, 1.0
    low = np.floor(10 * min(score["low"] for score in scores)) / 10
    high = np.ceil(10 * max(score["high"] for score in scores)) / 10
    return float(low), float(max(high, low + 0.1))
