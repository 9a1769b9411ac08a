"""compress: export the student, quantise it, and hold every model against the student.

::

    models/                      every model that was made
    predictions/<variant>.json   its answers on the test set, through the runtime of the bundle
    compress.json                the variants, what was tried, parity and gates, hashes of the calibration inputs
"""

from typing import Any

import numpy as np

from tinyforge.device.preprocess import normalise, resize
from tinyforge.stages.distill import load_student, predictions, synthetic_images
from tinyforge.stages.road import Road
from tinyforge.store import Partial


def settings(road: Road) -> dict[str, Any]:
    return {
        "compress": road.recipe.compress.model_dump(mode="json"),
        "opset": road.job.target.opset,
        "threads": road.job.target.threads,
        "seed": road.recipe.seed,
        "name": road.recipe.name,
    }


def work(road: Road, partial: Partial) -> None:
    from tinyforge.compress.parity import torch_logits
    from tinyforge.compress.quantize import Calibration
    from tinyforge.compress.variants import judge, make_variants

    wanted, target, support, test = road.recipe.compress, road.job.target, road.inputs.support, road.inputs.test
    student, spec = load_student(road)
    supports = prepared(support.rgb, spec)
    calibration = Calibration(calibration_inputs(road, spec, supports), supports)
    folder = partial.path / "models"
    made = make_variants(
        student, spec, support.classes, folder, wanted, calibration, name=road.recipe.name, opset=target.opset
    )
    images = supports if test is None else prepared(test.rgb, spec)
    expected = torch_logits(student, images)
    verdicts = []
    for variant in made:
        verdict = judge(
            variant,
            folder,
            expected,
            images,
            wanted,
            labels=None if test is None else test.labels,
            threads=target.threads,
        )
        verdicts.append(verdict)
        if test is not None and verdict.logits is not None:
            partial.write_json(f"predictions/{variant.name}.json", predictions(test, verdict.logits))
    partial.write_json(
        "compress.json",
        {
            "variants": [variant.to_json() for variant in made],
            "verdicts": [verdict.to_json() for verdict in verdicts],
            "judged_on": "support images" if test is None else "test images",
            "calibration_sha256": calibration.hashes(),
        },
    )


def prepared(images: Any, spec: Any) -> np.ndarray:
    """uint8 (H, W, 3) images of any sizes -> the model's float32 inputs (B, ...)."""
    return normalise(np.stack([resize(rgb, spec) for rgb in images]), spec)


def calibration_inputs(road: Road, spec: Any, supports: np.ndarray) -> np.ndarray:
    """All supports, then synthetic images evenly over the set, up to the recipe's count. Never a test image."""
    images, _ = synthetic_images(road.done["synthesize"], road.inputs.support.classes)
    room = road.recipe.compress.calibration_images - len(supports)
    if not images or room <= 0:
        return supports[: road.recipe.compress.calibration_images]
    chosen = np.unique(np.linspace(0, len(images) - 1, min(room, len(images))).round().astype(int))
    return np.concatenate([supports, prepared([images[i] for i in chosen], spec)])
