"""Several data sets as one: keys, classes, labels, splits, and the commands that use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.io import write_jpeg
from worlds import TINY, picture, write_pictures

import softlabels
from softlabels import ConfigError, DataError
from softlabels.datasets import by_part, known_by, open_images, subset


def write_pool(root: Path, count: int = 9, seed: int = 5000) -> Path:
    (root / "x").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_jpeg(picture(seed + number), str(root / "x" / f"{number}.jpg"), quality=90)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/train, a/test with other photos, an unlabelled pool b; not to be changed."""
    root = tmp_path_factory.mktemp("parts")
    write_pictures(root / "a" / "train", each=4)
    for label in range(3):
        folder = root / "a" / "test" / f"class-{label}"
        folder.mkdir(parents=True)
        write_jpeg(picture(9000 + label), str(folder / "000.jpg"), quality=90)
    write_pool(root / "b")
    return root


def refusal(value: Any, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        open_images(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_images_are_those_of_all_parts_one_after_the_other(world: Path) -> None:
    parts = [open_images(f"folder:{world}/a"), open_images(f"images:{world}/b")]
    both = open_images([f"folder:{world}/a", f"images:{world}/b"])
    assert both.keys.to_pylist() == [key for part in parts for key in part.keys.to_pylist()]
    assert both.labels.tolist() == [label for part in parts for label in part.labels.tolist()]
    assert both.classes == parts[0].classes
    places = [(part, own) for part in parts for own in range(len(part))]
    for row, (part, own) in enumerate(places):
        assert both.content(row) == part.content(own)
        assert (both.decode(row) == part.decode(own)).all()
    assert open_images(json.loads(json.dumps(both.spec))).keys == both.keys
    assert known_by(both) == known_by(open_images(both.spec)) != known_by(parts[0])


def test_parts_in_memory_stay_in_memory() -> None:
    train, test = open_images("digits"), open_images("digits", split="test")
    both = open_images([train, test])
    assert both.pixels is not None and len(both.pixels) == len(train) + len(test)
    assert (both.decode(len(train)) == test.decode(0)).all()


def test_rows_are_found_in_the_part_that_holds_them(world: Path) -> None:
    both = open_images([f"folder:{world}/a", f"images:{world}/b"])
    rows = np.array([14, 3, 20, 0])
    found = {part.name.partition(":")[0]: (at.tolist(), own.tolist()) for part, at, own in by_part(subset(both, rows))}
    assert found == {"folder": ([1, 3], [3, 0]), "images": ([0, 2], [2, 8])}


def test_equal_keys_are_refused_and_a_prefix_tells_them_apart(world: Path) -> None:
    message = refusal([f"images:{world}/b", f"images:{world}/b"])
    assert "'x/0.jpg' is in images:" in message and message.count("images:") == 3 and "prefix=NAME" in message
    both = open_images([f"images:{world}/b", f"images:{world}/b prefix=again"])
    assert both.keys.to_pylist()[9] == "again/x/0.jpg"
    assert open_images(both.spec).keys == both.keys
    assert "a prefix is a name" in refusal(f"images:{world}/b prefix=../b", ConfigError)
    assert "prefix twice" in refusal(f"images:{world}/b prefix=a prefix=b", ConfigError)
    assert "empty list" in refusal([], ConfigError)


def test_classes_are_those_of_the_part_that_knows_all(world: Path, tmp_path: Path) -> None:
    paths = sorted((world / "b" / "x").iterdir())
    few, other, numbers = tmp_path / "few.csv", tmp_path / "other.csv", tmp_path / "numbers.csv"
    few.write_text(f"path,label\n{paths[0]},class-2\n{paths[1]},class-1\n{paths[2]},\n")
    other.write_text(f"path,label\n{paths[0]},class-2\n{paths[1]},zebra\n")
    numbers.write_text(f"path,label\n{paths[0]},2\n{paths[1]},0\n")
    folder = f"folder:{world}/a"
    both = open_images([f"csv:{few}", folder])
    assert both.classes == ("class-0", "class-1", "class-2")
    assert both.labels[:3].tolist() == [2, 1, -1] and both.labels[3:].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert open_images([folder, f"csv:{numbers}"]).labels[12:].tolist() == [2, 0]
    message = refusal([folder, f"csv:{other}"])
    assert "'zebra'" in message and str(other) in message and "class-0, class-1, class-2" in message


def test_the_test_side_leaves_out_parts_without_labels(world: Path) -> None:
    tested = open_images([f"folder:{world}/a", f"images:{world}/b"], split="test")
    assert len(tested) == 3 and (tested.labels >= 0).all()


def test_data_dir_is_for_downloads_and_not_for_the_list_beside_them(world: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path\n{world}/b/x/0.jpg\n")
    message = refusal([f"csv:{tmp_path}/list.csv", "cifar10"])
    assert "cifar10 needs" in message
    with pytest.raises(DataError, match="are missing: /nowhere"):
        (tmp_path / "relative.csv").write_text("path\n0.jpg\n")
        open_images([f"csv:{tmp_path}/relative.csv", f"images:{world}/b"], data_dir="/nowhere")


def test_every_command_takes_them(world: Path, softlabels_command: Callable[..., Any], tmp_path: Path) -> None:
    data = ["--data", f"folder:{world}/a", "--data", f"images:{world}/b"]
    teacher = ["--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu"]
    dump = ["dump", *teacher, *data, "--views", 2, "--out", "st", "--rows-per-shard", 5]
    plan = softlabels_command("plan", *teacher, *data)
    assert plan.exit_code == 0 and "21 images x 8 views" in plan.output
    assert softlabels_command(*dump).exit_code == 0
    assert softlabels_command("verify", "st", "--device", "cpu").exit_code == 0
    assert "images (root" in softlabels_command("info", "st").output
    run = ["--student", "cnn_tiny", "--epochs", 1, "--batch-size", 8, "--device", "cpu", "--workers", 0]
    trained = softlabels_command("train", *run, "--labels", "st", "--alpha", 0.5, "--out", "r")
    assert trained.exit_code == 0 and "12 of 21 images have a hard label" in trained.output
    assert "top1" in (tmp_path / "r" / "metrics.jsonl").read_text(encoding="utf-8")  # on the folder's test side
    assert "on 3 images" in softlabels_command("eval", "r", "--device", "cpu").output
    packed = softlabels_command("pack", *data, "--out", "pk", "--quality", "raw", "--max-side", 0)
    assert packed.exit_code == 0
    pack = open_images(f"pack:{tmp_path}/pk")
    assert pack.keys == open_images([data[1], data[3]]).keys
    hard = softlabels_command("train", *run, *data, "--out", "hard")
    assert hard.exit_code == 0 and f"--data folder:{world}/a --data images:{world}/b" in hard.output
    again = softlabels_command("train", "--config", "hard/config.yaml")
    assert again.exit_code == 0 and "nothing to do" in again.output
    clash = softlabels_command(*dump[:-4], "--data", f"images:{world}/b", "--out", "clash")
    assert clash.exit_code == 1 and "'x/0.jpg'" in clash.output and not (tmp_path / "clash").exists()
    inside = softlabels_command(*dump[:-4], "--out", f"{world}/b/st")
    assert inside.exit_code == 2 and "folder of the images" in inside.output


def test_views_and_labels_of_a_part_are_those_of_the_part_alone(world: Path, tmp_path: Path) -> None:
    run = softlabels.train(data=world / "a", out=tmp_path / "teacher", **TINY)
    common = {"teacher": f"file:{run.folder}", "views": 2, "device": "cpu", "quiet": True}
    pool, both = f"images:{world}/b", [f"folder:{world}/a", f"images:{world}/b"]
    softlabels.dump(data=pool, out=tmp_path / "pool", **common)  # type: ignore[arg-type]
    softlabels.dump(data=both, out=tmp_path / "both", **common)  # type: ignore[arg-type]
    alone, joint = softlabels.open_labels(tmp_path / "pool"), softlabels.open_labels(tmp_path / "both")
    keys = open_images(pool).keys
    name = alone.teachers[0]
    stored = [labels.logits(labels.rows(keys), 1, teacher=name) for labels in (alone, joint)]
    assert (stored[0] == stored[1]).all()


def test_kinds_without_a_place_take_a_prefix_too(softlabels_command: Callable) -> None:
    done = softlabels_command(
        "plan", "--teacher", "cnn_tiny", "--weights", "random", "--size", 8, "--device", "cpu", "--json",
        "--data", "digits", "--data", "digits prefix=again",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert '"images": 2694' in done.output
