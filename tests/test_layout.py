"""Imports go one way between the packages, and only six packages are needed."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = ("mobileinst", "data", "engine")
FILES = [path for package in OWN for path in sorted((ROOT / package).rglob("*.py"))]
PACKAGES = {"torch", "torchvision", "numpy", "pycocotools", "scipy", "tqdm"}
EXTRAS = {  # of requirements-dev.txt and requirements-export.txt, imported where used
    "engine.backends": {"onnxruntime", "executorch"},
    "engine.export": {"onnx"},
    "engine.exported.decode": {"onnxruntime"},
    "engine.graphs": {"onnx", "executorch"},
    "engine.quantise": {"onnx", "onnxruntime"},
    "engine.tools.benchmark_mask2former": {"transformers"},
    "engine.tools.benchmark_ultralytics": {"onnxruntime", "executorch"},
    "engine.tools.ultralytics_peer": {"ultralytics"},  # runs in an environment of its own
}

# What the folders of mobileinst may import, each only what stands below it.
MOBILEINST = ("zoo", "systems", "segmenter backbones set_prediction weights", "layers config")

# The same for data; files that are not listed may be imported by any.
DATA = ("loaders opening", "dataset presets writers", "readers demo transforms", "batch", "rle")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path):
    """Dotted names of all modules a file imports, wherever in it; `from x import y` gives x.y."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by full name only"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def inside(path, package):
    """The second parts of the names that a file imports from a package."""
    names = [name.split(".") for name in imports_of(path)]
    return {parts[1] for parts in names if parts[0] == package and len(parts) > 1}


@pytest.mark.parametrize("package", ["mobileinst", "data"])
def test_networks_and_data_import_neither_each_other_nor_the_engine(package):
    others = set(OWN) - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & others, path


def test_inside_mobileinst_imports_point_down():
    level = {name: number for number, line in enumerate(MOBILEINST) for name in line.split()}
    for path in (ROOT / "mobileinst").rglob("*.py"):
        own = path.relative_to(ROOT / "mobileinst").with_suffix("").parts[0]
        for other in inside(path, "mobileinst") - {own, "__init__"}:
            ours, theirs = (level.get(name, level["systems"]) for name in (own, other))
            assert ours < theirs, f"{path} imports {other}"


def test_inside_data_imports_point_down():
    level = {name: number for number, line in enumerate(DATA) for name in line.split()}
    for path in (ROOT / "data").rglob("*.py"):
        own = path.relative_to(ROOT / "data").with_suffix("").parts[0]
        for other in inside(path, "data") & level.keys() - {own}:
            assert own not in level or level[own] < level[other], f"{path} imports {other}"


def test_parts_of_the_engine_import_no_entry():
    entries = {path for path in FILES if 'if __name__ == "__main__"' in path.read_text("utf-8")}
    names = {module_of(path) for path in entries}
    entries.add(ROOT / "engine" / "api.py")  # the entry of notebooks
    for path in (ROOT / "engine").rglob("*.py"):
        assert path in entries or not imports_of(path) & names, path


def test_no_import_goes_in_a_circle():
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        # `from data import rle` is data.rle; `from data.dataset import CocoDataset` is data.dataset
        names = {each if each in modules else each.rpartition(".")[0] for each in imports_of(path)}
        graph[name] = {other for other in names & modules.keys() - {name} if "." in other}
    while graph:
        leaves = {name for name, others in graph.items() if not others & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}


def test_only_the_six_packages():
    known = PACKAGES | {"PIL"} | set(OWN) | set(sys.stdlib_module_names)  # PIL: torchvision's
    for path in FILES:
        names = {name.split(".")[0] for name in imports_of(path)}
        assert names <= known | EXTRAS.get(module_of(path), set()), path
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")]
    assert sorted(names) == sorted(PACKAGES)
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in lines if not line.startswith("#"))
