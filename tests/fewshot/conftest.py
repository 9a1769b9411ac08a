"""Handwritten digits as a folder of class folders, and models so small that an episode takes seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stages.conftest import TINY

from tinyforge.images import read_digits

QUICK = {**TINY, "distill": {"epochs": 2, "steps_per_epoch": 4, "batch_size": 12, "input_size": 16}}
QUICK["invert"] = {"ti_steps": 2, "num_steps": 2, "nti_inner_steps": 1, "guidance_scale": 3.0}
QUICK["synthesize"] = {"images_per_class": 3, "alphas": [0.2, 0.6]}


def overrides(sections: dict) -> list[str]:
    return [f"{name}.{key}={json.dumps(value)}" for name, keys in sections.items() for key, value in keys.items()]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """digits/<0-4>/*.png, twelve 8 px images each; base/<5-9>/*.png likewise."""
    root, images = tmp_path_factory.mktemp("digits"), read_digits()
    for label in range(10):
        folder = root / ("digits" if label < 5 else "base") / str(label)
        folder.mkdir(parents=True)
        for index in np.flatnonzero(images.labels == label)[:12]:
            Image.fromarray(images.items[index].rgb).save(folder / f"{index:04d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> list[str]:
    """Overrides of a recipe: a tiny random Stable Diffusion, a tiny random teacher, a few steps of everything."""
    from safetensors.torch import save_file

    from tinyforge.diffusion.backbone import save_backbone, tiny_backbone
    from tinyforge.embedded.network import GlyphNet

    root = tmp_path_factory.mktemp("models")
    save_backbone(tiny_backbone(), root / "backbone")
    kwargs = {"widths": [4, 4, 4], "depth": 1, "embedding_dim": 8}
    (root / "teacher").mkdir()
    save_file(GlyphNet(**kwargs).state_dict(), root / "teacher" / "model.safetensors")
    config = {"architecture": "embedded:GlyphNet", "kwargs": kwargs, "input": {"size": [16, 16]}}
    (root / "teacher" / "config.json").write_text(json.dumps(config))
    names = [f'backbone.name="{root / "backbone"}"', f'teacher.name="{root / "teacher"}"']
    return [*overrides(QUICK), *names]
