"""Verifying a store: each kind of wrong is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds import write_pictures

import softlabels

FORMATS = ("hdf5", "zarr")


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of photos that lie beside it."""
    root = write_pictures(tmp_path / "photos")
    softlabels.dump(
        teacher=["cnn_tiny"],
        weights=["random:3"],
        data=str(root),
        views=3,
        rows_per_shard=6,
        format=request.param,
        out=str(tmp_path / "shards"),
        quiet=True,
    )
    return tmp_path / "shards"


def test_a_sound_store_passes_every_check(store: Path) -> None:
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert findings.ok
    assert [agreement.teacher for agreement in findings.agreements] == ["cnn_tiny"]
    assert findings.agreements[0].top1 == 1
    assert findings.agreements[0].mean_kl < 1e-5
    assert any("digests of 54 rendered views" in check for check in findings.checks)


def test_changed_images_are_named(store: Path) -> None:
    photos = store.parent / "photos"
    one, other = photos / "class-0" / "001.jpg", photos / "class-2" / "003.jpg"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert sorted(findings.problems) == [
        "image 'class-0/001.jpg': other content than when the labels were made",
        "image 'class-2/003.jpg': other content than when the labels were made",
    ]


def test_other_weights_are_noticed(store: Path) -> None:
    with pytest.raises(softlabels.StoreError, match="other weights"):
        softlabels.verify(labels=str(store), teacher=["cnn_tiny"], weights=["random:4"], quiet=True)


def test_labels_of_other_pixels_are_noticed(store: Path) -> None:
    """A teacher that is shown other images than the stored ones disagrees: here the labels of two views swap."""
    import numpy as np

    labels = softlabels.open_labels(store)
    each = labels.of("cnn_tiny")
    shard = each.shards[0]
    content = each.read_shard(shard)
    swapped = {name: np.ascontiguousarray(array[::-1]) for name, array in content.arrays.items()}
    with each.writing():
        each.remove(shard)
        each.write(shard, swapped, digests=content.digests)
    findings = softlabels.verify(labels=str(store), samples=18, largest_kl=1e-6, quiet=True)
    assert len(findings.problems) == 1
    assert "mean KL" in findings.problems[0]


def test_labels_of_pictures_that_an_earlier_version_rendered_on_a_gpu_are_verified(store: Path, tmp_path: Path) -> None:
    """Their digests, with the name of the renderer before them, are compared like any others."""
    from softlabels.models import ROUNDING

    each = softlabels.open_labels(store).of("cnn_tiny")
    plain = softlabels.verify(labels=str(store), quiet=True)
    with each.writing():
        for shard in list(each.shards):
            content = each.read_shard(shard)
            named = {row: [f"cuda+nvjpeg:{text}" for text in texts] for row, texts in content.digests.items()}
            each.remove(shard)
            each.write(shard, content.arrays, digests=named)
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert findings.ok and findings.checks == plain.checks
    assert findings.agreements[0].rounding == ROUNDING["device"] > plain.agreements[0].rounding
    result = softlabels.train(
        student="cnn_tiny", size=16, epochs=1, labels=str(store), out=str(tmp_path / "run"), quiet=True
    )
    assert result["steps"] > 0
    with each.writing():
        shard = each.shards[0]
        content = each.read_shard(shard)
        other = {row: [f"cuda:{text[::-1]}" for text in texts] for row, texts in content.digests.items()}
        each.remove(shard)
        each.write(shard, content.arrays, digests=other)
    problems = softlabels.verify(labels=str(store), quiet=True).problems
    assert problems and all("is not the one that cnn_tiny saw" in problem for problem in problems)


