"""Imports climb one way, the library is silent, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "gbnn_compress"

ORDER = (
    ("errors", "types", "parallel", "compiled"),
    ("files", "recipe", "data", "mixture", "format"),
    ("checkpoint", "report"),
    ("rate", "predict"),
    ("calibration", "onnx_files"),
    ("target",),
    ("training",),
    ("pipeline",),
)
"""Files and folders of the library, lowest floor first; those on one floor know nothing of each other."""

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def module_name(file: Path, *, root: Path = LIBRARY) -> str:
    """Dotted name within the library, `` for its `__init__`."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(LIBRARY.rglob("*.py"))}


def imports(file: Path, *, package: str) -> set[str]:
    """Modules of the library that a file imports anywhere, by their names within it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix(f"{package}.") for name in found if name.startswith(f"{package}.")}
    return {name if name in FILES else name.rpartition(".")[0] for name in inside}


def layer(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [name for name in FILES if name])
def test_a_file_imports_only_lower_layers_or_its_own_folder(module: str) -> None:
    own = layer(module)
    assert own in RANK, f"`{own}` has no place in the order: add it to ORDER"
    for other in imports(FILES[module], package="gbnn_compress"):
        lower = layer(other) == own or RANK[layer(other)] < RANK[own]
        assert lower, f"`{module}` imports `{other}`, which is not below it"


def test_no_cycles_within_a_folder() -> None:
    graph = {
        module: {other for other in imports(file, package="gbnn_compress") if layer(other) == layer(module)} - {module}
        for module, file in FILES.items()
        if module
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_every_folder_of_the_library_has_a_place() -> None:
    assert {layer(module) for module in FILES if module} == set(RANK)


@pytest.mark.long
def test_the_library_knows_nothing_of_the_command_line() -> None:
    for module, file in FILES.items():
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not names & {"cli", "gbnn_compress_cli", "typer", "rich"}, module


def test_the_library_never_prints() -> None:
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"`{module}` prints in line {node.lineno}"


def test_public_names_have_a_home() -> None:
    import gbnn_compress

    assert len(gbnn_compress.__all__) <= 14
    for name in gbnn_compress.__all__:
        assert getattr(gbnn_compress, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = gbnn_compress.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, gbnn_compress, gbnn_compress.errors, gbnn_compress.types\n"
        "heavy = 'torch torchvision timm numpy scipy sklearn onnx matplotlib pydantic'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    ["pipeline.compress", "format.artifact", "checkpoint.read", "rate.posterior", "rate.control", "recipe"],
)
def test_torch_loads_only_where_it_is_used(module: str) -> None:
    program = f"import sys, gbnn_compress.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_folder_of_the_library_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for file in LIBRARY.rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(listed)
