"""The Python surface: examples in docstrings, networks and data sets as objects, loaders, students loaded again."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ImageOps
import pytest
import torch
import torchvision
import yaml
from torch import nn
from torchvision.datasets import ImageFolder

import softlabels
from softlabels import losses

PROMISED = {name: home for name, home in softlabels._HOMES.items() if home not in ("commands", "errors")}


class Net(nn.Module):
    """A small classifier of 8x8 images."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.norm, self.head, self.drop = nn.BatchNorm2d(3), nn.Linear(192, classes), nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.head(self.norm(images).flatten(1)))


class Photos:
    """A map-style data set of PIL images, whose labels are known without opening one."""

    classes = ("class-0", "class-1", "class-2")

    def __init__(self, folder: Path) -> None:
        self._folder = torchvision.datasets.ImageFolder(folder)
        self.targets = self._folder.targets

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, number: int) -> Any:
        return self._folder[number]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def store(photos: Path, net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the photos by a module, and a run that learnt from them."""
    out = tmp_path_factory.mktemp("python")
    softlabels.dump(
        teacher={"module": net, "size": 8, "name": "net"},
        data=photos,
        views=2,
        out=out / "shards",
        device="cpu",
        workers=0,
        quiet=True,
    )
    return out / "shards"


@pytest.fixture(scope="module")
def result(store: Path, photos: Path) -> softlabels.TrainResult:
    return softlabels.train(
        student="cnn_tiny", labels=store, size=8, epochs=2, out=store.parent / "run", eval_data=photos, device="cpu",
        workers=0, quiet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the examples of docstrings open."""
    place = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.manual_seed(0)
        usual: dict[str, Any] = {"device": "cpu", "workers": 0, "quiet": True}
        teacher = {"module": nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "size": 8, "name": "teacher"}
        softlabels.dump(teacher=teacher, data="digits", recipe="pad", views=2, out="shards/", **usual)
        softlabels.dump(teacher=teacher, data="digits", recipe="clean", views=1, out="clean/", **usual)
        softlabels.train(student="cnn_tiny", labels="shards/", size=8, limit=64, epochs=1, **usual)
        yield place


@pytest.mark.parametrize("name", sorted(PROMISED))
@pytest.mark.usefixtures("documented")
def test_examples_in_docstrings_show_what_happens(name: str) -> None:
    module = importlib.import_module(f"softlabels.{PROMISED[name]}")
    tests = doctest.DocTestFinder().find(
        getattr(module, name), name, module, globs={"softlabels": softlabels, "torch": torch}
    )
    for test in tests:
        test.globs["network"] = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        output: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test, out=output.append).failed == 0, "".join(output)


def test_an_editor_is_offered_the_promised_names_alone() -> None:
    offered = {name for name in dir(softlabels) if not name.startswith("__")}
    assert offered == {*softlabels.__all__, "losses"}
    assert softlabels.losses is losses


def test_every_loss_has_an_example_that_is_true() -> None:
    shown = {"losses": losses, "torch": torch}
    functions = [each for each in map(vars(losses).get, losses.__all__) if inspect.isfunction(each)]
    for function in functions:
        (test,) = doctest.DocTestFinder(recurse=False).find(function, globs=dict(shown))
        assert test.examples, function
        assert doctest.DocTestRunner().run(test).failed == 0, function


@pytest.mark.usefixtures("documented")
def test_the_blocks_of_the_page_run_in_order() -> None:
    page = Path(__file__).parents[1].joinpath("docs/python.md").read_text(encoding="utf-8")
    given: dict[str, Any] = {"network": nn.Sequential(nn.Flatten(), nn.Linear(192, 10))}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, given)
    assert given["result"].top1 == given["result"]["last"]["top1"]
    assert given["name"] in given["student"].classes
    assert len(given["suspicious"]) < len(given["labels"])


def test_every_promised_function_and_data_set_has_an_example() -> None:
    for name in ("open_labels", "SoftLabelDataset", "OneViewEach", "make_loader", "load_student", "create_labels"):
        assert ">>> " in (getattr(softlabels, name).__doc__ or ""), name
    assert ">>> " in softlabels.attach.__doc__ + softlabels.open_images.__doc__  # type: ignore[operator]


def test_a_module_labels_as_it_answers_in_evaluation_and_is_left_as_it_was(store: Path, net: Net) -> None:
    assert net.training
    assert all(each.requires_grad for each in net.parameters())
    labels = softlabels.open_labels(store)
    assert labels.teachers == ("net",)
    dataset = softlabels.SoftLabelDataset(labels, labels_images(store), size=8)
    images = torch.stack([dataset[number][0] for number in range(0, len(dataset), 2)])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = softlabels_eval(net)((images / 255 - mean) / std)
    stored = labels.logits(range(len(labels)), 0)
    assert torch.allclose(stored - stored.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True), atol=5e-3)