def test_other_pixels_name_image_view_decoder_and_the_versions_that_differ(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The files are the same, what is made of them is not: as by another decoder or another release of a library."""
    from softlabels.loading.views import ViewDataset

    then = softlabels.open_labels(store).of().card.versions
    real = ViewDataset.render
    monkeypatch.setattr(ViewDataset, "render", lambda self, *samples: real(self, *samples) ^ 1)
    monkeypatch.setattr(
        "softlabels.loading.provenance.version", lambda name: "99.9" if name == "torchvision" else then[name]
    )
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert len(findings.problems) == 54
    assert findings.problems[0].startswith("image 'class-0/000.jpg', view 0: the view is not the one that cnn_tiny")
    assert f"then {then['decoder']}" in findings.problems[0]
    assert f"torchvision now 99.9, then {then['torchvision']}" in findings.problems[0]
    assert "numpy" not in findings.problems[0]
    with pytest.raises(softlabels.StoreError, match=r"torchvision now 99\.9"):
        softlabels.train(student="cnn_tiny", size=16, labels=str(store), out=str(tmp_path / "run"), quiet=True)


def test_a_store_that_was_copied_halfway_is_incomplete(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shard = sorted((copy / "cnn_tiny").glob("00002*"))[0]
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    findings = softlabels.verify(labels=str(copy), quiet=True)
    assert any("incomplete" in problem and "00002-v0-3" in problem for problem in findings.problems)


def test_a_store_without_its_manifest_is_no_store(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(softlabels.StoreError, match=r"manifest\.json"):
        softlabels.verify(labels=str(store), quiet=True)


def test_moved_images_are_found_with_data(store: Path) -> None:
    photos = store.parent / "photos"
    photos.rename(store.parent / "elsewhere")
    with pytest.raises(softlabels.DataError, match="`data`"):
        softlabels.verify(labels=str(store), quiet=True)
    assert softlabels.verify(labels=str(store), data=str(store.parent / "elsewhere"), quiet=True).ok


def test_a_dump_goes_on_when_the_images_have_moved(store: Path) -> None:
    photos = store.parent / "photos"
    photos.rename(store.parent / "elsewhere")
    softlabels.dump(
        teacher=["cnn_tiny"],
        weights=["random:3"],
        data=str(store.parent / "elsewhere"),
        views=4,
        format=softlabels.open_labels(store).of().card.format,
        out=str(store),
        quiet=True,
    )
    assert softlabels.open_labels(store).views == 4


def test_a_stores_word_imports_no_code(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = softlabels.open_labels(store)
    hostile = labels.store.manifest.model_copy(update={"data": {"kind": "function", "target": "os:getcwd"}})
    monkeypatch.setattr(type(labels.store), "manifest", hostile, raising=False)
    from softlabels.loading.opening import label_images

    object.__setattr__(labels.store, "manifest", hostile)
    with pytest.raises(softlabels.ConfigError, match="name it yourself"):
        label_images(labels, None, None)


def test_images_that_could_not_be_read_are_left_out_and_counted(softlabels_command: Callable, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "photos")
    (root / "class-1" / "003.jpg").write_bytes(b"")
    dump = ("dump", "--teacher", "cnn_tiny", "--weights", "random", "--data", root, "--views", 2, "--out", "shards")
    assert "wrote 1 shard, 34 labels" in softlabels_command(*dump, "--on-bad-image", "skip").output
    verified = softlabels_command("verify", "--labels", "shards")
    assert verified.exit_code == 0, verified.output
    assert "run again on 17 views: ok" in verified.output
    assert "1 image without labels" in softlabels_command("info", "shards").output


def test_a_teacher_that_the_store_lacks_is_not_passed_over(store: Path) -> None:
    with pytest.raises(softlabels.ConfigError, match="no labels of 'cnn_small'; known: cnn_tiny"):
        softlabels.verify(labels=str(store), teacher=["cnn_small"], weights=["random"], quiet=True)


def test_only_options_that_help_are_named_when_images_have_moved(store: Path) -> None:
    (store.parent / "photos").rename(store.parent / "elsewhere")
    with pytest.raises(softlabels.DataError, match="say with `data` where the images lie now"):
        softlabels.verify(labels=str(store), quiet=True)


def test_info_says_what_a_store_holds(store: Path, softlabels_command: Callable) -> None:
    told = softlabels_command("info", store)
    assert told.exit_code == 0
    assert "18 images" in told.output
    assert ": complete, " in told.output
    assert "3 of each image" in told.output


# ---- like is compared with like

CODECS = (
    "dense",
    "dense:fp32",
    "quantized",
    "quantized:4",
    "head_tail:3",
    "topk:3",
    "topk:10 record=fast",
    "sampled:3",
    {"kind": "sampled", "k": 6, "temperature": 4.0},
    {"kind": "probabilities", "k": 3, "temperature": 2.0},
    {"kind": "probabilities", "k": 3, "tail": "none"},
)


def teacher_files(root: Path) -> dict[str, Path]:
    """Teachers of 40 classes: one, one of other weights, and one with a single block of the other's."""
    from softlabels.models import build, student_spec, write_weights

    networks = {name: build("cnn_tiny", 40, seed=seed).state_dict() for name, seed in (("right", 1), ("other", 2))}
    block = [name for name in networks["right"] if name.startswith("features.3.")]
    networks["block"] = {**networks["right"], **{name: networks["other"][name] for name in block}}
    for name, state in networks.items():
        state["head.weight"] = 6 * networks["right"]["head.weight"] if name != "other" else 6 * state["head.weight"]
        write_weights(root / f"{name}.safetensors", state, student_spec("cnn_tiny").metadata(40))
    return {name: root / f"{name}.safetensors" for name in networks}


def dumped(out: Path, photos: Path, weights: Path, codec: object, **settings: object) -> softlabels.Labels:
    teacher = {"kind": "file", "path": str(weights), "name": "it", **settings}
    softlabels.dump(teacher=[teacher], data=str(photos), views=2, codec=codec, out=str(out), quiet=True, device="cpu")
    return softlabels.open_labels(out)


def labelled_by_another(labels: softlabels.Labels, other: softlabels.Labels) -> None:
    """Put the other store's labels in the place of these, under their card."""
    each = labels.of("it")
    for shard in each.shards:
        digests = each.read_shard(shard).digests
        arrays = other.of("it").read_shard(shard).arrays
        with each.writing():
            each.remove(shard)
            each.write(shard, arrays, digests=digests)


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A noisy image of each of 40 classes, so that it matters how it is resized, and teachers of them."""
    import torch
    from torchvision.io import write_png

    root = tmp_path_factory.mktemp("forty")
    for number in range(40):
        folder = root / "photos" / f"class-{number:02d}"
        folder.mkdir(parents=True)
        noise = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        write_png(noise, str(folder / "a.png"))
    return root / "photos", teacher_files(root)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_sound_labels_pass_and_those_of_a_wrong_teacher_fail_whatever_the_codec(
    forty: tuple[Path, dict[str, Path]], tmp_path: Path, codec: object
) -> None:
    photos, weights = forty
    labels = dumped(tmp_path / "right", photos, weights["right"], codec)
    findings = softlabels.verify(labels=str(tmp_path / "right"), quiet=True, device="cpu")
    assert findings.ok, findings.problems
    assert 0 <= findings.agreements[0].mean_kl < 1e-6
    assert findings.agreements[0].top1 == 1
    wrong = {
        "other weights": dumped(tmp_path / "other", photos, weights["other"], codec),
        "one block of another": dumped(tmp_path / "block", photos, weights["block"], codec),
        "bicubic pixels": dumped(tmp_path / "bicubic", photos, weights["right"], codec, interpolation="bicubic"),
    }
    for what, other in wrong.items():
        labelled_by_another(labels, other)
        findings = softlabels.verify(labels=str(tmp_path / "right"), quiet=True, device="cpu")
        assert not findings.ok, f"{what} is not noticed: {findings.agreements}"
        assert "other weights, other preprocessing or other pixels" in findings.problems[0]


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("spread", [0.05, 1.0, 30.0])
def test_what_precision_changes_is_explained_for_every_codec(codec: object, spread: float) -> None:
    """Logits that are computed again, off by what TF32 or another library makes of them, are the same teacher's."""
    import numpy as np
    import torch

    from softlabels.codecs import CODECS as TABLE
    from softlabels.codecs import nearest_temperature
    from softlabels.loading.checks import divergence
    from softlabels.models import ROUNDING
    from softlabels.upkeep.verify import explained

    part, chance = TABLE.make(codec), torch.Generator().manual_seed(1)
    logits = spread * torch.randn(64, 100, generator=chance)
    words = np.random.default_rng(0).integers(0, 2**63, 64, dtype=np.uint64)
    temperature = nearest_temperature(part, max(1.0, spread))

    def coded(rows: torch.Tensor) -> torch.Tensor:
        return part.decode(part.encode(rows, words), 100, temperature=temperature)

    may = explained(coded, logits, temperature, ROUNDING["fp32"])
    there = part.decode(part.encode(logits, words), 100, temperature=temperature)
    for size, fine in ((1e-6, True), (1e-3, True), (0.3, False)):
        again = logits + size * spread * torch.randn(64, 100, generator=chance)
        here = part.decode(part.encode(again, words), 100, temperature=temperature)
        kl = divergence(here, there, temperature)
        same = (here.argmax(1) == there.argmax(1)).double().mean().item()
        passed = kl.mean().item() <= may.kl and (kl > 1e-12).double().mean() <= may.changed and same >= may.top1
        assert (kl >= 0).all()
        assert passed == fine, (size, kl.mean(), may)


def test_the_limit_of_the_divergence_can_be_given(store: Path) -> None:
    assert softlabels.verify(labels=str(store), largest_kl=0.3, quiet=True).ok


def test_images_that_are_gone_are_a_problem_unless_a_part_is_named(store: Path) -> None:
    photos = store.parent / "photos"
    kept = store.parent / "kept"
    shutil.copytree(photos, kept)
    for path in sorted(photos.glob("class-1/*"))[:4] + sorted(kept.glob("class-1/*"))[:4]:
        path.unlink()
    findings = softlabels.verify(labels=str(store), quiet=True)
    assert any("4 of the 18 labelled images are not in" in problem for problem in findings.problems)
    assert "'class-1/000.jpg'" in findings.problems[0]
    part = softlabels.verify(labels=str(store), data=str(kept), quiet=True)
    assert part.ok
    assert any("4 of the 18 labelled images are not in" in note for note in part.notes)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"classes": 11}, "states 11 classes and manifest.json 3"),
        ({"preprocessing": {"size": -1}}, "no usable preprocessing: size -1"),
        ({"preprocessing": {"size": 32, "std": [0, 1, 1]}}, "no usable preprocessing: std"),
        ({"preprocessing": {"size": 32, "interpolation": "zzz"}}, "no usable preprocessing: interpolation"),
        ({"codec": {"kind": "dense", "dtype": "fp32"}}, "lists arrays that its codec 'dense' does not write"),
        ({"codec": {"kind": "sampled", "k": 3, "temperature": 1e-300}}, "temperature"),
    ],
)
def test_a_card_that_contradicts_its_store_is_a_problem(store: Path, changed: dict, says: str) -> None:
    from softlabels.core.documents import document

    labels = softlabels.open_labels(store)
    card = labels.of().card.model_copy(update=changed)
    (store / "cnn_tiny" / "teacher.json").write_text(document(card))
    try:
        findings = softlabels.verify(labels=str(store), quiet=True)
    except softlabels.StoreError as problem:
        assert says in str(problem)
    else:
        assert any(says in problem for problem in findings.problems), findings.problems


