"""README.md of a bundle, its model card: what it is, how to run it, how good it is, what not to trust it with."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinyforge.device.card import accuracy_rows, escaped, one_line, speed_rows, statement

MAX_CLASSES = 60
CODE = re.compile(r"(`[^`]+`)")


def model_card(record: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Markdown from bundle.json and what a user must know. A pure function; no time, no path."""
    parts = [
        _head(record),
        _section("Use", _use(record)),
        _section("Certificate", _certificate(record)),
        _section("Accuracy", _accuracy(record)),
        _section("Speed", _speed(record)),
        _section("Input", _input(record)),
        _section("Limits", "\n".join(f"- {_prose(note)}" for note in [*notes, *LIMITS])),
        _section("Licences", _licences(record)),
        _section("Files", FILES),
    ]
    return "\n".join(parts)


LIMITS = (
    "It answers one of its classes for every image, also for an image of something else.",
    "Its accuracy holds for images like the test images.",
    "An int8 model may answer a few images otherwise on another processor: run `selftest` there.",
)

FILES = """\
- `bundle.json`: classes in order, input, scores, certificate, provenance, sha256 of every file, a seal over it all
- `model/`: the chosen model and its fp32 reference
- `tinyforge_device/`: the program that runs, measures and checks them
- `selftest/`: golden vectors, from encoded image to answer
- `predictions/`, `latency/`: raw data behind every number; `verify` works the numbers out again
- `recipe.lock.toml`: what it was made from; `report.html`: the full report
"""


def _head(record: Mapping[str, Any]) -> str:
    names = [one_line(name) for name in record["classes"][:MAX_CLASSES]]
    total = len(record["classes"])
    more = total - len(names)
    listed = ", ".join(names) + (f" and {more} more (see bundle.json)" if more else "")
    variant = record["model"]["variants"][record["model"]["chosen"]]
    size = sum(file["bytes"] for file in variant["files"])
    return (
        f"# {one_line(record['name'])} for {one_line(record['target'])}\n\n"
        f"An image classifier, made by TinyForge. Model `{record['model']['chosen']}` ({variant['precision']}, "
        f"{variant['runtime']}, {size / 1024:,.0f} KiB).\n\n"
        f"{total} class{'es' * (total != 1)}: {listed}.\n"
    )


def _use(record: Mapping[str, Any]) -> str:
    return (
        "In this folder, with Python 3.9 or later:\n\n"
        "```\n"
        "pip install -r requirements.txt\n"
        "python -m tinyforge_device predict . photo.jpg\n"
        "python -m tinyforge_device bench . --variant all\n"
        "python -m tinyforge_device selftest .\n"
        "python -m tinyforge_device verify .\n"
        "```\n"
    )


def _certificate(record: Mapping[str, Any]) -> str:
    return (
        f"{statement(record)}\n\n"
        "`verify` works it out again from `predictions/` and `latency/`. It holds for images like the test images and "
        "for that machine at rest. To be sure that this is the bundle that was built, compare `sha256sum bundle.json` "
        "with what its builder tells.\n"
    )


def _accuracy(record: Mapping[str, Any]) -> str:
    rows = accuracy_rows(record, record["model"]["chosen"])
    return "\n".join(rows or ["Not measured: there were no test images."]) + "\n"


def _speed(record: Mapping[str, Any]) -> str:
    rows = speed_rows(record)
    if not rows:
        return "Not measured. Measure it on the device: `python -m tinyforge_device bench .`\n"
    where = next(iter(record["latency"].values()))["machine"].get("cpu")
    on = f", on {one_line(where)}" if where else ""
    return "\n".join(rows) + (
        f"\n\nInference of one image, {_threads(record)}{on}. On another machine another model may be the faster one: "
        "`python -m tinyforge_device bench . --variant all` measures every model of the bundle there.\n"
    )


def _threads(record: Mapping[str, Any]) -> str:
    """The number of threads that really ran: a machine with fewer cores than were asked for uses fewer."""
    asked = record["threads"]
    used = [one.get("threads") for one in record["latency"].values()]
    count = next((number for number in used if number), asked)
    return f"{count} thread{'' if count == 1 else 's'}" + (f" ({asked} asked for)" if count != asked else "")


def _input(record: Mapping[str, Any]) -> str:
    spec = record["input"]
    height, width = spec["size"]
    fit = (
        "stretched"
        if spec["fit"] == "stretch"
        else f"resized to 1/{spec['crop_pct']:g} of that and cropped at the centre"
    )
    return (
        f"RGB, {width} × {height} pixels, {fit} ({spec['resize']}, Pillow), scaled to [0, 1], "
        f"minus mean {list(spec['mean'])}, over std {list(spec['std'])}, {spec['layout']}. "
        "`tinyforge_device` does this.\n"
    )


def _licences(record: Mapping[str, Any]) -> str:
    lines = [f"- {one_line(one['name'])}: {one_line(one['licence'])}" for one in record["licences"]]
    return "\n".join(lines or ["- tinyforge_device: Apache-2.0"]) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body.rstrip()}\n"


def _prose(value: Any) -> str:
    """A sentence in which `code` stays code."""
    parts = CODE.split(" ".join(str(value).split()))
    return "".join(part if CODE.fullmatch(part) else escaped(part) for part in parts)
