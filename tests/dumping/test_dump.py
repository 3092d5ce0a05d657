"""Stage one through the command line: what lies on disk, what a second run does, what a kill costs."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import write_pictures

import softlabels
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.models import Preprocessing, teacher_spec
from softlabels.views import RECIPES

FORMATS = ("hdf5", "zarr")
SMALL = ("--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu")


def contents(root: Path) -> dict[str, str]:
    """A checksum of every shard file below a store."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parent != root and not path.name.startswith(".")
    }


@pytest.mark.parametrize("format", FORMATS)
def test_the_issues_own_command_works_as_it_stands(
    softlabels_command: Callable, photos: Path, tmp_path: Path, format: str
) -> None:
    from safetensors.torch import save_file

    from softlabels.models import build

    save_file(build("resnet18", 3, seed=1).state_dict(), tmp_path / "w.safetensors")
    done = softlabels_command(
        *("dump", "--teacher", "resnet18", "--weights", "w.safetensors", "--data", f"folder:{photos}"),
        *("--views", 4, "--recipe", "crop-flip", "--codec", "dense", "--format", format, "--batch-size", 32),
        *("--device", "cpu", "--out", "shards/"),
    )
    assert done.exit_code == 0, done.output
    labels = softlabels.open_labels(tmp_path / "shards")
    assert (labels.teachers, labels.views, labels.classes, len(labels)) == (("resnet18",), 4, 3, 18)


@pytest.mark.parametrize("format", FORMATS)
def test_labels_are_what_the_teacher_says_of_the_rendered_view(
    softlabels_command: Callable, photos: Path, tmp_path: Path, format: str
) -> None:
    done = softlabels_command(
        "dump", *SMALL, "--data", photos, "--views", 3, "--codec", "dense:fp32", "--format", format, "--workers", 0
    )
    assert done.exit_code == 0, done.output
    images = softlabels.open_images(photos)
    teacher = teacher_spec("cnn_tiny", "random").open(classes=3)
    pictures = ViewDataset(images, RECIPES.make("crop-flip"), 0, 3, image_spec(teacher.preprocessing))
    rows = np.arange(len(images))
    labels = softlabels.open_labels(tmp_path / "shards")
    for view in range(3):
        said = teacher.logits(pictures.render(rows, np.full(len(rows), view)))
        stored = labels.logits(rows, view)
        torch.testing.assert_close(stored - stored.mean(1, True), said - said.mean(1, True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_command_again_does_nothing(softlabels_command: Callable, photos: Path, format: str) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 2, "--format", format, "--rows-per-shard", 5)
    assert softlabels_command(*command).exit_code == 0
    before = contents(Path("shards"))
    again = softlabels_command(*command)
    assert again.exit_code == 0
    assert "nothing to do" in again.output
    assert contents(Path("shards")) == before


@pytest.mark.parametrize("format", FORMATS)
def test_more_views_leave_what_exists_untouched(softlabels_command: Callable, photos: Path, format: str) -> None:
    command = ("dump", *SMALL, "--data", photos, "--format", format, "--rows-per-shard", 7)
    assert softlabels_command(*command, "--views", 2).exit_code == 0
    before = contents(Path("shards"))
    assert softlabels_command(*command, "--views", 5).exit_code == 0
    after = contents(Path("shards"))
    assert {name: after[name] for name in before} == before
    assert softlabels.open_labels("shards").views == 5


def test_grown_labels_are_those_of_a_dump_in_one_go(softlabels_command: Callable, photos: Path) -> None:
    command = ("dump", *SMALL, "--data", photos, "--codec", "dense:fp32")
    for views, out in ((2, "grown"), (5, "grown"), (5, "whole")):
        assert softlabels_command(*command, "--views", views, "--out", out).exit_code == 0
    grown, whole = softlabels.open_labels("grown"), softlabels.open_labels("whole")
    for view in range(5):
        rows = range(18)
        torch.testing.assert_close(grown.logits(rows, view), whole.logits(rows, view), atol=1e-5, rtol=1e-5)


def test_a_second_teacher_adds_a_folder(softlabels_command: Callable, photos: Path) -> None:
    assert softlabels_command("dump", *SMALL, "--data", photos, "--views", 2).exit_code == 0
    second = ("--teacher", "cnn_small", "--weights", "random:1", "--device", "cpu")
    assert softlabels_command("dump", *second, "--data", photos, "--views", 2).exit_code == 0
    assert sorted(softlabels.open_labels("shards").teachers) == ["cnn_small", "cnn_tiny"]


def test_two_teachers_in_one_command(softlabels_command: Callable, photos: Path) -> None:
    both = ("--teacher", "cnn_tiny", "--weights", "random", "--teacher", "cnn_small", "--weights", "random:1")
    assert softlabels_command("dump", *both, "--data", photos, "--views", 1).exit_code == 0
    assert sorted(softlabels.open_labels("shards").teachers) == ["cnn_small", "cnn_tiny"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--recipe", "pad"), "recipe"),
        (("--seed", 1), "seed"),
        (("--codec", "topk:2"), "codec"),
        (("--weights", "random:7"), "weights"),
        (("--format", "zarr"), "format"),
        (("--limit", 5), "limit"),
    ],
)
def test_another_dump_under_the_same_name_is_refused_with_the_difference(
    softlabels_command: Callable, photos: Path, changed: tuple[object, ...], named: str
) -> None:
    command = ["dump", *SMALL, "--data", photos, "--views", 2]
    assert softlabels_command(*command).exit_code == 0
    before = contents(Path("shards"))
    if changed[0] == "--weights":
        command[command.index("random")] = changed[1]
        changed = ()
    refused = softlabels_command(*command, *changed)
    assert refused.exit_code == 1
    assert named in refused.output
    assert refused.output.count("\n") == 1
    assert contents(Path("shards")) == before


