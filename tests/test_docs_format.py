"""The reader on docs/format.md reads golden shards of every codec, with h5py and numpy alone, as softlabels does."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store.make_golden_codecs import MAP, ROWS, STORES, VIEWS, features, logits

import softlabels
from softlabels.codecs import CODECS
from softlabels.loading.labels import Labels

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/codecs-1"
PAGE = (ROOT / "docs/format.md").read_text(encoding="utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
(EXAMPLE,) = re.findall(r"```\n(card, .*?)```", PAGE, flags=re.DOTALL)

ALONE = """
import sys

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "h5py"}:
            raise ModuleNotFoundError(f"{name} is not for this page")

for name in [name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names]:
    del sys.modules[name]
sys.meta_path.insert(0, NothingElse())
"""
HARNESS = """
made = {}
for folder in sys.argv[2:]:
    card, shards = read_labels(folder)
    (header, arrays), = shards
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    for temperature in [card["codec"]["temperature"]] if "temperature" in card["codec"] else [1.0, 0.5, 2.0, 20.0]:
        made[f"{folder} {temperature:g}"] = decode(card, flat, temperature)
np.savez(sys.argv[1], **made)
assert not {"torch", "softlabels", "zarr", "pandas"} & {name.partition(".")[0] for name in sys.modules}
"""


def by_the_page(out: Path, *folders: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    """What the page's code makes of teachers' labels, a (labels, classes) array for each at each temperature."""
    command = [sys.executable, "-c", ALONE + READER + HARNESS + more, str(out), *map(str, folders)]
    return subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the page's code makes of the golden labels."""
    out = tmp_path_factory.mktemp("page") / "out.npz"
    example = EXAMPLE.replace("labels/resnext101", str(GOLDEN / "1000/topk-10-hdf5-none"))
    assert example != EXAMPLE
    said = f"{example}\nnp.save('example.npy', softmax)"
    done = by_the_page(out, *(root / teacher for root, teacher in stores()), more=said)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return {**found, "example": np.load(out.with_name("example.npy"))}


ROOTS = [
    *(GOLDEN / str(classes) for classes in STORES),
    GOLDEN.with_name("top-logits-1"),
    GOLDEN.with_name("transform-1"),
]


def stores() -> list[tuple[Path, str]]:
    return [
        (root, teacher)
        for root in ROOTS
        for teacher in softlabels.open_labels(root).teachers
        if not teacher.endswith("zstd")
    ]


def decoded(labels: Labels, teacher: str, temperature: float) -> np.ndarray:
    views, rows = np.divmod(np.arange(ROWS * VIEWS), ROWS)
    arrays = labels.of(teacher).take(rows, views)
    return labels.codec(teacher).decode(arrays, labels.classes, temperature=temperature).numpy()


def test_there_is_a_golden_shard_of_every_codec() -> None:
    for root in ROOTS:
        labels = softlabels.open_labels(root)
        assert labels.store.verify() == []
        assert all(labels.of(teacher).verify() == [] for teacher in labels.teachers)
    kinds = {softlabels.open_labels(root).codec(teacher).kind for root, teacher in stores()}
    beside = [softlabels.open_labels(GOLDEN.with_name(name)) for name in ("features-1", "pca-1")]
    kinds |= {labels.codec("dense-fp16-hdf5-none@map").kind for labels in beside}
    assert kinds == set(CODECS.names)
    exact = decoded(softlabels.open_labels(GOLDEN / "7"), "dense-fp32-hdf5-none", 1.0)
    np.testing.assert_array_equal(exact, logits(7).reshape(-1, 7).numpy())


@pytest.mark.parametrize(("root", "teacher"), stores(), ids=[f"{root.name}-{teacher}" for root, teacher in stores()])
def test_the_pages_reader_decodes_as_softlabels_does(root: Path, teacher: str, page: dict[str, np.ndarray]) -> None:
    labels = softlabels.open_labels(root)
    own: dict[str, Any] = labels.codec(teacher).model_dump()
    for temperature in [own["temperature"]] if "temperature" in own else [1.0, 0.5, 2.0, 20.0]:
        found = page[f"{root / teacher} {temperature:g}"]
        np.testing.assert_allclose(found, decoded(labels, teacher, temperature), rtol=2e-5, atol=2e-5)


