"""The two runtimes behind one signature. A runtime is imported when the first session of it is opened."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .machine import usable_cores
from .metadata import onnx_operators

RUNTIMES = ("onnxruntime", "openvino")
CPU = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}
FLOAT_PRECISION = "f32"
ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
OPENVINO_TYPES = {"f32": "float32", "u8": "uint8"}
INT8 = "i8"
ONNX_LAYERS = {  # operators with weights, as ONNX Runtime's optimiser leaves them -> what they compute in
    **dict.fromkeys(("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"), FLOAT_PRECISION),
    **dict.fromkeys(("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul"), INT8),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), INT8),
}
OPENVINO_LAYERS = ("Convolution", "FullyConnected", "MatMul")


class RuntimeFault(RuntimeError):
    """The runtime cannot open or run the model as asked."""


class MissingRuntime(RuntimeFault):
    """The runtime, or the execution provider asked for, is not installed."""


class ProcessKilled(RuntimeFault):
    """The system ended the process that measures: on a small machine, for its memory."""


class Session(Protocol):
    """An opened model."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 (B, 3, h, w), or (B, h, w, 3) for an NHWC model, any B >= 1 -> float32 logits (B, N).

        A model that normalises by itself takes the pixels, uint8 (B, h, w, 3).

        Raises RuntimeFault on another shape or type.
        """

    def info(self) -> dict[str, Any]:
        """What is really active, read back: runtime, version, provider, precision, threads.

        precision: of floating-point arithmetic ('f32'); quantised layers of an int8 model compute in int8 besides.
        """

    def layers(self) -> dict[str, int]:
        """Precision -> how many layers with weights compute in it, {'i8': 4, 'f32': 1}, read back from what the runtime
        made of the model; {} where it does not tell.
        """

    def metadata(self) -> dict[str, str]:
        """Text entries that TinyForge wrote into the model file."""


def open_session(
    model_path: str | Path,
    runtime: str,
    threads: int = 1,
    providers: Sequence[str] = (),
    *,
    exact_int8: bool = False,
) -> Session:
    """Open a model on ``threads`` CPU threads, fewer where this process has fewer cores: waiting threads spin.

    ``providers``: ONNX Runtime's execution providers or OpenVINO's devices, most wanted first; the first that is there
    must become active. Default: the processor. ``exact_int8``: ONNX Runtime's slower kernels in which sums of int8
    products cannot saturate, where the processor's usual ones do (x86-64 without VNNI); elsewhere no difference.

    Raises MissingRuntime when the runtime or every provider is missing, RuntimeFault when the model cannot be opened
    or something else is active than was asked for, ValueError on an unknown runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    path = Path(model_path)
    if not path.is_file():
        raise RuntimeFault(f"{path.name}: no such model file")
    threads = min(threads, usable_cores())
    wanted = list(providers) or [CPU[runtime]]
    if runtime == "onnxruntime":
        return OnnxSession(path, threads, wanted, exact_int8)
    return OpenvinoSession(path, threads, wanted)


def effective_precision(session: Session) -> str:
    """'f32', 'i8', or '4 i8 + 1 f32' where only some layers compute in int8."""
    layers = session.layers() or {session.info()["precision"]: 1}
    names = sorted(layers, reverse=True)
    return names[0] if len(names) == 1 else " + ".join(f"{layers[name]} {name}" for name in names)