def labels_images(store: Path) -> Any:
    return softlabels.open_images(softlabels.open_labels(store).store.manifest.data)


def softlabels_eval(net: Net) -> nn.Module:
    return pickle.loads(pickle.dumps(net)).eval()


def test_a_stores_module_is_named_where_it_has_to_be_given_again(
    store: Path, net: Net, softlabels_command: Callable
) -> None:
    done = softlabels_command("verify", "--labels", store, "--device", "cpu")
    assert done.exit_code == 2
    assert "net was an object of a Python program" in done.output
    assert "Traceback" not in done.output
    again = softlabels_command("dump", "--config", store / "dump-net.yaml", "--out", "other")
    assert again.exit_code == 2
    assert "the teacher was an object of a Python program" in again.output
    spec = {"module": net, "size": 8, "name": "net"}
    assert softlabels.verify(labels=store, teacher=spec, device="cpu", workers=0, quiet=True).problems == []
    torch.manual_seed(1)
    with pytest.raises(softlabels.StoreError, match="other weights"):
        softlabels.verify(labels=store, teacher={**spec, "module": Net()}, device="cpu", workers=0, quiet=True)


def test_a_module_is_trained_as_a_copy_and_loaded_again(store: Path, photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Net()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    usual: dict[str, Any] = {
        "labels": store, "epochs": 1, "out": tmp_path / "run", "eval_data": photos, "device": "cpu", "workers": 0,
        "quiet": True,
    }  # fmt: skip
    result = softlabels.train(student=student, size=8, **usual)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert softlabels.train(student=student, size=8, **usual) == result  # it is done already
    with pytest.raises(softlabels.RunError, match="first weights"):
        softlabels.train(student=Net(), size=8, **usual)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["student"]["kind"] == "object"
    with pytest.raises(softlabels.ConfigError, match=r"the student was an object of a Python program \(.*Net"):
        softlabels.train(config=tmp_path / "run/config.yaml", quiet=True)
    with pytest.raises(softlabels.ModelError, match="load_student"):
        softlabels.load_student(result.folder)
    loaded = softlabels.load_student(result.folder, student=Net())
    score = softlabels.evaluate(student=loaded.network, size=8, data=photos, device="cpu", workers=0, quiet=True)
    assert result.best is not None
    assert (score.top1, score.cross_entropy) == (result.best.top1, result.best.cross_entropy)


def test_modules_are_planned_swept_and_taught_by(photos: Path, net: Net, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"data": photos, "device": "cpu", "workers": 0, "quiet": True}
    teacher = Net()
    noted = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    teacher.pretrained_cfg = noted  # as timm has it
    softlabels.dump(teacher=teacher, dry_run=True, out=tmp_path / "s", **usual)
    assert not (tmp_path / "s").exists()
    softlabels.dump(teacher=teacher, views=1, out=tmp_path / "s", **usual)
    seen = softlabels.open_labels(tmp_path / "s").of("Net").card.preprocessing
    assert (seen["size"], seen["std"], seen["interpolation"]) == (8, [0.25] * 3, "bicubic")
    swept = softlabels.sweep(
        student=Net(), size=8, teacher={"module": net, "size": 8}, grid="lr=0.01,0.001", epochs=1,
        out=tmp_path / "sweep", **usual,
    )  # fmt: skip
    assert len(swept.table) == 2


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (object(), "torch.nn.Module"),
        ({"module": nn.Flatten(), "weights": "x.pt"}, "comes with its weights"),
        ({"module": "resnet"}, "give the torch.nn.Module itself"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "`size`"),
    ],
)
def test_what_is_no_teacher_is_refused_in_a_line(teacher: Any, message: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(softlabels.SoftlabelsError, match=message):
        softlabels.dump(teacher=teacher, data=photos, out=tmp_path / "s", device="cpu", workers=0, quiet=True)


def test_a_result_has_names_and_is_the_mapping_of_its_file(result: softlabels.TrainResult) -> None:
    written = json.loads((result.folder / "result.json").read_text())
    assert dict(result) == written
    assert result["last"]["top1"] == result.top1 == result.last.top1  # type: ignore[union-attr]
    assert result.history["epoch"].tolist() == [1, 2]
    assert result.history["top1"].iloc[-1] == result.top1
    assert result.weights.is_file()
    assert result.last_weights.is_file()
    assert result.closeness is None
    assert "top1" in repr(result)


@pytest.mark.parametrize("weights", ["best", "last"])
def test_a_loaded_student_scores_what_eval_scores(weights: str, result: softlabels.TrainResult, photos: Path) -> None:
    student = softlabels.load_student(result.folder, weights)
    assert not student.training
    images = softlabels.open_images(photos)
    assert student.classes == images.classes
    seen = torch.stack([student.prepare(images.decode(row)) for row in range(len(images))])
    with torch.no_grad():
        right = (student(seen).argmax(1).numpy() == images.labels).mean()
    scored = softlabels.evaluate(
        student=f"file:{result.folder}/{weights}.safetensors", data=photos, device="cpu", workers=0, quiet=True
    )
    assert right == pytest.approx(scored.top1)
    path = photos / images.keys[0].as_py()
    assert torch.equal(student.prepare(path), seen[0])
    assert torch.equal(student.prepare(torchvision.io.decode_image(str(path))), seen[0])


def test_an_image_folder_has_the_keys_of_its_folder(store: Path, photos: Path, tmp_path: Path) -> None:
    folder = torchvision.datasets.ImageFolder(photos)
    labels = softlabels.open_labels(store)
    ours, theirs = softlabels.open_images(photos), softlabels.open_images(folder)
    assert theirs.keys.equals(ours.keys)
    assert np.array_equal(theirs.labels, ours.labels)
    assert theirs.classes == ours.classes
    one, other = (softlabels.SoftLabelDataset(labels, each, size=8)[5] for each in (folder, photos))
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
    part = torch.utils.data.Subset(folder, [3, 11])
    dataset = softlabels.SoftLabelDataset(labels, part, size=8)
    assert len(dataset) == 4
    with softlabels.create_labels(tmp_path / "own", images=folder, recipe="clean", views=1, classes=3) as writer:
        assert "18 images" in repr(writer)
        for batch in writer.missing("own", size=8):
            assert repr(batch) == "Batch(18 images of 8 px)"
            writer.put(torch.zeros(len(batch), 3) + torch.arange(3))
    assert softlabels.open_labels(tmp_path / "own").views == 1


def test_a_map_style_data_set_is_labelled_and_trained_on_by_its_keys(photos: Path, net: Net, tmp_path: Path) -> None:
    images = softlabels.open_images(Photos(photos), keys=lambda number: f"photo-{number}")
    assert images.keys[4].as_py() == "photo-4"
    usual: dict[str, Any] = {"data": images, "device": "cpu", "workers": 0, "quiet": True}
    out = tmp_path / "shards"
    softlabels.dump(teacher={"module": net, "size": 8}, out=out, views=2, **usual)
    result = softlabels.train(student="cnn_tiny", labels=out, size=8, epochs=1, out=tmp_path / "run", **usual)
    assert result.images == 18
    with pytest.raises(softlabels.DataError, match=r"object of a Python program.*Photos.*`data`"):
        softlabels.train(student="cnn_tiny", labels=out, size=8, out=tmp_path / "other", quiet=True)
    with pytest.raises(softlabels.ConfigError, match="data set was an object of a Python program"):
        softlabels.train(config=tmp_path / "run/config.yaml", quiet=True)


@pytest.mark.parametrize("opened", [softlabels.open_images, torchvision.datasets.ImageFolder])
def test_images_stand_in_a_config_as_they_are_opened_again(
    opened: Callable, photos: Path, tmp_path: Path, net: Net
) -> None:
    teacher, usual = {"module": net, "size": 8}, {"device": "cpu", "workers": 0, "quiet": True}
    softlabels.dump(teacher=teacher, data=opened(photos), views=1, out=tmp_path / "s", **usual)
    data = yaml.safe_load((tmp_path / "s/dump-Net.yaml").read_text())["data"]
    assert softlabels.open_images(data).keys.equals(softlabels.open_images(photos).keys)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"transform": torch.nn.Identity()}, {"keys": str}, "transform=None"),
        ({}, {}, r"keys=\[...\]"),
        ({}, {"keys": ["a"]}, "1 keys for 18 items"),
        ({}, {"keys": ["same"] * 18}, "key twice"),
        ({"targets": [0.5] * 18}, {"keys": str}, "no class numbers"),
    ],
)
def test_a_data_set_that_cannot_be_labelled_is_refused_in_a_line(
    change: dict[str, Any], settings: Any, message: str, photos: Path
) -> None:
    dataset = Photos(photos)
    vars(dataset).update(change)
    with pytest.raises(softlabels.SoftlabelsError, match=message):
        softlabels.open_images(dataset, **settings)


