"""Laws that every codec keeps."""

from __future__ import annotations

import hashlib
import math
import warnings

import numpy as np
import pytest
import torch
from codings import CODES, every, named, words
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabels.codecs import CODECS, Codec, SparseCodec, nearest_temperature, spelled
from softlabels.errors import ConfigError, StoreError

KEEPS_THE_FIRST = [codec for codec in CODES if codec.kind != "sampled"]
STABLE = [codec for codec in CODES if codec.kind in ("dense", "quantized", "topk")]


def logits(seed: int, rows: int, classes: int, spread: float = 3.0) -> Tensor:
    """Multiples of 1/64, so that whole numbers can be added without rounding; with ties."""
    draws = np.random.default_rng(seed).standard_normal((rows, classes)) * spread
    return torch.from_numpy(np.round(draws * 64) / 64).float()


def kl(source: Tensor, stored: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = ((rows.double() / temperature).log_softmax(-1) for rows in (source, stored))
    return (p.exp() * (p - q)).sum(-1)


@every
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 257, 1000])
def test_arrays_are_as_the_layout_says(codec: Codec, classes: int) -> None:
    layout = codec.layout(classes)
    arrays = codec.encode(logits(0, 5, classes), words(5))
    assert arrays.keys() == layout.keys()
    for name, field in layout.items():
        assert arrays[name].shape == (5, *field.shape)
        assert arrays[name].dtype == np.dtype(field.dtype)
    assert sum(array.nbytes for array in arrays.values()) == 5 * codec.bytes_per_label(classes)
    decoded = codec.decode(arrays, classes)
    assert decoded.shape == (5, classes)
    assert decoded.dtype == torch.float32


@every
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([2, 11, 64, 300]), chosen=st.integers(0, 6))
def test_a_rows_bytes_depend_on_that_row_alone(codec: Codec, seed: int, classes: int, chosen: int) -> None:
    rows = logits(seed, 7, classes)
    together = codec.encode(rows, words(7))
    alone = codec.encode(rows[chosen : chosen + 1], words(7)[chosen : chosen + 1])
    for name, array in alone.items():
        np.testing.assert_array_equal(array[0], together[name][chosen])


@every
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), constant=st.integers(-500, 500), spread=st.sampled_from([0.05, 1.0, 6.0]))
def test_a_constant_added_to_a_row_changes_nothing(codec: Codec, seed: int, constant: int, spread: float) -> None:
    rows = logits(seed, 4, 50, spread)
    before = codec.decode(codec.encode(rows, words(4)), 50, temperature=2.0)
    after = codec.decode(codec.encode(rows + constant, words(4)), 50, temperature=2.0)
    torch.testing.assert_close(before.softmax(-1), after.softmax(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", KEEPS_THE_FIRST, ids=named)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([2, 11, 300]), spread=st.sampled_from([0.5, 3.0, 30.0]))
def test_a_highest_class_stays_the_highest(codec: Codec, seed: int, classes: int, spread: float) -> None:
    rows = logits(seed, 6, classes, spread)
    first = codec.decode(codec.encode(rows), classes).argmax(-1)
    assert torch.equal(rows.gather(1, first[:, None])[:, 0], rows.amax(-1))


@pytest.mark.parametrize("codec", STABLE, ids=named)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([2, 11, 300]), spread=st.sampled_from([0.0, 0.5, 8.0]))
def test_storing_what_was_stored_changes_nothing_more(codec: Codec, seed: int, classes: int, spread: float) -> None:
    once = codec.decode(codec.encode(logits(seed, 6, classes, spread)), classes)
    twice = codec.decode(codec.encode(once), classes)
    torch.testing.assert_close(once - once.amax(-1, keepdim=True), twice - twice.amax(-1, keepdim=True))


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
def test_a_label_is_a_distribution_whatever_the_row(codec: Codec, temperature: float) -> None:
    rows = torch.zeros(8, 60)
    rows[1, 7] = 80.0
    rows[2, 7] = -80.0
    rows[3] = torch.linspace(-80, 80, 60)
    rows[4, :10] = 80.0
    rows[5, :30] = 1e-3
    rows[6, 5:] = -1e4
    rows[7] = torch.arange(60) * 1e-7
    decoded = codec.decode(codec.encode(rows, words(8)), 60, temperature=temperature)
    assert decoded.isfinite().all()
    shares = (decoded / temperature).softmax(-1)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(8))
    if codec.kind != "sampled":
        assert torch.equal(decoded.argmax(-1)[[1, 3]], torch.tensor([7, 59]))


