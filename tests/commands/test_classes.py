"""Classes are compared as lists of names wherever two are known, and found in a teacher that knows more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from worlds import write_pictures

import softlabels
from softlabels import models
from softlabels.models import Description, Preprocessing, columns_by_name, teacher_spec

Command = Callable[..., Outcome]
HERE = ("--device", "cpu", "--workers", 0)


def line_of(outcome: Outcome) -> str:
    lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in outcome.output, outcome.output
    assert outcome.exit_code in (1, 2)
    return lines[0]


def folder(root: Path, *names: str, each: int = 4) -> Path:
    write_pictures(root, len(names), each)
    for number, name in enumerate(names):
        (root / f"class-{number}").rename(root / name)
    return root


def weights(path: Path, names: tuple[str, ...] | None, classes: int = 0) -> Path:
    """A small network's weights, which tell the names of their classes if there are any."""
    count = classes or len(names or ())
    network = models.build("cnn_tiny", count, seed=1)
    told = Description(
        architecture="small:cnn_tiny", classes=count, class_names=names or (), preprocessing=Preprocessing(size=16)
    )
    models.write_weights(path, network.state_dict(), told.to_metadata() if names is not None else {})
    return path


def test_held_out_images_of_another_class_are_refused(softlabels_command: Command, tmp_path: Path) -> None:
    for case, names in {"one": ("a", "b", "x"), "all": ("1_a", "2_b", "3_c"), "order": ("b", "c", "d")}.items():
        folder(tmp_path / case / "train", "a", "b", "c")
        for image in folder(tmp_path / case / "val", *names).rglob("*.jpg"):
            image.rename(image.with_name(f"v{image.name}"))
        train = ("train", "--student", "cnn_tiny", "--size", 16, "--epochs", 1, "--data", case, "--out", f"r-{case}")
        said = line_of(softlabels_command(*train, *HERE))
        assert f"class {names[{'one': 2}.get(case, 0)]!r}" in said
        assert "the student" in said
        assert not Path(f"r-{case}").exists()


def test_a_network_is_scored_on_the_classes_it_knows_only(softlabels_command: Command, tmp_path: Path) -> None:
    weights(tmp_path / "w.safetensors", ("a", "b", "c"))
    folder(tmp_path / "d", "a", "b", "x")
    score = ("eval", "--student", "w.safetensors", "--data", "d", *HERE)
    assert "class 'x' of folder:" in line_of(softlabels_command(*score))


