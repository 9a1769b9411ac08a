"""One whole bundle, damaged in every way that can be listed: always refused, for the right reason, without a traceback.

Two kinds of forger. The careless one edits and leaves hashes and seal as they are. The careful one writes both anew,
and is found where a number no longer follows from the raw data, or a model from its golden vectors.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyforge.device.__main__ import main
from tinyforge.device.bench import bench_model
from tinyforge.device.conditions import judge
from tinyforge.device.machine import describe_machine
from tinyforge.device.seal import bundle_files

from .conftest import SPEC, build_bundle, metadata_of, read_record, reclaim, rehash, write_onnx, write_record
from .test_bundle import NAMES

DERIVED = ("scores", "parity", "latency", "certificate")
UNUSED = ("runtime", "version", "provider", "reasons")  # text in a latency report


@dataclass(frozen=True)
class Mutation:
    """What is done to a copy, and what ``verify`` must answer: exit code, and words of its message."""

    name: str
    damage: Callable[[Path], Any]
    code: int
    words: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """With real latencies of the shipped model and predictions of every model."""
    root = build_bundle(tmp_path_factory.mktemp("whole") / "colour-generic-cpu")
    model, images = root / "model/onnx-fp32.onnx", [root / "selftest/0.png"]
    report = bench_model(model, "onnxruntime", 1, images, SPEC, seconds=0, min_runs=64, warmup=2)
    (root / "latency").mkdir()
    (root / "latency/onnx-fp32.json").write_text(json.dumps({"machine": describe_machine(), **report}))
    reclaim(root)
    return root


def put(path: Path, data: bytes) -> None:
    """Write anew: the copies are hard links, what is in the whole bundle stays."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def verify(root: Path, *options: str) -> tuple[int, str]:
    """(exit code, everything printed) of the device's own command line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["verify", str(root), *options])
    return code, printed.getvalue()


def check(whole: Path, folder: Path, mutations: list[Mutation]) -> None:
    """Every mutation on a copy of its own; all that were not refused as they must be are told at once."""
    wrong = []
    for number, one in enumerate(mutations):
        copy = Path(shutil.copytree(whole, folder / str(number), copy_function=os.link))
        one.damage(copy)
        code, text = verify(copy)
        if code != one.code or one.words not in text or "internal" in text or "Traceback" in text:
            wrong.append(f"{one.name}: expected {one.code} with {one.words!r}, found {code}: {text[:300]}")
        shutil.rmtree(copy, ignore_errors=True)
    assert wrong == []
    assert verify(whole)[0] == 0


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(keys, value) of everything in a JSON value that holds nothing more."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    pairs = list(inner)
    for key, one in pairs:
        yield from leaves(one, (*path, key))
    if not pairs:
        yield path, value


def changed(value: Any) -> Any:
    """Another value of the same kind, as near as an editor would choose it."""
    if isinstance(value, str):
        is_hash = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return ("0" if value[:1] != "0" else "1") + value[1:] if is_hash else f"{value}x"
    if value is None or isinstance(value, (list, dict)):
        return 1
    return (not value) if isinstance(value, bool) else value + (1 if isinstance(value, int) else 0.001)


def edit(path: tuple, *, seal: bool) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        record = read_record(root)
        place = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(place[path[-1]])
        write_record(root, record, seal=seal)

    return damage


def shown(path: tuple) -> str:
    return "/".join(map(str, path))


UNREADABLE = {  # edits of bundle.json after which it is none: what is said then
    ("schema_version",): "schema version 3, this program reads 2",
    ("input", "resize"): "'input': InputSpec: resize must be",
    ("input", "fit"): "'input': InputSpec: fit must be",
    ("input", "layout"): "'input': InputSpec: layout must be",
    ("input", "dtype"): "'input': InputSpec: dtype must be",
    ("input", "crop_pct"): "'input': InputSpec: crop_pct must be",
    ("model", "chosen"): "no variant 'onnx-fp32x'",
}


def unreadable(path: tuple, whole: Path) -> str | None:
    """What is said when the edited record cannot be read as a bundle; None when it can."""
    if path in UNREADABLE:
        return UNREADABLE[path]
    if path[:2] == ("model", "variants"):
        told = {"runtime": "unknown runtime", "precision": "unknown precision", "path": "not in 'files'"}
        return told.get(path[-1], "disagree on its sha256" if path[-1] == "sha256" else None)
    in_model = [shown(path[1:]).startswith("model/"), path[0] == "files"]
    return "disagree on its sha256" if all(in_model) else None


def careless_edits(whole: Path) -> list[Mutation]:
    """Every value of bundle.json, one at a time; the seal stays."""
    found = []
    for path, _ in leaves(read_record(whole)):
        broken = unreadable(path, whole)
        code, words = (2, broken) if broken else (1, "edited after it was sealed")
        found.append(Mutation(f"edited {shown(path)}", edit(path, seal=False), code, words))
    return found


def careful_edits(whole: Path) -> list[Mutation]:
    """Every value that follows from something else in the bundle, one at a time; sealed anew."""
    found = []
    for path, value in leaves(read_record(whole)):
        broken, where = unreadable(path, whole), f"{shown(path)} is given as {changed(value)!r}"
        if path[-1] == "statement":
            where = "certificate/statement is given as 'top-1 >= "
        elif path[-1] == "bytes":
            where = f"{where[: -len(repr(changed(value)))]}{changed(value)}, the raw data say {value}"
        elif path[0] == "files":
            where = broken or "changed, its sha256 differs"
        elif path[0] in ("input", "classes", "name"):
            key = "classes" if path[0] == "classes" else path[0]
            where = f"{key!r} in the model file is not that of bundle.json"
        elif path[0] not in DERIVED and not broken:
            continue  # provenance, licences, target, threads: see test_what_only_the_digest_finds
        code, words = (2, broken) if broken else (1, where)
        found.append(Mutation(f"forged {shown(path)}", edit(path, seal=True), code, words))
    return found


def flip(data: bytes, at: int) -> bytes:
    """The lowest bit of one byte."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def flipped(place: float) -> Callable[[bytes], bytes]:
    return lambda data: flip(data, int(place * (len(data) - 1)))


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda root: put(root / name, change((root / name).read_bytes()))


