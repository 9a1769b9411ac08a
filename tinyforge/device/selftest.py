"""Golden vectors: what every step gave where the bundle was made, and which step gives something else here.

::

    selftest/golden.json   {"schema_version": 2,
                            "images": [{"path": "selftest/0.png", "shape": [H, W], "sha256": of decoded RGB}, ...],
                            "made_with": describe_machine(),
                            "saturated": {variant: true | false}}       int8 sums did not fit 16 bits there
    selftest/golden.npz    pixels uint8 (K, h, w, 3) after resize; input (K, 3, h, w) or NHWC, of the model's type;
                           logits_<variant> float32 (K, N) for every variant

Each step is fed the golden result of the step before, so a fault is named where it arises and nowhere else. Checks, in
this order: file (changed), package (too old for this bundle), decode, resize, normalise, and of each model: saturation
(int8 sums in 16 bits), runtime (another version answers otherwise), model (answers otherwise for no such reason).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, Variant, hash_faults
from .folder import BundleFault, locate, need, read_json
from .instructions import instruction_set
from .machine import describe_machine, versions
from .preprocess import DecodeFault, decode, normalise, resize
from .runtime import MissingRuntime, RuntimeFault, Session, open_session
from .spec import InputSpec

GOLDEN_JSON, GOLDEN_NPZ = "selftest/golden.json", "selftest/golden.npz"
GOLDEN_VERSION = 2
MAX_ARRAY_BYTES = 2**31
# Largest |logit - golden| as a share of the golden logits' range, and the least share of equal top-1 answers, on the
# same instruction set with the same runtime; and elsewhere: other kernels add in another order, round otherwise.
SAME_KERNELS = {"fp32": (1e-4, 1.0), "fp16": (1e-3, 1.0), "int8": (0.02, 1.0)}
OTHER_KERNELS = {"fp32": (1e-3, 1.0), "fp16": (1e-2, 1.0), "int8": (0.15, 0.9)}
PIXEL_TOLERANCE = 2  # of 255, where another JPEG decoder rounds otherwise
INPUT_TOLERANCE = 1e-5


@dataclass
class Outcome:
    """faults: [{check, where, message}]; notes: differences that are no fault; checks: number of comparisons.

    facts: what a person may want to compare or quote, by name.
    """

    faults: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: int = 0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.faults

    def check(self, passed: bool, check: str, where: str, message: str) -> bool:
        self.checks += 1
        if not passed:
            self.faults.append({"check": check, "where": where, "message": message})
        return passed

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": self.checks, **self.facts, "faults": self.faults, "notes": self.notes}


def write_golden(root: Path, images: Mapping[str, bytes], spec: InputSpec, models: Mapping[str, Model]) -> None:
    """Write ``selftest/`` of the bundle at ``root``: encoded ``images`` by file name, ``models`` by variant."""
    folder = root / "selftest"
    folder.mkdir(parents=True, exist_ok=True)
    decoded = {name: decode(encoded) for name, encoded in images.items()}
    for name, encoded in images.items():
        (folder / name).write_bytes(encoded)
    entries = [{"path": f"selftest/{name}", **_fingerprint(rgb)} for name, rgb in decoded.items()]
    pixels = np.stack([resize(rgb, spec) for rgb in decoded.values()])
    x = normalise(pixels, spec)
    answers = {name: model.open().run(x) for name, model in models.items()}
    logits = {f"logits_{name}": found for name, found in answers.items()}
    np.savez_compressed(root / GOLDEN_NPZ, pixels=pixels, input=x, **logits)
    record = {
        "schema_version": GOLDEN_VERSION,
        "images": entries,
        "made_with": describe_machine(),
        "saturated": {name: model.saturates(x, answers[name]) for name, model in models.items()},
    }
    (root / GOLDEN_JSON).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Model:
    """A model file that can be opened as it ships, or so that int8 sums cannot saturate."""

    path: Path
    runtime: str
    precision: str
    threads: int
    providers: tuple[str, ...] = ()
    exact_int8: bool = False

    def open(self, *, exact_int8: bool = False) -> Session:
        exact = exact_int8 or self.exact_int8
        return open_session(self.path, self.runtime, self.threads, self.providers, exact_int8=exact)

    def saturates(self, x: np.ndarray, logits: np.ndarray) -> bool:
        """Whether ``logits``, given for ``x``, lack something because sums of int8 products did not fit 16 bits.

        ONNX Runtime's kernels for processors without VNNI do that; the same model in its exact mode then answers
        otherwise. Where nothing can saturate, both are the same kernels.
        """
        kernels_may = self.precision == "int8" and self.runtime == "onnxruntime" and not self.providers
        if self.exact_int8 or not kernels_may or not instruction_set().startswith("x86"):
            return False
        return not np.array_equal(self.open(exact_int8=True).run(x), logits)


def _fingerprint(rgb: np.ndarray) -> dict[str, Any]:
    return {"shape": list(rgb.shape[:2]), "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}


def run_selftest(bundle: Bundle, variants: Sequence[str] | None = None, *, hashes: bool = True) -> Outcome:
    """Compare this machine with the golden vectors, see above for the checks.

    ``variants``: default all whose runtime is installed. A changed file ends the test: nothing after it can be trusted.
    Raises MissingRuntime without the runtime of the chosen (or a named) variant, BundleFault on unusable vectors.
    """
    outcome = Outcome()
    for where, fault in hash_faults(bundle) if hashes else ():
        outcome.check(False, "file", where, fault)
    if not outcome.ok:
        return outcome
    record = read_json(bundle.root, GOLDEN_JSON)
    if need(record, "schema_version", int, GOLDEN_JSON) != GOLDEN_VERSION:
        raise BundleFault(f"{GOLDEN_JSON}: schema version {record['schema_version']}, not {GOLDEN_VERSION}")
    made_with = need(record, "made_with", dict, GOLDEN_JSON)
    saturated = need(record, "saturated", dict, GOLDEN_JSON)
    golden = read_golden(bundle, len(need(record, "images", list, GOLDEN_JSON)))
    for name, fault in floor_faults(bundle.root):
        outcome.check(False, "package", name, fault)
    for index, entry in enumerate(record["images"]):
        _check_image(outcome, bundle, entry, golden["pixels"][index])
    _check_input(outcome, bundle, golden)
    for name in variants or bundle.variants:
        variant, required = bundle.variant(name), bool(variants) or name == bundle.chosen
        there = Golden(golden["input"], golden[f"logits_{name}"], made_with, saturated.get(name) is True)
        _check_model(outcome, bundle, variant, there, required=required)
    outcome.notes += version_notes(made_with)
    return outcome


def read_golden(bundle: Bundle, count: int) -> dict[str, np.ndarray]:
    """The arrays of golden.npz for ``count`` images, their shapes checked. Raises BundleFault."""
    if count == 0:
        raise BundleFault(f"{GOLDEN_JSON}: 'images' is empty")
    data = locate(bundle.root, GOLDEN_NPZ).read_bytes()
    try:
        if sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()) > MAX_ARRAY_BYTES:
            raise ValueError(f"more than {MAX_ARRAY_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
    except Exception as fault:  # zip, deflate, numpy: each has its own on damaged data
        raise BundleFault(f"{GOLDEN_NPZ}: cannot be read ({fault})") from fault
    h, w = bundle.spec.size
    planes = (count, 3, h, w) if bundle.spec.layout == "NCHW" else (count, h, w, 3)
    expected = {"pixels": ((count, h, w, 3), np.uint8), "input": (planes, np.dtype(bundle.spec.dtype))}
    for name in bundle.variants:
        expected[f"logits_{name}"] = ((count, len(bundle.classes)), np.float32)
    for name, (shape, dtype) in expected.items():
        found = golden.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            raise BundleFault(f"{GOLDEN_NPZ}: {name!r} must be {np.dtype(dtype).name} of shape {shape}")
    return golden


def _check_image(outcome: Outcome, bundle: Bundle, entry: dict[str, Any], golden: np.ndarray) -> None:
    """Decode, then resize. Decoded pixels are compared by hash, and where that differs, after resizing."""
    path = need(entry, "path", str, GOLDEN_JSON)
    try:
        rgb = decode(locate(bundle.root, path))
    except DecodeFault as fault:
        outcome.check(False, "decode", path, f"{path}: cannot be decoded here: {fault}")
        return
    same = _fingerprint(rgb) == {key: entry.get(key) for key in ("shape", "sha256")}
    error = int(np.abs(resize(rgb, bundle.spec).astype(int) - golden).max())
    if same:
        outcome.check(error == 0, "resize", path, f"{path}: resized pixels differ by up to {error} of 255")
    elif outcome.check(
        error <= PIXEL_TOLERANCE, "decode", path, f"{path}: decoded pixels differ, by up to {error} of 255"
    ):
        outcome.notes.append(f"{path}: decoded slightly differently, by up to {error} of 255 after resizing")


def _check_input(outcome: Outcome, bundle: Bundle, golden: dict[str, np.ndarray]) -> None:
    made = normalise(golden["pixels"], bundle.spec).astype(np.float32)  # pixels, where the model normalises by itself
    error = float(np.abs(made - golden["input"]).max())
    outcome.check(error <= INPUT_TOLERANCE, "normalise", GOLDEN_NPZ, f"normalised input differs by up to {error:.2g}")


@dataclass(frozen=True)
class Golden:
    """Of one variant: its input (K, ...), logits (K, N), the machine that made them, and whether sums saturated."""

    x: np.ndarray
    logits: np.ndarray
    made_with: Mapping[str, Any]
    saturated: bool


def _check_model(outcome: Outcome, bundle: Bundle, variant: Variant, golden: Golden, *, required: bool) -> None:
    """The model's answers to the golden input."""
    path = bundle.model_path(variant)
    model = Model(path, variant.runtime, variant.precision, bundle.threads, variant.providers, variant.exact_int8)
    try:
        logits = model.open().run(golden.x)
        saturates = model.saturates(golden.x, logits)
    except MissingRuntime as fault:
        if required:
            raise
        outcome.notes.append(f"{variant.name}: not tested, {fault}")
        return
    except RuntimeFault as fault:
        outcome.check(False, "model", variant.name, f"{variant.name}: {fault}")
        return
    difference = compare_logits(logits, golden.logits, tolerance(variant, golden.made_with))
    check, cause = cause_of(variant, golden, saturates=saturates)
    if outcome.check(difference is None, check, variant.name, f"{variant.name}: {difference}{cause}") and saturates:
        outcome.notes.append(f"{variant.name}: sums of int8 products saturate on this processor, within the tolerance")


