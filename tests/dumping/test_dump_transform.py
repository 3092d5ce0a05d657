"""Labels in a basis of the teacher's own, from the dump to the training: what lies on disk, and who may add to it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import softlabels
from softlabels.codecs import TransformCoding
from softlabels.errors import ConfigError, StoreError

FORMATS = ("hdf5", "zarr")
CLASSES, SIZE, IMAGES = 40, 8, 64


class Network(nn.Module):
    """A linear classifier behind a random layer; as `bent`, something comes after it."""

    def __init__(self, seed: int = 0, bent: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features, self.head = nn.Linear(3 * SIZE * SIZE, 24), nn.Linear(24, CLASSES)
        self.head.weight.data *= 4
        self.bent = bent

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.features(images.flatten(1))))
        return logits + 0.1 * torch.tanh(logits) if self.bent else logits


def teacher(seed: int = 0, bent: bool = False) -> dict[str, Any]:
    return {"module": Network(seed, bent).eval(), "size": SIZE, "name": "own", "mean": [0.5] * 3, "std": [0.25] * 3}


class Noise(torch.utils.data.Dataset):
    """Images of soft noise."""

    def __init__(self, images: int) -> None:
        self.images, self.classes = images, [f"class {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, row: int) -> tuple[Any, int]:
        from PIL import Image

        coarse = np.random.default_rng(row).integers(0, 256, (5, 5, 3), np.uint8)
        return Image.fromarray(coarse).resize((16, 16), Image.Resampling.BILINEAR), row % CLASSES


@functools.cache
def noise(images: int = IMAGES) -> Any:
    return softlabels.open_images(Noise(images), keys=[f"{row:04d}" for row in range(images)])


COMMON: dict[str, Any] = {"views": 4, "device": "cpu", "workers": 0, "quiet": True, "rows_per_shard": 40}
CODED = {"codec": "transform:40", **COMMON}


def dumped(out: Path, **changes: Any) -> softlabels.Labels:
    softlabels.dump(**{"teacher": teacher(), "data": noise(), "out": out, **CODED, **changes})
    return softlabels.open_labels(out)


@functools.cache
def exact() -> Tensor:
    """The teacher's logits, (views, images, classes), up to a constant."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        labels = dumped(Path(folder) / "exact", codec="dense:fp32")
        rows = range(len(labels))
        return torch.stack([labels.logits(rows, view) for view in range(4)])


def near(labels: softlabels.Labels, temperature: float = 4.0, views: int = 4) -> float:
    """The mean cosine of what labels and teacher say at this temperature, up to the uniform part."""
    rows, found = range(len(labels)), []
    for view in range(views):
        p = (exact()[view] / temperature).softmax(-1) - 1 / CLASSES
        q = labels.probabilities(rows, view, temperature) - 1 / CLASSES
        found.append(torch.cosine_similarity(p, q, dim=-1).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("format", FORMATS)
def test_labels_are_near_what_the_teacher_says_at_every_temperature(tmp_path: Path, format: str) -> None:
    labels = dumped(tmp_path / "s", format=format)
    assert (labels.views, len(labels), labels.codec().kind) == (4, IMAGES, "transform")
    for temperature in (1.0, 4.0, 20.0):
        assert near(labels, temperature) > 0.97
    rows = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))[:9].tolist()
    assert torch.equal(labels.logits(rows, 2), labels.logits(range(IMAGES), 2)[rows])
    highest = torch.stack([labels.logits(range(IMAGES), view).argmax(-1) for view in range(4)])
    assert torch.equal(highest, exact().argmax(-1))
    assert softlabels.verify(labels=tmp_path / "s", data=noise(), teacher=teacher(), quiet=True).ok
    (described,) = softlabels.info(labels=tmp_path / "s")["teachers"].values()
    assert described["codec"] == {"kind": "transform", "bytes": 40.0, "k": 10}
    card = json.loads((tmp_path / "s/own/teacher.json").read_text())
    assert card["layout"]["mean"]["per_image"] and card["layout"]["record"]["columns"]
    assert card["compression"] == "zstd"


def test_the_basis_is_of_the_classifiers_weights_where_one_layer_gives_the_logits(tmp_path: Path) -> None:
    fits = {}
    for name, bent in (("linear", False), ("bent", True)):
        labels = dumped(tmp_path / name, teacher=teacher(bent=bent))
        codec = labels.codec()
        assert isinstance(codec, TransformCoding)
        fits[name] = codec.fitted
        assert near(labels) > 0.95
    own = Network().head.weight.detach().double()
    own = own - own.mean(0)
    basis = TransformCoding(fit=fits["linear"])
    from softlabels.codecs._transform import _basis

    rows = torch.from_numpy(_basis(basis.fitted).rows)
    rows = rows / rows.norm(dim=0)
    leading = torch.linalg.svd(own).U[:, : rows.shape[1]]
    assert float((leading.T @ rows).square().sum(0).min()) > 0.99
    assert fits["linear"].components <= 24
    assert fits["bent"].basis != fits["linear"].basis