def test_a_teacher_of_more_classes_answers_with_those_of_the_data_set(
    softlabels_command: Command, tmp_path: Path
) -> None:
    weights(tmp_path / "w.safetensors", ("ant", "Cat", "dog", "emu", "fox"))
    folder(tmp_path / "d", "cat", "fox")
    dump = ("dump", "--teacher", "file:w.safetensors", "--data", "d", "--views", 2, "--codec", "dense:fp32", *HERE)
    said = softlabels_command(*dump, "--out", "s")
    assert said.exit_code == 0, said.output
    assert "w answers with 2 of its 5 classes" in said.output
    assert "cat is 1, fox is 4" in said.output
    assert "a softmax is one over these alone" in said.output
    labels = softlabels.open_labels("s")
    assert (labels.classes, labels.class_names) == (2, ("cat", "fox"))
    # Equal to the whole teacher's logits on the same pixels.
    data = softlabels.SoftLabelDataset(labels, softlabels.open_images("d"), size=16)
    whole = teacher_spec("file:w.safetensors").open().logits(data[0][0][None])
    assert torch.allclose(labels.logits([0], 0).log_softmax(-1), whole[:, [1, 4]].log_softmax(-1), atol=1e-5)
    for command in (("verify",), ("repair", "--redump")):
        done = softlabels_command(*command, "--labels", "s", *HERE)
        assert done.exit_code == 0, done.output
    named = softlabels_command("verify", "--labels", "s", "--teacher", "file:w.safetensors", *HERE)
    assert named.exit_code == 0, named.output
    assert "nothing to do" in softlabels_command(*dump, "--out", "s").output
    for other in (("eval", "--student", "w.safetensors", "--data", "d"), ("plan", *dump[1:-4])):
        assert "answers with 2 of its 5 classes" in softlabels_command(*other, *HERE).output
    live = ("train", "--student", "cnn_tiny", "--size", 16, "--epochs", 1, "--data", "d", "--out", "r", *HERE)
    said = softlabels_command(*live, "--teacher", "file:w.safetensors")
    assert said.exit_code == 0 and "answers with 2 of its 5 classes" in said.output


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_class_map_says_which_column_is_which_class(softlabels_command: Command, tmp_path: Path, form: str) -> None:
    weights(tmp_path / "w.safetensors", ("ant", "cat", "dog", "emu", "fox"))
    folder(tmp_path / "d", "hounds", "reynard")
    dump = ("dump", "--teacher", "file:w.safetensors", "--data", "d", "--views", 1, *HERE)
    said = line_of(softlabels_command(*dump))
    assert "class 'hounds' is none of its classes" in said
    assert "--class-map FILE" in said
    told = {"hounds": "dog", "reynard": 4}
    text = json.dumps(told) if form == "json" else "".join(f"{name},{column}\n" for name, column in told.items())
    (tmp_path / f"map.{form}").write_text(text)
    mapped = softlabels_command(*dump, "--class-map", f"map.{form}")
    assert mapped.exit_code == 0, mapped.output
    assert "hounds is 2, reynard is 4" in mapped.output
    assert softlabels_command("verify", "--labels", "shards", *HERE).exit_code == 0
    # Another mapping is another teacher.
    (tmp_path / f"map.{form}").write_text(text.replace("4", "3"))
    assert "made otherwise" in (again := softlabels_command(*dump, "--class-map", f"map.{form}")).output or (
        "other" in again.output
    )
    assert again.exit_code == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hounds,2\n", "names no column for class 'reynard'"),
        ("hounds,2\nreynard,5\n", "the column 5; there are 0 to 4"),
        ("hounds,2\nreynard,fax\n", "class 'fax' is none of its classes  tip: did you mean 'fox'"),
        ("hounds\nreynard\n", "line 1"),
        ("hounds,2\nhounds,3\n", "twice"),
    ],
)
def test_a_class_map_that_does_not_fit_is_named(
    softlabels_command: Command, tmp_path: Path, text: str, said: str
) -> None:
    weights(tmp_path / "w.safetensors", ("ant", "cat", "dog", "emu", "fox"))
    folder(tmp_path / "d", "hounds", "reynard")
    (tmp_path / "map.csv").write_text(text)
    dump = ("dump", "--teacher", "file:w.safetensors", "--data", "d", "--class-map", "map.csv", *HERE)
    assert said in line_of(softlabels_command(*dump))
    assert not Path("shards").exists()


def test_numbers_are_no_names_to_find_classes_by(softlabels_command: Command, tmp_path: Path) -> None:
    weights(tmp_path / "w.pt.safetensors", None, classes=7)
    folder(tmp_path / "d", "0", "1")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "w.pt.safetensors", "--data", "d", *HERE)
    said = line_of(softlabels_command(*dump))
    assert "7 classes" in said and "--class-map FILE" in said and "classes=7" in said


def test_the_classes_of_imagenet_are_found_by_wnid_and_by_word() -> None:
    wnids, words = ["n02206856", "n02219486"], ["bee", "ant"]
    assert columns_by_name(wnids, (), 1000).columns == (309, 310)
    assert columns_by_name(words, (), 1000).columns == (309, 310)
    published = models.published_weights("resnet18")
    assert published is not None
    assert columns_by_name(wnids, published.class_names, 1000) == ((309, 310), "by wnid")
    assert models.first_difference([name for _, names in known(1000) for name in names][:1000], words * 500)
    by_wnid, by_word = (names for _, names in known(1000))
    assert models.first_difference(by_wnid, by_word) is None
    assert models.first_difference([*by_wnid[1::-1], *by_wnid[2:]], by_word) is not None


def known(classes: int) -> list[tuple[str, list[str]]]:
    return [(how, list(names)) for how, names in models.known_lists(classes)]


def test_class_numbers_of_which_the_last_are_not_there_are_the_students_all_the_same(
    softlabels_command: Command, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "p", 1, 8)
    rows = [f"p/class-0/{number:03d}.jpg" for number in range(8)]
    for file, labels in (("train.csv", range(8)), ("few.csv", [0, 1, 2, 3, 3, 2, 1, 0])):
        lines = [f"{row},{label}" for row, label in zip(rows, labels, strict=True)]
        (tmp_path / file).write_text("path,label\n" + "\n".join(lines) + "\n")
    train = ("train", "--student", "cnn_tiny", "--size", 16, "--epochs", 1, "--data", "csv:train.csv", *HERE)
    done = softlabels_command(*train, "--eval-data", "csv:few.csv", "--out", "r")
    assert done.exit_code == 0 and "top-1" in done.output, done.output