def tolerance(variant: Variant, made_with: Mapping[str, Any]) -> tuple[float, float]:
    """(largest error as a share of the logits' range, least agreement): strict where the same kernels run."""
    here = {"instructions": instruction_set(), **versions()}
    same = all(made_with.get(key) == here.get(key) for key in ("instructions", variant.runtime))
    return (SAME_KERNELS if same and not variant.providers else OTHER_KERNELS)[variant.precision]


def compare_logits(logits: np.ndarray, golden: np.ndarray, allowed: tuple[float, float]) -> str | None:
    """Both (K, N). What is wrong with ``logits``, or None within what is ``allowed``: (share of range, agreement)."""
    if logits.shape != golden.shape:
        return f"answers have shape {logits.shape}, expected {golden.shape}"
    if not np.isfinite(logits).all():
        return "answers are not finite numbers"
    error = float(np.abs(logits - golden).max() / max(np.ptp(golden), 1e-12))
    agreement = float((logits.argmax(1) == golden.argmax(1)).mean())
    if error <= allowed[0] and agreement >= allowed[1]:
        return None
    return f"answers differ by {error:.2%} of the logits' range (allowed {allowed[0]:.2%}), {agreement:.0%} agree"


def cause_of(variant: Variant, golden: Golden, *, saturates: bool) -> tuple[str, str]:
    """(check, what to say) for answers that differ: the likeliest cause that can be told from here."""
    here, there = instruction_set(), golden.made_with.get("instructions")
    now, then = versions().get(variant.runtime), golden.made_with.get(variant.runtime)
    if saturates:
        return "saturation", f"; sums of int8 products saturate on this processor ({here}): ship a float model for it"
    if golden.saturated:
        return "saturation", f"; they saturated where the bundle was made ({there}), not here"
    if now != then:
        return "runtime", f"; {variant.runtime} {now} here, {then} when the bundle was made: install that"
    if here != there:
        return "model", f"; its kernels are others here ({here}) than where the bundle was made ({there})"
    return "model", ""


def version_notes(made_with: Mapping[str, Any]) -> list[str]:
    """Packages whose version here is not the one that the golden vectors were made with."""
    pairs = [(name, here, made_with.get(name)) for name, here in versions().items()]
    return [
        f"{name} {here} here, {made} when the bundle was made" for name, here, made in pairs if made not in (None, here)
    ]


def floor_faults(root: Path) -> list[tuple[str, str]]:
    """(package, message) of each installed package that is older than requirements.txt asks for."""
    here, faults = versions(), []
    for line in locate(root, "requirements.txt").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, floor = line.strip().partition(">=")
        found = here.get(name.lower())
        if found and floor and _numbers(found) < _numbers(floor):
            faults.append((name, f"{name} {found} is too old for this bundle: pip install '{name}>={floor}'"))
    return faults


def _numbers(version: str) -> list[int]:
    """'1.20.1rc1' -> [1, 20, 1]: as far as it is numbers."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return [int(number) for number in found.group().split(".")] if found else []
