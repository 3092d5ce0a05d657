"""Labels of distilled data sets (SRe2L, LPLD, LPQLD), dense logits, and importers of other packages."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rivals
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving import all_bytes, killed, shard_bytes
from torch.utils.data import DataLoader, RandomSampler

import softlabels
from softlabels.choices import IMPORTERS
from softlabels.codecs import CODECS
from softlabels.importing import _distilled
from softlabels.loading.labels import Labels

SIZE, IMAGES, CLASSES, EPOCHS, BATCH = 32, 120, 8, 3, 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 PNG files in 8 classes; not to be changed."""
    return rivals.write_coloured(tmp_path_factory.mktemp("coloured") / "photos")


@pytest.fixture(scope="module")
def written(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[rivals.Shown]]:
    """Files of SRe2L and what its teacher saw; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "sre2l"
    return folder, rivals.write_batches(folder, photos)


def imported(source: Path, photos: Path, out: Path, project: str = "sre2l", **settings: Any) -> Labels:
    usual: dict[str, Any] = {"data": str(photos), "rows_per_shard": 50, "input_size": SIZE, "quiet": True}
    softlabels.import_labels(project, source, out=str(out), **(usual | settings))
    return softlabels.open_labels(out)


def in_turn(seen: list[rivals.Shown]) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(row, view, image, logits) of every image of every batch; a view is the how manieth of its image."""
    count: dict[int, int] = {}
    every = []
    for batch in seen:
        for row, image, logits in zip(batch.rows, batch.images, batch.logits, strict=True):
            every.append((row, count.get(row, 0), image, logits))
            count[row] = count.get(row, 0) + 1
    return every


def in_order(batches: list[rivals.Shown]) -> list[int]:
    return [row for batch in batches for row in batch.rows]


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def changed(file: Path, change: Callable[[list[Any]], Any]) -> None:
    """Write a batch file again, with what `change` makes of its list, or leaves of it."""
    content = torch.load(file, weights_only=False)
    made = change(content)
    torch.save(content if made is None else made, file)


# ---- what is replayed