def test_a_head_whose_classes_changed_their_order_is_not_gone_on_with(
    softlabels_command: Command, tmp_path: Path
) -> None:
    weights(tmp_path / "w.safetensors", ("dog", "cat"))
    folder(tmp_path / "same", "cat", "dog")
    folder(tmp_path / "other", "ant", "bee")
    train = ("train", "--init", "w.safetensors", "--epochs", 1, *HERE)
    assert "class 'cat' is number 0 here and number 1 of" in line_of(softlabels_command(*train, "--data", "same"))
    done = softlabels_command(*train, "--data", "other", "--out", "r")
    assert done.exit_code == 0, done.output
    assert "its class 0 was 'dog' and is 'ant' now" in done.output


def test_images_that_went_or_lack_labels_are_counted_in_the_headers(
    softlabels_command: Command, tmp_path: Path
) -> None:
    folder(tmp_path / "d", "a", "b")
    assert (
        softlabels_command("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", "d", *HERE).exit_code == 0
    )
    (tmp_path / "d" / "a" / "001.jpg").unlink()
    (tmp_path / "d" / "b" / "notes.txt").touch()
    train = softlabels_command("train", "--student", "cnn_tiny", "--labels", "shards", "--epochs", 1, *HERE)
    assert "1 of the 8 labelled images are not in" in train.output
    assert "(first: 'a/001.jpg')" in train.output
    assert "1 files below" in train.output and "1 .txt" in train.output
    assert (
        "none has a label"
        in softlabels_command(
            "plan", "--teacher", "cnn_tiny", "--weights", "random", "--data", "images:d", "--views", 1, *HERE
        ).output
    )


def test_a_store_from_before_class_orders_keeps_the_order_of_text(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", *map(str, range(12)), each=1)
    softlabels.dump(
        teacher=["cnn_tiny"],
        weights=["random"],
        data=f"{root} class_order=text",
        views=1,
        out=str(tmp_path / "s"),
        quiet=True,
        device="cpu",
    )
    manifest = tmp_path / "s" / "manifest.json"
    told = json.loads(manifest.read_text())
    assert told["data"].pop("class_order") == "text"
    from softlabels.core.documents import json_digest

    body = {name: value for name, value in told.items() if name != "sha256"}
    manifest.write_text(json.dumps({**body, "sha256": json_digest(body)}, indent=2) + "\n")
    assert softlabels.verify(labels=str(tmp_path / "s"), quiet=True).ok


def test_images_without_hard_labels_are_counted_by_info(softlabels_command: Command, tmp_path: Path) -> None:
    folder(tmp_path / "d", "a", "b")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--views", 1, *HERE)
    assert softlabels_command(*dump, "--data", "images:d", "--out", "none").exit_code == 0
    assert softlabels_command(*dump, "--data", "d", "--out", "all").exit_code == 0
    assert "none with a hard label" in softlabels_command("info", "none").output
    assert "all with a hard label" in softlabels_command("info", "all").output


def test_a_store_is_never_written_that_could_not_be_read(tmp_path: Path) -> None:
    import pyarrow as pa

    from softlabels.store import create

    table = pa.table({"key": ["a"], "label": pa.array([0], pa.int64()), "checksum": pa.array([1], pa.uint64())})
    names = [f"{number:07d}" * 10 for number in range(1_000_000)]
    with pytest.raises(softlabels.StoreError, match="more than the 67,108,864 that are read"):
        create(
            tmp_path / "s",
            data={},
            images=table,
            class_names=names,
            classes=len(names),
            recipe={},
            seed=0,
            rows_per_shard=1,
        )
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_wnids_are_found_in_a_head_of_imagenets_width(softlabels_command: Command, tmp_path: Path) -> None:
    weights(tmp_path / "w.safetensors", None, classes=1000)
    folder(tmp_path / "d", "n02206856", "n02219486")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "w.safetensors", "--data", "d", "--views", 1, *HERE)
    said = softlabels_command(*dump)
    assert said.exit_code == 0, said.output
    assert "found by wnid, as its 1,000 classes are taken to be ImageNet's (n02206856 is 309, n02219486 is 310)" in (
        said.output
    )
    assert softlabels.open_labels("shards").classes == 2
