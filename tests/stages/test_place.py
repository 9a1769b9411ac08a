"""A race, too, asks for its bundle's place before it computes anything."""

import pytest

from tinyforge.errors import BundleError
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages import budget


def test_a_folder_in_the_place_of_a_races_bundle_is_told_first(forge_inputs, tmp_path):
    images, test, overrides = forge_inputs
    given = [*overrides, f'data.path="{images}"', f'data.test="{test}"', "budget.max_ms=1000.0"]
    recipe = load_recipe("smoke", given)
    (tmp_path / f"{recipe.name}-{recipe.target}").mkdir()
    with pytest.raises(BundleError, match="is in the way"):
        budget.forge_within(recipe, load_target(recipe.target), tmp_path, budget.Here(), log=lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == [f"{recipe.name}-{recipe.target}"]
