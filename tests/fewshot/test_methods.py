"""Names of methods."""

import pytest

from tinyforge.errors import UsageError
from tinyforge.fewshot.methods import BUILDS, DEFAULT, NTI_ALPHA, STUDENTS, TEACHERS, Method, expand, parse


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS, *BUILDS])
def test_every_row_of_the_table_parses(name):
    assert parse(name).kind == name


@pytest.mark.parametrize(
    "name", ["tint-teacher@0.4+base+pretrained", "support-hard+pretrained", "teacher-tuned@0.001", "nti@0.1", "ti+base"]
)
def test_names_come_back(name):
    assert parse(name).name == name


def test_methods_that_learn_from_the_same_images_name_them_alike():
    assert parse("tint-class@0.4").images == parse("tint-teacher@0.4+base").images == "tint@0.4"
    assert parse("nti").images == f"nti@{NTI_ALPHA:g}"
    assert parse("support-kd").images is parse("teacher").images is None


def test_alphas_spread_only_tint_methods_without_an_alpha():
    names = [one.name for one in expand(["support-hard", "tint-class", "tint-teacher@0.1+base", "nti"], [0.2, 0.4])]
    assert names == ["support-hard", "tint-class@0.2", "tint-class@0.4", "tint-teacher@0.1+base", "nti@0.2"]


def test_each_method_is_taken_once():
    assert expand(["teacher", "teacher"], []) == (Method("teacher"),)
    assert len(expand(DEFAULT, [])) == len(DEFAULT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tint-teach", "did you mean 'tint-teacher'"),
        ("", "unknown method"),
        ("teacher+base", "are for the students"),
        ("build+pretrained", "are for the students"),
        ("build@0.3", "takes no @value"),
        ("support-hard+base", "only the teacher's labels"),
        ("support-kd@0.3", "takes no @value"),
        ("ti@0.3", "takes no @value"),
        ("tint-class@1.5", "alpha must be from 0 to 1"),
        ("tint-class@1e-e", "is no number"),
        ("teacher-tuned@-1", "learning rate must be from 0 to 1000"),
        ("tint-class+pretrained+base", "unknown method"),
    ],
)
def test_faulty_names_are_told(name, message):
    with pytest.raises(UsageError, match=message):
        parse(name)


def test_what_a_method_needs():
    assert not parse("support-hard").needs_teacher
    assert not parse("real-extra").needs_backbone
    assert parse("tint-class").needs_backbone
    assert parse("tint-class").needs_teacher  # it filters the images, and says how many it agrees with
