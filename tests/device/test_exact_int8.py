"""Bundles for boards whose int8 sums are exact: every program that opens their models asks for exact sums."""

from tinyforge.device import predict, selftest
from tinyforge.device.bundle import load_bundle
from tinyforge.device.predict import open_bundle
from tinyforge.device.selftest import run_selftest

from .conftest import read_record, reclaim, rehash, write_record
from .test_saturation import NAME, with_int8


def exact(root):
    record = read_record(root)
    record["model"]["variants"][NAME]["exact_int8"] = True
    write_record(root, record)
    reclaim(root)
    rehash(root)
    return load_bundle(root)


def test_the_bundle_s_word_reaches_the_runtime(bundle_path, monkeypatch):
    bundle, asked = exact(with_int8(bundle_path, 60)), []

    def watch(module):
        real = module.open_session
        monkeypatch.setattr(
            module, "open_session", lambda *a, **k: asked.append((a[0].stem, k["exact_int8"])) or real(*a, **k)
        )

    watch(predict)
    watch(selftest)
    open_bundle(bundle)
    open_bundle(bundle, "onnx-fp32")
    assert run_selftest(bundle).ok
    assert {(NAME, True), ("onnx-fp32", False)} == set(asked)


def test_what_saturates_elsewhere_passes_its_selftest_here(bundle_path):
    """Golden answers of exact sums, weights that saturate in 16 bits: exact sums answer alike on every processor."""
    root = with_int8(bundle_path, 127)
    bundle = exact(root)
    variant = bundle.variant(NAME)
    model = selftest.Model(root / f"model/{NAME}.onnx", "onnxruntime", "int8", 1, exact_int8=variant.exact_int8)
    images = {path.name: path.read_bytes() for path in sorted((root / "selftest").glob("*.png"))}
    others = selftest.Model(root / "model/onnx-fp32.onnx", "onnxruntime", "fp32", 1)
    selftest.write_golden(root, images, bundle.spec, {NAME: model, "onnx-fp32": others})
    rehash(root)
    outcome = run_selftest(load_bundle(root))
    assert outcome.ok, outcome.faults
    assert not model.saturates(bundle, None)
