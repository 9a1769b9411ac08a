"""Recipe and target files: found, overridden, refused with every fault named, written back."""

import tomllib

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyforge import recipe, target
from tinyforge.errors import RecipeError
from tinyforge.loading import (
    load_recipe,
    load_recipe_and_target,
    load_target,
    parse_override,
    recipe_toml,
    shipped_recipes,
    shipped_targets,
    to_toml,
    toml_value,
)
from tinyforge.recipe import Recipe
from tinyforge.registry import near_miss, unknown

NO_DEADLINE = settings(max_examples=50, deadline=None)  # a busy machine is no fault
MINIMAL = 'name = "mine"\ntarget = "raspi4"\n'


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


class TestShipped:
    def test_the_promised_ones_are_there(self):
        assert {"raspi", "intel", "generic-cpu", "smoke"} <= shipped_recipes().keys()
        assert {"raspi4", "raspi5", "intel-cpu", "generic-cpu"} <= shipped_targets().keys()

    @pytest.mark.parametrize("name", shipped_recipes())
    def test_every_recipe_loads_and_names_a_shipped_target(self, name):
        loaded = load_recipe(name)
        assert loaded.name == name
        assert loaded.description
        assert load_target(loaded.target).name == loaded.target

    @pytest.mark.parametrize("name", shipped_recipes())
    def test_every_recipe_starts_with_its_command(self, name):
        first, *_ = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
        assert first.startswith(f"# tinyforge build --recipe {name}")

    @pytest.mark.parametrize("name", shipped_targets())
    def test_every_target_loads(self, name):
        assert load_target(name).name == name

    @pytest.mark.parametrize(
        ("module", "files"), [(recipe, shipped_recipes()), (target, shipped_targets())], ids=["recipe", "target"]
    )
    def test_files_meet_the_printed_schema(self, module, files):
        for path in files.values():
            jsonschema.validate(tomllib.loads(path.read_text(encoding="utf-8")), module.schema())

    @pytest.mark.parametrize("name", shipped_recipes())
    def test_every_recipe_survives_its_lock_file(self, name, tmp_path):
        loaded = load_recipe(name, ["data.path=photos/Äpfel", "invert.initializers.'a b.c'=fruit"])
        assert load_recipe(write(tmp_path, recipe_toml(loaded))) == loaded

    def test_the_lock_file_leaves_no_default_open(self):
        lock = tomllib.loads(recipe_toml(load_recipe("raspi")))
        for name, field in Recipe.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                given = {key for key, value in field.annotation().model_dump().items() if value is not None}
                assert given <= lock[name].keys()


class TestFinding:
    def test_an_unknown_name_is_told_its_near_miss(self):
        with pytest.raises(RecipeError, match=r"unknown recipe 'raspy' \(did you mean 'raspi'\?\); known: .*smoke"):
            load_recipe("raspy")
        with pytest.raises(RecipeError, match=r"unknown target 'raspi44' \(did you mean 'raspi4'\?\)"):
            load_target("raspi44")

    def test_a_missing_file_is_named(self, tmp_path):
        assert faults(tmp_path / "raspy.toml") == [
            f"{tmp_path / 'raspy.toml'}: there is no such recipe file (did you mean 'raspi'?)"
        ]

    def test_a_file_of_ones_own(self, tmp_path):
        assert load_recipe(write(tmp_path, MINIMAL)).name == "mine"
        assert load_recipe(str(write(tmp_path, MINIMAL))).name == "mine"

    def test_a_byte_order_mark_does_no_harm(self, tmp_path):
        assert load_recipe(write(tmp_path, f"\ufeff{MINIMAL}")).name == "mine"

    def test_broken_toml_is_told_with_its_line(self, tmp_path):
        assert "mine.toml: is not valid TOML: " in faults(write(tmp_path, 'name = "x\n'))[0]
        (tmp_path / "bytes.toml").write_bytes(b'name = "\xff"')
        assert "not UTF-8" in faults(tmp_path / "bytes.toml")[0]


