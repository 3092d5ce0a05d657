"""Whatever happens to the bytes of a store: it is harmless, or a StoreError, or at least found by verify."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store.stores import KINDS, filled, table, values
from store.test_store_strangers import header_of, sealed_header

from softlabels.core.documents import json_digest
from softlabels.errors import StoreError
from softlabels.store import open_store

KNOWN = values(50)
NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 1 << 31, 1 << 62, 1 << 64, -(1 << 70), 1.5, float("nan"), float("inf")),
    *("", "..", "/etc/passwd", "x" * 10_000, "\ud800", "0" * 64, "float64", "object", "hdf5", "zstd"),
    *([], {}, [[]], {"": {}}, [0] * 1000, {"../x": 1}),
]


@contextlib.contextmanager
def little_memory(spare: int = 1 << 30) -> Iterator[None]:
    """No more than `spare` bytes beyond what the process has now: whoever asks for more gets a MemoryError."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutate_bytes(rng: np.random.Generator, path: Path, others: list[Path]) -> None:
    """Change the bytes of a file in one of many ways."""
    content = bytearray(path.read_bytes())
    start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    way = rng.integers(0, 8)
    if way == 0 and content:
        content[start % len(content)] ^= 1 << int(rng.integers(0, 8))
    elif way == 1:
        stop = min(stop, start + 64)
        content[start:stop] = rng.bytes(stop - start)
    elif way == 2:
        del content[start:]
    elif way == 3:
        del content[start:stop]
    elif way == 4:
        content[start:start] = rng.bytes(int(rng.integers(1, 100)))
    elif way == 5:
        content = bytearray(others[int(rng.integers(0, len(others)))].read_bytes())
    elif way == 6:
        content[start:stop] = bytes(stop - start)
    else:
        content[start:stop] = content[start:stop] * 2
    path.write_bytes(content)


def mutate_value(rng: np.random.Generator, value: Any) -> Any:
    """Replace or remove something in a JSON value."""
    nasty = NASTY[int(rng.integers(0, len(NASTY)))]
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = list(value)[int(rng.integers(0, len(value)))]
        changed = {**value, key: mutate_value(rng, value[key])}
        if rng.random() < 0.1:
            changed[str(nasty)] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = int(rng.integers(0, len(value)))
        return [*value[:place], mutate_value(rng, value[place]), *value[place + 1 :]]
    return nasty


def mutate_sealed(rng: np.random.Generator, path: Path) -> None:
    """Change a value of a document or header and make its checksums right."""
    if path.suffix == ".h5":
        header = mutate_value(rng, header_of(path))
        with contextlib.suppress(AssertionError):  # it does not fit into the block any more
            sealed_header(path, header)
        return
    value = json.loads(path.read_text())
    if "attributes" in value:
        header = mutate_value(rng, value["attributes"]["softlabels"]["header"])
        value["attributes"]["softlabels"] = {"format_version": 1, "header": header, "sha256": json_digest(header)}
    else:
        value.pop("sha256")
        value = mutate_value(rng, value)
        value = value | {"sha256": json_digest(value)} if isinstance(value, dict) else value
    path.write_text(json.dumps(value))


def use(root: Path) -> None:
    """All that a reader does. Labels that come back are the right ones, or verify finds out."""
    store = open_store(root)
    rows, views = np.arange(50), np.arange(50) % 3
    wrong = not store.keys.equals(table(50)["key"])
    for name in store.teachers:
        labels = store.teacher(name)
        _ = labels.views, labels.nbytes, labels.skipped, list(labels.digests()), labels.missing(4)
        try:
            taken = labels.take(rows, views)
        except IndexError:  # fewer rows than we know of
            wrong = True
            continue
        wrong |= any(
            taken[array].shape != KNOWN[array][views, rows].shape or (taken[array] != KNOWN[array][views, rows]).any()
            for array in taken
        )
        for shard in labels.shards:
            labels.read_shard(shard)
        labels.held(rows, views)
    if wrong:
        assert store.verify() or any(store.teacher(name).verify() for name in store.teachers)


def fuzz(tmp_path: Path, form: str, compression: str, turns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    filled(tmp_path / "s", form, compression)
    shutil.copytree(tmp_path / "s", tmp_path / "good")
    paths = sorted(path for path in (tmp_path / "s").rglob("*") if path.is_file())
    documents = [path for path in paths if path.suffix == ".h5" or path.name in ("manifest.json", "teacher.json")]
    documents += [path for path in paths if path.name == "zarr.json" and path.parent.suffix == ".zarr"]
    harmless = 0
    with little_memory():
        for turn in range(turns):
            path = paths[int(rng.integers(0, len(paths)))]
            if turn % 2:
                path = documents[int(rng.integers(0, len(documents)))]
                mutate_sealed(rng, path)
            else:
                mutate_bytes(rng, path, paths)
            try:
                use(tmp_path / "s")
                harmless += 1
            except StoreError as problem:
                assert "\n" not in str(problem)
                str(problem).encode()
            except BaseException as problem:
                problem.add_note(f"turn {turn} of seed {seed}, {path}")
                raise
            shutil.copy(tmp_path / "good" / path.relative_to(tmp_path / "s"), path)
    assert harmless < turns / 2
    use(tmp_path / "s")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_mutations_are_harmless_or_a_store_error(tmp_path: Path, kind: tuple[str, str]) -> None:
    fuzz(tmp_path, *kind, turns=80, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_very_many_random_mutations_are_harmless_or_a_store_error(
    tmp_path: Path, kind: tuple[str, str], seed: int
) -> None:
    fuzz(tmp_path, *kind, turns=1000, seed=seed)
