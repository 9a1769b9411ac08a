"""One whole bundle, damaged in every way that can be listed: refused, for the right reason, without a traceback."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tinyforge.device.__main__ import main
from tinyforge.device.machine import describe_machine

from .conftest import (
    SPEC,
    bench_model,
    build_bundle,
    reclaim,
)
from .forgeries import forgeries
from .mutations import (
    Mutation,
    careful_edits,
    careless_edits,
    edit,
    file_damages,
    flip,
    folder_damages,
    put,
    schemas_and_json,
    unsafe_names,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """With real latencies of the shipped model and predictions of every model."""
    root = build_bundle(tmp_path_factory.mktemp("whole") / "colour-generic-cpu")
    model, images = root / "model/onnx-fp32.onnx", [root / "selftest/0.png"]
    report = bench_model(model, images, SPEC)
    (root / "latency").mkdir()
    (root / "latency/onnx-fp32.json").write_text(json.dumps({"machine": describe_machine(), **report}))
    reclaim(root)
    return root


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