def test_items_that_are_no_whole_images_are_named() -> None:
    images = softlabels.open_images([(torch.zeros(3, 8, 8), 0)], keys=["a"])
    with pytest.raises(softlabels.DataError, match=r"item 0 .* torch.float32 \(3, 8, 8\).*without a transform"):
        images.decode(0)
    grey = softlabels.open_images([{"image": np.zeros((4, 5), np.uint8), "label": 1}], keys=["a"])
    assert grey.decode(0).shape == (3, 4, 5)
    assert grey.labels.tolist() == [1]


def test_every_loss_takes_the_logits_of_the_data_set(store: Path, photos: Path) -> None:
    labels = softlabels.open_labels(store)
    dataset = softlabels.SoftLabelDataset(labels, photos, size=8, target="logits", return_index=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=6, sampler=softlabels.OneViewEach(dataset))
    images, hard, logits, index = next(iter(loader))
    rows, views = index // dataset.views, index % dataset.views
    assert torch.equal(logits, labels.logits(rows, views))
    assert torch.equal(hard, torch.tensor(labels.store.labels)[rows])
    student = images.flatten(1)[:, :3] / 255
    for name in ("kl_divergence", "decoupled_kd", "dist", "logit_mse", "weighted_soft_labels"):
        assert torch.isfinite(getattr(losses, name)(student, logits, temperature=2.0, labels=hard)), name


