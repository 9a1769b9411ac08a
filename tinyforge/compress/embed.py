"""Normalisation inside the model: it then takes the pixels themselves, uint8 (B, h, w, 3) at input size.

A pixel has 256 values, so (x / 255 - mean) / std is a table of 3 x 256 numbers made by ``device.preprocess``: the
graph looks them up, bit for bit, whatever a runtime does to arithmetic. Decoding and resizing stay outside.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinyforge.compress.export import import_openvino, move_model, save_onnx, save_openvino, scratch_folder
from tinyforge.compress.metadata import INPUT_NAME, Metadata
from tinyforge.device.preprocess import normalise
from tinyforge.device.spec import InputSpec

NORMALISED = "normalised"
OFFSETS = np.array([0, 256, 512], np.int32)  # of each channel in the table


def pixel_spec(spec: InputSpec) -> InputSpec:
    """The input of a model that normalises by itself."""
    return replace(spec, layout="NHWC", dtype="uint8")


def table(spec: InputSpec) -> np.ndarray:
    """float32 (768,): the normalised value of each pixel value, channel after channel."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None, None]
    return normalise(ramp, replace(spec, layout="NHWC"))[0, 0].T.reshape(-1).copy()


def embed(path: Path, spec: InputSpec, metadata: Metadata) -> None:
    """Rewrite a finished model (.onnx, or .xml with its .bin) so that it takes pixels. spec: of its float input."""
    if path.suffix == ".onnx":
        save_onnx(embedded_onnx(onnx.load(path), spec), path, metadata)
        return
    model = embedded_openvino(import_openvino().Core().read_model(path), spec)
    with scratch_folder(path) as folder:  # the old weights are still mapped from the old file
        save_openvino(model, folder / path.name, fp16=False, metadata=metadata)
        del model
        move_model(folder / path.name, path)


def embedded_onnx(model: onnx.ModelProto, spec: InputSpec) -> onnx.ModelProto:
    """``model`` changed in place: input uint8 (batch, h, w, 3), a lookup, then what was there before."""
    graph = model.graph
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[position] = NORMALISED
    steps = [
        helper.make_node("Cast", [INPUT_NAME], ["pixels.whole"], to=TensorProto.INT32),
        helper.make_node("Add", ["pixels.whole", "pixels.offsets"], ["pixels.index"]),
        helper.make_node("Gather", ["pixels.table", "pixels.index"], [f"{NORMALISED}.last"]),
        helper.make_node("Transpose", [f"{NORMALISED}.last"], [NORMALISED], perm=[0, 3, 1, 2]),
    ]
    if spec.layout == "NHWC":
        steps[2].output[0] = NORMALISED
        steps.pop()
    nodes = [*steps, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", *spec.size, 3]))
    graph.initializer.extend(
        [numpy_helper.from_array(OFFSETS, "pixels.offsets"), numpy_helper.from_array(table(spec), "pixels.table")]
    )
    return model


def embedded_openvino(model: Any, spec: InputSpec) -> Any:
    """As ``embedded_onnx``, of an ``openvino.Model``."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter(openvino.PartialShape([-1, *spec.size, 3]), openvino.Type.u8, name=INPUT_NAME)
    index = ops.add(ops.convert(pixels, "i32"), ops.constant(OFFSETS))
    values = ops.gather(ops.constant(table(spec)), index, ops.constant(np.int32(0)))
    if spec.layout == "NCHW":
        values = ops.transpose(values, ops.constant(np.array([0, 3, 1, 2], np.int32)))
    before = model.get_parameters()[0]
    before.set_friendly_name("replaced")
    before.output(0).replace(values.output(0))
    model.add_parameters([pixels])
    model.remove_parameter(before)
    pixels.output(0).set_names({INPUT_NAME})
    model.validate_nodes_and_infer_types()
    return model
