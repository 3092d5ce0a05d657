"""A plan says what a dump does: what it writes, what it costs, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchvision.io import write_jpeg
from worlds import picture, write_pictures

import softlabels
from softlabels.dumping import dump as dumping
from softlabels.dumping import stores as _store

SMALL = ("--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu", "--workers", 0)
DUMP = (*SMALL, "--data", "photos", "--views", 2, "--rows-per-shard", 5)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos")


@pytest.mark.parametrize(
    "changed",
    [
        ("--data", "pack:pack"),
        ("--data", "fewer"),
        ("--data", "more"),
        ("--seed", 3),
        ("--recipe", "crop"),
        ("--codec", "topk:2"),
        ("--format", "zarr"),
        ("--compression", "zstd"),
        ("--weights", "random:1"),
        ("--amp", "bf16"),
        ("--out", "shards/inside"),
    ],
    ids=lambda changed: f"{changed[0][2:]}-{str(changed[1]).replace('/', '-')}",
)
def test_a_plan_refuses_what_a_dump_refuses_in_the_same_words(
    softlabels_command: Callable, photos: Path, tmp_path: Path, changed: tuple[str, Any]
) -> None:
    assert softlabels_command("dump", *DUMP).exit_code == 0
    softlabels_command("pack", "--data", "photos", "--out", "pack", "--max-side", 30)
    shutil.copytree(photos, tmp_path / "fewer")
    (tmp_path / "fewer/class-1/001.jpg").unlink()
    shutil.copytree(photos, tmp_path / "more")
    write_jpeg(picture(1), str(tmp_path / "more/class-1/more.jpg"))
    settings = dict(zip(DUMP[::2], DUMP[1::2], strict=True)) | dict([changed])
    options = tuple(each for setting in settings.items() for each in setting)
    planned, dumped = (softlabels_command(command, *options) for command in ("plan", "dump"))
    assert dumped.exit_code == 1
    assert (planned.exit_code, planned.output) == (dumped.exit_code, dumped.output)
    assert len(dumped.output.splitlines()) == 1


@pytest.mark.parametrize(
    "there",
    [
        "some views",
        "fewer images",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("nothing", "another teacher")),
    ],
)
def test_a_plan_counts_what_a_dump_of_the_same_part_writes(
    softlabels_command: Callable, photos: Path, there: str
) -> None:
    if there == "another teacher":
        softlabels_command("dump", *(("cnn_small" if each == "cnn_tiny" else each) for each in DUMP))
    elif there == "some views":
        softlabels_command("dump", *DUMP, "--views", 1, "--part", "1/3")
    elif there == "fewer images":
        softlabels_command("dump", *DUMP, "--limit", 7)
    settings: dict[str, Any] = {"teacher": ["cnn_tiny"], "weights": ["random"], "data": str(photos), "views": 2}
    settings |= {"rows_per_shard": 5, "device": "cpu", "grow": True, "out": "shards/", "quiet": True}
    for part in ("0/3", "1/3", "2/3", "0/1"):
        (plan,) = softlabels.plan(part=part, **settings)
        (report,) = softlabels.dump(part=part, **settings)
        assert (plan.missing_shards, plan.missing_labels) == (report.shards, report.labels), part
        assert plan.shards == len(softlabels.open_labels("shards").store.manifest.runs)
    assert softlabels.plan(**settings)[0].missing_shards == 0


@pytest.mark.usefixtures("photos")
def test_a_plan_tells_a_shards_memory_and_what_a_crash_costs(softlabels_command: Callable) -> None:
    planned = softlabels_command("plan", *DUMP, "--part", "1/3")
    assert "still missing of part 1/3: 1 shard, 10 labels; at" in planned.output
    assert "a shard takes up to 60 B of memory while it is made, 120 B while it is written" in planned.output
    planned = softlabels_command("plan", *DUMP, "--format", "zarr", "--codec", "dense:fp32")
    assert "120 B of memory while it is made, 360 B while it is written; a crash costs up to one, " in planned.output


@pytest.mark.usefixtures("photos")
def test_shards_that_no_reader_takes_or_no_machine_holds_are_refused_before_the_first(
    softlabels_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, "--data", "photos", "--views", 3)
    for where, limit, said in (
        ("softlabels.store._layout.LARGEST_CHUNK", 100, "16 rows per shard or fewer"),
        (
            "softlabels.dumping.dump.machine_memory",
            lambda: 500,
            "a shard of 18 images and 3 views takes 648 B of memory",
        ),
    ):
        with monkeypatch.context() as small:
            small.setattr(where, limit)
            for command in ("plan", "dump"):
                done = softlabels_command(command, *options)
                assert done.exit_code == 1
                assert said in done.output
                assert not Path("shards").exists()
    assert softlabels_command("dump", *options).exit_code == 0


@pytest.mark.usefixtures("photos")
def test_parts_in_another_precision_are_another_teacher(softlabels_command: Callable) -> None:
    assert softlabels_command("dump", *DUMP, "--part", "0/2").exit_code == 0
    other = softlabels_command("dump", *DUMP, "--part", "1/2", "--amp", "bf16")
    assert other.exit_code == 1
    assert "precision is 'fp32' there and 'bf16' here" in other.output
    assert softlabels_command("dump", *DUMP, "--part", "1/2", "--amp", "bf16", "--out", "bf16").exit_code == 0
    merged = softlabels_command("merge", "--labels", "shards", "--labels", "bf16", "--out", "merged")
    assert merged.exit_code == 1
    assert "precision is 'fp32' there and 'bf16' here" in merged.output
    # The teacher is run again in what the labels were made in.
    assert softlabels_command("dump", *DUMP, "--part", "0/2", "--amp", "bf16", "--out", "bf16").exit_code == 0
    told = softlabels.open_labels("bf16").logits(range(18), 0)
    shard = next(Path("bf16/cnn_tiny").glob("00001-*"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"x" * 9)
    assert softlabels_command("repair", "--labels", "bf16", "--redump", "--device", "cpu").exit_code == 0
    assert softlabels.open_labels("bf16").logits(range(18), 0).equal(told)
    refused = softlabels_command("verify", "--labels", "bf16", "--device", "cpu", "--amp", "fp16")
    assert "made in bf16  tip: leave --amp fp16 out" in refused.output


def test_labels_of_earlier_versions_go_on_with_a_line(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose cards and recipes lack settings that have a default now, and the precision."""
    stored_as, create = dumping.stored_as, _store.create

    def without(name: str, value: dict[str, Any]) -> dict[str, Any]:
        return {key: inner for key, inner in value.items() if key != name}

    def earlier_card(*args: Any, **settings: Any) -> dict[str, Any]:
        stored = stored_as(*args, **settings)
        return {**stored, "codec": without("record", stored["codec"])}

    def earlier_store(root: Any, *, recipe: dict[str, Any], **settings: Any) -> Any:
        steps = [without("ratio", step) for step in recipe["steps"]]
        return create(root, recipe={**recipe, "steps": steps}, **settings)

    options = (*DUMP, "--codec", "topk:2")
    with monkeypatch.context() as earlier:
        earlier.setattr(dumping, "stored_as", earlier_card)
        earlier.setattr(_store, "create", earlier_store)
        earlier.setattr("softlabels.loading.settings.Machine.precision", None)
        assert softlabels_command("dump", *options).exit_code == 0
    card = json.loads(Path("shards/cnn_tiny/teacher.json").read_text())
    assert "record" not in card["codec"]
    assert "precision" not in card
    assert "ratio" not in json.loads(Path("shards/manifest.json").read_text())["recipe"]["steps"][0]
    again = softlabels_command("dump", *options)
    assert (again.exit_code, again.output.count("nothing to do")) == (0, 1), again.output
    options = tuple(3 if each == 2 else each for each in options)
    more = softlabels_command("dump", *options)
    assert more.exit_code == 0, more.output
    assert "do not say what the teacher computed in; it goes on in fp32" in more.output
    write_jpeg(picture(5), str(photos / "class-2/more.jpg"))
    assert softlabels_command("dump", *options, "--grow").exit_code == 0
    assert softlabels_command("verify", "--samples", 0).exit_code == 0
    assert softlabels_command("dump", *options, "--out", "new").exit_code == 0
    merged = softlabels_command("merge", "--labels", "shards", "--labels", "new", "--out", "merged")
    assert "recipe" not in merged.output
    assert "codec" not in merged.output
    assert softlabels_command("dump", *options, "--recipe", "crop").exit_code == 1
