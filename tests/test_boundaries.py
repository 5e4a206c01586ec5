"""Who may import whom (ARCHITECTURE.md), read from the source files' own import statements."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ida_jax"
HEAVY = {"scann", "tensorflow_datasets", "grain", "matplotlib", "torch", "cv2", "tensorboardX",
         "pyarrow", "onnx", "onnxruntime"}  # fmt: skip
STANDARD = set(sys.stdlib_module_names)
ERRORS = "ida_jax.common.errors"  # the one module that everybody may import

# What a package may import beside the standard library, itself and ida_jax.common.errors.
ALLOWED = {
    "ops": {"jax", "numpy"},
    "models": {"jax", "flax", "numpy", "ida_jax.ops"},
    "protocols": {"numpy", "scipy"},
    "planning": {"jax", "libtpu", "numpy"},
}
# What these must never import.
FORBIDDEN = {
    "anchors": {"ida_jax.training", "ida_jax.report"},
    "rescoring": {"ida_jax.training", "ida_jax.report"},
    "tables": {"jax", "ida_jax.training", "ida_jax.report", "ida_jax.anchors", "ida_jax.rescoring"},
    "data": {"ida_jax.training", "ida_jax.report", "ida_jax.rescoring", "ida_jax.evaluation"},
    "evaluation": {"ida_jax.training", "ida_jax.runs.stages"},
    "interop": {"ida_jax.training"},
    "report": {"ida_jax.training", "ida_jax.runs.stages"},
}


def _imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("package", ALLOWED)
def test_leaf_packages_import_only_what_they_may(package):
    allowed = ALLOWED[package] | STANDARD | {ERRORS, f"ida_jax.{package}"}
    for path in _files(package):
        foreign = {name for name in _imports(path) if not _within(name, allowed)}
        assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_their_distance(package):
    for path in _files(package):
        foreign = {name for name in _imports(path) if _within(name, FORBIDDEN[package])}
        assert not foreign, f"{path.name} imports {foreign}"


def test_training_loops_never_import_each_other():
    loops = {"recognition", "ssr"}
    for name in loops:
        others = {f"ida_jax.training.{other}" for other in loops - {name}}
        assert not _imports(ROOT / "training" / f"{name}.py") & others


def test_only_the_search_imports_scann():
    importers = {p.name for p in ROOT.rglob("*.py") if _within("scann", _imports(p))}
    assert importers == {"search.py"}


def test_heavy_packages_are_imported_where_they_are_used():
    for path in ROOT.rglob("*.py"):
        if path.name == "builders.py":  # subclasses TFDS's builder: importing it registers ours
            continue
        heavy = {n for n in _imports(path, top_level=True) if _within(n.split(".")[0], HEAVY)}
        assert not heavy, f"{path.name} imports {heavy} at its top"


def test_import_ida_jax_loads_nothing_heavy():
    code = "import sys, ida_jax; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)
    assert "tensorflow" not in loaded
