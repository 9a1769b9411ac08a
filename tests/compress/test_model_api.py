"""OpenVINO's Model API (``openvino-model-api``, which only the tests use) opens our IR as it is."""

import numpy as np
import pytest
from model_api.models import Model

from tinyforge.compress.embed import embed, pixel_spec
from tinyforge.compress.metadata import model_metadata


def answers(path, pixels) -> list[str]:
    """Labels that the Model API gives to uint8 (B, h, w, 3) images."""
    model = Model.create_model(str(path), preload=True, device="CPU")
    assert type(model).__name__ == "ClassificationModel"
    return [model(rgb).top_labels[0].name for rgb in pixels]


@pytest.mark.filterwarnings("ignore")  # of a library that TinyForge does not use
@pytest.mark.parametrize("kind", ["openvino-int8", "openvino-fp16"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_model_api_loads_the_ir_unchanged_and_answers_as_torch(
    made, digits, student_logits, spec, classes, tmp_path, kind: str, inside: bool
):
    for file in made.variants[kind].files:
        (tmp_path / file).write_bytes((made.folder / file).read_bytes())
    path = tmp_path / f"{kind}.xml"
    if inside:
        embed(path, spec, model_metadata("digits", classes, pixel_spec(spec)))
    pixels, wanted = digits.rgb[1000:1060], student_logits[:60].argmax(axis=1)
    labels = ["_".join(name.split()) for name in classes]
    found = np.array([labels.index(name) for name in answers(path, pixels)])
    assert (found == wanted).mean() >= 0.97