def test_logits_of_several_teachers_are_those_of_their_blend(shards: Path, photos: Path) -> None:
    labels = softlabels.open_labels(shards)
    logits, soft = (
        softlabels.SoftLabelDataset(labels, photos, size=8, temperature=3.0, target=target)[7][2]
        for target in ("logits", "probabilities")
    )
    assert torch.allclose((logits / 3).softmax(-1), soft, atol=1e-6)


def test_labels_without_logits_refuse_them(shards: Path, photos: Path, tmp_path: Path) -> None:
    softlabels.convert(labels=shards, out=tmp_path / "s", codec="sampled:5", lossy=True, quiet=True)
    with pytest.raises(softlabels.ConfigError, match="probabilities alone"):
        softlabels.SoftLabelDataset(softlabels.open_labels(tmp_path / "s"), photos, size=8, target="logits")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_next_epoch_with_each_iteration(workers: int, store: Path, photos: Path) -> None:
    labels = softlabels.open_labels(store)
    loader = softlabels.make_loader(labels, photos, size=8, batch_size=5, return_index=True, num_workers=workers)
    dataset = softlabels.SoftLabelDataset(labels, photos, size=8)
    for epoch in (0, 1):
        batches = list(loader)
        index = torch.cat([batch[3] for batch in batches])
        assert index.tolist() == softlabels.OneViewEach(dataset, epoch).numbers().tolist()
    images, hard, soft, index = batches[0]
    image, label, probabilities = dataset[int(index[0])]
    assert torch.equal(images[0], image)
    assert hard[0] == label
    assert torch.equal(soft[0], probabilities)
    loader.sampler.set_epoch(0)
    assert torch.cat([batch[3] for batch in loader])[0] == softlabels.OneViewEach(dataset, 0).numbers()[0]


