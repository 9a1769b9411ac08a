"""A whole build that takes seconds: a tiny random Stable Diffusion, a tiny random teacher, two classes of drawn
images.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = {
    "data": {"shots": 3},
    "invert": {"ti_steps": 4, "num_steps": 3, "nti_inner_steps": 2, "guidance_scale": 3.0},
    "synthesize": {"images_per_class": 6, "alphas": [0.2, 0.6], "preview_alphas": [0.0, 1.0]},
    "teacher": {"fine_tune_steps": 2, "fine_tune_lrs": [0.0, 0.001]},
    "distill": {"epochs": 3, "steps_per_epoch": 10, "batch_size": 16, "input_size": 16},
    "trial": {"steps": 6, "batch_size": 8},
    "compress": {"calibration_images": 16, "max_drop": 1.0, "min_agreement": 0.0},
    "bench": {"seconds": 0.01, "min_runs": 64, "warmup": 2},
    "backbone": {"batch_size": 4},
}


def draw(folder: Path, per_class: int, seed: int) -> Path:
    """Bright bars, upright or lying, on dark noise: 16 px RGB."""
    rng = np.random.default_rng(seed)
    for name, axis in (("lying", 0), ("upright", 1)):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            at = rng.integers(3, 11)
            pixels[(slice(at, at + 3), slice(2, 14)) if axis == 0 else (slice(2, 14), slice(at, at + 3))] += 180
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def forge_inputs(tmp_path_factory):
    """(images, test images, backbone folder, teacher folder, overrides as KEY=VALUE)."""
    from safetensors.torch import save_file

    from tinyforge.diffusion.backbone import save_backbone, tiny_backbone
    from tinyforge.embedded.network import GlyphNet

    root = tmp_path_factory.mktemp("forge")
    save_backbone(tiny_backbone(), root / "backbone")
    kwargs = {"widths": [4, 4, 4], "depth": 1, "embedding_dim": 8}
    (root / "teacher").mkdir()
    save_file(GlyphNet(**kwargs).state_dict(), root / "teacher" / "model.safetensors")
    config = {"architecture": "embedded:GlyphNet", "kwargs": kwargs, "input": {"size": [16, 16]}}
    (root / "teacher" / "config.json").write_text(json.dumps(config))
    overrides = [
        f"{section}.{key}={json.dumps(value)}" for section, keys in TINY.items() for key, value in keys.items()
    ]
    overrides += [f'backbone.name="{root / "backbone"}"', f'teacher.name="{root / "teacher"}"']
    return draw(root / "images", 3, 0), draw(root / "test", 8, 1), overrides