class TestFaults:
    def test_all_are_told_at_once_with_file_and_key(self, tmp_path):
        text = (
            'name = "Not Good"\nepochs = 3\n[distill]\nepoch = 5\nlabels = "techer"\n[invert]\nti_steps = -1\n[datta]\n'
        )
        path = write(tmp_path, text)
        assert sorted(faults(path)) == sorted(
            [
                f"{path}: name: String should match pattern '^[a-z0-9][a-z0-9._-]*$', not 'Not Good'",
                f"{path}: target: is required",
                f"{path}: epochs: unknown key (did you mean 'distill.epochs'?)",
                f"{path}: distill.epoch: unknown key (did you mean 'distill.epochs'?)",
                f"{path}: distill.labels: must be 'auto', 'class' or 'teacher', not 'techer' (did you mean 'teacher'?)",
                f"{path}: invert.ti_steps: must be greater than or equal to 0, not -1",
                f"{path}: datta: unknown key (did you mean 'data'?)",
            ]
        )

    def test_types_are_strict(self, tmp_path):
        text = MINIMAL + '[distill]\nepochs = "5"\npretrained = 1\nlr = 1\nbatch_size = 2.0\n[data]\nclasses = "a"\n'
        lines = faults(write(tmp_path, text))
        assert [line.split(": ")[1] for line in lines] == [
            "data.classes",
            "distill.pretrained",
            "distill.epochs",
            "distill.batch_size",
        ]

    def test_overrides_are_told_as_they_were_typed(self):
        lines = faults(
            "smoke", "distill.epoch=5", "seed=-1", "foo", "=3", "name.x=1", "bench=4", "data.classes=[a]", "a..b=1"
        )
        assert lines[:4] == [
            "-o foo: must look like section.key=value",
            "-o =3: must look like section.key=value",
            "-o name.x=1: 'name' is a value, not a section",
            "-o a..b=1: must look like section.key=value",
        ]
        assert sorted(lines[4:]) == [
            "-o bench=4: bench: must be a section, [bench], not 4",
            "-o data.classes=[a]: data.classes: must be a valid list, not '[a]'",
            "-o distill.epoch=5: distill.epoch: unknown key (did you mean 'distill.epochs'?)",
            "-o seed=-1: seed: must be greater than or equal to 0, not -1",
        ]

    def test_a_section_that_contradicts_itself_names_the_overrides(self):
        assert faults("smoke", "invert.prompt=plain") == [
            "recipes/smoke.toml with -o invert.prompt=plain: "
            "invert: prompt must contain '{}' exactly once, where the learned token goes"
        ]

    def test_options_are_told_as_they_were_typed(self):
        with pytest.raises(RecipeError) as caught:
            load_recipe("smoke", ["seed=3"], {"--seed -1": ("seed", -1), "--max-ms x": ("budget.max_ms", "x")})
        assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["--seed -1", "--max-ms x"]
        assert load_recipe("smoke", ["seed=3"], {"--seed 5": ("seed", 5)}).seed == 5

    def test_what_is_known_is_told_where_nothing_is_near(self):
        (line,) = faults("smoke", "nope.key=3")
        assert line.startswith("recipes/smoke.toml with")
        assert "-o nope.key=3: nope: unknown key; known: schema_version, name, " in line
        (line,) = faults("smoke", "data.qqq=3")
        assert line.startswith("-o data.qqq=3: data.qqq: unknown key; known: path, test, ")

    @pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000, "0x" + "f" * 5000], ids=["digits", "nested", "hex"])
    def test_values_without_measure(self, tmp_path, value):
        (line,) = faults(write(tmp_path, f"{MINIMAL}seed = {value}"))
        assert "mine.toml: " in line
        (line,) = faults("smoke", f"seed={value}")
        assert "seed: must be" in line
        assert len(faults("smoke", f"{value}=1")) == 1

    @pytest.mark.parametrize(
        "override",
        [
            *("distill.lr=inf", "invert.guidance_scale=inf", "distill.temperature=1e300", "distill.weight_decay=1e300"),
            *("trial.expected_gains={support-kd=nan}", "trial.expected_gains={x=1.0}", "trial.expected_sd=1e-300"),
            *("invert.ti_max_timestep=5000", "invert.num_vectors=1000000000", "synthesize.preview_alphas=[]"),
            *("data.holdout=1.0", "distill.batch_size=1", "trial.batch_size=1", "distill.batch_size=99999999999"),
            *("backbone.batch_size=99999999999999999999", "synthesize.alphas=[nan]", "budget.max_ms=inf"),
        ],
    )
    def test_numbers_that_cannot_be_worked_with(self, override):
        (line,) = faults("smoke", override)
        assert line.startswith(f"-o {override}: {override.partition('=')[0]}")

    @pytest.mark.parametrize("section", [name for name, one in Recipe.model_fields.items() if one.default is not None])
    def test_every_number_has_bounds(self, section):
        kind = Recipe.model_fields[section].annotation
        for key, one in getattr(kind, "model_json_schema", dict)().get("properties", {}).items():
            numbers = [part for part in (one, *one.get("anyOf", ())) if part.get("type") in ("integer", "number")]
            assert all({"minimum", "maximum"} <= part.keys() for part in numbers), key

    def test_long_values_are_cut(self):
        (line,) = faults("smoke", "seed=" + "x" * 500)
        assert line.endswith("...")
        assert len(line) < 700


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "keys", "value"),
        [
            ("distill.epochs=5", ("distill", "epochs"), 5),
            ("distill.student = timm:resnet18", ("distill", "student"), "timm:resnet18"),
            ("distill.pretrained=true", ("distill", "pretrained"), True),
            ("synthesize.alphas=[0.2, 0.4]", ("synthesize", "alphas"), [0.2, 0.4]),
            ("invert.prompt=A photo of {} = this", ("invert", "prompt"), "A photo of {} = this"),
            ('data.path="5"', ("data", "path"), "5"),
            ("data.path=", ("data", "path"), ""),
            ("invert.initializers.'a.b'=x", ("invert", "initializers", "a.b"), "x"),
            ("invert.initializers.Äpfel=x", ("invert", "initializers", "Äpfel"), "x"),
            ("seed=1\nname = 2", ("seed",), "1\nname = 2"),
            ("seed", (), ""),
            ("=5", (), 5),
            ("a\nb=5", ("a\nb",), 5),
        ],
    )
    def test_forms(self, text, keys, value):
        assert parse_override(text) == (keys, value)

    @NO_DEADLINE
    @given(st.text())
    def test_no_text_breaks_the_parser(self, text):
        keys, _ = parse_override(text)
        assert isinstance(keys, tuple)

    @NO_DEADLINE
    @given(st.lists(st.text(st.characters(exclude_characters="="), min_size=1), min_size=1, max_size=4), st.text())
    def test_quoted_keys_and_strings_arrive_whole(self, keys, value):
        assert parse_override(f"{'.'.join(map(toml_value, keys))}={toml_value(value)}") == (tuple(keys), value)

    def test_later_ones_win(self):
        assert load_recipe("smoke", ["seed=1", "seed=2"]).seed == 2

    def test_a_new_section_of_a_file_may_be_set(self, tmp_path):
        assert load_recipe(write(tmp_path, MINIMAL), ["bench.min_runs=100"]).bench.min_runs == 100


