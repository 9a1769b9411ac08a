"""Damages of a careful forger, who writes hashes and seal anew: found where a number no longer follows from the raw
data, or a model from its golden vectors. The careless one, in ``mutations``, leaves them as they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.conditions import judge

from .conftest import metadata_of, read_record, rehash, write_onnx, write_record
from .mutations import Mutation, put, rewritten, swap


def edit_json(name: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Raw data changed by a careful forger, who leaves the claims."""

    def damage(root: Path) -> None:
        record = json.loads((root / name).read_bytes())
        change(record)
        put(root / name, json.dumps(record).encode())
        rehash(root)

    return damage


def _throttled(report: dict) -> None:
    """What the firmware told is as it was, and what was concluded from it too."""
    report["samples"][-1]["firmware"] = 1 << 2
    report.update(judge(report["samples"]))


def added_and_listed(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / name).write_text("print('mine')")
        rehash(root)

    return damage


def golden_changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "selftest/golden.npz"
        with np.load(path) as stored:
            arrays = {**stored}
        path.unlink()
        np.savez(path, **{**arrays, name: change(arrays[name])})
        rehash(root)

    return damage


def then_rehash(damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(root: Path) -> None:
        damage(root)
        rehash(root)

    return both


def forgeries(whole: Path) -> list[Mutation]:
    """Files changed, listed and sealed anew: found by what follows from them."""
    answers, latency, golden = "predictions/onnx-fp32.json", "latency/onnx-fp32.json", "selftest/golden.json"
    inverted = then_rehash(lambda root: put_onnx(root, metadata_of(), factor=-10.0))
    unnamed = then_rehash(lambda root: put_onnx(root, {}))
    shuffled = {**metadata_of(), "classes": '["green", "red", "blue"]'}
    return [
        Mutation(
            "an answer", edit_json(answers, lambda r: r["predicted"].__setitem__(0, 1)), 1, "scores/onnx-fp32/acc"
        ),
        Mutation("a label", edit_json(answers, lambda r: r["labels"].__setitem__(0, 1)), 1, "another label"),
        Mutation("a name", edit_json(answers, lambda r: r["names"].__setitem__(0, "z")), 1, "not of the same images"),
        Mutation("a name twice", edit_json(answers, lambda r: r["names"].__setitem__(0, "1.png")), 1, "more than once"),
        Mutation("fewer", edit_json(answers, lambda r: [r[key].pop() for key in r]), 1, "not of the same images"),
        Mutation("unequal", edit_json(answers, lambda r: r["labels"].pop()), 1, "must be equally many"),
        Mutation("a run", edit_json(latency, lambda r: r["raw_us"]["infer"].append(10**6)), 1, "equally many runs"),
        Mutation("no runs", edit_json(latency, lambda r: r.update(raw_us={})), 1, "'decode' is missing"),
        Mutation("slower", edit_json(latency, _slower), 1, "certificate/latency/at_most_ms is given as"),
        Mutation(
            "elsewhere", edit_json(latency, lambda r: r["machine"].update(cpu="Pi")), 1, "certificate/latency/mach"
        ),
        Mutation("emulated", edit_json(latency, lambda r: r["machine"].update(emulated=True)), 1, "latency/at_most_ms"),
        Mutation(
            "invalid", edit_json(latency, lambda r: r.update(valid=False)), 1, "'valid' is not what 'samples' say"
        ),
        Mutation("throttled", edit_json(latency, _throttled), 1, "certificate/latency/at_most_ms"),
        Mutation("calm", edit_json(latency, lambda r: r.update(samples=[])), 1, "'samples' are not of a machine's"),
        Mutation("a program", added_and_listed("numpy.py"), 2, "numpy.py: has no place in a bundle"),
        Mutation("a run of ages", edit_json(latency, _ages), 1, "is too large a number"),
        Mutation("the card", then_rehash(rewritten("README.md", _better)), 1, "card: README.md says '| student | 6 |"),
        Mutation("no score", lambda root: _drop(root, "scores", "student"), 1, "scores/student is given as 'absent'"),
        Mutation("image decoded otherwise", edit_json(golden, _other_pixels), 1, "decode: selftest/0.png"),
        Mutation("golden version", edit_json(golden, lambda r: r.update(schema_version=1)), 2, "schema version 1"),
        Mutation("no golden images", edit_json(golden, lambda r: r.update(images=[])), 2, "'images' is empty"),
        Mutation("pixels", golden_changed("pixels", lambda p: p ^ 1), 1, "resize: selftest/0.png"),
        Mutation("input", golden_changed("input", lambda x: x + np.float32(0.01)), 1, "normalise: "),
        Mutation(
            "logits", golden_changed("logits_onnx-fp32", lambda x: x[:, ::-1]), 1, "model: onnx-fp32: answers diff"
        ),
        Mutation("shape", golden_changed("logits_onnx-fp32", lambda x: x[:, :2]), 2, "must be float32 of shape (3, 3)"),
        Mutation(
            "swapped", then_rehash(swap("model/onnx-fp32.onnx", "model/openvino-fp16.xml")), 1, "not a model file"
        ),
        Mutation("inverted model", inverted, 1, "model: onnx-fp32: answers differ"),
        Mutation("nameless model", unnamed, 1, "the model file carries no 'name'"),
        Mutation("class order", then_rehash(lambda root: put_onnx(root, shuffled)), 1, "'classes' in the model file"),
        Mutation("no model", then_rehash(rewritten("model/onnx-fp32.onnx", lambda _: b"\xff" * 99)), 1, "not a model"),
        Mutation("vectors cut", then_rehash(rewritten("selftest/golden.npz", lambda d: d[:99])), 2, "cannot be read"),
        Mutation(
            "needs more", then_rehash(rewritten("requirements.txt", lambda _: b"numpy>=99\n")), 1, "package: numpy"
        ),
    ]


def put_onnx(root: Path, metadata: dict[str, str], factor: float = 10.0) -> None:
    path = root / "model/onnx-fp32.onnx"
    path.unlink()
    write_onnx(path, metadata, factor=factor)


def _slower(report: dict) -> None:
    report["raw_us"]["infer"] = [value + 1 for value in report["raw_us"]["infer"]]


def _ages(report: dict) -> None:
    report["raw_us"]["infer"][0] = 10**320


def _better(card: bytes) -> bytes:
    return card.replace(b"| student | 6 | 5 | 83.3 |", b"| student | 6 | 6 | 100.0 |")


def _other_pixels(record: dict) -> None:
    record["images"][0].update(sha256=record["images"][1]["sha256"], path="selftest/1.png")
    record["images"][0]["sha256"] = "0" * 64
    record["images"][0]["path"], record["images"][1]["path"] = "selftest/0.png", "selftest/0.png"


def _drop(root: Path, section: str, key: str) -> None:
    record = read_record(root)
    del record[section][key]
    write_record(root, record)
