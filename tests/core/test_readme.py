"""The README says what the program says of itself."""

import re
import tomllib
from pathlib import Path

import click
import pytest

from tinyforge import errors
from tinyforge.cli import program

from .cli_reference import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "tinyforge").rglob("*.md"))]


@pytest.mark.parametrize(
    "line", ['pip install ".[host]" && tinyforge build --recipe raspi', 'pip install ".[host,test]" && pytest']
)
def test_the_two_commands_stand_alone_on_a_line(line):
    assert line in README.splitlines()


def test_ci_runs_the_readme_test_command():
    assert """grep -m1 -F 'pip install ".[host,test]"' README.md""" in (ROOT / ".ci/run").read_text()


def test_every_command_is_described_in_its_own_words():
    rows = dict(re.findall(r"^\| `tinyforge (\w+)` \| (.+) \|$", README, re.MULTILINE))
    context = click.Context(program)
    told = {
        name: program.get_command(context, name).get_short_help_str(limit=200)
        for name in program.list_commands(context)
    }
    assert rows == told


def test_the_reference_is_what_help_prints():
    assert reference().split() == (ROOT / "docs/cli.md").read_text(encoding="utf-8").split()


def test_every_command_line_in_the_readme_has_options_that_exist():
    context = click.Context(program)
    used = [line.split("#")[0].split() for line in README.splitlines() if line.startswith("tinyforge ")]
    assert len(used) >= 5
    for _, name, *words in used:
        known = {option for parameter in program.get_command(context, name).params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_exit_codes_are_those_of_the_errors():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert codes == {0, 130} | {kind.exit_code for kind in kinds}


def test_recipes_and_targets_named_in_the_readme_are_shipped():
    named = set(re.findall(r"--recipe ([a-z-]+)", README)) | set(re.findall(r"tinyforge recipes ([a-z]+)", README))
    assert named
    for name in named:
        assert tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text())["name"] == name


def headings(page: Path) -> set[str]:
    """The anchors of a page: its headings in lower case, spaces as hyphens, without punctuation."""
    outside_code = page.read_text(encoding="utf-8").split("\n```")[::2]
    lines = [line for part in outside_code for line in part.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link