@every
def test_labels_read_from_a_read_only_map_decode_without_a_warning(codec: Codec) -> None:
    arrays = codec.encode(logits(3, 4, 30), words(4))
    expected = codec.decode(arrays, 30)
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(codec.decode(arrays, 30), expected, rtol=0, atol=0)


@every
def test_no_labels_are_labels_too(codec: Codec) -> None:
    assert codec.decode(codec.encode(torch.zeros(0, 20), words(0)), 20).shape == (0, 20)


@every
def test_a_codec_is_the_mapping_it_was_made_from(codec: Codec) -> None:
    assert isinstance(codec, Codec)
    assert CODECS.make(codec.model_dump(mode="json")) == codec
    assert CODECS.make(spelled(codec)) == codec


@every
def test_stored_labels_of_another_shape_are_refused(codec: Codec) -> None:
    arrays = codec.encode(logits(0, 4, 40), words(4))
    for wrong in ({}, {name: array[:, :-1] for name, array in arrays.items()}):
        with pytest.raises(StoreError, match=codec.kind):
            codec.decode(wrong, 40)


@every
def test_logits_that_are_no_matrix_of_floats_are_refused(codec: Codec) -> None:
    for wrong in (torch.zeros(5), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 0)):
        with pytest.raises(ConfigError, match="shape"):
            codec.encode(wrong, words(2))


@every
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), -float("inf")])
def test_what_is_no_temperature_is_refused(codec: Codec, temperature: float) -> None:
    with pytest.raises(ConfigError, match="`temperature`"):
        codec.check_temperature(temperature)


@pytest.mark.parametrize(
    ("name", "valid", "not_valid", "instead"),
    [
        ("dense", 0.1, 0.05, "dense:fp32"),
        ("dense:fp32", 0.01, None, ""),
        ("quantized", 0.25, 0.2, "dense"),
        ("quantized:4", 1, 0.5, "quantized:8"),
        ("head_tail:10", 0.5, 0.4, "quantized:8"),
        ("topk:10", 0.5, 0.4, "dense"),
        ("sampled:30", 1, 4, "topk"),
        ("probabilities:5", 1, 4, "topk"),
    ],
)
def test_a_temperature_that_is_not_valid_is_refused_with_the_codec_to_use(
    name: str, valid: float, not_valid: float | None, instead: str
) -> None:
    codec = CODECS.make(name)
    codec.check_temperature(valid)
    if not_valid is not None:
        with pytest.raises(ConfigError, match=f"{codec.kind}.* {not_valid}; .*`codec={instead}"):
            codec.check_temperature(not_valid)