def test_parts_together_make_the_whole(softlabels_command: Callable, photos: Path) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 2, "--rows-per-shard", 4)
    for part in ("0/3", "1/3", "2/3"):
        assert softlabels_command(*command, "--part", part, "--out", "parts").exit_code == 0
    assert softlabels_command(*command, "--out", "whole").exit_code == 0
    parts, whole = (set(contents(Path(out)).values()) for out in ("parts", "whole"))
    assert softlabels.open_labels("parts").views == 2
    assert len(parts) == len(whole)


def test_plan_writes_nothing_and_dry_run_is_plan(softlabels_command: Callable, photos: Path) -> None:
    for command in (("plan",), ("dump", "--dry-run")):
        said = softlabels_command(*command, *SMALL, "--data", photos, "--views", 3, "--rows-per-shard", 5)
        assert said.exit_code == 0, said.output
        assert "18 images x 3 views = 54 labels in 4 shards" in said.output
        assert "images/s" in said.output
    assert not Path("shards").exists()


def test_labels_of_workers_equal_those_of_one_process(softlabels_command: Callable, photos: Path) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 2)
    assert softlabels_command(*command, "--workers", 0, "--out", "alone").exit_code == 0
    assert softlabels_command(*command, "--workers", 2, "--out", "helped").exit_code == 0
    rows = range(18)
    for view in range(2):
        alone, helped = (softlabels.open_labels(out).logits(rows, view) for out in ("alone", "helped"))
        assert torch.equal(alone, helped)


