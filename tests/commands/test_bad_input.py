"""Bad input: one clear line that names the thing, exit code 1 or 2, no traceback, nothing written or lost."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from safetensors import SafetensorError
from worlds import write_pictures

import softlabels
from softlabels.training import checkpoints

SMALL = ("--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu", "--workers", 0)


def complaint(outcome: object) -> str:
    """The one line that a failed command says."""
    lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]  # type: ignore[attr-defined]
    assert len(lines) == 1, outcome.output  # type: ignore[attr-defined]
    assert outcome.exit_code in (1, 2)  # type: ignore[attr-defined]
    assert "Traceback" not in outcome.output  # type: ignore[attr-defined]
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--teacher", "resnet81", "--weights", "random"), "resnet18"),
        (("--teacher", "resnxt101", "--weights", "random"), "resnext101"),
        (("--teacher", "timmm:resnet18"), "timm"),
        (("--teacher", "cnn_tiny", "--data", "digits"), "--weights"),
        (("--teacher", "cnn_tiny", "--weights", "absent.pt", "--data", "digits"), "absent.pt"),
        ((), "needs a teacher and a data set: --teacher and --data"),
        ((*SMALL, "--data", "cifar11"), "cifar10"),
        ((*SMALL, "--data", "folder:nowhere/at/all"), "nowhere/at/all"),
        ((*SMALL, "--data", "./nowhere"), "nowhere"),
        ((*SMALL, "--data", "imagenet"), "IMAGENET_DIR"),
        ((*SMALL, "--recipe", "crop-flop"), "crop-flip"),
        ((*SMALL, "--codec", "dens"), "dense"),
        ((*SMALL, "--codec", "topk:none"), "topk"),
        ((*SMALL, "--codec", "topk:11 lvels=12"), "did you mean 'levels'"),
        ((*SMALL, "--data", "photoss"), "nor a directory of that name"),
        ((*SMALL, "--data", "pics:photos"), "nor a module 'pics'"),
        ((*SMALL, "--views", 1 << 40), "views"),
        ((*SMALL, "--cache-dir", __file__), "is a file  tip: give a folder"),
        ((*SMALL, "--part", "3/3"), "part"),
        ((*SMALL[:-2], "--workers", "threads:none"), "threads:N"),
        ((*SMALL, "--device", "cuda:99"), "cuda:99"),
        ((*SMALL, "--config", "absent.yaml"), "absent.yaml"),
    ],
)
def test_a_dump_that_cannot_begin_says_why(
    softlabels_command: Callable, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    assert said in complaint(softlabels_command("dump", *arguments))
    assert not Path("shards").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--student", "mobilenetv4"), "mobilenet"),
        (("--student", "cnn_tiny", "--labels", "nowhere"), "nowhere"),
        (("--student", "cnn_tiny", "--data", "digits", "--loss", "lk"), "kl"),
        (("--student", "cnn_tiny", "--data", "digits", "--optimizer", "sgdd"), "sgdd"),
        (("--student", "cnn_tiny", "--labels", "x", "--teacher", "cnn_small"), "exclude"),
        (("--student", "cnn_tiny", "--epochs", "0"), "epochs"),
        (("--student", "cnn_tiny", "--data", "digits", "--loss", "dist"), "--loss needs a teacher"),
        (("--student", "cnn_tiny", "--data", "digits", "--teachers", "big"), "--teachers needs a teacher"),
        (("--student", "cnn_tiny", "--size", 8, "--data", "digits", "--track", "nope"), "unknown tracker"),
        (("--student", "cnn_tiny", "--lr", "inf"), "--lr must be a finite number, not inf"),
        (("--student", "cnn_tiny", "--warmup-epochs", "inf"), "--warmup-epochs must be a finite number, not inf"),
    ],
)
def test_a_training_that_cannot_begin_says_why(
    softlabels_command: Callable, arguments: tuple[object, ...], said: str
) -> None:
    assert said in complaint(softlabels_command("train", *arguments))
    assert not Path("runs").exists()


def test_an_unknown_setting_in_a_config_is_named_with_the_nearest(softlabels_command: Callable) -> None:
    Path("c.yaml").write_text("studnet: cnn_tiny\n")
    assert "did you mean 'student'" in complaint(softlabels_command("train", "--config", "c.yaml"))


def test_one_name_stands_for_a_list_of_one(softlabels_command: Callable) -> None:
    Path("c.yaml").write_text("teacher: cnn_tiny\nweights: random\ndata: digits\nviews: 1\nlimit: 20\nrecipe: pad\n")
    assert softlabels_command("dump", "--config", "c.yaml", "--device", "cpu").exit_code == 0


def test_unknown_options_are_usage_errors(softlabels_command: Callable) -> None:
    outcome = softlabels_command("dump", "--techer", "resnet18")
    assert outcome.exit_code == 2
    assert "--teacher" in outcome.output


def test_a_folder_without_classes(softlabels_command: Callable, photos: Path) -> None:
    said = complaint(softlabels_command("dump", *SMALL, "--data", photos / "class-0"))
    assert "class-0" in said
    assert "images:" in said


def test_a_csv_without_the_column(softlabels_command: Callable) -> None:
    Path("list.csv").write_text("file,label\na.jpg,0\n")
    said = complaint(softlabels_command("dump", *SMALL, "--data", "csv:list.csv"))
    assert "list.csv" in said
    assert "path" in said
    assert "file" in said


def test_a_truncated_picture_is_named_and_nothing_of_its_shard_is_written(
    softlabels_command: Callable, tmp_path: Path
) -> None:
    root = write_pictures(tmp_path / "photos")
    bad = root / "class-1" / "003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    command = ("dump", *SMALL, "--data", root, "--views", 2, "--rows-per-shard", 6)
    assert str(bad) in complaint(softlabels_command(*command))
    assert [path.name for path in (tmp_path / "shards" / "cnn_tiny").glob("*.h5")] == ["00000-v0-2.h5"]

    skipping = softlabels_command(*command, "--on-bad-image", "skip")
    assert skipping.exit_code == 0
    assert "class-1/003.jpg" in skipping.output
    labels = softlabels.open_labels("shards")
    assert labels.views == 2
    held = labels.labelled(labels.rows(labels.keys))
    assert [labels.keys[row].as_py() for row in range(18) if not held[row]] == ["class-1/003.jpg"]

    train = ("train", "--student", "cnn_tiny", "--labels", "shards", "--epochs", 1, "--workers", 0)
    assert "class-1/003.jpg" in complaint(softlabels_command(*train))
    assert softlabels_command(*train, "--unlabelled", "leave-out").exit_code == 0


def test_a_teacher_of_other_classes(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from softlabels.models import build

    save_file(build("cnn_tiny", 7).state_dict(), tmp_path / "seven.safetensors")
    said = complaint(
        softlabels_command("dump", "--teacher", "cnn_tiny", "--weights", "seven.safetensors", "--data", photos)
    )
    assert "7 classes" in said
    assert "3" in said
    assert not Path("shards").exists()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_are_not_finite(softlabels_command: Callable, photos: Path, tmp_path: Path, value: str) -> None:
    (tmp_path / f"broken_{value}.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        f"        return torch.full((len(x), 3), float('{value}'))\n"
        "def make():\n"
        "    return Broken()\n"
    )
    said = complaint(softlabels_command("dump", "--teacher", f"broken_{value}:make", "--data", photos, "--views", 1))
    assert "NaN or infinite" in said
    assert "class-0/000.jpg" in said
    assert "view 0" in said
    assert not list(Path("shards").rglob("*.h5"))


def test_a_full_disk(softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 2, "--rows-per-shard", 5)
    synced, real = 0, os.fsync

    def fill_up(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    said = complaint(softlabels_command(*command))
    assert "no space left" in said
    assert "run the same command again" in said
    monkeypatch.setattr(os, "fsync", real)
    before = {path: path.read_bytes() for path in Path("shards").rglob("*.h5")}
    assert before
    assert softlabels_command(*command).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert softlabels.open_labels("shards").views == 2


def test_a_disk_that_fills_up_in_a_checkpoint_costs_nothing(
    softlabels_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--student", "cnn_tiny", "--size", 8, "--data", "digits", "--limit", 40, "--batch-size", 20)
    command += ("--epochs", 3, "--checkpoint-every", 1, "--workers", 0, "--device", "cpu")
    saved, real = 0, checkpoints.save_file

    def fill_up(tensors: dict, path: Path) -> None:
        nonlocal saved
        saved += 1
        if saved > 3:
            # As safetensors says it: no OSError.
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", fill_up)
    said = complaint(softlabels_command(*command))
    assert "no space left" in said
    assert "run the same command again" in said
    kept = sorted(path.name for path in Path("runs/cnn_tiny/checkpoints").iterdir())
    assert kept == ["step-000000002", "step-000000003"]
    monkeypatch.setattr(checkpoints, "save_file", real)
    assert "going on from step 3 of 6" in softlabels_command(*command).output


def test_classes_that_have_other_numbers_are_refused(
    softlabels_command: Callable, photos: Path, tmp_path: Path
) -> None:
    """A folder less or a folder more moves the numbers of those that come after it."""
    assert softlabels_command("dump", *SMALL, "--data", photos, "--views", 2).exit_code == 0
    fewer = write_pictures(tmp_path / "fewer")
    shutil.rmtree(fewer / "class-0")
    train = ("train", "--labels", "shards", "--student", "cnn_tiny", "--size", 16, "--epochs", 1, "--device", "cpu")
    said = complaint(softlabels_command(*train, "--data", fewer, "--alpha", 0.5))
    assert "class 'class-1' is number 0 of" in said
    assert "number 1 of the labels in" in said
    assert softlabels_command(*train, "--data", fewer, "--out", "soft").exit_code == 0  # no hard label is used
    write_pictures(tmp_path / "all")
    (tmp_path / "all" / "class-0").rename(tmp_path / "all" / "class-9")
    said = complaint(softlabels_command(*train, "--eval-data", tmp_path / "all", "--out", "no"))
    assert "class 'class-1' is number 0 of" in said
    assert not Path("no").exists()
    said = complaint(softlabels_command("eval", "--student", "soft", "--data", tmp_path / "all", "--device", "cpu"))
    assert "class 'class-1' is number 0 of" in said
    said = complaint(softlabels_command("eval", "--student", "soft", "--data", f"images:{fewer}", "--device", "cpu"))
    assert "has no hard labels to score against" in said


@pytest.mark.parametrize("out", ["/proc/softlabels", "taken/shards"])
def test_a_place_that_cannot_be_written(softlabels_command: Callable, photos: Path, out: str) -> None:
    Path("taken").write_text("a file, no folder")
    said = complaint(softlabels_command("dump", *SMALL, "--data", photos, "--out", out))
    assert out in said


def test_a_store_of_another_data_set(softlabels_command: Callable, photos: Path, tmp_path: Path) -> None:
    assert softlabels_command("dump", *SMALL, "--data", photos, "--views", 1).exit_code == 0
    other = write_pictures(tmp_path / "other", classes=4)
    assert "3" in complaint(softlabels_command("dump", *SMALL, "--data", other, "--views", 1))
    said = complaint(softlabels_command("train", "--student", "cnn_tiny", "--labels", "shards", "--data", "digits"))
    assert "no image of this data set has labels" in said


def test_a_data_set_that_lost_an_image_is_refused_with_its_name(softlabels_command: Callable, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "fewer")
    command = ("dump", *SMALL, "--data", root)
    assert softlabels_command(*command, "--views", 1).exit_code == 0
    (root / "class-1" / "003.jpg").rename(root / "class-1" / "other.jpg")
    for more in ((), ("--grow",)):
        said = complaint(softlabels_command(*command, "--views", 2, *more))
        assert "lacks 1 (the first is 'class-1/003.jpg')" in said


def test_a_shard_that_does_not_fit_into_memory(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("softlabels.dumping.dump.np.zeros", none_left)
    said = complaint(softlabels_command("dump", *SMALL, "--data", photos, "--views", 3))
    assert "--rows-per-shard" in said
    assert "18 images and 3 views" in said


def first_label(teacher: Path, format: str) -> tuple[Path, int]:
    """The file of the second shard that holds labels, and where in it they begin."""
    if format == "zarr":
        files = [path for path in (teacher / "00001-v0-2.zarr" / "logits").rglob("*") if path.is_file()]
        return next(path for path in files if path.name != "zarr.json"), 0
    path = teacher / "00001-v0-2.h5"
    with h5py.File(path) as file:
        return path, file["logits"].id.get_chunk_info(0).byte_offset


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_shard_is_named_by_verify_and_by_training(
    softlabels_command: Callable, photos: Path, damage: str, format: str
) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 2, "--rows-per-shard", 6, "--format", format)
    assert softlabels_command(*command).exit_code == 0
    file, offset = first_label(Path("shards/cnn_tiny"), format)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: offset + 1]
    else:
        content[offset] ^= 4
    file.write_bytes(bytes(content))
    verified = softlabels_command("verify", "--labels", "shards")
    assert verified.exit_code == 1
    assert "00001-v0-2" in verified.output
    trained = softlabels_command("train", "--student", "cnn_tiny", "--labels", "shards", "--epochs", 1)
    assert re.search(r"00001-v0-2|incomplete|no complete view", complaint(trained))


def test_an_interrupt_says_how_to_go_on(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabels.models import NetworkTeacher

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NetworkTeacher, "outputs", interrupt)
    stopped = softlabels_command("dump", *SMALL, "--data", photos)
    assert stopped.output.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert stopped.exit_code == 130


def resigned(path: Path, **changes: object) -> None:
    """Give a manifest or a card other values, and the checksums and ids that belong to them."""
    from softlabels.core.documents import json_digest
    from softlabels.store._manifest import ImageFile, identity, store_id

    body = json.loads(path.read_text()) | changes
    del body["sha256"]
    if "id" in body:
        what = identity(body["classes"], tuple(body["class_names"]), body["recipe"], body["seed"])
        body["id"] = store_id(what, ImageFile.model_validate(body["images"][0]))
    path.write_text(json.dumps(body | {"sha256": json_digest(body)}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"kind": "csv", "file": "pipe"}}, "pipe is not a regular file"),
        ({"classes": 1 << 32}, "classes"),
        ({"classes": 1 << 31}, "classes"),
        ({"classes": 4}, "classes"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 70}, "seed"),
        ({"data": {"kind": "folder", "root": "locked"}}, "locked"),
        ({"data": {"kind": "folder", "root": "a\0b"}}, "NUL"),
        ({"class_names": ["a", "b\ud800", "c"]}, "no valid Unicode"),
        ({"recipe": {"steps": functools.reduce(lambda inner, _: [inner], range(500), [])}}, "levels deep"),
    ],
)
def test_a_manifest_that_would_harm_is_refused_in_one_line(
    softlabels_command: Callable,
    shards: Path,
    changes: dict,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(shards, "s")
    os.mkfifo("pipe")
    Path("locked").mkdir()
    scan = os.scandir

    def scandir(folder: str) -> object:
        if str(folder).endswith("locked"):  # as for anybody but root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    resigned(Path("s/manifest.json"), **changes)
    for command in (("train", "--student", "cnn_tiny", "--labels", "s"), ("repair", "--labels", "s", "--redump")):
        if command[0] == "repair":
            for path in Path("s").glob("*/00001*"):
                path.write_bytes(path.read_bytes()[:-1])
        assert said in complaint(softlabels_command(*command, "--device", "cpu"))


def test_control_characters_of_a_stranger_reach_no_terminal(softlabels_command: Callable, shards: Path) -> None:
    shutil.copytree(shards, "s")
    resigned(Path("s/cnn_tiny/teacher.json"), licence="\x1b[2J\x07free")
    shown = softlabels_command("info", "s").output
    assert "\\x1b[2J\\x07free" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("out", "said"), [("x" * 256, "too long"), ("d/" * 2100 + "x", "too long"), ("sh\udcff", "no valid Unicode")]
)
def test_odd_places_to_write_to_are_refused_in_one_line(
    softlabels_command: Callable, photos: Path, out: str, said: str
) -> None:
    for command in (("dump", *SMALL, "--data", photos), ("pack", "--data", photos), ("train", "--data", photos)):
        assert said in complaint(softlabels_command(*command, "--out", out))


def test_a_config_that_is_a_pipe_or_nested_without_end_is_refused(softlabels_command: Callable) -> None:
    os.mkfifo("pipe.yaml")
    assert "is a pipe" in complaint(softlabels_command("dump", "--config", "pipe.yaml"))
    for levels in (100, 500, 5000):
        Path("deep.yaml").write_text(f"recipe: {'[' * levels}{']' * levels}\n")
        assert "deep.yaml" in complaint(softlabels_command("dump", "--config", "deep.yaml"))


@pytest.mark.parametrize("content", ["{}", "[]", "7", "{", '{"best": null}'])
def test_a_result_that_is_none_is_no_finished_run(softlabels_command: Callable, photos: Path, content: str) -> None:
    command = ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 1, "--device", "cpu", "--workers", 0)
    assert softlabels_command(*command, "--out", "run").exit_code == 0
    Path("run/result.json").write_text(content)
    for again in ((*command, "--out", "run"), ("report", "run")):
        assert "result.json" in complaint(softlabels_command(*again))


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"epoch": 1}', '{"epoch": "1", "step": 1, "loss": 1}', "\udcff"])
def test_damaged_records_are_one_line_for_a_report_and_nothing_to_a_run_that_goes_on(
    softlabels_command: Callable, photos: Path, line: str
) -> None:
    command = ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 2, "--device", "cpu", "--workers", 0)
    command += ("--checkpoint-every", 1, "--out", "run")
    assert softlabels_command(*command).exit_code == 0
    whole = Path("run/metrics.jsonl").read_text()
    Path("run/metrics.jsonl").write_bytes((whole + line).encode("utf-8", "surrogateescape"))
    assert "metrics.jsonl" in complaint(softlabels_command("report", "run"))
    Path("run/result.json").unlink()
    assert softlabels_command(*command).exit_code == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(softlabels_command: Callable, photos: Path) -> None:
    command = ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 3, "--device", "cpu", "--workers", 0)
    command += ("--checkpoint-every", 1, "--out", "run")
    assert softlabels_command(*command).exit_code == 0
    before = Path("run/last.safetensors").read_bytes()
    older, newest = sorted(Path("run/checkpoints").iterdir())
    for damaged in (newest, older):
        Path("run/result.json").unlink(missing_ok=True)
        tensors = bytearray((damaged / "tensors.safetensors").read_bytes())
        tensors[-1000] ^= 16
        (damaged / "tensors.safetensors").write_bytes(tensors)
        if damaged is newest:
            done = softlabels_command(*command)
            assert done.exit_code == 0
            assert f"{newest} is damaged (it does not match its checksum); the one before it is used" in done.output
            assert Path("run/last.safetensors").read_bytes() == before
            shutil.copytree(older, "aside")
            older, newest = sorted(Path("run/checkpoints").iterdir())
            (newest / "state.json").write_text("[" * 900 + "]" * 900)
    assert "no other one is sound  tip: remove" in complaint(softlabels_command(*command))


def test_a_checkpoint_of_something_else_is_one_line(softlabels_command: Callable, photos: Path) -> None:
    command = ("train", "--data", photos, "--epochs", 2, "--device", "cpu", "--workers", 0, "--checkpoint-every", 1)
    for student in ("cnn_tiny", "cnn_small"):
        assert softlabels_command(*command, "--student", student, "--out", student).exit_code == 0
    Path("cnn_tiny/result.json").unlink()
    shutil.rmtree("cnn_tiny/checkpoints")
    shutil.copytree("cnn_small/checkpoints", "cnn_tiny/checkpoints")
    Path("cnn_tiny/checkpoints/step-abc").mkdir()
    said = complaint(softlabels_command(*command, "--student", "cnn_tiny", "--out", "cnn_tiny"))
    assert "does not fit this run" in said


def test_what_killed_trainings_left_is_removed_by_the_next(softlabels_command: Callable, photos: Path) -> None:
    command = ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 1, "--device", "cpu", "--workers", 0)
    for name in ("run/checkpoints/.partial-step-000000007-abc", "run/.partial-best.safetensors-abc"):
        Path(name).mkdir(parents=True)
        Path(name, "tensors.safetensors").write_bytes(b"x" * 1000)
    assert softlabels_command(*command, "--out", "run").exit_code == 0
    assert not list(Path("run").rglob(".partial-*"))


def test_students_are_the_same_bytes_in_two_runs(softlabels_command: Callable, photos: Path) -> None:
    command = ("train", "--student", "cnn_tiny", "--data", photos, "--epochs", 1, "--device", "cpu", "--workers", 0)
    for name in ("a", "b", "c"):
        assert softlabels_command(*command, "--out", name).exit_code == 0
    assert len({Path(name, "best.safetensors").read_bytes() for name in ("a", "b", "c")}) == 1
