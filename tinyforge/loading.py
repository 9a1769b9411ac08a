"""Recipe and target files: found by name or path, overridden, all errors at once, written back as TOML."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tinyforge.errors import RecipeError
from tinyforge.recipe import Recipe
from tinyforge.registry import near_miss, unknown
from tinyforge.target import Target

M = TypeVar("M", bound=BaseModel)

UNREADABLE = (ValueError, RecursionError)  # of TOML: wrong, a number of thousands of digits, nested without end
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with TinyForge, sorted."""
    return _shipped("recipes")


def shipped_targets() -> dict[str, Path]:
    """Name -> file of every target that ships with TinyForge, sorted."""
    return _shipped("targets")


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), options: Mapping[str, tuple[str, Any]] | None = None
) -> Recipe:
    """A shipped recipe by name, or a TOML file. overrides: 'distill.epochs=5', values in TOML, bare strings allowed.
    options: what was typed, such as '--seed 5' -> (dotted key, value); they win over overrides.

    Raises RecipeError with all faults, each with its file (or override), dotted key and what was probably meant.
    """
    return _whole(_read(Recipe, "recipe", name_or_path, shipped_recipes(), overrides, options or {}))


def load_recipe_and_target(
    name_or_path: str | Path, overrides: Sequence[str] = (), options: Mapping[str, tuple[str, Any]] | None = None
) -> tuple[Recipe, Target]:
    """Both, as ``load_recipe`` takes them. Raises RecipeError with the faults of both."""
    recipe, values, faults = _read(Recipe, "recipe", name_or_path, shipped_recipes(), overrides, options or {})
    wanted, target = values.get("target"), None
    if isinstance(wanted, str):  # else the recipe's faults say so
        try:
            target = load_target(wanted)
        except RecipeError as error:
            faults.append(str(error))
    if recipe is None or target is None or faults:
        raise RecipeError("\n".join(faults))
    return recipe, target


def load_target(name_or_path: str | Path) -> Target:
    """A shipped target by name, or a TOML file. Raises RecipeError like ``load_recipe``."""
    return _whole(_read(Target, "target", name_or_path, shipped_targets(), (), {}))


def recipe_toml(recipe: Recipe) -> str:
    """The complete recipe, defaults spelled out, as TOML that loads to an equal recipe."""
    return to_toml(recipe.model_dump(mode="json"))


# Finding


