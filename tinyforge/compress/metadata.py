"""What a model file says of itself, the same in ONNX ``metadata_props`` and OpenVINO ``rt_info``; ``device`` reads it.

Source: OpenVINO Model API, the parameters of its ClassificationModel (open-edge-platform/model_api).
"""

import json
from collections.abc import Mapping, Sequence

from tinyforge.device.spec import InputSpec

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

Metadata = Mapping[str, Mapping[str, str]]


def model_metadata(name: str, classes: Sequence[str], spec: InputSpec) -> dict[str, dict[str, str]]:
    """Two sections of text values that describe the classifier.

    ``tinyforge``: the exact class names and InputSpec as JSON. ``model_info``: the keys of the OpenVINO Model API,
    where ``labels`` are separated by spaces, so those inside a class name become ``_``; mean and scale are on pixels in
    [0, 255]; a graph that normalises by itself is told to be given pixels at input size instead.
    """
    model_info = {
        "labels": " ".join("_".join(label.split()) or "_" for label in classes),
        "layout": f"{INPUT_NAME}:{spec.layout}",
        "model_type": "Classification",
        "multilabel": "False",
        "resize_type": "crop" if spec.fit == "crop" else "standard",
        "reverse_input_channels": "False",
        "topk": "1",
    }
    if spec.dtype == "uint8":
        model_info |= {"embedded_processing": "True", "orig_height": str(spec.size[0]), "orig_width": str(spec.size[1])}
    else:
        model_info |= {"mean_values": _numbers(spec.mean), "scale_values": _numbers(spec.std)}
    own = {"classes": _json(list(classes)), "input": _json(spec.to_json()), "name": name}
    return {"model_info": model_info, "tinyforge": own}


def onnx_properties(metadata: Metadata) -> dict[str, str]:
    """Flat keys: ours plain, those of the Model API as ``model_info <key>``, which is how it reads them from ONNX."""
    flat = dict(metadata["tinyforge"]) | {f"model_info {key}": value for key, value in metadata["model_info"].items()}
    return dict(sorted(flat.items()))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _numbers(values: Sequence[float]) -> str:
    """Values of [0, 1] pixels on the scale of [0, 255] pixels, space-separated."""
    return " ".join(f"{255 * value:.6g}" for value in values)
