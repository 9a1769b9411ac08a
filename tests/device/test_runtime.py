import numpy as np
import pytest

from tinyforge.device.machine import usable_cores
from tinyforge.device.runtime import MissingRuntime, RuntimeFault, open_session

from .conftest import write_onnx, write_openvino

X = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
LOGITS = X.mean((2, 3)) * 10


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request):
    return request.param


@pytest.fixture
def make_model(tmp_path, runtime):
    def make(metadata=None, **options):
        path = write_onnx(tmp_path / "m.onnx", metadata or {}, **options)
        return path if runtime == "onnxruntime" else write_openvino(path, tmp_path / "m.xml", metadata or {})

    return make


@pytest.mark.parametrize("batch", ["batch", 1, 2, 5, 7])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_any_number_of_images(make_model, runtime, batch, layout):
    session = open_session(make_model(batch=batch, layout=layout), runtime)
    x = X if layout == "NCHW" else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(session.run(x), LOGITS, atol=1e-4)
    np.testing.assert_allclose(session.run(x[:1]), LOGITS[:1], atol=1e-4)


def test_answers_are_not_overwritten_by_the_next_run(make_model, runtime):
    session = open_session(make_model(batch=1), runtime)
    first = session.run(X[:1])
    session.run(X[1:2])
    np.testing.assert_allclose(first, LOGITS[:1], atol=1e-4)


def test_info_is_read_back(make_model, runtime):
    info = open_session(make_model(), runtime, threads=1).info()
    assert sorted(info) == ["precision", "provider", "runtime", "threads", "version"]
    assert (info["runtime"], info["precision"], info["threads"]) == (runtime, "f32", 1)
    assert info["provider"] == {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}[runtime]


def test_no_more_threads_than_cores(make_model, runtime):
    assert open_session(make_model(), runtime, threads=512).info()["threads"] <= usable_cores()


def test_metadata(make_model, runtime):
    metadata = {"classes": '["ä b", "c"]'}
    assert open_session(make_model(metadata), runtime).metadata() == metadata


def test_no_metadata(make_model, runtime):
    assert open_session(make_model(), runtime).metadata() == {}


@pytest.mark.parametrize("x", [X.astype(np.float64), X[:, :2], X[0], X[:0]])
def test_other_input_is_refused(make_model, runtime, x):
    with pytest.raises(RuntimeFault, match="the model takes float32 of shape"):
        open_session(make_model(), runtime).run(x)


def test_absent_provider_is_an_error_not_a_fallback(make_model, runtime):
    with pytest.raises(MissingRuntime, match="NPU is not available; here: "):
        open_session(make_model(), runtime, providers=["NPU"])


def test_the_first_provider_that_is_there_is_taken(make_model, runtime):
    there = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}[runtime]
    assert open_session(make_model(), runtime, providers=["NPU", there]).info()["provider"] == there


def test_broken_model(make_model, runtime):
    path = make_model()
    path.write_bytes(b"nonsense")
    with pytest.raises(RuntimeFault, match=f"{path.name}: {runtime} cannot open it"):
        open_session(path, runtime)


def test_absent_model_and_unknown_runtime(tmp_path):
    with pytest.raises(RuntimeFault, match="no such model file"):
        open_session(tmp_path / "m.onnx", "onnxruntime")
    with pytest.raises(ValueError, match="unknown runtime 'tflite'"):
        open_session(tmp_path / "m.onnx", "tflite")