def test_the_page_reads_compressed_columns_with_one_more_import(tmp_path: Path) -> None:
    store = GOLDEN.with_name("transform-1")
    folders = [store / name for name in ("transform-40-hdf5-zstd", "transform-60-k-5-hdf5-zstd")]
    allowed = ALONE.replace('"numpy", "h5py"}', '"numpy", "h5py", "hdf5plugin"}') + "import hdf5plugin\n"
    command = [sys.executable, "-c", allowed + READER + HARNESS, str(tmp_path / "out.npz"), *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found, labels = np.load(tmp_path / "out.npz"), softlabels.open_labels(store)
    for folder in folders:
        card = json.loads((folder / "teacher.json").read_text())
        assert card["layout"]["record"]["columns"] and ("mean" in card["layout"]) == ("k-5" not in folder.name)
        wanted = decoded(labels, folder.name, 2.0)
        np.testing.assert_allclose(found[f"{folder} 2"], wanted, rtol=2e-5, atol=2e-5)
    same = [decoded(labels, f"transform-40-{each}", 2.0) for each in ("hdf5-none", "hdf5-zstd", "zarr-zstd")]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


def test_the_pages_example_is_the_label(page: dict[str, np.ndarray]) -> None:
    labels = softlabels.open_labels(GOLDEN / "1000")
    wanted = labels.probabilities([3], 1, 2.0, teachers=["topk-10-hdf5-none"])[0].numpy()
    np.testing.assert_allclose(page["example"], wanted, rtol=1e-4)


def test_the_pages_reader_sees_damage(tmp_path: Path) -> None:
    for teacher, file in (
        ("topk-10-hdf5-none", "00000-v0-2.h5"),
        ("topk-10-zarr-none", "00000-v0-2.zarr/record/c/0/0/0"),
    ):
        shutil.copytree(GOLDEN / "1000" / teacher, tmp_path / teacher)
        data = bytearray((tmp_path / teacher / file).read_bytes())
        data[-80] ^= 1
        (tmp_path / teacher / file).write_bytes(data)
        assert "AssertionError" in by_the_page(tmp_path / "out.npz", tmp_path / teacher).stderr


def test_what_the_page_says_of_ids_and_alignment_and_filters_is_so() -> None:
    import zarr

    def canonical(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")

    manifest = json.loads((GOLDEN / "1000/manifest.json").read_text())
    first = {name: manifest["images"][0][name] for name in ("fingerprint", "contents")}
    what = {name: manifest[name] for name in ("classes", "class_names", "recipe", "seed")} | first
    assert manifest["id"] == hashlib.sha256(canonical(what)).hexdigest()
    for folder in sorted((GOLDEN / "1000").glob("*-hdf5-*")):
        card = json.loads((folder / "teacher.json").read_text())
        left_out = {"format_version", "sha256", "licence", "versions"} | ({"spec"} if card["weights_sha256"] else set())
        identity = hashlib.sha256(canonical({name: card[name] for name in card.keys() - left_out})).hexdigest()
        file = folder / "00000-v0-2.h5"
        header = json.loads(file.read_bytes().split(b"\n", 1)[1].split(b"   ", 1)[0])
        assert (header["card"], header["store"]) == (identity, manifest["id"])
        for name, stored in header["arrays"].items():
            with h5py.File(file) as opened:
                dataset = opened[name]
                chunks = [dataset.id.get_chunk_info(view) for view in range(VIEWS)]
                filters = dataset.id.get_create_plist()
                numbers = [filters.get_filter(each)[0] for each in range(filters.get_nfilters())]
            assert numbers == [32001, 3] if card["compression"] == "zstd" else [3]
            assert [each.byte_offset for each in chunks] == stored["offsets"]
            assert [each.size - 4 for each in chunks] == stored["sizes"]
            assert all(each.byte_offset % 64 == 0 for each in chunks if each.size >= 4096)
    group = zarr.open_group(str(GOLDEN / "1000/topk-10-zarr-none/00000-v0-2.zarr"), mode="r")
    with h5py.File(GOLDEN / "1000/topk-10-hdf5-none/00000-v0-2.h5") as opened:
        np.testing.assert_array_equal(np.asarray(group["record"]), opened["record"][()])


def test_the_page_reads_features_as_softlabels_does(tmp_path: Path) -> None:
    store = GOLDEN.with_name("features-1")
    folder = store / "dense-fp16-hdf5-none@map"
    done = by_the_page(tmp_path / "out.npz", folder)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")[f"{folder} 1"].reshape(VIEWS, ROWS, *MAP)
    labels = softlabels.open_labels(store)
    assert labels.outputs() == ("map",) and tuple(labels.output_shape("map")) == MAP
    ours = np.stack([labels.output(range(ROWS), view, "map").numpy() for view in range(VIEWS)])
    np.testing.assert_allclose(found, ours, rtol=1e-6, atol=0)
    given = features().numpy()
    most = np.abs(given).max((2, 3, 4), keepdims=True)
    assert (np.abs(found - given) <= most / 254 * (1 + 1e-5)).all()
    assert labels.of("dense-fp16-hdf5-none@map").card.address == "layer3:grid2"


def test_the_page_reads_principal_components_as_softlabels_does(tmp_path: Path) -> None:
    store = GOLDEN.with_name("pca-1")
    folder = store / "dense-fp16-hdf5-none@map"
    done = by_the_page(tmp_path / "out.npz", folder)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")[f"{folder} 1"].reshape(VIEWS, ROWS, *MAP)
    labels = softlabels.open_labels(store)
    ours = np.stack([labels.output(range(ROWS), view, "map").numpy() for view in range(VIEWS)])
    np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-6)
    # Of the squared distances from the mean row as much is left as the five components tell.
    given, share = features().numpy(), labels.of("dense-fp16-hdf5-none@map").card.codec["fit"]["share"]
    left = ((found - given) ** 2).sum() / ((given - given.mean(axis=(0, 1))) ** 2).sum()
    assert abs(1 - left - share) < 1e-3 and 0.5 < share < 0.99
