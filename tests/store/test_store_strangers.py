"""A store from a stranger can neither reach outside itself, nor exhaust memory, nor run code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store.stores import assert_holds, card, filled, make, table

from softlabels.core.arrayfile.hdf5 import Hdf5, _encoded
from softlabels.core.documents import canonical, json_digest
from softlabels.core.paths import SafePath
from softlabels.errors import StoreError
from softlabels.store import open_store
from softlabels.store._shard import Header

SHARD = "00001-v0-3"


def sealed(path: Path, **changes: Any) -> None:
    """Change a JSON document of the store and give it a right checksum, as a stranger could."""
    value = json.loads(path.read_text())
    value.pop("sha256")
    value |= changes
    path.write_text(json.dumps({**value, "sha256": json_digest(value)}))


def header_of(path: Path) -> dict[str, Any]:
    """The header of an HDF5 shard as JSON values."""
    return Hdf5().read_header(SafePath(path.parent, (path.name,)), Header).body()


def sealed_header(path: Path, body: Any) -> None:
    """Give an HDF5 shard another header, with right checksums."""
    text = canonical(body)
    block = header_of(path)["files"][""]["start"]
    first = f"softlabels-shard 1 {len(text)} {block} {hashlib.sha256(text).hexdigest()}\n".encode()
    content = path.read_bytes()
    assert len(first + text) <= block
    path.write_bytes((first + text).ljust(block) + content[block:])


def refused(root: Path, match: str, view: int = 0) -> None:
    """Using row 25 is refused with such words, and verify has something to say."""
    with pytest.raises(StoreError, match=match) as refusal:
        open_store(root).teacher("cnn").take([25], [view])
    assert "\n" not in str(refusal.value)
    with contextlib.suppress(StoreError):
        assert open_store(root).teacher("cnn").verify() != []


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_links_are_refused_wherever_they_are(tmp_path: Path, form: str) -> None:
    filled(tmp_path / "s", form)
    inner = [p for p in (tmp_path / "s").rglob("*") if SHARD in str(p) or "." in p.name or p.name == "cnn"]
    for path in sorted(inner, key=lambda p: len(p.parts)):
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        if "00000" not in str(path) and "00002" not in str(path):
            with pytest.raises(StoreError):
                store = open_store(tmp_path / "s")
                assert len(store.keys) == 50
                store.teacher("cnn").take([25], [0])
        try:
            store = open_store(tmp_path / "s")
            assert store.verify() + store.teacher("cnn").verify() != []
        except StoreError:
            pass
        path.unlink()
        elsewhere.rename(path)
    assert_holds(open_store(tmp_path / "s").teacher("cnn"), 3)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    assert_holds(open_store(tmp_path / "link").teacher("cnn"), 3)


def test_a_pipe_in_place_of_a_shard_does_not_hang(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    path = tmp_path / "s/cnn" / f"{SHARD}.h5"
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path / "s", "not a regular file")


def test_no_library_follows_what_hdf5_could_point_at(tmp_path: Path) -> None:
    """External links, external storage and virtual data sets: the file may hold them, nobody looks."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"secret" * 1000)
    labels = filled(tmp_path / "s")
    path = tmp_path / "s/cnn" / f"{SHARD}.h5"
    for trick in ("link", "storage", "virtual", "object"):
        shutil.copy(path, tmp_path / "whole.h5")
        with h5py.File(path, "r+") as file:
            del file["tail"]
            if trick == "link":
                file["tail"] = h5py.ExternalLink(str(secret), "/")
            elif trick == "storage":
                file.create_dataset("tail", (3, 20), "f4", external=[(str(secret), 0, 240)])
            elif trick == "virtual":
                layout = h5py.VirtualLayout((3, 20), "f4")
                layout[:] = h5py.VirtualSource(str(secret), "x", (3, 20))
                file.create_virtual_dataset("tail", layout)
            else:
                file.create_dataset("tail", (3, 20), h5py.string_dtype())
        assert any(SHARD in problem for problem in labels.verify())
        try:
            taken = open_store(tmp_path / "s").teacher("cnn").take([25], [0])
            assert b"secret" not in taken["tail"].tobytes()
        except StoreError:
            pass
        shutil.move(tmp_path / "whole.h5", path)


