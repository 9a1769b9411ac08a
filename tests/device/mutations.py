"""Damages that ``test_mutations`` does to a bundle, in groups, with the exit code and words that must answer each."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyforge.device.seal import bundle_files

from .conftest import read_record, write_record
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


def put(path: Path, data: bytes) -> None:
    """Write anew: the copies are hard links, what is in the whole bundle stays."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


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
