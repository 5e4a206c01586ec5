"""Who may import whom (ARCHITECTURE.md), read from the source files' own import statements."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ida_jax"
HEAVY = {"scann", "tensorflow_datasets", "grain", "matplotlib", "torch", "cv2", "tensorboardX",
         "pyarrow", "onnx", "onnxruntime", "ray"}  # fmt: skip
STANDARD = set(sys.stdlib_module_names)
# The rooms from the lowest to the highest: each may import itself and those before it.
ROOMS = (
    "common", "ops", "models", "metrics", "tables", "planning", "artefacts", "data", "anchors",
    "rescoring", "interop", "protocols", "training", "report", "runs", "trials",
)  # fmt: skip
# All that some of them may import beside the standard library, themselves and ida_jax.common.
ALLOWED = {
    "ops": {"jax", "numpy"},
    "models": {"jax", "flax", "numpy", "ida_jax.ops"},
    "metrics": {"numpy", "scipy"},
    "planning": {"jax", "libtpu", "numpy"},
}
# What a room must not import although it lies below.
FORBIDDEN = {
    "tables": {"jax", "ida_jax.common.devices"},
    "metrics": {"ida_jax.common.files", "ida_jax.common.devices"},
    "ops": {"ida_jax.common.devices"},
    "protocols": {"ida_jax.planning"},
    "report": {"ida_jax.training"},
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


def test_every_folder_is_a_room_and_every_file_at_the_top_a_command():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    for path in ROOT.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "__init__.py" or 'if __name__ == "__main__":' in text, path.name


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_runs_up(room):
    lower = {f"ida_jax.{each}" for each in ROOMS[: ROOMS.index(room) + 1]}
    for path in _files(room):
        # `ida-jax anchors` is a command, as the files at the top.
        if path.name != "__main__.py":
            ours = {name for name in _imports(path) if name.split(".")[0] == "ida_jax"}
            foreign = {name for name in ours if not _within(name, lower) and name != "ida_jax"}
            assert not foreign, f"{path} imports {foreign}"


@pytest.mark.parametrize("room", ALLOWED)
def test_low_rooms_import_few_packages(room):
    allowed = ALLOWED[room] | STANDARD | {"ida_jax.common", f"ida_jax.{room}"}
    for path in _files(room):
        foreign = {name for name in _imports(path) if not _within(name, allowed)}
        assert not foreign, f"{path} imports {foreign}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_keep_their_distance(room):
    for path in _files(room):
        foreign = {name for name in _imports(path) if _within(name, FORBIDDEN[room])}
        assert not foreign, f"{path} imports {foreign}"


def test_training_loops_never_import_each_other():
    loops = {"recognition", "ssr", "pfe", "gan"}
    for name in loops:
        others = {f"ida_jax.training.{other}" for other in loops - {name}}
        assert not _imports(ROOT / "training" / f"{name}.py") & others
    ours = {f"ida_jax.training.{name}" for name in loops}
    assert not _imports(ROOT / "training" / "loop.py") & ours


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