@pytest.mark.parametrize(
    ("project", "kind"),
    [
        ("sre2l", {}),
        ("sre2l", {"mix": None}),
        ("sre2l", {"mix": "mixup"}),
        ("sre2l", {"batch_size": 25}),
        ("lpld", {}),
        ("lpqld", {"mix": "mixup"}),
        ("lpqld", {"k": 3}),
    ],
)
def test_pictures_and_labels_are_those_of_the_teachers_batches(
    project: str, kind: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    seen = rivals.write_batches(tmp_path / "f", photos, project, **kind)
    codec = {} if "k" in kind else {"codec": "dense:fp16-raw"}
    labels = imported(tmp_path / "f", photos, tmp_path / "s", project, format="zarr" if kind else "hdf5", **codec)
    assert (labels.views, len(labels)) == (EPOCHS, IMAGES)
    pictures = softlabels.SoftLabelDataset(labels, str(photos), size=SIZE)
    every = in_turn(seen)
    for view in range(EPOCHS):
        some = [(row, image, logits.float()) for row, each, image, logits in every if each == view]
        rows = [row for row, *_ in some]
        items, stored = pictures.__getitems__([row * EPOCHS + view for row in rows]), labels.logits(rows, view)
        for (row, image, wanted), (found, hard, _), kept in zip(some, items, stored, strict=True):
            difference = (found.float() - 255 * image).abs()
            assert difference.max() <= (1.01 if kind.get("mix") != "mixup" else 1.51)
            assert difference.mean() < 0.5
            assert hard in ((row // 15,) if kind.get("mix", "") is None else (-1, row // 15))
            if "k" in kind:
                assert kept.isneginf().sum() == CLASSES - kind["k"]
                named = wanted.topk(kind["k"]).indices
                kept, wanted = (each[named] - each[named].max() for each in (kept, wanted))
            assert torch.equal(kept, wanted)
    assert softlabels.verify(labels=str(tmp_path / "s"), device="cpu", workers=0, quiet=True).ok


def test_any_batch_size_pairs_the_same_pixels_and_labels(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    labels = imported(written[0], photos, tmp_path / "s", codec="topk:3")
    pictures = softlabels.SoftLabelDataset(labels, str(photos), size=SIZE, temperature=4.0, return_index=True)
    served = []
    for size, workers in ((64, 0), (1024, 0), (64, 2)):
        shuffled = torch.Generator().manual_seed(size)
        found: dict[int, tuple[bytes, bytes, int]] = {}
        for images, hard, soft, numbers in DataLoader(
            pictures, size, shuffle=True, generator=shuffled, num_workers=workers
        ):
            for place, number in enumerate(numbers.tolist()):
                each = images[place].numpy().tobytes(), soft[place].numpy().tobytes(), int(hard[place])
                assert number not in found
                found[number] = each
        served.append(found)
    assert served[0].keys() == set(range(IMAGES * EPOCHS))
    assert served[0] == served[1] == served[2]


def test_the_partner_of_a_view_and_its_share_are_known(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    labels = imported(written[0], photos, tmp_path / "s")
    for epoch in range(EPOCHS):
        partners, shares = labels.mixtures(range(IMAGES), epoch)
        for place, batch in enumerate(written[1][5 * epoch : 5 * epoch + 5]):
            _, _, index, _, box, _ = torch.load(written[0] / f"epoch_{epoch}/batch_{place}.tar", weights_only=False)
            own = 1 - (box[2] - box[0]) * (box[3] - box[1]) / SIZE**2
            for row, partner in zip(batch.rows, index.tolist(), strict=True):
                assert shares[row] == pytest.approx(own, abs=1e-6)
                assert partners[row] == (row if own == 1 else batch.rows[partner])


@pytest.mark.parametrize(
    "codec", ["dense", "quantized", "head_tail:3", "topk:2", "topk:4 record=fast", "top_logits:3", "probabilities:3"]
)
def test_dense_logits_are_kept_by_any_codec_as_it_keeps_those_of_a_dump(
    codec: str, written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    labels = imported(written[0], photos, tmp_path / "s", codec=codec)
    made = CODECS.make(codec)
    every = in_turn(written[1])
    stored = made.encode(torch.stack([logits for *_, logits in every]))
    for temperature in (1.0,) if codec.startswith("probabilities") else (1.0, 4.0, 20.0):
        wanted = (made.decode(stored, CLASSES, temperature=temperature) / temperature).softmax(1)
        for view in range(EPOCHS):
            chosen = [(row, place) for place, (row, each, *_) in enumerate(every) if each == view]
            found = labels.probabilities([row for row, _ in chosen], view, temperature)
            torch.testing.assert_close(found, wanted[[place for _, place in chosen]], rtol=1e-6, atol=1e-7)


def test_a_codec_that_draws_draws_for_each_view_and_always_the_same(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    one = imported(written[0], photos, tmp_path / "one", codec="sampled:3")
    other = imported(written[0], photos, tmp_path / "other", codec="sampled:3", rows_per_shard=7)
    for view in range(EPOCHS):
        assert torch.equal(one.probabilities(range(IMAGES), view), other.probabilities(range(IMAGES), view))


def test_half_logits_of_the_highest_classes_are_labels_at_any_temperature(photos: Path, tmp_path: Path) -> None:
    seen = rivals.write_batches(tmp_path / "f", photos, "lpqld", k=3)
    labels = imported(tmp_path / "f", photos, tmp_path / "s", "lpqld")
    for temperature in (0.5, 1.0, 20.0):
        for row, view, _, logits in in_turn(seen)[::7]:
            highest = logits.float().topk(3)
            wanted = torch.zeros(CLASSES).scatter(0, highest.indices, (highest.values / temperature).softmax(0))
            torch.testing.assert_close(labels.probabilities([row], view, temperature)[0], wanted)
    with pytest.raises(softlabels.ConfigError, match=r"holds the 3 highest .*`codec=top_logits:3` .*leave `codec` out"):
        imported(tmp_path / "f", photos, tmp_path / "t", "lpqld", codec="topk:3")
    assert imported(tmp_path / "f", photos, tmp_path / "t", "lpqld", codec="top_logits:3").views == EPOCHS
    with pytest.raises(softlabels.ConfigError, match=r"from 0\.1 upward"):
        labels.probabilities([0], 0, 0.05)


def test_views_are_read_some_at_a_time_into_the_same_labels(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = imported(written[0], photos, tmp_path / "whole")
    monkeypatch.setattr(_distilled, "_AT_ONCE", 1)  # no file is kept, either
    parts = imported(written[0], photos, tmp_path / "parts")
    assert [len(list((tmp_path / each / "sre2l").glob("0*"))) for each in ("whole", "parts")] == [3, 9]
    for view in range(EPOCHS):
        assert torch.equal(whole.logits(range(IMAGES), view), parts.logits(range(IMAGES), view))


def test_a_student_trains_from_such_labels(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    imported(written[0], photos, tmp_path / "s", codec="topk:3")
    command = ("train", "--student", "cnn_tiny", "--size", SIZE, "--labels", tmp_path / "s", "--data", photos)
    more = ("--epochs", 2, "--batch-size", 16, "--temperature", 4, "--device", "cpu", "--workers", 0, "--out", "run")
    done = softlabels_command(*command, *more)
    assert done.exit_code == 0, done.output


# ---- in which order


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), epochs=st.integers(1, 4), batch=st.integers(1, 40))
def test_the_order_is_that_of_torchs_sampler(count: int, seed: int, epochs: int, batch: int) -> None:
    sampler = RandomSampler(range(count), generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(range(count), batch_size=batch, sampler=sampler)  # type: ignore[arg-type]
    wanted = [torch.cat(list(loader)).tolist() for _ in range(epochs)]
    assert [each.tolist() for each in _distilled.seeded_orders(seed, epochs, count).values()] == wanted


def test_the_seed_is_asked_for_and_a_wrong_one_is_refused(
    photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    rivals.write_batches(tmp_path / "f", photos, seed=7)
    command = ("import", tmp_path / "f", "--from", "sre2l", "--data", photos, "--input-size", SIZE, "--out", "s")
    refused = softlabels_command(*command)
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "epoch_0/batch_0.tar and what follows does not seem to be of these images in this order" in refused.output
    assert "--order-seed" in refused.output
    assert not Path("s").exists()
    done = softlabels_command(*command, "--order-seed", 7)
    assert done.exit_code == 0, done.output
    assert "the order of the images is that of seed 7" in done.output
    assert "that of the image shown most, of the two in a view, for 9" in done.output


def test_an_order_that_is_right_in_the_first_epochs_alone_is_refused(photos: Path, tmp_path: Path) -> None:
    seen = rivals.write_batches(tmp_path / "f", photos, epochs=12)
    rows = [in_order(seen[5 * epoch : 5 * epoch + 5]) for epoch in range(12)]
    right = tmp_path / "right.json"
    right.write_text(json.dumps(rows))
    assert imported(tmp_path / "f", photos, tmp_path / "s", order=right).views == 12
    rows[9] = rows[9][::-1]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(rows))
    with pytest.raises(
        softlabels.DataError, match=r"epoch_9/batch_0.tar and what follows does not seem to be of these"
    ):
        imported(tmp_path / "f", photos, tmp_path / "w", order=wrong)
    assert not (tmp_path / "w").exists()
    assert imported(tmp_path / "f", photos, tmp_path / "w", order=wrong, allow_mismatch=True).views == 12


def test_an_order_of_keys_or_numbers_gives_the_same_store_as_the_seed(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    imported(written[0], photos, tmp_path / "seed")
    keys = softlabels.open_images(photos).keys.to_pylist()
    numbers = [in_order(written[1][5 * epoch : 5 * epoch + 5]) for epoch in range(EPOCHS)]
    named = {str(epoch): [keys[row] for row in rows] for epoch, rows in enumerate(numbers)}
    for name, order in (("keys", named), ("numbers", numbers)):
        (tmp_path / f"{name}.json").write_text(json.dumps(order))
        imported(written[0], photos, tmp_path / name, order=tmp_path / f"{name}.json")
        assert shard_bytes(tmp_path / name) == shard_bytes(tmp_path / "seed")


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("no json", "is no JSON file"),
        (3, "holds no lists of images"),
        ({"first": [0]}, "names lists by other words"),
        ([[0, 1]], "lists 2 images of epoch 0"),
        ([[*range(119), 120]], "names 120, which folder:"),
        ([[*range(119), -1]], "names -1"),
        ([[*range(119), True]], "neither keys of images nor their numbers"),
        ([[*range(119), 0]], "names an image twice"),
        ([["c0/00.png", "c9/00.png"]], "names 'c9/00.png', which folder:"),
    ],
)
def test_files_of_another_order_are_refused_by_name(
    order: Any, said: str, written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.json").write_text(order if isinstance(order, str) else json.dumps(order))
    with pytest.raises(softlabels.DataError, match=rf"o\.json.*{re.escape(said)}"):
        imported(written[0], photos, tmp_path / "s", order=tmp_path / "o.json")
    assert not (tmp_path / "s").exists()


# ---- pruned batches


def test_images_without_any_label_are_refused_or_left_unlabelled(photos: Path, tmp_path: Path) -> None:
    rivals.write_batches(tmp_path / "f", photos, "lpld", epochs=1)
    for batch in (1, 3):
        (tmp_path / f"f/epoch_0/batch_{batch}.tar").unlink()
    with pytest.raises(softlabels.DataError, match=r"lacks epoch_0/batch_1\.tar"):
        imported(tmp_path / "f", photos, tmp_path / "s", "lpld")
    labels = imported(tmp_path / "f", photos, tmp_path / "s", "lpld", on_missing="skip", rows_per_shard=2)
    assert labels.views == 1
    assert labels.labelled(range(IMAGES)).sum() == 72


@pytest.mark.parametrize("project", ["lpld", "lpqld"])
def test_images_in_fewer_batches_have_their_labels_again(project: str, photos: Path, tmp_path: Path) -> None:
    # 2 batches of 50 in an epoch, of which 20 images are left out; the last epoch has one batch.
    seen = rivals.write_batches(tmp_path / "f", photos, project, batch_size=50, epochs=6, batches=11)
    labels = imported(tmp_path / "f", photos, tmp_path / "s", project, codec="dense:fp16-raw")
    every = in_turn(seen)
    counts = np.bincount([row for row, *_ in every], minlength=IMAGES)
    assert labels.views == counts.max() == 6
    assert 1 <= counts.min() < 6
    own = [[logits.float() for each, _, _, logits in every if each == row] for row in range(IMAGES)]
    for view in range(6):
        wanted = torch.stack([each[view % len(each)] for each in own])
        assert torch.equal(labels.logits(range(IMAGES), view), wanted)
    with pytest.raises(softlabels.ConfigError, match="holds 6 views"):
        imported(tmp_path / "f", photos, tmp_path / "t", project, views=7)


def test_only_pruned_labels_may_lack_the_last_batches(photos: Path, tmp_path: Path) -> None:
    rivals.write_batches(tmp_path / "f", photos, "lpld", batches=13)
    with pytest.raises(softlabels.DataError, match=r"lacks epoch_2/batch_3\.tar; copy it again"):
        imported(tmp_path / "f", photos, tmp_path / "s")
    assert imported(tmp_path / "f", photos, tmp_path / "s", "lpld").views == 3


def test_the_order_that_is_written_beside_the_batches_counts_before_the_seed(photos: Path, tmp_path: Path) -> None:
    rivals.write_batches(tmp_path / "f", photos, "lpld", seed=5)
    assert imported(tmp_path / "f", photos, tmp_path / "s", "lpld").views == EPOCHS
    with pytest.raises(softlabels.DataError, match="in this order"):
        imported(tmp_path / "f", photos, tmp_path / "t", "lpld", order_seed=6)
    (tmp_path / "f/sampler_indices_epoch.json").unlink()
    assert imported(tmp_path / "f", photos, tmp_path / "t", "lpld", order_seed=5).views == EPOCHS


def test_lpqld_without_its_order_is_refused(photos: Path, tmp_path: Path) -> None:
    rivals.write_batches(tmp_path / "f", photos, "lpqld", k=2)
    order = (tmp_path / "f/sampler_indices_batch.json").rename(tmp_path / "order.json")
    with pytest.raises(softlabels.DataError, match=r"lacks sampler_indices_batch.json.*`order`"):
        imported(tmp_path / "f", photos, tmp_path / "s", "lpqld")
    with pytest.raises(softlabels.ConfigError, match="`order_seed` is for `from_` sre2l, lpld, not lpqld"):
        imported(tmp_path / "f", photos, tmp_path / "s", "lpqld", order_seed=42)
    assert imported(tmp_path / "f", photos, tmp_path / "s", "lpqld", order=order).views == EPOCHS


# ---- what is refused


def _no_numbers(content: list[Any]) -> None:
    content[5] = content[5].clone()
    content[5][3, 2] = float("nan")


def _twice(content: list[Any]) -> None:
    content[2] = content[2].clone()
    content[2][0] = content[2][1]


def _at(place: int, value: Any) -> Callable[[list[Any]], None]:
    def change(content: list[Any]) -> None:
        content[place] = value

    return change


class Stranger:
    """A class that a file may name and nobody may make."""


CHANGES: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "NaN": (_no_numbers, r"epoch_1/batch_2\.tar holds NaN or infinite logits; copy it again"),
    "a class": (
        _at(3, Stranger()),
        r"epoch_1/batch_2\.tar is refused: .*which plain values do not need; copy it again",
    ),
    "fewer images": (
        lambda content: [each[:20] if torch.is_tensor(each) else each for each in [*content[:2], None, *content[3:]]],
        r"epoch_1/batch_2\.tar holds 20 images where 24 belong; .*copy it again",
    ),
    "a partner twice": (_twice, r"epoch_1/batch_2\.tar does not name each of its 24 images once"),
    "other classes": (_at(5, torch.zeros(24, 5).half()), r"batch_2\.tar holds logits of 5 .*`classes=5`"),
    "probabilities": (_at(5, torch.full((24, 8), 0.125).half()), r"batch_2\.tar holds probabilities where logits"),
    "a large box": (_at(4, [0, 0, 40, 8]), r"batch_2\.tar records a box .* up to pixel 40, .*`input_size`"),
    "a box turned round": (_at(4, [9, 0, 3, 8]), r"batch_2\.tar is no batch file.*four edges"),
    "no mixture": (_at(2, None), r"batch_2\.tar is not mixed"),
    "crops in pixels": (_at(0, torch.full((24, 4), 9.0)), r"batch_2\.tar records crops that do not lie in an image"),
    "a mapping": (lambda content: {"logits": content[5]}, r"batch_2\.tar is no batch file of these projects"),
    "short": (lambda content: content[:5], r"batch_2\.tar is no batch file of these projects"),
    "flips of another shape": (_at(1, torch.zeros(24, 2)), r"batch_2\.tar is no batch file .*flips \(n,\)"),
    "a rectangle painted over": (_at(1, torch.rand(24, 7)), r"batch_2\.tar tells of rectangles .*`labels_only=True`"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_is_wrong_is_named_and_the_import_goes_on_when_it_is_mended(
    change: Callable[[list[Any]], Any],
    said: str,
    written: tuple[Path, list[rivals.Shown]],
    photos: Path,
    tmp_path: Path,
) -> None:
    folder = copied(written[0], tmp_path / "f")
    changed(folder / "epoch_1/batch_2.tar", change)
    with pytest.raises(softlabels.SoftlabelsError, match=said) as problem:
        imported(folder, photos, tmp_path / "s")
    assert "\n" not in str(problem.value)
    shutil.copy(written[0] / "epoch_1/batch_2.tar", folder / "epoch_1/batch_2.tar")
    imported(folder, photos, tmp_path / "s")
    imported(written[0], photos, tmp_path / "whole")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "whole")


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(width=32)
    | st.sampled_from(
        [torch.zeros(0), torch.zeros(24), torch.ones(24, 4), torch.arange(24), torch.zeros(24, 8).half()]
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 8), value=_ANYTHING)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(
    place: int, value: Any, written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path_factory: Any
) -> None:
    folder = copied(written[0], tmp_path_factory.mktemp("odd") / "f")
    for batch in range(5):
        changed(
            folder / f"epoch_0/batch_{batch}.tar",
            lambda content: [*content, value] if place == 6 else [*content[:place], value, *content[place + 1 :]],
        )
    try:
        imported(folder, photos, folder.with_name("s"))
    except softlabels.SoftlabelsError as problem:
        assert "\n" not in str(problem)


def test_a_batch_of_another_data_set_is_found_wherever_it_lies(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shape is right and the sample before the import does not see it; shards that are written stay."""
    rivals.write_batches(tmp_path / "f", photos, "lpld", batch_size=60, epochs=12)
    good = copied(tmp_path / "f", tmp_path / "good")

    def of_others(content: list[Any]) -> None:
        content[5] = content[5].roll(1, 1)

    changed(tmp_path / "f/epoch_9/batch_1.tar", of_others)
    monkeypatch.setattr(_distilled, "_COMPARED", 60)
    monkeypatch.setattr(_distilled, "_AT_ONCE", 1 << 10)
    monkeypatch.setattr("softlabels.importing._pairing.SAMPLE_VIEWS", 1)
    with pytest.raises(softlabels.DataError, match=r"epoch_9/batch_1\.tar does not seem to be of these images"):
        imported(tmp_path / "f", photos, tmp_path / "s", "lpld")
    assert list((tmp_path / "s/lpld").glob("0*"))
    shutil.copy(good / "epoch_9/batch_1.tar", tmp_path / "f/epoch_9/batch_1.tar")
    imported(tmp_path / "f", photos, tmp_path / "s", "lpld")
    imported(good, photos, tmp_path / "whole", "lpld")
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "whole")


def test_files_that_are_cut_short_or_missing_are_named(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    folder = copied(written[0], tmp_path / "f")
    file = folder / "epoch_2/batch_0.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        softlabels.DataError, match=r"epoch_2/batch_0\.tar is refused: it is no zip file.* damaged .*; copy it again"
    ):
        imported(folder, photos, tmp_path / "s")
    shutil.rmtree(folder / "epoch_1")
    file.write_bytes(whole)
    with pytest.raises(softlabels.DataError, match=r"lacks epoch_1/batch_0\.tar; copy it again"):
        imported(folder, photos, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    report = softlabels.import_labels(
        "sre2l", folder, data=photos, out=tmp_path / "s", input_size=SIZE, on_missing="skip", quiet=True
    )
    assert "5 of 15 batch files are missing" in report.notes
    labels = softlabels.open_labels(tmp_path / "s")
    assert labels.views == 2
    every = imported(written[0], photos, tmp_path / "whole")
    assert torch.equal(labels.logits(range(IMAGES), 1), every.logits(range(IMAGES), 2))


def test_another_data_set_or_folder_is_refused(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    fewer = copied(photos, tmp_path / "photos")
    (fewer / "c7/14.png").unlink()
    with pytest.raises(
        softlabels.DataError, match=r"holds labels of 120 images in an epoch .*photos has 119; give the"
    ):
        imported(written[0], fewer, tmp_path / "s")
    with pytest.raises(softlabels.DataError, match="give the folder that holds all"):
        imported(written[0] / "epoch_0", photos, tmp_path / "s")
    with pytest.raises(softlabels.DataError, match="holds labels of sre2l; import them with `from_=sre2l`"):
        imported(written[0], photos, tmp_path / "s", "lpqld")
    with pytest.raises(softlabels.DataError, match=r"holds no epoch_0/batch_0.tar"):
        imported(photos, photos, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_size_of_the_teachers_images_is_checked_against_the_boxes(photos: Path, tmp_path: Path) -> None:
    rivals.write_batches(tmp_path / "f", photos, epochs=40)
    with pytest.raises(softlabels.ConfigError, match=r"beyond pixel 32, .* not 224 pixels wide; .*`input_size`"):
        imported(tmp_path / "f", photos, tmp_path / "s", input_size=None)
    assert not (tmp_path / "s").exists()


def test_settings_of_other_projects_are_refused(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    for setting in ({"temperature": 2.0}, {"tail": "none"}, {"mixup": 0.8}):
        with pytest.raises(softlabels.ConfigError, match=rf"`{next(iter(setting))}` is for `from_` .*, not sre2l"):
            imported(written[0], photos, tmp_path / "s", **setting)
    with pytest.raises(softlabels.ConfigError, match="`codec` is for `from_` sre2l, lpld, lpqld, not fkd"):
        imported(written[0], photos, tmp_path / "s", "fkd", codec="topk:3", input_size=None)


@pytest.mark.parametrize("extra", ["cutout", "randaugment"])
def test_labels_of_views_that_are_not_made_here_can_be_had_alone(extra: str, photos: Path, tmp_path: Path) -> None:
    seen = rivals.write_batches(tmp_path / "f", photos, "lpqld", mix=None, k=2)
    for file in (tmp_path / "f").glob("batch_*.tar"):
        if extra == "cutout":
            changed(file, lambda content: [content[0], torch.rand(24, 7), *content[2:]])
        else:
            operations = [[torch.zeros(24, dtype=torch.int64), torch.ones(24).half(), torch.ones(24).half()]]
            changed(file, lambda content, given=operations: [*content[:2], given, *content[2:]])  # type: ignore[misc]
    named = "rectangles painted over" if extra == "cutout" else "RandAugment"
    with pytest.raises(softlabels.ConfigError, match=rf"batch_0\.tar tells of {named}.*`labels_only=True`"):
        imported(tmp_path / "f", photos, tmp_path / "s", "lpqld", input_size=None)
    labels = imported(tmp_path / "f", photos, tmp_path / "s", "lpqld", input_size=None, labels_only=True)
    for row, view, _, logits in in_turn(seen)[::11]:
        assert labels.probabilities([row], view)[0].argmax() == logits.argmax()
    with pytest.raises(softlabels.ConfigError, match="only lpqld's own code makes the views"):
        softlabels.SoftLabelDataset(labels, str(photos), size=SIZE)[0]


def test_an_import_killed_at_any_moment_goes_on(
    written: tuple[Path, list[rivals.Shown]], photos: Path, tmp_path: Path
) -> None:
    imported(written[0], photos, tmp_path / "whole", rows_per_shard=10)
    out, kills = tmp_path / "s", 0
    for moment in range(6):
        kills += killed(
            lambda: imported(written[0], photos, out, rows_per_shard=10),
            lambda wanted=moment: sum(1 for _ in out.glob("sre2l/0*")) >= wanted,  # type: ignore[misc]
            wait=0.0005 * moment,
        )
    imported(written[0], photos, out, rows_per_shard=10)
    assert kills >= 3
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    before = all_bytes(out)
    imported(written[0], photos, out, rows_per_shard=10)
    assert all_bytes(out) == before


# ---- importers of other packages

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own_importer"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a module with an importer as pip does, in a folder where modules and what they offer are found."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(IMPORTERS, "_kinds", dict(IMPORTERS._kinds))  # which keeps the classes that it has found

    def install(entries: str, module: str) -> None:
        folder = tmp_path / "site" / f"{module}-0.1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
        (folder / "entry_points.txt").write_text(f"[softlabels.importers]\n{entries}\n")
        shutil.copy(EXAMPLE / "own_importer.py", tmp_path / "site" / f"{module}.py")

    yield install
    for name in [name for name in sys.modules if name.startswith("installed_importer")]:
        del sys.modules[name]


def test_a_package_adds_an_importer_by_an_entry_point(
    installed: Callable[[str, str], None], photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    images = softlabels.open_images(photos)
    logits = rivals.colour_teacher()(
        torch.stack([images.decode(row).float().mean((1, 2), keepdim=True) / 255 for row in range(IMAGES)])
    ).detach()
    np.save(answers / "logits.npy", logits.numpy())
    (answers / "keys.txt").write_text("\n".join(images.keys.to_pylist()))
    command = ("import", answers, "--from", "npy-logits", "--data", photos, "--codec", "dense:fp32", "--out", "s")
    unknown = softlabels_command(*command)
    assert unknown.exit_code == 2
    assert "unknown project 'npy-logits'" in unknown.output
    entry = re.search(r'"softlabels.importers"\]\n(.*)\n', (EXAMPLE / "pyproject.toml").read_text())
    assert entry is not None
    installed(entry[1].replace('"', "").replace("own_importer:", "installed_importer_own:"), "installed_importer_own")
    for shown in (softlabels_command("import", "--help"), softlabels_command("list", "importers")):
        assert "npy-logits" in shown.output
        assert "sre2l" in shown.output
    assert "installed_importer_own" not in sys.modules  # names are told without running anything
    done = softlabels_command(*command)
    assert done.exit_code == 0, done.output
    assert "the class named first is the image's own for 100.0%" in done.output
    labels = softlabels.open_labels("s")
    assert torch.equal(labels.logits(range(IMAGES), 0), logits)
    assert [step.kind for step in labels.recipe.steps] == ["resize-centre-crop"]
    (answers / "keys.txt").write_text("c0/00.png")
    short = softlabels_command(*command)
    assert (short.exit_code, short.output.count("\n")) == (1, 1)
    order = softlabels_command(*command, "--order-seed", 3)
    assert "--order-seed is for --from sre2l, lpld, not npy-logits" in order.output


def test_an_importer_that_cannot_be_imported_or_lacks_something_is_named(
    installed: Callable[[str, str], None], photos: Path, tmp_path: Path, softlabels_command: Callable
) -> None:
    installed("npy-gone = installed_importer_gone:Nothing", "installed_importer_gone")
    installed("npy-bare = installed_importer_bare:Bare", "installed_importer_bare")
    bare = tmp_path / "site/installed_importer_bare.py"
    bare.write_text("class Bare:\n    by_place = staticmethod(lambda folder: False)\n    __init__ = lambda *_: None\n")
    Path("answers").mkdir()
    for name, said in (
        ("npy-gone", "project 'npy-gone' of another package (installed_importer_gone:Nothing) cannot be imported"),
        ("npy-bare", "installed_importer_bare:Bare reads label files, but has no settings, project, views"),
    ):
        refused = softlabels_command("import", "answers", "--from", name, "--data", photos, "--out", "s")
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
        assert said in refused.output