def file_damages(whole: Path) -> list[Mutation]:
    """Every file: a bit at the start, in the middle and at the end; cut; emptied; longer; gone; renamed; a folder."""
    found = []
    for name in bundle_files(whole):
        words = f"{name}: changed, its sha256 differs from bundle.json"
        found.append(Mutation(f"without {name}", lambda root, n=name: (root / n).unlink(), 2, f"{name}: missing"))
        places = (0.5,) if name.startswith("tinyforge_device/") else (0.0, 0.5, 1.0)
        found += [Mutation(f"bit of {name} at {at}", rewritten(name, flipped(at)), 1, words) for at in places]
        if len(places) > 1:
            half, more = (lambda data: data[: len(data) // 2]), (lambda data: data + b"\n")
            found.append(Mutation(f"half of {name}", rewritten(name, half), 1, words))
            found.append(Mutation(f"{name} and a byte", rewritten(name, more), 1, words))
    some = ("README.md", "report.html", "model/onnx-fp32.onnx", "tinyforge_device/bundle.py", "selftest/golden.npz")
    for name in some:
        found += [
            Mutation(f"{name} emptied", rewritten(name, lambda _: b""), 1, f"{name}: changed"),
            Mutation(f"{name} renamed", lambda root, n=name: (root / n).rename(root / f"{n}.bak"), 2, f"{name}: miss"),
            Mutation(f"{name} a folder", lambda root, n=name: _to_folder(root / n), 2, "is not a regular file"),
            Mutation(f"{name} a link out", lambda root, n=name: _to_link(root / n, "/etc/hostname"), 2, "leaves the"),
            Mutation(
                f"{name} a link in", lambda root, n=name: _to_link(root / n, root / "recipe.lock.toml"), 2, "link"
            ),
        ]
    return found


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_link(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


def swap(one: str, other: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        first, second = ((root / name).read_bytes() for name in (one, other))
        put(root / one, second)
        put(root / other, first)

    return damage


def folder_damages(whole: Path) -> list[Mutation]:
    """What was put beside, or exchanged."""
    changed = "changed, its sha256 differs"
    added = ("x", "model/other.onnx", "selftest/9.png", "predictions/new.json", "tinyforge_device/evil.py", "a/b/c")
    return [
        *(
            Mutation(f"added {n}", lambda root, n=n: _add(root / n), 1, f"{n}: not listed in bundle.json")
            for n in added
        ),
        Mutation("a link beside", lambda root: (root / "l").symlink_to("/etc"), 1, "l: not listed"),
        Mutation("no byte code", lambda root: _add(root / "tinyforge_device/__pycache__/x.so"), 1, "not listed"),
        Mutation("models swapped", swap("model/onnx-fp32.onnx", "model/openvino-fp16.bin"), 1, changed),
        Mutation("images swapped", swap("selftest/0.png", "selftest/1.png"), 1, changed),
        Mutation("answers swapped", swap("predictions/student.json", "predictions/onnx-fp32.json"), 1, changed),
        Mutation("no bundle.json", lambda root: (root / "bundle.json").unlink(), 2, "bundle.json: missing"),
        Mutation("no folder", lambda root: shutil.move(root, f"{root}-") and None, 2, "is not a folder"),
    ]


def _add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def put_record(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """bundle.json changed by a function of it, and sealed anew."""

    def damage(root: Path) -> None:
        record = read_record(root)
        change(record)
        write_record(root, record)

    return damage


def put_text(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        data = change((root / "bundle.json").read_text())
        put(root / "bundle.json", data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))

    return damage


def unsafe_names(whole: Path) -> list[Mutation]:
    """Names that leave the folder or mean something else elsewhere: among the files, and as a model."""
    found = []
    for name, reason in NAMES:
        raw = json.dumps(name)
        listed = put_text(
            lambda text, raw=raw: text.replace(
                '"files": {\n  "README', f'"files": {{\n  {raw}: "{"0" * 64}",\n  "README'
            )
        )
        model = put_text(lambda text, raw=raw: text.replace('"path": "model/onnx-fp32.onnx"', f'"path": {raw}'))
        found.append(Mutation(f"lists {name[:20]!r}", listed, 2, reason))
        found.append(
            Mutation(f"model {name[:20]!r}", model, 2, reason if reason != "cannot be used" else "not in 'files'")
        )
    collide = put_record(lambda record: record["files"].update({"readme.MD": "0" * 64}))
    return [*found, Mutation("names collide", collide, 2, "are the same file on some systems")]


def schemas_and_json(whole: Path) -> list[Mutation]:
    """Other versions, keys missing, unknown or of another type; what is no JSON, or more than JSON."""
    record = read_record(whole)
    found = [
        Mutation(f"version {v!r}", put_record(lambda r, v=v: r.update(schema_version=v)), 2, words)
        for v, words in (
            (0, "schema version 0, this program reads 2"),
            (1, "schema version 1, of an older TinyForge; build it again"),
            (3, "schema version 3, this program reads 2"),
            (2.0, "schema version 2.0"),
            ("2", "schema version '2'"),
            (True, "schema version True"),
            (None, "schema version None"),
            ([2], "schema version [2]"),
        )
    ]
    for key in record:
        words = "schema version" if key == "schema_version" else f"{key!r}"
        found.append(Mutation(f"no {key}", put_record(lambda r, k=key: r.pop(k)), 1 if key == "seal" else 2, ""))
        found.append(Mutation(f"{key} null", put_record(lambda r, k=key: r.update({k: None})), 2, words))
    found = [one for one in found if "seal" not in one.name]
    texts = (
        ("empty", lambda _: "", "not valid JSON"),
        ("half", lambda text: text[: len(text) // 2], "not valid JSON"),
        ("a list", lambda text: f"[{text}]", "must be an object"),
        ("twice", lambda text: text.replace('"name"', '"name": "a",\n "name"', 1), "'name' appears twice"),
        ("nan", lambda text: text.replace('"threads": 1', '"threads": NaN', 1), "NaN is not a JSON number"),
        ("whole", lambda text: text.replace('"threads": 1', f'"threads": {10**320}', 1), "too large a number"),
        ("infinity", lambda text: text.replace('"threads": 1', '"threads": 1e999', 1), "too large a number"),
        ("digits", lambda text: text.replace('"threads": 1', f'"threads": {"1" * 5000}', 1), "bundle.json: "),
        ("bom", lambda text: "\ufeff" + text, "not valid JSON"),
        ("utf-16", lambda text: text.encode("utf-16"), "not valid JSON"),
        ("deep", lambda _: "[" * 200_000, "not valid JSON"),
        ("surrogate", lambda text: text.replace('"colour"', '"\ud800"', 1), "not valid JSON"),
        ("no seal", lambda text: text.replace('"seal"', '"sail"', 1), "'seal' is missing"),
    )
    found += [Mutation(name, put_text(change), 2, words) for name, change, words in texts]
    spaced = Mutation("spaces", put_text(lambda text: text.replace(": 1,", ":  1,", 1)), 1, "not written as TinyForge")
    extra = Mutation("unknown key", put_record(lambda record: record.update(extra=1)), 2, "unknown key 'extra'")
    return [*found, spaced, extra, Mutation("huge", _huge, 2, "bundle.json: larger than")]


def _huge(root: Path) -> None:
    put(root / "bundle.json", b"{")
    with (root / "bundle.json").open("r+b") as stream:
        stream.truncate(2**33)


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


GROUPS = (
    careless_edits,
    careful_edits,
    file_damages,
    folder_damages,
    unsafe_names,
    schemas_and_json,
    forgeries,
)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_refused_for_the_right_reason(group, whole, tmp_path):
    check(whole, tmp_path, group(whole))


def test_bit_flips_of_bundle_json_are_refused(whole, tmp_path):
    """Where a bit falls decides what is wrong; that something is, is always told."""
    for at in range(0, (whole / "bundle.json").stat().st_size, 211):
        copy = Path(shutil.copytree(whole, tmp_path / str(at), copy_function=os.link))
        put(copy / "bundle.json", flip((whole / "bundle.json").read_bytes(), at))
        code, text = verify(copy)
        assert code in (1, 2), at
        assert "internal" not in text, at
        shutil.rmtree(copy)


def test_there_are_hundreds(whole):
    assert sum(len(group(whole)) for group in GROUPS) > 400


def test_what_only_the_digest_finds(whole, tmp_path):
    """Statements that follow from nothing in the bundle: who seals them anew is found by the digest alone."""
    digest = verify(whole)[1].partition("digest: ")[2].split()[0]
    assert verify(whole, "--digest", digest)[0] == 0
    for number, path in enumerate((("provenance", "seed"), ("licences", 0, "licence"), ("threads",), ("target",))):
        copy = Path(shutil.copytree(whole, tmp_path / str(number)))
        edit(path, seal=True)(copy)
        assert verify(copy)[0] == 0
        code, text = verify(copy, "--digest", digest)
        assert code == 1
        assert "digest: bundle.json: its digest is " in text