def first_there(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of ``wanted`` that are ``there``, in order. Raises MissingRuntime when none is."""
    found = [name for name in wanted if name in there]
    if not found:
        raise MissingRuntime(f"{' or '.join(wanted)} is not available; here: {', '.join(there)}")
    return found


class OnnxSession:
    """ONNX Runtime. A batch runs at once if the model's batch axis is free, else in portions of its fixed size."""

    def __init__(self, path: Path, threads: int, providers: Sequence[str], exact_int8: bool = False) -> None:
        self._runtime = ort = import_runtime("onnxruntime")
        ort.disable_telemetry_events()
        found = first_there(providers, ort.get_available_providers())
        self._path, self._exact_int8, self._fused = path, exact_int8, True
        try:
            self._session = self._open(threads, found)
        except Exception as fault:  # onnxruntime's exceptions have no common base of their own
            raise RuntimeFault(f"{path.name}: onnxruntime cannot open it: {_last_line(fault)}") from fault
        active = self._session.get_providers()[0]
        if active != found[0]:
            raise RuntimeFault(f"asked for {found[0]}, but {active} is active: are its libraries installed?")
        self._input = _only(self._session.get_inputs(), path, "input")
        self._output = _only(self._session.get_outputs(), path, "output").name
        if self._input.type not in ONNX_TYPES:
            raise RuntimeFault(f"{path.name}: its input is {self._input.type}, not float32 or uint8")
        self._dtype = ONNX_TYPES[self._input.type]
        batch = self._input.shape[0]
        self._batch = batch if isinstance(batch, int) else None

    def _open(self, threads: int, providers: Sequence[str]) -> Any:
        """Where the exact kernels cannot be had (ONNX Runtime 1.32 fails to make them of some networks with attention),
        int8 layers stay unfused: their sums are computed in float32, which is as exact and slower yet.
        """
        try:
            return self._runtime.InferenceSession(str(self._path), self._options(threads), providers=providers)
        except Exception:
            if not self._exact_int8:
                raise
        self._fused = False
        return self._runtime.InferenceSession(str(self._path), self._options(threads), providers=providers)

    def _options(self, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        if not self._fused:
            options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong comes as an exception
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
        options.add_session_config_entry("session.x64quantprecision", "1" if self._exact_int8 else "0")
        return options

    def run(self, x: np.ndarray) -> np.ndarray:
        return _in_portions(self._run, x, self._input.shape, self._batch, self._dtype)

    def _run(self, x: np.ndarray) -> np.ndarray:
        try:
            return self._session.run([self._output], {self._input.name: x})[0]
        except Exception as fault:
            raise RuntimeFault(f"onnxruntime: {_last_line(fault)}") from fault

    def info(self) -> dict[str, Any]:
        return {
            "runtime": "onnxruntime",
            "version": self._runtime.__version__,
            "provider": self._session.get_providers()[0],
            "precision": FLOAT_PRECISION,
            "threads": self._session.get_session_options().intra_op_num_threads,
        }

    def layers(self) -> dict[str, int]:
        if self._session.get_providers()[0] != CPU["onnxruntime"]:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            optimised, options = Path(folder) / "optimised.onnx", self._options(1)
            options.optimized_model_filepath = str(optimised)
            self._runtime.InferenceSession(str(self._path), options, providers=[CPU["onnxruntime"]])
            return dict(Counter(ONNX_LAYERS[kind] for kind in onnx_operators(optimised) if kind in ONNX_LAYERS))

    def metadata(self) -> dict[str, str]:
        return dict(self._session.get_modelmeta().custom_metadata_map)


class OpenvinoSession:
    """OpenVINO, tuned for latency: a free batch axis is fixed to 1 and batches run image by image.

    On a CPU float32 arithmetic is asked for and read back, since one with bf16 would silently use that. Other devices
    compute in what suits them (an NPU in f16 only), which ``info()`` tells.
    """

    def __init__(self, path: Path, threads: int, providers: Sequence[str]) -> None:
        self._runtime = ov = import_runtime("openvino")
        core = ov.Core()
        provider = first_there(providers, core.available_devices)[0]
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if provider == "CPU":
            hints.update({"INFERENCE_PRECISION_HINT": FLOAT_PRECISION, "INFERENCE_NUM_THREADS": threads})
        try:
            model = core.read_model(str(path))
            port = _only(model.inputs, path, "input")
            self._dtype = OPENVINO_TYPES[port.get_element_type().get_type_name()]
            self._shape = _fix_batch(port, model)
            _only(model.outputs, path, "output")
            self._metadata = _openvino_metadata(model)
            self._model = core.compile_model(model, provider, hints)
            self._request = self._model.create_infer_request()
        except RuntimeFault:
            raise
        except Exception as fault:  # openvino raises RuntimeError, TypeError and others
            raise RuntimeFault(f"{path.name}: openvino cannot open it: {_last_line(fault)}") from fault
        precision = self.info()["precision"]
        if provider == "CPU" and precision != FLOAT_PRECISION:
            raise RuntimeFault(f"asked for {FLOAT_PRECISION} arithmetic, but {precision} is active")

    def run(self, x: np.ndarray) -> np.ndarray:
        return _in_portions(self._run, x, self._shape, self._shape[0], self._dtype)

    def _run(self, x: np.ndarray) -> np.ndarray:
        self._request.infer([x], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data)

    def info(self) -> dict[str, Any]:
        return {
            "runtime": "openvino",
            "version": self._runtime.get_version(),
            "provider": ",".join(self._model.get_property("EXECUTION_DEVICES")),
            "precision": getattr(self._property("INFERENCE_PRECISION_HINT"), "get_type_name", lambda: "unknown")(),
            "threads": self._property("INFERENCE_NUM_THREADS"),
        }

    def layers(self) -> dict[str, int]:
        """The floating-point layers are of one precision, that of ``info()``; a plugin names their stored weights'."""
        made = [node.get_rt_info() for node in self._model.get_runtime_model().get_ordered_ops()]
        kinds = [(_text(one, "layerType"), _text(one, "runtimePrecision")) for one in made]
        float_precision = self.info()["precision"]
        found = (precision for kind, precision in kinds if kind in OPENVINO_LAYERS)
        return dict(Counter(INT8 if precision in ("i8", "u8") else float_precision for precision in found))

    def _property(self, name: str) -> Any:
        """None where the device has no such property: an NPU has no threads."""
        known = name in self._model.get_property("SUPPORTED_PROPERTIES")
        return self._model.get_property(name) if known else None

    def metadata(self) -> dict[str, str]:
        return dict(self._metadata)


def import_runtime(name: str) -> Any:
    """Import a runtime now. Its own deprecation warnings are not the user's, and its telemetry stays silent.

    OpenVINO reports its import over the network where it can import ``openvino_telemetry``: a None entry prevents that.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    with interrupts_wait(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return __import__(name)
        except ImportError as fault:
            if isinstance(fault, ModuleNotFoundError) and fault.name == name:
                raise MissingRuntime(f"{name} is not installed ({fault}); pip install {name}") from fault
            how = f"pip install --force-reinstall {name}"
            raise MissingRuntime(f"{name} is installed, but cannot be imported ({fault}); {how}") from fault


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is answered on leaving: libraries that are being imported take it for a fault of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if caught and callable(before):
            before(*caught[0])


def _only(values: Any, path: Path, what: str) -> Any:
    if len(values) != 1:
        raise RuntimeFault(f"{path.name}: has {len(values)} {what}s, expected one")
    return values[0]


def _fix_batch(port: Any, model: Any) -> list[int]:
    """Fix a free batch axis to 1; the input's shape after that."""
    shape = port.partial_shape
    if shape[0].is_dynamic:
        shape[0] = 1
        model.reshape(shape)
    return list(port.shape)


def _openvino_metadata(model: Any) -> dict[str, str]:
    if not model.has_rt_info("tinyforge"):
        return {}
    return {key: str(value) for key, value in model.get_rt_info("tinyforge").value.items()}


def _text(info: Any, key: str) -> str:
    """An entry of an OpenVINO node's runtime information; '' where there is none."""
    return str(info[key].value) if key in info else ""


def _in_portions(run: Any, x: np.ndarray, shape: list, batch: int | None, dtype: str) -> np.ndarray:
    """Logits of ``x`` from ``run``, which takes ``batch`` images at a time (None: any number); the last are filled up.

    Raises RuntimeFault when ``x`` is not of the model's type and input shape.
    """
    fits = x.ndim == len(shape) and all(not isinstance(n, int) or n == m for n, m in list(zip(shape, x.shape))[1:])
    if x.dtype != dtype or not fits or len(x) == 0:
        raise RuntimeFault(f"the model takes {dtype} of shape {tuple(shape)}, not {x.dtype} of {x.shape}")
    if batch is None or len(x) == batch:
        return run(np.ascontiguousarray(x))
    parts = []
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *x.shape[1:]), x.dtype)])
        parts.append(run(filled)[: len(part)])
    return np.concatenate(parts)


def _last_line(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[-1] if lines else type(fault).__name__