scalars = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=12,
)


class TestRecipeAndTarget:
    def test_the_faults_of_both_are_told_at_once(self):
        with pytest.raises(RecipeError) as error:
            load_recipe_and_target("raspi", ["target=raspi9", "seed=x"])
        assert "seed: must be" in str(error.value)
        assert "unknown target 'raspi9' (did you mean 'raspi5'?)" in str(error.value)

    def test_both_come_when_both_are_well(self):
        recipe, target = load_recipe_and_target("raspi", ["target=raspi5"])
        assert (recipe.target, target.name) == ("raspi5", "raspi5")


class TestToml:
    @NO_DEADLINE
    @given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=4))
    def test_any_table_comes_back(self, table):
        assert tomllib.loads(to_toml(table)) == table

    @NO_DEADLINE
    @given(st.lists(st.dictionaries(st.text("ab. é"), scalars, max_size=2), max_size=3))
    def test_tables_in_lists_come_back(self, tables):
        assert tomllib.loads(to_toml({"x": tables}))["x"] == tables

    def test_none_is_left_out(self):
        assert tomllib.loads(to_toml({"a": None, "b": {"c": None}})) == {"b": {}}

    def test_what_toml_cannot_hold_is_refused(self):
        with pytest.raises(TypeError, match="cannot hold"):
            toml_value(object())


class TestNearMiss:
    def test_ignores_case_and_keeps_the_known_spelling(self):
        assert near_miss("CONV5", ["Conv4", "resnet12"]) == " (did you mean 'Conv4'?)"

    def test_is_silent_when_nothing_is_near(self):
        assert near_miss("zzz", ["conv4"]) == ""
        assert unknown("student", "zzz", []) == "unknown student 'zzz'; known: none"
