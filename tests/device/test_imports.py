"""The device package needs no more than it says: standard library, numpy, Pillow, one runtime; Python 3.9 syntax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinyforge.device

FOLDER = Path(tinyforge.device.__file__).parent
ALLOWED = {"numpy", "PIL", *sys.stdlib_module_names}
MODULES = sorted(FOLDER.glob("*.py"))


def imported(tree):
    """(level, top name) of every import statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_and_syntax(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    foreign = {name for level, name in imported(tree) if level == 0 and name not in ALLOWED}
    assert foreign == set()
    assert {level for level, _ in imported(tree)} <= {0, 1}


def test_annotations_are_not_evaluated_on_older_pythons():
    """``X | Y`` in an annotation is an error at run time before 3.10, unless annotations stay text."""
    for path in MODULES:
        text = path.read_text()
        if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) for node in ast.walk(ast.parse(text))):
            assert "from __future__ import annotations" in text, path.name


def test_the_program_starts_without_its_other_modules():
    """So that a damaged one is told in a line: ``__main__`` imports them inside functions alone."""
    tree = ast.parse((FOLDER / "__main__.py").read_text())
    assert {name for level, name in imported(tree) if level == 0} <= set(sys.stdlib_module_names)
    assert [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level] == []


def test_importing_it_brings_neither_torch_nor_a_runtime(built_bundle):
    program = (
        "import pkgutil, importlib, sys, tinyforge_device as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'tinyforge_device.{module.name}')\n"
        "print(sorted({'torch', 'onnxruntime', 'openvino', 'pydantic', 'click', 'tinyforge'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=built_bundle, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp16"])
def test_a_prediction_does_not_import_torch(built_bundle, variant):
    program = (
        "import sys\nfrom tinyforge_device.__main__ import main\n"
        f"code = main(['predict', '.', 'selftest/0.png', '--variant', {variant!r}])\n"
        "assert code == 0 and 'torch' not in sys.modules and 'nncf' not in sys.modules\n"
        "assert sys.modules.get('openvino_telemetry') is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=built_bundle, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
