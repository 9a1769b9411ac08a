"""The compress stage inside a build: what its gate sees, what it refuses, and models that take pixels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tinyforge.device.bundle import load_bundle
from tinyforge.device.spec import InputSpec
from tinyforge.device.verify import verify_bundle
from tinyforge.errors import DataError
from tinyforge.images import ImageSet, Item, read_images
from tinyforge.loading import load_recipe, load_target
from tinyforge.splits import k_shot_split
from tinyforge.stages import forge
from tinyforge.stages.compress import Joined, apart_from_tests, evenly, shares, support_views
from tinyforge.stages.inputs import Inputs
from tinyforge.stages.road import Artifact


def test_evenly_spread_indices():
    assert evenly(10, 3) == {0, 4, 9}
    assert evenly(2, 5) == {0, 1}
    assert evenly(5, -1) == evenly(0, 5) == set()


def test_sequences_one_after_the_other():
    joined = Joined(([1, 2], [], [3]))
    assert [joined[i] for i in range(len(joined))] == [1, 2, 3]
    with pytest.raises(IndexError):
        joined[3]


def test_views_are_new_pictures_of_the_supports_and_the_same_for_equal_seeds():
    from tinyforge.device.preprocess import resize
    from tinyforge.device.spec import InputSpec

    support, _ = k_shot_split(read_images("digits"), 2, 0)
    spec = InputSpec(size=(16, 16))
    views, labels = support_views(support, spec, 50, seed=1, flip=False)
    again, _ = support_views(support, spec, 50, seed=1, flip=False)
    other, _ = support_views(support, spec, 50, seed=2, flip=False)
    originals = {resize(rgb, spec).tobytes() for rgb in support.rgb}
    assert np.array_equal(views, again)
    assert not np.array_equal(views, other)
    assert (views[0].shape, views[0].dtype) == ((16, 16, 3), np.uint8)
    assert labels.tolist() == [support.labels[i % 20] for i in range(50)]
    assert sum(view.tobytes() in originals for view in views) == 0


def test_a_blank_image_is_on_one_side_only(tmp_path):
    """Half of the views of a white photo are white, and so is a test image of another size at the student's."""
    white, rng = np.full((16, 16, 3), 255, np.uint8), np.random.default_rng(0)
    support = of_classes([white, rng.integers(0, 256, (16, 16, 3), np.uint8)])
    (tmp_path / "index.json").write_text("[]")
    inputs = Inputs(
        support, of_classes([np.full((20, 20, 3), 255, np.uint8), rng.integers(0, 256, (9, 9, 3), np.uint8)])
    )
    road = SimpleNamespace(
        recipe=load_recipe("smoke", []), inputs=inputs, done={"synthesize": Artifact("synthesize", tmp_path)}
    )
    calibration, held_out, labels = shares(road, InputSpec(size=(16, 16)))
    assert not set(calibration.inputs.hashes) & set(held_out.hashes)
    assert len(held_out) == len(labels) > np.sum(labels == 1) > np.sum(labels == 0) > 0
    apart, warnings = apart_from_tests(road, calibration)
    assert [len(calibration.inputs), len(apart.inputs)] == [2, 1]
    assert "1 support or synthetic image the same as a test image at 16 x 16 px" in warnings[0]
    road.inputs = Inputs(support, support)
    with pytest.raises(DataError, match="no other to calibrate on"):
        apart_from_tests(road, calibration)
    road.inputs = Inputs(of_classes([white, white // 255 * 0]), None)
    calibration, held_out, labels = shares(road, InputSpec(size=(16, 16)))
    assert set(labels) == {0, 1}, "a view that is brightened or darkened is another picture"


def of_classes(images):
    """One image of each class."""
    items = [Item(str(i), i, str(i), rgb) for i, rgb in enumerate(images)]
    return ImageSet(tuple(map(str, range(len(images)))), tuple(items))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_bundle_whose_models_take_pixels_verifies(forge_inputs, tmp_path):
    images, test, overrides = forge_inputs
    wanted = [f'data.path="{images}"', f'data.test="{test}"', "compress.embed_preprocessing=true"]
    recipe = load_recipe("smoke", [*overrides, *wanted])
    result = forge(recipe, load_target(recipe.target), tmp_path, log=lambda text: None)
    assert verify_bundle(result["bundle"]).ok
    assert (load_bundle(result["bundle"]).spec.dtype, load_bundle(result["bundle"]).spec.layout) == ("uint8", "NHWC")
    folder = next((tmp_path / "store").glob("compress-*"))
    record = json.loads((folder / "compress.json").read_text())
    assert not set(record["calibration_sha256"]) & set(record["validation_sha256"])
    assert record["gate_images"] == len(record["validation_sha256"]) > 0
    assert sorted(path.stem for path in (folder / "worst").iterdir()) == sorted(
        one["name"] for one in record["variants"] if not one["failure"]
    )
