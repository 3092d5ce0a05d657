"""The layers of the package: imports run downward only, and the parts are strangers to each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import softlabels
from softlabels.choices import IMPORTERS
from softlabels.views import RECORDED

ROOT = Path(softlabels.__file__).parent
TABLES = ROOT / "choices.py"
LAYERS = (
    {"errors"},
    {"core"},
    {"choices"},
    {"datasets", "views", "models", "codecs", "losses", "store"},
    {"loading"},
    {"dumping", "training"},
    {"importing", "upkeep", "reporting", "selecting", "integrations"},
    {"commands", "next_commands", "networks", "teachers"},  # the last two are former names of models
    {"options"},
    {"cli"},
    {"__main__"},
)
"""Imports run from a later set to an earlier one only, so the members of one set know nothing of each other."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


PARTS = LAYERS[3]


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def unit(path: Path) -> str:
    """The file or folder directly below the package that `path` belongs to; "" for the package's own door."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(path: Path, *, typing: bool = True) -> set[str]:
    """Every module that a file imports, also inside functions, and unless told otherwise for types alone."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not typing:
        tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.dump(node)[:60]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def named(path: Path) -> set[str]:
    """What the tables of a file name as ``module:object``, to be imported when it is made."""
    found = texts(ast.parse(path.read_text(encoding="utf-8")))
    return {text for text in found if re.fullmatch(r"softlabels(\.\w+)+:\w+", text)}


def ours(path: Path) -> set[str]:
    # `choices` names the types of the parts, which lie above it, for type checkers alone.
    names = imported(path, typing=unit(path) != "choices")
    return {name.split(".")[1] for name in names if name.startswith("softlabels.")}


def test_every_file_has_its_place_in_a_layer() -> None:
    assert {unit(path) for path in files()} - {""} == set(LEVEL)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward_only(path: Path) -> None:
    here = unit(path)
    if not here:
        return
    others = ours(path) - {here, "__version__"}
    assert not {name for name in others if LEVEL[name] >= LEVEL[here]}, f"{path} imports from its layer or above"


def test_tables_name_parts_and_of_what_is_above_them_replayed_steps_and_importers_alone() -> None:
    parts = set(PARTS)
    replayed = {name for name in named(TABLES) if name.split(".")[1] not in parts}
    steps = {f"softlabels.importing.replayed:{each.__name__}" for each in RECORDED.kinds.values()}
    assert replayed == steps | {IMPORTERS.home(name) for name in IMPORTERS.own}
    for path in files():
        here = unit(path)
        if here and path != TABLES:
            assert not {name for name in named(path) if LEVEL[name.split(".")[1]] >= LEVEL[here]}, path


def test_who_renders_views_knows_no_step_that_is_replayed() -> None:
    replayed = {each.__name__ for each in RECORDED.kinds.values()}
    for path in files():
        if unit(path) != "importing":
            words = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not words & replayed, path


@pytest.mark.parametrize(
    ("place", "stranger"),
    [
        ("codecs", "h5py"),
        ("codecs", "zarr"),
        ("codecs", "pathlib"),
        ("codecs", "os"),
        ("store", "torch"),
        ("core", "torch"),
    ],
)
def test_what_a_part_does_not_know(place: str, stranger: str) -> None:
    for path in (ROOT / place).rglob("*.py"):
        assert not any(name == stranger or name.startswith(f"{stranger}.") for name in imported(path, typing=False)), (
            path
        )


def test_core_names_no_part_not_even_to_be_imported_later() -> None:
    for path in (ROOT / "core").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [part for part in PARTS if f"softlabels.{part}" in text], path


def test_arrayfile_alone_knows_hdf5_and_zarr_and_knows_no_domain() -> None:
    place = ROOT / "core" / "arrayfile"
    for path in files():
        libraries = {name.split(".")[0] for name in imported(path)} & {"h5py", "hdf5plugin", "zarr", "numcodecs"}
        assert not libraries or path.parent == place, path
    for path in place.glob("*.py"):
        text = path.read_text(encoding="utf-8").replace(".view(", "(")
        assert not re.search(r"\b(teacher|label|view|pack|image|picture)s?\b", text, re.IGNORECASE), path


@pytest.mark.parametrize("stage", ["dumping", "training", "importing", "upkeep", "reporting", "selecting"])
def test_only_the_run_files_of_a_stage_see_a_config(stage: str) -> None:
    for path in (ROOT / stage).glob("*.py"):
        if path.stem in ("config", "settings") or path.stem.startswith("run"):
            continue
        configs = {name for name in imported(path) if "Config" in name.rpartition(".")[2]}
        assert configs <= {"softlabels.errors.ConfigError"}, path


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text in the code that is no docstring."""
    documented = {
        id(first.value)
        for node in ast.walk(tree)
        if isinstance(body := getattr(node, "body", None), list)
        for first in body
        if isinstance(first, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def test_below_the_command_line_messages_name_settings_not_options() -> None:
    options = re.compile(r"(?<![\w-])--[a-z]")
    for path in files():
        if unit(path) in ("options", "cli", "__main__"):
            continue
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            whole_word = re.fullmatch(r"--[a-z-]+", text)  # of a command that is printed to be run
            others = text.replace("docker run --shm-size", "").replace("pip install --upgrade", "")
            assert whole_word or not options.search(others), f"{path}: {text}"


def test_pipelines_use_the_public_names_only() -> None:
    for path in (ROOT.parent / "pipelines").glob("*.py"):
        assert {name for name in imported(path) if name.startswith("softlabels")} <= {"softlabels"}, path


def test_the_exported_names_are_the_promised_ones() -> None:
    assert set(softlabels.__all__) >= {
        "open_labels",
        "SoftLabelDataset",
        "OneViewEach",
        "open_images",
        "create_labels",
        "dump",
        "train",
        "verify",
        "plan",
        "SoftlabelsError",
        "StoreError",
        "ConfigError",
    }
    assert all(getattr(softlabels, name) is not None for name in softlabels.__all__)


def test_nothing_unsafe_is_called() -> None:
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant) and node.value.value is True, path
            if isinstance(node, ast.keyword) and node.arg == "shell":
                raise AssertionError(path)


def test_no_public_name_is_defined_in_two_modules() -> None:
    found: dict[str, list[Path]] = {}
    for path in files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {each.id for each in targets if isinstance(each, ast.Name)}
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            for name in names:
                if not name.startswith("_"):
                    found.setdefault(name, []).append(path)
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