@pytest.mark.parametrize("name", ["topk:0", "topk:x", "dense:fp8", "quantized:3", "quantized:x", "sampled:-1"])
def test_a_wrong_setting_is_one_line_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=name.partition(":")[0]) as caught:
        CODECS.make(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", [codec for codec in CODES if isinstance(codec, SparseCodec)], ids=named)
def test_a_sparse_label_is_the_dense_one(codec: SparseCodec) -> None:
    arrays = codec.encode(logits(5, 6, 90), words(6))
    sparse = codec.sparse(arrays, 90, temperature=3.0)
    assert torch.equal(sparse.dense(), codec.decode(arrays, 90, temperature=3.0))
    assert all(len(set(ids)) == len(ids) for ids in sparse.ids.tolist())


@pytest.mark.parametrize(
    "codec", [codec for codec in CODES if codec.kind in ("topk", "sampled", "head_tail", "probabilities")], ids=named
)
def test_a_damaged_label_is_a_label_or_a_store_error(codec: Codec) -> None:
    damaged = np.random.default_rng(1).integers(0, 256, (200, int(codec.bytes_per_label(700))), np.uint8)
    for row in np.concatenate([damaged, np.zeros_like(damaged[:1]), np.full_like(damaged[:1], 255)]):
        try:
            decoded = codec.decode({"record": row[None]}, 700)
        except StoreError as error:
            assert "class" in str(error)
        else:
            assert decoded.shape == (1, 700)


@pytest.mark.parametrize("kind", ["topk", "head_tail", "sampled"])
def test_class_numbers_beyond_16_bits_survive(kind: str) -> None:
    classes = 70_001
    rows = torch.zeros(2, classes)
    rows[0, [70_000, 65_536, 3]] = torch.tensor([9.0, 8.0, 7.0])
    rows[1, [69_999, 40_000, 65_535]] = torch.tensor([90.0, 89.0, 88.0])
    codec = CODECS.make({"kind": kind, "k": 3})
    ids = codec.decode(codec.encode(rows, words(2)), classes).topk(3).indices
    assert ids[1].tolist() == [69_999, 40_000, 65_535]
    assert kind == "sampled" or ids[0].tolist() == [70_000, 65_536, 3]


BYTES = {
    "dense-fp16": "518b60901ca3",
    "dense-fp32": "e471f02357cf",
    "quantized-8": "695a6696edab",
    "quantized-4": "70ea00a5f518",
    "head_tail-3-2": "e67b81dfded8",
    "head_tail-10-4": "24f8b04840ce",
    "topk-1-compact-32": "e238c10af82c",
    "topk-10-compact-32": "23eae772c2b6",
    "topk-10-fast-32": "c063d9e0dec5",
    "topk-40-compact-32": "cb519a04c3d7",
    "topk-11-compact-12": "9085d914c1f5",
    "sampled-8-1.0": "350020ad8bad",
    "probabilities-5-2.0-none-fp32": "316528c55c68",
    "probabilities-8-1.0-uniform-fp16": "791f24bbd937",
    "top_logits-6": "1a58d52b75c1",
}


@every
def test_bytes_are_those_of_format_version_1(codec: Codec) -> None:
    places = torch.arange(4 * 60).reshape(4, 60)
    rows = ((places * 7919) % 1009).float() / 64
    digest = hashlib.sha256()
    for array in codec.encode(rows, words(4)).values():
        digest.update(array.tobytes())
    assert digest.hexdigest()[:12] == BYTES[named(codec)]


@pytest.mark.parametrize("codec", CODES, ids=named)
def test_a_codec_is_valid_at_the_temperatures_that_it_states(codec: Codec) -> None:
    lowest, highest = codec.temperatures
    for temperature in (max(lowest, 0.01), min(highest, 50.0)):
        codec.check_temperature(temperature)
    for temperature in ([lowest * 0.9] if lowest else []) + ([highest * 1.1] if highest < math.inf else []):
        with pytest.raises(ConfigError):
            codec.check_temperature(temperature)
    assert lowest <= nearest_temperature(codec, 1.0) <= highest


@pytest.mark.parametrize("codec", CODES, ids=named)
def test_labels_without_logits_are_those_that_may_give_a_class_nothing(codec: Codec) -> None:
    rows = torch.full((4, 60), -400.0)
    rows[:, 0] = 0
    least = codec.decode(codec.encode(rows, np.arange(4, dtype=np.uint64)), 60).amin()
    assert codec.has_logits == bool(least > -500)


@pytest.mark.parametrize("codec", CODES, ids=named)
@pytest.mark.parametrize("size", [1e5, 1e30, 3e38])
def test_finite_logits_come_back_finite_and_in_their_place(codec: Codec, size: float) -> None:
    rows = torch.tensor([[size, -size, 0, 1, 5, -size, 2, 2, 2, 2, 2, 2, 2]])
    decoded = codec.decode(codec.encode(rows, np.arange(1, dtype=np.uint64)), 13)
    assert decoded.isfinite().all()
    assert decoded.argmax() == 0
