"""The commands on stores behind URLs, as a user runs them; the server's whims are tested with the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import torch
from buckets import Server, serving
from moving import all_bytes, dump, shard_bytes
from safetensors.torch import load_file

import softlabels
from softlabels import StoreError
from softlabels.reporting.info import describe_store
from softlabels.store import _remote as remote

FORMATS = ("hdf5", "zarr")
OTHER = {"hdf5": "zarr", "zarr": "hdf5"}
QUICK = ["hdf5", pytest.param("zarr", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    return f"s3://{server.bucket()}/shards"


DUMP = ("dump", "--teacher", "cnn_tiny", "--weights", "random:1", "--data", "digits", "--limit", "200")
VIEWS = ("--recipe", "pad", "--views", "2", "--rows-per-shard", "64")
TRAIN = ("train", "--student", "cnn_tiny", "--size", "8", "--epochs", "2", "--warmup-epochs", "0")


def test_a_story_in_a_bucket(bucket: str, tmp_path: Path, softlabels_command: Callable[..., Any]) -> None:
    for _ in range(2):
        dumped = softlabels_command(*DUMP, *VIEWS, "--out", bucket)
        assert dumped.exit_code == 0, dumped.output
    assert "already; nothing to do" in dumped.output
    assert softlabels_command(*DUMP, *VIEWS, "--out", "local").exit_code == 0
    said = softlabels_command("info", bucket).output
    assert said.startswith(f"{bucket}: complete, ")
    assert "images  200 images of " in said
    verified = softlabels_command("verify", "--labels", bucket)
    assert verified.exit_code == 0, verified.output
    trained = softlabels_command(*TRAIN, "--labels", bucket, "--out", "far", "--cache-size", "1MB")
    assert trained.exit_code == 0, trained.output
    assert softlabels_command(*TRAIN, "--labels", "local", "--out", "near").exit_code == 0
    far, near = (load_file(f"{run}/last.safetensors") for run in ("far", "near"))
    assert all(torch.equal(far[name], near[name]) for name in near)
    converted = softlabels_command("convert", "--labels", bucket, "--out", "copy", "--compression", "zstd")
    assert converted.exit_code == 0, converted.output
    labels = softlabels.open_labels("copy")
    assert labels.of().card.compression == "zstd"
    assert softlabels_command("verify", "--labels", "copy", "--shards-only").exit_code == 0
    there = softlabels.open_labels(bucket, cache_dir=tmp_path / "mine", cache_size=1 << 20)
    assert (there.logits([3, 4], 1) == labels.logits([3, 4], 1)).all()
    assert list((tmp_path / "mine").glob("*/cnn_tiny/*.h5"))


@pytest.mark.slow
def test_a_command_lists_the_bucket_once(server: Server, bucket: str, tmp_path: Path) -> None:
    """And again what others may have changed: nothing is written on the word of an old listing.

    That is the whole bucket, still small, when a store is made in it, and a teacher's folder when its card is made and
    when its shards are written.
    """
    name = bucket.removeprefix("s3://").partition("/")[0]

    def lists(command: Callable[..., object], **settings: Any) -> dict[str, list[str]]:
        """For each store what a command listed of it: "" for everything."""
        server.listed.clear()
        command(**settings)
        found: dict[str, list[str]] = {}
        for query in map(parse_qs, server.listed):
            if "max-keys" not in query:  # s3fs looks once more where it found nothing
                store, _, folder = query["prefix"][0].strip("/").partition("/")
                found.setdefault(store, []).append(folder)
        return found

    usual: dict[str, Any] = {"teacher": "cnn_tiny", "weights": "random:1", "data": "digits", "limit": 100}
    usual |= {"recipe": "pad", "rows_per_shard": 64, "quiet": True}
    there, out = {"labels": bucket, "quiet": True}, f"s3://{name}/copy"
    written = ["cnn_tiny"]
    made = ["", "", *written, *written]
    assert lists(softlabels.dump, out=bucket, views=1, **usual) == {"shards": made}
    assert lists(softlabels.dump, out=bucket, views=2, **usual) == {"shards": ["", *written]}
    # The other part's shards may have come from another machine meanwhile, and the last line counts them.
    assert lists(softlabels.dump, out=bucket, views=3, part="0/2", **usual) == {"shards": ["", *written, *written]}
    assert lists(softlabels.dump, out=bucket, views=3, **usual) == {"shards": ["", *written]}
    assert lists(softlabels.plan, out=bucket, views=4, **usual) == {"shards": [""]}
    assert lists(describe_store, location=bucket) == {"shards": [""]}
    assert lists(softlabels.verify, **there) == {"shards": [""]}
    assert lists(softlabels.repair, **there) == {"shards": ["", *written]}
    student = {"student": "cnn_tiny", "size": 8, "epochs": 1, "warmup_epochs": 0, "out": str(tmp_path / "run")}
    assert lists(softlabels.train, workers=2, **student, **there) == {"shards": [""]}
    assert lists(softlabels.convert, out=str(tmp_path / "local"), **there) == {"shards": [""]}
    assert lists(softlabels.convert, out=out, **there) == {"shards": [""], "copy": made}
    own = {"images": softlabels.open_images("digits"), "recipe": "pad", "views": 1, "classes": 10}

    def create(**settings: Any) -> None:
        with softlabels.create_labels(**settings):
            pass

    assert lists(create, location=f"s3://{name}/own", **own) == {"own": ["", ""]}
    both = {"labels": [bucket, out], "quiet": True}
    assert lists(softlabels.merge, out=out, **both) == {"shards": [""], "copy": ["", *written]}
    assert lists(softlabels.merge, out=str(tmp_path / "merged"), **both) == {"shards": [""], "copy": [""]}


def test_a_cache_that_is_too_small_says_which_option(bucket: str, softlabels_command: Callable[..., Any]) -> None:
    softlabels_command(*DUMP, *VIEWS, "--out", bucket)
    trained = softlabels_command(*TRAIN, "--labels", bucket, "--cache-size", "1kB")
    assert trained.exit_code == 1
    assert "--cache-size" in trained.output.splitlines()[-1]
    with pytest.raises(StoreError, match="`cache_size`"):
        softlabels.open_labels(bucket, cache_size=10).logits([0], 0)
    for wrong in ("many", "-3", "3XB"):
        assert softlabels_command(*TRAIN, "--labels", bucket, "--cache-size", wrong).exit_code == 2


@pytest.mark.slow
def test_workers_and_a_thread_ahead_of_them_share_one_small_cache(
    bucket: str, tmp_path: Path, softlabels_command: Callable[..., Any]
) -> None:
    assert softlabels_command(*DUMP, *VIEWS, "--out", bucket).exit_code == 0
    windows = ("--shuffle-window", 2, "--batch-size", 16)
    limit = 12_000  # of four shards of some 5 kB
    for workers in (0, 2):
        options = (*windows, "--workers", workers, "--cache-dir", f"cache-{workers}", "--cache-size", limit)
        trained = softlabels_command(*TRAIN, "--labels", bucket, "--out", f"run-{workers}", *options)
        assert trained.exit_code == 0, trained.output
        copies = list((tmp_path / f"cache-{workers}").glob("*/cnn_tiny/*.h5"))
        assert 0 < sum(path.stat().st_size for path in copies) <= limit
    one, two = (load_file(f"run-{workers}/last.safetensors") for workers in (0, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def without(objects: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if name not in names}


@pytest.mark.parametrize("form", QUICK)
def test_convert_writes_to_a_url_what_it_writes_to_a_folder_and_reads_it_back(
    server: Server, bucket: str, photos: Path, softlabels_command: Callable[..., Any], form: str
) -> None:
    dump(Path("local"), photos, format=OTHER[form], codec="dense:fp32")
    options = ("--format", form, "--codec", "quantized", "--lossy")
    assert softlabels_command("convert", "--labels", "local", "--out", "near", *options).exit_code == 0
    for said in ("copied", "are there already; nothing to do"):
        converted = softlabels_command("convert", "--labels", "local", "--out", bucket, *options)
        assert converted.exit_code == 0 and said in converted.output, converted.output
        assert server.objects(bucket) == all_bytes(Path("near"))
    back = softlabels_command("convert", "--labels", bucket, "--out", f"{bucket}-z", "--compression", "zstd")
    assert back.exit_code == 0, back.output
    assert softlabels_command("verify", "--labels", f"{bucket}-z", "--shards-only").exit_code == 0
    far, near = (softlabels.open_labels(each) for each in (f"{bucket}-z", "near"))
    assert torch.equal(far.logits(range(18), 1), near.logits(range(18), 1))
    refused = softlabels_command("convert", "--labels", bucket, "--out", f"{bucket}/")
    assert refused.exit_code == 2 and "is the store to convert" in refused.output
    other = softlabels_command("convert", "--labels", bucket, "--out", f"{bucket}-z", "--format", OTHER[form])
    assert other.exit_code == 1
    assert f"{bucket}-z holds other labels under the name cnn_tiny: format is '{form}' there" in other.output


@pytest.mark.parametrize("form", QUICK)
@pytest.mark.slow
def test_merge_reads_and_writes_urls_and_folders_alike(
    server: Server, bucket: str, photos: Path, softlabels_command: Callable[..., Any], form: str
) -> None:
    whole = shard_bytes(dump(Path("direct"), photos, format=form))
    dump(f"{bucket}-a", photos, format=form, part="0/2")  # type: ignore[arg-type]
    dump(Path("b"), photos, format=form, part="1/2")
    parts = ("--labels", f"{bucket}-a", "--labels", "b")
    for out in (bucket, f"{bucket}-a"):  # the last is one of the parts
        merged = softlabels_command("merge", *parts, "--out", out)
        assert merged.exit_code == 0, merged.output
        assert f"2 views complete in {out}" in merged.output
    assert softlabels_command("merge", *parts, "--out", bucket).output.count("nothing to do") == 2
    documents = {"manifest.json", "images.parquet", "cnn_tiny/teacher.json"}
    for url in (bucket, f"{bucket}-a"):
        assert without(server.objects(url), *documents, "dump-cnn_tiny.yaml") == whole
    assert softlabels_command("verify", "--labels", bucket, "--shards-only").exit_code == 0
    dump(Path("other"), photos, format=form, seed=1, limit=3)
    before = server.objects(bucket)
    refused = softlabels_command("merge", "--labels", "other", "--out", bucket)
    assert refused.exit_code == 1
    assert f"{bucket} and " in refused.output and "seed is 0 there and 1 here" in refused.output
    assert server.objects(bucket) == before


@pytest.mark.parametrize("form", QUICK)
def test_a_conversion_outlives_its_server(
    server: Server, bucket: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Away for a moment it is waited for; away for longer, the same command goes on when it is back."""
    source = dump(tmp_path / "local", photos, format=OTHER[form], limit=8, rows_per_shard=4)
    settings = {"labels": str(source), "format": form, "quiet": True}
    softlabels.convert(out=str(tmp_path / "near"), **settings)
    upload, uploads, gone = remote.Remote.upload, 0, threading.Event()

    def dying(self: remote.Remote, path: Path, name: str) -> Any:
        nonlocal uploads
        uploads += 1
        if uploads == 2 and gone.is_set():  # among the documents
            server.stop()
            threading.Timer(0.3, server.start).start()
        if uploads == 5 and not gone.is_set():  # among the shards
            gone.set()
            server.stop()
        return upload(self, path, name)

    monkeypatch.setattr(remote.Remote, "upload", dying)
    monkeypatch.setattr(remote, "WAITS", [])
    with pytest.raises(StoreError, match=r"cannot be reached.*the same command goes on when the server is back"):
        softlabels.convert(out=bucket, **settings)
    server.start()
    softlabels.convert(out=bucket, **settings)
    assert server.objects(bucket) == all_bytes(tmp_path / "near")

    uploads = 0
    monkeypatch.setattr(remote, "WAITS", [0.1] * 40)
    softlabels.convert(out=f"{bucket}-again", **settings)
    assert uploads >= 5
    assert server.objects(f"{bucket}-again") == all_bytes(tmp_path / "near")


@pytest.mark.slow
def test_a_store_that_was_taken_away_from_a_url_is_converted_to_it_anew(
    server: Server, bucket: str, photos: Path, tmp_path: Path
) -> None:
    sources = [dump(tmp_path / f"s{seed}", photos, seed=seed) for seed in (0, 1)]
    for source in sources:
        softlabels.convert(labels=str(source), out=bucket, format="zarr", quiet=True)
        assert softlabels.open_labels(bucket).views == 2
        assert softlabels.open_labels(bucket).seed == softlabels.open_labels(source).seed
        client, name = server.client(), bucket.removeprefix("s3://").partition("/")[0]
        for key in server.objects(bucket):
            client.delete_object(Bucket=name, Key=f"shards/{key}")