def test_parts_views_and_images_added_later_keep_the_basis_that_is_there(tmp_path: Path) -> None:
    out = tmp_path / "s"
    dumped(out, part="0/2")
    card = (out / "own/teacher.json").read_bytes()
    first = sorted((out / "own").glob("*.h5"))
    before = [path.read_bytes() for path in first]
    labels = dumped(out, part="1/2", views=4)
    assert labels.views == 4 and near(labels) > 0.97
    kept = torch.stack([labels.logits(range(IMAGES), view) for view in range(4)])
    labels = dumped(out, views=6)
    assert labels.views == 6
    assert torch.equal(torch.stack([labels.logits(range(IMAGES), view) for view in range(4)]), kept)
    assert [path.read_bytes() for path in first] == before
    assert (out / "own/teacher.json").read_bytes() == card
    assert softlabels.verify(labels=out, data=noise(), teacher=teacher(), quiet=True).ok
    with pytest.raises(StoreError, match=r"other labels under the name own: codec\.bytes is 40\.0 there and 25\.0"):
        dumped(out, codec="transform:25", views=6)
    with pytest.raises(StoreError, match=r"codec\.kind is 'transform' there") as caught:
        dumped(out, codec="dense", views=6)
    assert len(str(caught.value)) < 1000
    with pytest.raises(StoreError, match="weights_sha256"):
        dumped(out, teacher=teacher(1), views=6)