def _shipped(kind: str) -> dict[str, Path]:
    """Inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    checkout = package.parent if (package.parent / "pyproject.toml").is_file() else package
    folder = next((home / kind for home in (package, checkout) if (home / kind).is_dir()), package / kind)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _find(kind: str, name_or_path: str | Path, shipped: Mapping[str, Path]) -> Path:
    text = str(name_or_path)
    if text in shipped:
        return shipped[text]
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"{path}: there is no such {kind} file{near_miss(path.stem, shipped)}")
        return path
    raise RecipeError(unknown(kind, text, shipped) + f"; or give the path of a {kind} file ending in .toml")


# Reading


def _whole(found: tuple[M | None, dict[str, Any], list[str]]) -> M:
    """What ``_read`` found. Raises RecipeError with the faults."""
    loaded, _, faults = found
    if loaded is None:
        raise RecipeError("\n".join(faults))
    return loaded


def _read(
    model: type[M],
    kind: str,
    name_or_path: str | Path,
    shipped: Mapping[str, Path],
    overrides: Sequence[str],
    options: Mapping[str, tuple[str, Any]],
) -> tuple[M | None, dict[str, Any], list[str]]:
    """The model, None where there are faults; what was written; the faults. Raises RecipeError when it is no TOML."""
    path = _find(kind, name_or_path, shipped)
    shown = str(path) if str(name_or_path) not in shipped else f"{path.parent.name}/{path.name}"
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except UNREADABLE as error:
        raise RecipeError(f"{shown}: is not valid TOML: {error}") from error
    faults, origins = _apply(values, overrides, options)
    loaded = None
    try:
        loaded = model.model_validate(values, strict=True)
    except ValidationError as error:
        faults += [_fault(model, detail, shown, origins) for detail in error.errors(include_url=False)]
    return None if faults else loaded, values, faults


def _apply(
    values: dict[str, Any], overrides: Iterable[str], options: Mapping[str, tuple[str, Any]]
) -> tuple[list[str], dict[tuple[str, ...], str]]:
    """Put overrides, then options, into ``values``; returns the faults, and for each key set what set it."""
    faults, origins = [], {}
    asked = [(f"-o {override}", *parse_override(override)) for override in overrides]
    asked += [(typed, tuple(key.split(".")), value) for typed, (key, value) in options.items()]
    for typed, keys, value in asked:
        if not keys:
            faults.append(f"{typed}: must look like section.key=value")
            continue
        table = values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                faults.append(f"{typed}: '{key}' is a value, not a section")
                break
        else:
            table[keys[-1]] = value
            origins[keys] = typed
    return faults, origins


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """'distill.epochs=5' -> (('distill', 'epochs'), 5). A value that is no TOML is a string. No keys: malformed."""
    name, equals, value = text.partition("=")
    keys = _parse_keys(name.strip()) if equals else ()
    try:
        parsed = tomllib.loads(f"v = {value}")
    except UNREADABLE:
        parsed = {}
    return keys, parsed["v"] if parsed.keys() == {"v"} else value.strip()


def _parse_keys(name: str) -> tuple[str, ...]:
    """Dotted, parts quoted as in TOML where they hold dots."""
    try:
        table = tomllib.loads(f"{name} = 0")
        keys = []
        while isinstance(table, dict):
            ((key, table),) = table.items()
            keys.append(key)
        return tuple(keys)
    except UNREADABLE:  # not TOML, or more than one key
        keys = tuple(part.strip() for part in name.split("."))
        return keys if all(keys) else ()


# Faults


def _fault(
    model: type[BaseModel], detail: Mapping[str, Any], shown: str, origins: Mapping[tuple[str, ...], str]
) -> str:
    location = tuple(str(part) for part in detail["loc"])
    where = _origin(location, shown, origins)
    key = _dotted(location) or "(whole file)"
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: {key}: unknown key{_meant(model, location)}"
        case "missing":
            return f"{where}: {key}: is required"
        case "model_type":
            return f"{where}: {key}: must be a section, [{key}], not {_shown_value(detail['input'])}"
        case "value_error":
            return f"{where}: {key}: {detail['ctx']['error']}"
    message = detail["msg"].replace("Input should be", "must be")
    hint = near_miss(detail["input"], _choices(detail)) if isinstance(detail["input"], str) else ""
    return f"{where}: {key}: {message}, not {_shown_value(detail['input'])}{hint}"


def _origin(location: tuple[str, ...], shown: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """The file, the override that set this key, or the file with the overrides that reach into this section."""
    set_by = next((origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins), None)
    within = [text for keys, text in origins.items() if keys[: len(location)] == location]
    return set_by or " with ".join([shown, *within])


def _choices(detail: Mapping[str, Any]) -> list[str]:
    return (
        re.findall(r"'([^']*)'", detail.get("ctx", {}).get("expected", "")) if detail["type"] == "literal_error" else []
    )


def _shown_value(value: Any) -> str:
    try:
        text = "a table" if isinstance(value, dict) else repr(value)
    except UNREADABLE:
        return "what is too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _meant(model: type[BaseModel], location: tuple[str, ...]) -> str:
    """The near miss of an unknown key: in its own section first, then anywhere, with the section named."""
    *parents, name = location
    section: type[BaseModel] | None = model
    for part in parents:
        section = _section(section, part) if section else None
    here = [_dotted((*parents, known)) for known in section.model_fields] if section else []
    elsewhere = [dotted for dotted in _all_keys(model) if dotted.rpartition(".")[2] == name]
    known = f"; known: {', '.join(section.model_fields)}" if section else ""
    return near_miss(_dotted(location), here) or (f" (did you mean '{elsewhere[0]}'?)" if elsewhere else known)


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name in model.model_fields:
        section = _section(model, name)
        keys += _all_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys


# Writing


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of nested tables of str, bool, int, float, lists; None values are left out, as TOML has no null."""
    return "\n".join(_table_lines(table, ())).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value on one line. Raises TypeError for what TOML cannot hold."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case dict():
            pairs = (f"{_dotted((key,))} = {toml_value(item)}" for key, item in value.items() if item is not None)
            return f"{{ {', '.join(pairs)} }}"
    raise TypeError(f"TOML cannot hold {value!r}")


def _dotted(keys: Iterable[str]) -> str:
    return ".".join(key if _BARE_KEY.fullmatch(key) else toml_value(key) for key in keys)


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if value is not None and not isinstance(value, Mapping)}
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = ["", f"[{_dotted(path)}]"] if path and (plain or not nested) else []
    lines += [f"{_dotted((key,))} = {toml_value(value)}" for key, value in plain.items()]
    for key, value in nested.items():
        lines += _table_lines(value, (*path, key))
    return lines
