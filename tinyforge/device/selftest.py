"""Golden vectors: what every step gave where the bundle was made, and which step gives something else here.

::

    selftest/golden.json   {"schema_version": 1,
                            "images": [{"path": "selftest/0.png", "shape": [H, W], "sha256": of decoded RGB}, ...],
                            "made_with": describe_machine()}
    selftest/golden.npz    pixels uint8 (K, h, w, 3) after resize; input float32 (K, 3, h, w) or NHWC;
                           logits_<variant> float32 (K, N) for every variant

Each step is fed the golden result of the step before, so a fault is named where it arises and nowhere else.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, BundleFault, Variant, hash_faults, locate, need, read_json
from .machine import describe_machine, versions
from .preprocess import DecodeFault, decode, normalise, resize
from .runtime import MissingRuntime, RuntimeFault, Session, open_session
from .spec import InputSpec

GOLDEN_JSON, GOLDEN_NPZ = "selftest/golden.json", "selftest/golden.npz"
# Largest |logit - golden| as a share of the golden logits' range; and the least share of equal top-1 answers.
# int8 kernels differ between processors (saturation without VNNI, other rounding on Arm).
TOLERANCES = {"fp32": (1e-3, 1.0), "fp16": (1e-2, 1.0), "int8": (0.15, 0.9)}
PIXEL_TOLERANCE = 2  # of 255, where another JPEG decoder rounds otherwise
INPUT_TOLERANCE = 1e-5


@dataclass
class Outcome:
    """faults: [{check, where, message}]; notes: differences that are no fault; checks: number of comparisons."""

    faults: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: int = 0

    @property
    def ok(self) -> bool:
        return not self.faults

    def check(self, passed: bool, check: str, where: str, message: str) -> bool:
        self.checks += 1
        if not passed:
            self.faults.append({"check": check, "where": where, "message": message})
        return passed

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": self.checks, "faults": self.faults, "notes": self.notes}


def write_golden(root: Path, images: Mapping[str, bytes], spec: InputSpec, sessions: Mapping[str, Session]) -> None:
    """Write ``selftest/`` of the bundle at ``root``: encoded ``images`` by file name, ``sessions`` by variant."""
    folder = root / "selftest"
    folder.mkdir(parents=True, exist_ok=True)
    decoded = {name: decode(encoded) for name, encoded in images.items()}
    for name, encoded in images.items():
        (folder / name).write_bytes(encoded)
    entries = [{"path": f"selftest/{name}", **_fingerprint(rgb)} for name, rgb in decoded.items()]
    pixels = np.stack([resize(rgb, spec) for rgb in decoded.values()])
    x = normalise(pixels, spec)
    logits = {f"logits_{name}": session.run(x) for name, session in sessions.items()}
    np.savez_compressed(root / GOLDEN_NPZ, pixels=pixels, input=x, **logits)
    record = {"schema_version": 1, "images": entries, "made_with": describe_machine()}
    (root / GOLDEN_JSON).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _fingerprint(rgb: np.ndarray) -> dict[str, Any]:
    return {"shape": list(rgb.shape[:2]), "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}


def run_selftest(bundle: Bundle, variants: Sequence[str] | None = None, *, hashes: bool = True) -> Outcome:
    """Compare this machine with the golden vectors: files, decode, resize, normalise, model (in this order).

    ``variants``: default all whose runtime is installed. A changed file ends the test: nothing after it can be trusted.
    Raises MissingRuntime without the runtime of the chosen (or a named) variant, BundleFault on unusable vectors.
    """
    outcome = Outcome()
    for fault in hash_faults(bundle) if hashes else ():
        outcome.check(False, "file", fault.partition(":")[0], fault)
    if not outcome.ok:
        return outcome
    record = read_json(bundle.root, GOLDEN_JSON)
    golden = read_golden(bundle, len(need(record, "images", list, GOLDEN_JSON)))
    for index, entry in enumerate(record["images"]):
        _check_image(outcome, bundle, entry, golden["pixels"][index])
    _check_input(outcome, bundle, golden)
    for name in variants or bundle.variants:
        _check_model(outcome, bundle, bundle.variant(name), golden, required=bool(variants) or name == bundle.chosen)
    outcome.notes += version_notes(need(record, "made_with", dict, GOLDEN_JSON))
    return outcome


def read_golden(bundle: Bundle, count: int) -> dict[str, np.ndarray]:
    """The arrays of golden.npz for ``count`` images, their shapes checked. Raises BundleFault."""
    if count == 0:
        raise BundleFault(f"{GOLDEN_JSON}: 'images' is empty")
    try:
        with np.load(io.BytesIO(locate(bundle.root, GOLDEN_NPZ).read_bytes()), allow_pickle=False) as stored:
            golden = {name: stored[name] for name in stored.files}
    except Exception as fault:  # zip, deflate, numpy: each has its own on damaged data
        raise BundleFault(f"{GOLDEN_NPZ}: cannot be read ({fault})") from fault
    h, w = bundle.spec.size
    planes = (count, 3, h, w) if bundle.spec.layout == "NCHW" else (count, h, w, 3)
    expected = {"pixels": ((count, h, w, 3), np.uint8), "input": (planes, np.float32)}
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
        outcome.check(False, "decode", path, f"cannot be decoded here: {fault}")
        return
    same = _fingerprint(rgb) == {key: entry.get(key) for key in ("shape", "sha256")}
    error = int(np.abs(resize(rgb, bundle.spec).astype(int) - golden).max())
    if same:
        outcome.check(error == 0, "resize", path, f"resized pixels differ by up to {error} of 255")
    elif outcome.check(error <= PIXEL_TOLERANCE, "decode", path, f"decoded pixels differ, by up to {error} of 255"):
        outcome.notes.append(f"{path}: decoded slightly differently, by up to {error} of 255 after resizing")


def _check_input(outcome: Outcome, bundle: Bundle, golden: dict[str, np.ndarray]) -> None:
    error = float(np.abs(normalise(golden["pixels"], bundle.spec) - golden["input"]).max())
    outcome.check(error <= INPUT_TOLERANCE, "normalise", GOLDEN_NPZ, f"normalised input differs by up to {error:.2g}")


def _check_model(
    outcome: Outcome, bundle: Bundle, variant: Variant, golden: dict[str, np.ndarray], *, required: bool
) -> None:
    """The model's answers to the golden input."""
    try:
        session = open_session(bundle.model_path(variant), variant.runtime, bundle.threads)
        logits = session.run(golden["input"])
    except MissingRuntime as fault:
        if required:
            raise
        outcome.notes.append(f"{variant.name}: not tested, {fault}")
    except RuntimeFault as fault:
        outcome.check(False, "model", variant.name, str(fault))
    else:
        fault = compare_logits(logits, golden[f"logits_{variant.name}"], variant.precision)
        outcome.check(fault is None, "model", variant.name, fault or "")


def compare_logits(logits: np.ndarray, golden: np.ndarray, precision: str) -> str | None:
    """Both (K, N). What is wrong with ``logits``, or None within the tolerance of ``precision``."""
    if logits.shape != golden.shape:
        return f"answers have shape {logits.shape}, expected {golden.shape}"
    if not np.isfinite(logits).all():
        return "answers are not finite numbers"
    tolerance, least = TOLERANCES[precision]
    error = float(np.abs(logits - golden).max() / max(np.ptp(golden), 1e-12))
    agreement = float((logits.argmax(1) == golden.argmax(1)).mean())
    if error <= tolerance and agreement >= least:
        return None
    cause = "; int8 saturates or rounds otherwise on this processor" if precision == "int8" else ""
    return f"answers differ by {error:.2%} of the logits' range (allowed {tolerance:.2%}), {agreement:.0%} agree{cause}"


def version_notes(made_with: dict[str, Any]) -> list[str]:
    """Packages whose version here is not the one that the golden vectors were made with."""
    pairs = [(name, here, made_with.get(name)) for name, here in versions().items()]
    return [
        f"{name} {here} here, {made} when the bundle was made" for name, here, made in pairs if made not in (None, here)
    ]