def test_a_loader_normalises_drops_and_repeats_as_it_is_told(store: Path, photos: Path) -> None:
    plain = softlabels.make_loader(store, photos, size=8, batch_size=8, drop_last=True, views_per_image=2)
    half = softlabels.make_loader(
        store, photos, size=8, batch_size=8, normalize=True, mean=[0.5] * 3, std=[0.5] * 3, views_per_image=2
    )
    assert (len(plain), len(half)) == (4, 5)
    images, normalised = next(iter(plain))[0], next(iter(half))[0]
    assert torch.allclose(normalised, images / 127.5 - 1, atol=1e-6)
    windowed = softlabels.make_loader(store, photos, size=8, batch_size=18, shuffle_window=1, return_index=True)
    assert sorted((next(iter(windowed))[3] // 2).tolist()) == list(range(18))


def test_the_likeliest_classes_are_a_table(shards: Path) -> None:
    labels = softlabels.open_labels(shards)
    table = labels.top([2, 0], view=1, k=2, temperature=2.0)
    assert table.columns.tolist() == ["key", "hard_label", "rank", "class", "probability"]
    assert table["key"].tolist() == [labels.keys[2].as_py()] * 2 + [labels.keys[0].as_py()] * 2
    assert table["rank"].tolist() == [1, 2, 1, 2]
    assert set(table["hard_label"]) == {"class-0"}
    best = labels.probabilities([2, 0], 1, 2.0).max(1)
    assert table["probability"].tolist()[::2] == pytest.approx(best.values.tolist())
    assert table["class"].tolist()[::2] == [labels.class_names[each] for each in best.indices.tolist()]


def test_what_a_notebook_shows_is_short(shards: Path, photos: Path, result: softlabels.TrainResult) -> None:
    labels = softlabels.open_labels(shards)
    dataset = softlabels.SoftLabelDataset(labels, photos, size=8)
    shown = [
        dataset,
        softlabels.OneViewEach(dataset, epoch=3),
        softlabels.ShuffledShards(dataset, 1),
        softlabels.make_loader(labels, photos, size=8).sampler,
        softlabels.open_images("digits"),
        softlabels.open_images(photos),
        softlabels.open_images(Photos(photos), keys=str),
        result,
    ]
    for each in shown:
        assert "\n" not in repr(each)
        assert len(repr(each)) < 250, repr(each)
        assert "object at 0x" not in repr(each)
    assert "18 images" in repr(dataset)
    assert "epoch 3" in repr(shown[1])
    html = labels._repr_html_()
    assert html.count("<tr>") == 3
    assert "cnn_small" in html


def test_a_dataset_refuses_other_images_under_the_same_keys(photos: Path, shards: Path, tmp_path: Path) -> None:
    """As a training does: by digests of a few views, and by the names of classes."""
    other = tmp_path / "photos"
    shutil.copytree(photos, other)
    files = sorted(other.rglob("*.jpg"))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)
    with pytest.raises(softlabels.StoreError, match="same decoder and versions: another image under its key"):
        softlabels.make_loader(shards, other, size=16)
    turned = softlabels.open_images(Turned(photos), keys=softlabels.open_images(photos).keys.to_pylist())
    with pytest.raises(softlabels.ConfigError, match="same classes in the same order"):
        softlabels.SoftLabelDataset(shards, turned, size=16)


class Turned(ImageFolder):
    """A folder whose classes are counted from the last."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.classes = self.classes[::-1]
        self.targets = [len(self.classes) - 1 - label for label in self.targets]


def test_a_folder_that_is_read_in_another_way_needs_keys(photos: Path) -> None:
    class Inverted(ImageFolder):
        def __getitem__(self, index: int) -> tuple[object, int]:
            image, label = super().__getitem__(index)
            return PIL.ImageOps.invert(image), label

    with pytest.raises(softlabels.ConfigError, match="have no keys"):
        softlabels.open_images(Inverted(str(photos)))
    keys = softlabels.open_images(photos).keys.to_pylist()
    opened = softlabels.open_images(Inverted(str(photos)), keys=keys)
    assert torch.equal(opened.decode(0), 255 - softlabels.open_images(ImageFolder(str(photos)), keys=keys).decode(0))


def test_a_loaded_student_is_scored_and_teaches_as_its_run(photos: Path, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"data": photos, "device": "cpu", "workers": 0, "quiet": True}
    run = softlabels.train(student="cnn_tiny", size=16, epochs=1, eval_data=str(photos), out=tmp_path / "run", **usual)
    student = softlabels.load_student(run.folder)
    score, own = softlabels.evaluate(student, **usual), softlabels.evaluate(run.folder, **usual)
    assert (score.size, score.cross_entropy) == (16, own.cross_entropy)
    softlabels.dump(teacher=student, views=1, out=tmp_path / "shards", **usual)
    assert softlabels.open_labels(tmp_path / "shards").of("PlainNet").card.preprocessing["size"] == 16


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("trian", {}, "'trian' is no command; did you mean 'train'"),
        ("train", {"labls": "x"}, "train has no setting 'labls'"),
        ("train", {"student": "cnn_tiny"}, "there is nothing to learn from"),
        ("train", {"student": "cnn_tinny", "data": "digits"}, "unknown network 'cnn_tinny'"),
        ("dump", {"data": "digits", "teacher": "cnn_tiny", "out": "x", "codec": "topk:0"}, "codec 'topk'"),
    ],
)
def test_settings_can_be_checked_without_running_a_command(command: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(softlabels.SoftlabelsError) as refused:
        softlabels.check(command, **given)
    assert message in str(refused.value)


def test_right_settings_pass_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    softlabels.check("train", student="cnn_tiny", labels="not-made-yet/", out="run")
    softlabels.check("evaluate", student="cnn_tiny", data="digits")
    assert not [*tmp_path.iterdir()]