def test_of_two_that_learnt_another_basis_the_first_counts(tmp_path: Path) -> None:
    one, other = dumped(tmp_path / "one"), dumped(tmp_path / "other", teacher=teacher(bent=True))
    card = one.of().card
    fit = other.of().card.codec["fit"]
    late = card.model_copy(update={"codec": {**card.codec, "fit": fit}, "layout": other.of().card.layout})
    assert late.digest != card.digest
    assert one.store.prepare("own", late).card.codec == card.codec
    with pytest.raises(StoreError, match="in bases that each has learnt by itself; dump one part from a copy"):
        softlabels.merge(labels=[tmp_path / "one", tmp_path / "other"], out=tmp_path / "m", quiet=True)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_conversions_keep_labels(tmp_path: Path, format: str) -> None:
    out = tmp_path / "s"
    labels = dumped(out)
    rows = range(IMAGES)
    for number, change in enumerate(({}, {"compression": "none"})):
        to = tmp_path / f"c{number}"
        softlabels.convert(labels=out, out=to, format=format, quiet=True, **change)
        copy = softlabels.open_labels(to)
        assert torch.equal(copy.logits(rows, 3), labels.logits(rows, 3))
        assert copy.of().card.layout["record"].columns == (not change)
        assert softlabels.verify(labels=to, samples=0, data=noise(), quiet=True).ok
        softlabels.convert(labels=to, out=tmp_path / f"b{number}", compression="zstd", quiet=True)
        again = softlabels.open_labels(tmp_path / f"b{number}")
        assert again.of().card.layout == labels.of().card.layout
        assert torch.equal(again.logits(rows, 0), labels.logits(rows, 0))
    softlabels.convert(labels=out, out=tmp_path / "dense", codec="dense:fp32", quiet=True)
    assert torch.equal(softlabels.open_labels(tmp_path / "dense").logits(rows, 1), labels.logits(rows, 1))
    source = dumped(tmp_path / "exact", codec="dense:fp32", format=format)
    with pytest.raises(ConfigError, match="transform:40 would round"):
        softlabels.convert(labels=tmp_path / "exact", out=tmp_path / "t", codec="transform:40", quiet=True)
    options = {"codec": "transform:40", "lossy": True, "quiet": True}
    softlabels.convert(labels=tmp_path / "exact", out=tmp_path / "t", **options)
    learnt = softlabels.open_labels(tmp_path / "t")
    assert source.views == learnt.views and near(learnt) > 0.95
    (report,) = softlabels.convert(labels=tmp_path / "exact", out=tmp_path / "t", **options)
    assert report.shards == 0
    (report,) = softlabels.merge(labels=[out, tmp_path / "c0"], out=tmp_path / "m", quiet=True)[:1]
    merged = softlabels.open_labels(tmp_path / "m")
    assert torch.equal(merged.logits(rows, 3), labels.logits(rows, 3))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_damage_anywhere_is_found(tmp_path: Path, format: str, compression: str) -> None:
    dumped(tmp_path / "s", format=format, compression=compression)
    rng, rows = np.random.default_rng(0), range(IMAGES)
    files = [path for path in sorted((tmp_path / "s/own").rglob("*")) if path.is_file() and path.name != "teacher.json"]
    files = [path for path in files if not path.name.startswith(".")]
    for number in range(12):
        broken = tmp_path / f"b{number}"
        shutil.copytree(tmp_path / "s", broken)
        path = broken / files[number % len(files)].relative_to(tmp_path / "s")
        data = bytearray(path.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert not softlabels.verify(labels=broken, samples=0, data=noise(), quiet=True).ok, path
    if format == "zarr":  # whose files say which array they are
        path = next((tmp_path / "s/own").glob("00000*")) / "mean/c/0/0/0"
        data = bytearray(path.read_bytes())
        data[7] ^= 255
        path.write_bytes(data)
        with pytest.raises(StoreError, match="repair"):
            softlabels.open_labels(tmp_path / "s").logits(rows, 3)


def test_a_card_with_another_basis_is_refused(tmp_path: Path) -> None:
    dumped(tmp_path / "s")
    dumped(tmp_path / "other", teacher=teacher(1))
    shutil.copy(tmp_path / "other/own/teacher.json", tmp_path / "s/own/teacher.json")
    with pytest.raises(StoreError, match="another teacher's card"):
        softlabels.open_labels(tmp_path / "s").logits([0], 0)
    path = tmp_path / "s/own/teacher.json"
    path.write_text(path.read_text().replace('"basis"', '"base"'))
    with pytest.raises(StoreError, match="checksum"):
        softlabels.open_labels(tmp_path / "s")


def test_students_learn_from_them(tmp_path: Path) -> None:
    labels = dumped(tmp_path / "s")
    common = {"student": {"module": Network(5), "size": SIZE}, "device": "cpu", "quiet": True, "epochs": 2}
    done = softlabels.train(labels=tmp_path / "s", data=noise(), out=tmp_path / "r", temperature=4.0, **common)
    assert done.steps == 2
    dumped(tmp_path / "e", codec="dense:fp32")
    softlabels.train(labels=tmp_path / "e", data=noise(), out=tmp_path / "x", temperature=4.0, **common)
    begun = Network(5).state_dict()
    moved = [softlabels.load_student(tmp_path / run, student=Network(5)).state_dict().values() for run in ("r", "x")]
    weights = {value.shape: value for value in begun.values()}
    steps = [torch.cat([(w - weights[w.shape]).flatten() for w in each if w.shape in weights]) for each in moved]
    assert torch.cosine_similarity(*steps, dim=0) > 0.9
    dataset = softlabels.SoftLabelDataset(labels, noise(), size=SIZE, target="probabilities", temperature=4.0)
    from softlabels import OneViewEach

    numbers = list(OneViewEach(dataset, seed=0))[:6]
    for number, sample in zip(numbers, dataset.__getitems__(numbers), strict=True):
        row, view = divmod(number, 4)
        torch.testing.assert_close(sample[-1], labels.probabilities([row], view, 4.0)[0])


def test_a_loop_of_ones_own_is_asked_for_a_sample_first(tmp_path: Path) -> None:
    network, asked = Network().eval(), 0
    images = noise()
    for _ in range(2):
        options: dict[str, Any] = {"images": images, "views": 4, "classes": CLASSES, "rows_per_shard": 40}
        with softlabels.create_labels(tmp_path / "s", **options) as store:
            for batch in store.missing("mine", size=SIZE, codec="transform:40", batch_size=50):
                asked += len(batch)
                with torch.no_grad():
                    store.put(network((batch.pictures / 255 - 0.5) / 0.25))
    assert asked == 2 * IMAGES * 4
    labels = softlabels.open_labels(tmp_path / "s")
    assert near(labels) > 0.95
    assert softlabels.verify(labels=tmp_path / "s", samples=0, data=noise(), quiet=True).ok


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    few = noise(3)
    for change, message in (
        ({"codec": "transform:5"}, r"teacher own: transform:5 is too little for the 10 highest"),
        ({"teacher": teacher(bent=True), "data": few}, "16 images or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            dumped(tmp_path / "s", **change)
        assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match="for logits"):
        dumped(tmp_path / "s", output=["features=transform:40"])


def test_a_plan_says_what_will_lie_on_disk(tmp_path: Path) -> None:
    (plan,) = softlabels.plan(teacher=teacher(), data=noise(), out=tmp_path / "s", **CODED)
    labels = dumped(tmp_path / "s")
    codec = labels.codec()
    assert isinstance(codec, TransformCoding)
    assert plan.bytes_per_label == codec.fitted.size <= 40
    assert plan.bytes == pytest.approx(plan.bytes_per_label * 4 * IMAGES)
