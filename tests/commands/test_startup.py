"""Help, completion and mistyped names answer without importing torch; what is missing is named in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.optim
import torchvision
from conftest import Outcome

import softlabels
from softlabels import choices, models
from softlabels.cli import main
from softlabels.core import installed as _installed

HEAVY = ("torch", "torchvision", "timm", "pandas", "sklearn", "matplotlib", "h5py", "zarr")

PROBE = f"""
import sys
try:
    import softlabels.__main__
    softlabels.__main__.main(sys.argv[1:], prog_name="softlabels")
finally:
    print("heavy:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""

MISTYPED = [
    ("dmp",),
    ("dump", "--techer", "resnet18"),
    ("dump", "--teacher", "resnt18", "--data", "digits"),
    ("dump", "--teacher", "timm:resnt50", "--data", "digits"),
    ("dump", "--teacher", "tmm:resnet50", "--data", "digits"),
    ("dump", "--teacher", "cnn_tiny", "--data", "cifar11"),
    ("dump", "--teacher", "cnn_tiny", "--data", "digits", "--codec", "tpok:10"),
    ("dump", "--teacher", "cnn_tiny", "--data", "digits", "--recipe", "crop-flp"),
    ("train", "--student", "mobilenetv4", "--labels", "shards"),
    ("train", "--student", "cnn_tiny", "--labels", "shards", "--loss", "kll"),
    ("train", "--student", "cnn_tiny", "--labels", "shards", "--blend", "mean"),
    ("train", "--student", "cnn_tiny", "--labels", "shards", "--optimizer", "adamv"),
    ("train", "--student", "cnn_tiny", "--labels", "shards", "--track", "tensorbord"),
    ("info", "nowhere"),
    ("report", "nowhere"),
    ("list", "losses", "nothing-like-it"),
]


def probe(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", PROBE, *args], cwd=cwd, capture_output=True, text=True, env=settings, check=False
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in sorted(main.commands))])
def test_help_does_not_import_torch(command: tuple[str, ...], tmp_path: Path) -> None:
    done = probe(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--help" in done.stdout
    assert done.stderr.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("args", MISTYPED, ids=" ".join)
def test_a_mistyped_name_is_refused_before_anything_is_imported(args: tuple[str, ...], tmp_path: Path) -> None:
    done = probe(*args, cwd=tmp_path)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []", done.stderr


def test_info_reads_a_store_without_torch(shards: Path, tmp_path: Path) -> None:
    done = probe("info", str(shards), cwd=tmp_path)
    assert done.returncode == 0 and "18 images" in done.stdout
    assert done.stderr.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("kind", ["losses", "datasets", "teachers"])
def test_names_are_listed_without_torch(kind: str, tmp_path: Path) -> None:
    done = probe("list", kind, cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert done.stderr.splitlines()[-1] == "heavy: []"


def test_completion_does_not_import_torch(tmp_path: Path) -> None:
    done = probe(
        cwd=tmp_path, _SOFTLABELS_COMPLETE="bash_complete", COMP_WORDS="softlabels dump --teach", COMP_CWORD="2"
    )
    assert "--teacher" in done.stdout
    assert done.stderr.splitlines()[-1] == "heavy: []"


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "softlabels", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and softlabels.__version__ in done.stdout


def test_names_read_from_sources_are_those_of_the_installed_libraries() -> None:
    assert _installed.torchvision_networks() == set(torchvision.models.list_models(module=torchvision.models))
    assert _installed.timm_networks() == set(timm.list_models())
    assert _installed.timm_optimizers() == set(timm.optim.list_optimizers())
    assert set(choices.SMALL_NETWORKS) == set(models.TEACHERS.kinds["small"].names())


@pytest.mark.parametrize(
    "table",
    [
        choices.CODECS,
        choices.LOSSES,
        choices.BLENDS,
        choices.DATASETS,
        choices.TEACHERS,
        choices.STUDENTS,
        choices.STEPS,
        choices.RECORDED,
    ],
    ids=lambda table: table.what,
)
def test_each_line_of_a_table_names_the_class_of_that_kind(table: choices.Table) -> None:  # type: ignore[type-arg]
    assert all(part.model_fields["kind"].default == kind for kind, part in table.kinds.items())


@pytest.mark.parametrize(
    ("module", "args", "extra"),
    [
        ("sklearn.datasets", ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", "digits"), "digits"),
        (
            "hdf5plugin",
            ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", "{photos}", "--compression", "zstd"),
            "zstd",
        ),
        (
            "matplotlib.figure",
            ("sweep", "--student", "cnn_tiny", "--data", "{photos}", "--grid", "epochs=1", "--out", "s"),
            "plots",
        ),
    ],
)
def test_a_missing_extra_is_named_before_any_work(
    module: str,
    args: tuple[str, ...],
    extra: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    softlabels_command: Callable[..., Outcome],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = softlabels_command(*(each.format(photos=photos) for each in args))
    assert said.exit_code != 0
    assert said.output.strip().splitlines()[-1].endswith(f"pip install 'softlabels[{extra}]'")
    assert not [path.name for path in tmp_path.rglob("*") if path.name in ("teacher.json", "config.yaml")]


def installed(folder: Path, package: str, version: str, needs: str = "") -> None:
    """What `pip` leaves of a package, so that it seems to be installed in that version."""
    notes = folder / f"{package}-{version}.dist-info"
    notes.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}", *([needs] if needs else [])]
    (notes / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("package", "version", "needs", "wanted"),
    [
        ("torch", "2.3.1", "", "torch 2.3.1 is too old; softlabels needs 2.6 or newer"),
        (
            "torchvision",
            "0.15.0",
            "Requires-Dist: numpy\nRequires-Dist: torch==2.0.0",
            "torchvision 0.15.0 was built for torch 2.0.0",
        ),
    ],
)
def test_versions_that_do_not_serve_are_named(
    package: str, version: str, needs: str, wanted: str, tmp_path: Path
) -> None:
    installed(tmp_path, package, version, needs)
    path = os.pathsep.join([str(tmp_path), str(Path(softlabels.__file__).parents[1])])
    done = probe("eval", "--student", "cnn_tiny", "--data", "digits", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert wanted in done.stderr and "Traceback" not in done.stderr