def test_a_teacher_that_takes_other_pictures_than_its_card_says_is_a_problem(store: Path) -> None:
    bicubic = {"kind": "small", "architecture": "cnn_tiny", "weights": "random:3", "interpolation": "bicubic"}
    findings = softlabels.verify(labels=str(store), teacher=[bicubic], quiet=True)
    assert any("takes images of interpolation bicubic, its card says bilinear" in each for each in findings.problems)


def test_labels_that_depend_on_their_neighbours_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbourly.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, c): super().__init__(); self.f = torch.nn.Linear(192, c)\n"
        "    def forward(self, x): y = self.f(x.flatten(1)); return y - y.mean(0, keepdim=True)\n"
        "def net(c): torch.manual_seed(0); return Net(c), {'size': 8}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    common = {"teacher": ["neighbourly:net"], "quiet": True, "device": "cpu"}
    settings = {"data": "digits", "limit": 65, "recipe": "pad", "views": 2, "on_odd_logits": "warn"}
    softlabels.dump(out=str(tmp_path / "s"), **settings, **common)
    findings = softlabels.verify(labels=str(tmp_path / "s"), **common)
    assert any("its labels depend on their neighbours" in problem for problem in findings.problems)


def test_what_is_recorded_beside_labels_is_compared_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    import numpy as np
    import torch

    from softlabels.loading import checks

    with softlabels.create_labels(
        tmp_path / "s", images=softlabels.open_images("digits"), recipe="crop-flip-mixup", views=1, classes=4000
    ) as made:
        for each in made.missing("t", size=8, batch_size=500):
            made.put(torch.arange(len(each) * 4000).reshape(-1, 4000) % 7919 * 1.0)
    labels = softlabels.open_labels(tmp_path / "s")
    tracemalloc.start()
    assert not checks.compare_partners(labels, "t", np.arange(len(labels)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * checks.STRETCH_BYTES
    assert peak < len(labels) * 8000 / 1.5