def test_a_plain_hdf5_file_is_no_shard(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    with h5py.File(tmp_path / "s/cnn" / f"{SHARD}.h5", "w") as file:
        file["ids"] = np.zeros((3, 20, 5), np.uint16)
    refused(tmp_path / "s", "does not begin as a shard does")


def absurd(header: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    ids = header["arrays"]["ids"]
    huge = 1 << 61

    def arrays(**changes: Any) -> dict[str, Any]:
        return {"arrays": header["arrays"] | {"ids": ids | changes}}

    whole = header["files"][""]
    return [
        (arrays(shape=[3, huge, 5]), r"not uint16 \(3, 20, 5\)"),
        (arrays(shape=[huge] * 30), r"not uint16 \(3, 20, 5\)"),
        (arrays(shape=[3, -1, 5]), r"not uint16 \(3, 20, 5\)"),
        (arrays(dtype="object"), r"not uint16 \(3, 20, 5\)"),
        (arrays(dtype="float64"), r"not uint16 \(3, 20, 5\)"),
        (arrays(offsets=[huge] * 3), "outside the file"),
        (arrays(offsets=[0, 0, 0]), "outside the file"),
        (arrays(offsets=[whole["size"] - 1] * 3), "outside the file"),
        (arrays(offsets=[-1, 0, 0]), "ids.offsets.0"),
        (arrays(offsets=[1 << 80, 0, 0]), "ids.offsets.0"),
        (arrays(sizes=[huge] * 3), "other sizes"),
        (arrays(sizes=[200, 200, 199]), "other sizes"),
        (arrays(offsets=[]), "one place for each"),
        (arrays(plain=[False] * 3), "other sizes"),
        ({"arrays": {}}, "does not hold the arrays"),
        ({"arrays": {"../../etc/passwd": ids}}, "arrays"),
        ({"files": {"": whole | {"size": huge}}}, "instead of"),
        ({"files": {"": whole, "../../../etc/passwd": whole}}, "where it ends"),
        ({"files": {}}, "where it ends"),
        ({"compression": "zstd"}, "does not hold the arrays"),
        ({"first_row": 0}, "another first row"),
        ({"stop_row": huge - 1}, "another last row"),
        ({"name": "../00001-v0-3"}, "another shard"),
        ({"teacher": ".."}, "another teacher"),
        ({"skipped": {"7": "not mine"}}, "skips rows"),
        ({"digests": {"20": ["ab"]}}, "digests"),
        ({"skipped": {"x": "y"}}, "skipped"),
        ({"surprise": 1}, "surprise"),
    ]


def test_absurd_headers_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    path = tmp_path / "s/cnn" / f"{SHARD}.h5"
    good = path.read_bytes()
    header = header_of(path)
    for changes, said in absurd(header):
        sealed_header(path, header | changes)
        refused(tmp_path / "s", said)
        path.write_bytes(good)
    sealed_header(path, header)
    assert path.read_bytes() == good


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    path = tmp_path / "s/cnn" / f"{SHARD}.h5"
    content = path.read_bytes()
    for numbers in (b"999999999999 4096", b"10 999999999999", b"2048 1024"):
        path.write_bytes(b"softlabels-shard 1 " + numbers + b" " + b"0" * 64 + b"\n" + content)
        refused(tmp_path / "s", "does not fit into its")


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_a_compressed_bomb_is_refused_unopened(tmp_path: Path, form: str) -> None:
    labels = filled(tmp_path / "s", form, "zstd")
    shard = labels.shards[1]
    header = labels._folder.header(shard)
    place = labels._folder.shard_place(shard).path
    path = place if form == "hdf5" else place / "ids/c/0/0/0"
    offset = header.arrays["ids"].offsets[0]
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, offset + 4, 0x7FFFFFFF)  # what blosc would allocate
    path.write_bytes(content)
    from zlib import crc32

    size = header.arrays["ids"].sizes[0]
    stored = header.arrays["ids"].model_copy(
        update={"crc32": (crc32(content[offset : offset + size]), *header.arrays["ids"].crc32[1:])}
    )
    changed = header.model_copy(update={"arrays": {**header.arrays, "ids": stored}})
    if form == "hdf5":
        block = header.files[""].start
        path.write_bytes(_encoded(changed, block) + bytes(content[block:]))
    else:
        from softlabels.core.arrayfile.zarr import _encoded as zarr_encoded

        (place / "zarr.json").write_bytes(zarr_encoded(changed))
    refused(tmp_path / "s", "is a chunk of 2,147,483,647 bytes, not of 200")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": {"ids": {"dtype": "object", "shape": [5]}}}, "layout.ids.dtype"),
        ({"layout": {"ids": {"dtype": "O", "shape": [5]}}}, "layout.ids.dtype"),
        ({"layout": {"ids": {"dtype": "uint16", "shape": [-5]}}}, "layout.ids.shape"),
        ({"layout": {"ids": {"dtype": "uint16", "shape": [1 << 60]}}}, "layout.ids.shape"),
        ({"layout": {"ids": {"dtype": "uint16", "shape": [1 << 30, 1 << 30]}}}, "bytes is more than 268,435,456"),
        ({"layout": {"../x": {"dtype": "uint16", "shape": [5]}}}, "layout"),
        ({"layout": {}}, "layout"),
        ({"format": "pickle"}, "format"),
        ({"compression": "lzma"}, "compression"),
        ({"classes": 0}, "classes"),
        ({"more": 1}, "more"),
    ],
)
def test_absurd_cards_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    filled(tmp_path / "s")
    sealed(tmp_path / "s/cnn/teacher.json", **changes)
    refused(tmp_path / "s", said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "../../x"}, "'id'"),
        ({"rows_per_shard": 0}, "rows_per_shard"),
        ({"rows_per_shard": -1}, "rows_per_shard"),
        ({"rows_per_shard": "many"}, "rows_per_shard"),
        ({"classes": 1 << 40}, "classes"),
        ({"images": []}, "images"),
        ({"images": [{"rows": 1 << 31, "size": 1, "sha256": "0" * 64, "fingerprint": "0" * 64}]}, "images"),
        ({"format_version": "1"}, "no format version"),
        ({"format_version": 0}, "no format version"),
        ({"recipe": 3}, "recipe"),
        ({"seed": 8}, "id that its other values do not give"),
    ],
)
def test_absurd_manifests_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    filled(tmp_path / "s")
    sealed(tmp_path / "s/manifest.json", **changes)
    refused(tmp_path / "s", said)