@pytest.mark.parametrize("format", ["hdf5", pytest.param("zarr", marks=pytest.mark.slow)])
def test_killed_dumps_lose_nothing_and_end_bit_identical(tmp_path: Path, format: str) -> None:
    """Kills fall between the first shard and the last, since one shard's worth of time is awaited before each."""
    write_pictures(tmp_path / "photos", classes=3, each=40)
    base = [sys.executable, "-m", "softlabels.cli", "dump", *SMALL, "--data", "photos", "--views", "4"]
    base += ["--rows-per-shard", "4", "--batch-size", "8", "--format", format, "--workers", "0"]
    subprocess.run([*base, "--out", "whole"], cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    killed = 0
    for wanted in (1, 9, 20):
        process = subprocess.Popen([*base, "--out", "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "killed" / "cnn_tiny").glob("0*"))) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run([*base, "--out", "killed"], cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    assert killed >= 1
    names = {path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert not any(name.startswith(".partial") for name in names)
    rows = range(120)
    whole, again = softlabels.open_labels(tmp_path / "whole"), softlabels.open_labels(tmp_path / "killed")
    for view in range(4):
        assert torch.equal(whole.logits(rows, view), again.logits(rows, view))


def test_labels_from_an_inference_loop_of_ones_own(photos: Path, tmp_path: Path) -> None:
    images = softlabels.open_images(photos)
    with softlabels.create_labels(tmp_path / "own", images=images, views=2, classes=3, rows_per_shard=5) as store:
        for batch in store.missing("mine", size=16, batch_size=4):
            store.put(batch.pictures.float().mean((2, 3)))
    labels = softlabels.open_labels(tmp_path / "own")
    assert labels.views == 2
    pictures = ViewDataset(images, labels.recipe, 0, 2, image_spec(Preprocessing(size=16)))
    means = pictures.render(np.arange(18), np.ones(18, np.int64)).float().mean((2, 3))
    stored = labels.logits(range(18), 1)
    torch.testing.assert_close(stored - stored.mean(1, True), means - means.mean(1, True), atol=0.1, rtol=0)
    with softlabels.create_labels(tmp_path / "own", images=images, views=2, classes=3, rows_per_shard=5) as store:
        assert not list(store.missing("mine", size=16))


def test_a_batch_takes_one_row_of_logits_for_each_picture(photos: Path, tmp_path: Path) -> None:
    images = softlabels.open_images(photos)
    with softlabels.create_labels(tmp_path / "own", images=images, views=1, classes=3) as store:
        asked = store.missing("mine", size=8, batch_size=4)
        store.put(torch.zeros(len(next(asked)) + 1, 3))
        with pytest.raises(softlabels.ConfigError, match="4 images got 5 rows"):
            next(asked)


def test_a_batch_takes_its_logits_once(photos: Path, tmp_path: Path) -> None:
    with softlabels.create_labels(tmp_path / "own", images=photos, views=1, classes=3) as store:
        with pytest.raises(softlabels.ConfigError, match="no batch waits"):
            store.put(torch.zeros(4, 3))
        for batch in store.missing("mine", size=8, batch_size=4):
            store.put(torch.randn(len(batch), 3))
            with pytest.raises(softlabels.ConfigError, match="no batch waits"):
                store.put(torch.randn(len(batch), 3))
    assert softlabels.open_labels(tmp_path / "own").views == 1


def test_what_a_blend_would_count_and_what_is_not_finished_is_named(
    softlabels_command: Callable, photos: Path, tmp_path: Path
) -> None:
    cpu = ("--data", photos, "--device", "cpu", "--workers", 0)
    train = ("train", "--student", "cnn_tiny", "--size", 16, "--epochs", 1, "--eval-data", photos, "--out", "run")
    assert softlabels_command(*train, *cpu).exit_code == 0
    (tmp_path / "run/result.json").unlink()
    dump = ("dump", "--teacher", "file:run", *cpu, "--views", 1, "--out", "s")
    first, second = softlabels_command(*dump), softlabels_command(*dump, "--name", "again")
    assert "warning: the run in" in first.output and "is not finished" in first.output
    assert "blends them all" not in first.output
    assert "warning: again has the weights of run in s; a blend counts both" in second.output
    assert second.output.count("a training blends them all unless --teachers names some") == 1
