"""The import direction of the design, and what each part may depend on, read from the source of every module."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tinyforge"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOMAINS = {"diffusion", "distill", "fewshot", "compress", "report", "remote"}
DEVICE_LIBRARIES = {"numpy", "PIL", "onnxruntime", "openvino"}
CORE_LIBRARIES = {"numpy", "PIL", "pydantic", "sklearn"}
ASKED_FOR = {"doctor.py": {"torch"}}  # `doctor --deep` looks into torch
WEIGHTS = {
    "tinyforge.embedded",
    "tinyforge.embedded.path",
    "tinyforge.embedded.network",
}  # what a domain may know of them
ONLY_IN = {  # library -> the only files that may import it
    "click": {"cli/"},
    "rich": {"cli/"},
    "diffusers": {"diffusion/backbone.py", "embedded/"},
    "transformers": {"diffusion/backbone.py", "embedded/"},
}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def part(path: Path) -> str:
    """'device', 'diffusion', ..., or 'core', 'stages', 'cli'."""
    first = path.relative_to(PACKAGE).parts[0]
    if first in ("cli", "__main__.py"):
        return "cli"
    return "core" if first.endswith(".py") else first


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Absolute names of every module imported anywhere in a module of ``package``; relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in PACKAGES else {module}
    return found


PACKAGES = {".".join(("tinyforge", *path.relative_to(PACKAGE).parent.parts)) for path in MODULES}


@cache
def imports(path: Path) -> set[str]:
    return imported(path.read_text(encoding="utf-8"), ("tinyforge", *path.relative_to(PACKAGE).parent.parts))


def own_parts(path: Path) -> set[str]:
    """The parts of TinyForge that the file imports."""
    names = [name.split(".") for name in imports(path) if name.startswith("tinyforge.")]
    return {"core" if (PACKAGE / f"{name[1]}.py").exists() or name[1] == "__version__" else name[1] for name in names}


def libraries(path: Path) -> set[str]:
    """Third-party top-level packages that the file imports."""
    return {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"tinyforge"}


def allowed(name: str) -> set[str]:
    """The parts that a part may import, besides itself."""
    if name == "device":
        return set()
    if name == "core":
        return {"device"}
    if name == "embedded":
        return {"core", "device"}
    if name in DOMAINS:
        return {"core", "device"} | ({"embedded"} if name in ("diffusion", "distill") else set())
    everything = DOMAINS | {"core", "device", "embedded"}
    return everything if name == "stages" else everything | {"stages"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_one_way(path):
    name = part(path)
    assert own_parts(path) - {name} <= allowed(name)
    if name in DOMAINS:
        assert {module for module in imports(path) if module.startswith("tinyforge.embedded")} <= WEIGHTS


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_libraries_stay_where_they_belong(path):
    used = libraries(path)
    for library, places in ONLY_IN.items():
        assert library not in used or any(relative(path).startswith(place) for place in places), library
    if part(path) == "device":
        assert used <= DEVICE_LIBRARIES
    if part(path) == "core":
        assert used <= CORE_LIBRARIES | ASKED_FOR.get(relative(path), set())


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_is_pickled(path):
    assert not {name.partition(".")[0] for name in imports(path)} & UNSAFE
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for node in calls:
        words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        assert not words.get("allow_pickle"), ast.unparse(node)
        assert ast.unparse(node.func) != "torch.load" or words.get("weights_only"), ast.unparse(node)
        assert ast.unparse(node.func) != "torch.save", ast.unparse(node)


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) == "device"], ids=relative)
def test_the_device_package_imports_itself_relatively(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    absolute = {node.module for node in nodes if not node.level} | {
        name for name in imports(path) if name == "tinyforge"
    }
    assert not {name for name in absolute if name.partition(".")[0] == "tinyforge"}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_and_functions_stay_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > 60}


def test_the_reader_of_imports_sees_all_forms():
    source = """
import a.b
from c import d
from . import y
from .z import w
from ..core import v
def f():
    from tinyforge import errors
    from tinyforge.device.spec import X
"""
    assert imported(source, ("tinyforge", "diffusion")) == {
        "a.b",
        "c",
        "tinyforge.diffusion.y",
        "tinyforge.diffusion.z",
        "tinyforge.core",
        "tinyforge.errors",
        "tinyforge.device.spec",
    }