def test_more_rows_than_the_table_has_room_for_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    sealed(tmp_path / "s/manifest.json", images=[manifest["images"][0] | {"rows": 1 << 31}], rows_per_shard=1)
    refused(tmp_path / "s", "more than images.parquet has room for")


def test_more_views_than_are_read_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "s", 20_000, 1).prepare("cnn", card())
    (tmp_path / "s/cnn/00000-v0-65536.h5").write_bytes(b"")
    refused(tmp_path / "s", "more than is read")


def test_broken_json_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    texts = ["", "{", "[]", "null", "1", '{"a": 1', "[" * 100_000, '{"a":' * 100_000, "\xff", "NaN", "9" * 10_000]
    for name in ("manifest.json", "cnn/teacher.json"):
        path = tmp_path / "s" / name
        good = path.read_bytes()
        for text in texts:
            path.write_bytes(text.encode("latin-1"))
            refused(tmp_path / "s", name.split("/")[-1])
        path.write_bytes(good)


@pytest.mark.parametrize("form", ["hdf5", "zarr"])
def test_newer_formats_are_refused_with_both_numbers(tmp_path: Path, form: str) -> None:
    filled(tmp_path / "s", form)
    both = "format version 2, newer than version 1 that this softlabels reads"
    for name in ("manifest.json", "cnn/teacher.json"):
        good = (tmp_path / "s" / name).read_bytes()
        sealed(tmp_path / "s" / name, format_version=2, novelty="unknown")
        refused(tmp_path / "s", both)
        (tmp_path / "s" / name).write_bytes(good)
    if form == "hdf5":
        path = tmp_path / "s/cnn" / f"{SHARD}.h5"
        path.write_bytes(path.read_bytes().replace(b"softlabels-shard 1 ", b"softlabels-shard 2 ", 1))
    else:
        path = tmp_path / "s/cnn" / f"{SHARD}.zarr/zarr.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    refused(tmp_path / "s", both)
    with pytest.raises(StoreError, match=both):  # and not taken for missing, which would overwrite it
        open_store(tmp_path / "s").teacher("cnn").missing(3)


def _resealed_images(root: Path, **options: Any) -> None:
    path = root / "images.parquet"
    images = table(50)
    if options.pop("bomb", False):
        images = pa.table({"key": ["x" * 100_000] * 50, "label": [0] * 50, "checksum": np.zeros(50, np.uint64)})
    pq.write_table(images, path, **options)
    data = path.read_bytes()
    manifest = json.loads((root / "manifest.json").read_text())
    file = manifest["images"][0] | {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sealed(root / "manifest.json", images=[file])


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"bomb": True}, {"use_dictionary": True}])
def test_tables_of_images_that_could_unfold_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    make(tmp_path / "s")
    _resealed_images(tmp_path / "s", **options)
    store = open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="is not a plain table"):
        _ = store.keys


def test_a_folder_that_is_no_teacher_is_none(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    (tmp_path / "s" / "logs").mkdir()
    (tmp_path / "s" / "..hidden").mkdir()
    (tmp_path / "s" / "dump.yaml").write_text("a: 1")
    assert open_store(tmp_path / "s").teachers == ("cnn",)
    assert open_store(tmp_path / "s").verify() == []
