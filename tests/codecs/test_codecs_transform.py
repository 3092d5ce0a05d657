"""The codec that takes its basis from the teacher and encodes all views of an image together."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabels.codecs import CODECS, Codec, ShardCodec, TransformCoding, spelled
from softlabels.core.arrayfile.blosc import compressed_size
from softlabels.errors import ConfigError, StoreError

CLASSES, FEATURES, VIEWS, IMAGES = 300, 48, 8, 96


@functools.cache
def weight() -> Tensor:
    """A classifier whose directions differ in importance, (classes, features)."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(0, 1, (CLASSES, FEATURES)) / np.arange(1, FEATURES + 1) ** 0.5).float()


def said(seed: int = 1, images: int = IMAGES, views: int = VIEWS, apart: float = 0.5) -> Tensor:
    """Logits of a teacher with that classifier, (views, images, classes): views of an image are much alike."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1.2, (images, FEATURES)) + apart * rng.normal(0, 1, (views, images, FEATURES))
    return torch.from_numpy(features).float() @ weight().T + 3.0


@functools.cache
def fitted(name: str = "transform:40", views: int = VIEWS, learnt: bool = False) -> TransformCoding:
    codec = CODECS.make(name)
    assert isinstance(codec, TransformCoding)
    return codec.fit_to(said(9), views=views, weight=None if learnt else weight())


FITTED = [
    pytest.param({}, id="mean"),
    pytest.param({"views": 1}, id="no-mean"),
    pytest.param({"learnt": True}, id="learnt"),
    pytest.param({"name": "transform:24 k=4"}, id="few-bytes"),
]
each = pytest.mark.parametrize("how", FITTED)


def flat(arrays: dict[str, np.ndarray], views: int) -> dict[str, np.ndarray]:
    """The arrays of labels (views * images, ...), view by view."""
    return {
        name: np.broadcast_to(array, (views, *array.shape[1:])).reshape(-1, *array.shape[2:])
        for name, array in arrays.items()
    }


def decoded(codec: Codec, logits: Tensor, temperature: float | None = None) -> Tensor:
    assert isinstance(codec, ShardCodec)
    arrays = flat(codec.encode_shard(logits), len(logits))
    return codec.decode(arrays, logits.shape[2], temperature=temperature).reshape(logits.shape)


def cosine(logits: Tensor, stored: Tensor, temperature: float) -> float:
    """Between the gradients that a uniform student gets of the two labels, the mean."""
    p, q = ((rows.double() / temperature).softmax(-1) - 1 / rows.shape[-1] for rows in (logits, stored))
    return float(torch.cosine_similarity(p, q, dim=-1).mean())


@each
def test_arrays_are_as_the_layout_says(how: dict[str, Any]) -> None:
    codec, logits = fitted(**how), said()
    layout, arrays = codec.layout(CLASSES), codec.encode_shard(logits)
    assert arrays.keys() == layout.keys()
    assert ("mean" in arrays) == ("views" not in how)
    for name, field in layout.items():
        extent = (1 if field.per_image else VIEWS, IMAGES)
        assert arrays[name].shape == (*extent, *field.shape)
        assert arrays[name].dtype == np.dtype(field.dtype) and field.columns
    alone = codec.encode(logits[0])
    assert {name: array.shape[0] for name, array in alone.items()} == dict.fromkeys(layout, IMAGES)
    assert codec.decode(alone, CLASSES).shape == (IMAGES, CLASSES)


@pytest.mark.parametrize("name", ["transform:24 k=4", "transform:30", "transform:40", "transform:60"])
def test_a_label_takes_about_the_bytes_that_were_asked_for(name: str) -> None:
    codec, logits = fitted(name), said(5)
    assert codec.fitted.size <= codec.bytes
    assert codec.bytes_per_label(CLASSES) == codec.fitted.size
    arrays = codec.encode_shard(logits)
    size = sum(compressed_size(view.T) for array in arrays.values() for view in array) / (VIEWS * IMAGES)
    assert 0.9 * codec.fitted.size <= size <= 1.1 * codec.fitted.size
    finer = fitted("transform:60") if codec.bytes < 60 else codec
    for temperature in (1.0, 4.0, 20.0):
        assert cosine(logits, decoded(finer, logits, temperature), temperature) >= cosine(
            logits, decoded(codec, logits, temperature), temperature
        )


def test_at_high_temperatures_it_is_nearer_than_top_k_of_as_many_bytes() -> None:
    logits = said(6)
    codec, other = fitted("transform:30"), CODECS.make("topk:22")
    assert other.bytes_per_label(CLASSES) > codec.fitted.size - 3
    rows = logits.reshape(-1, CLASSES)
    for temperature in (4.0, 20.0):
        there = other.decode(other.encode(rows), CLASSES, temperature=temperature).reshape(logits.shape)
        own = cosine(logits, decoded(codec, logits, temperature), temperature)
        assert own > 0.95 > cosine(logits, there, temperature) + 0.1


@each
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), chosen=st.integers(0, 6))
def test_a_label_depends_on_the_views_of_its_image_alone(how: dict[str, Any], seed: int, chosen: int) -> None:
    codec, logits = fitted(**how), said(seed, images=7)
    together = codec.encode_shard(logits)
    alone = codec.encode_shard(logits[:, chosen : chosen + 1])
    for name, array in alone.items():
        np.testing.assert_array_equal(array[:, 0], together[name][:, chosen])


@each
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.01, 1.0, 5.0]), constant=st.integers(-500, 500))
def test_a_highest_class_stays_the_highest_and_a_constant_changes_nothing(
    how: dict[str, Any], seed: int, spread: float, constant: int
) -> None:
    codec = fitted(**how)
    logits = (said(seed, images=5, views=3) * (spread * 64)).round() / 64
    stored = decoded(codec, logits)
    highest = logits.amax(-1)
    assert torch.equal(logits.gather(2, stored.argmax(-1, keepdim=True))[..., 0], highest)
    torch.testing.assert_close(decoded(codec, logits + constant), stored, rtol=0, atol=1e-4)


@each
def test_one_label_is_decoded_as_among_others(how: dict[str, Any]) -> None:
    codec, logits = fitted(**how), said(3, images=40)
    arrays = flat(codec.encode_shard(logits), VIEWS)
    together = codec.decode(arrays, CLASSES, temperature=4.0)
    for place in (0, 17, 319):
        alone = codec.decode({name: array[[place]] for name, array in arrays.items()}, CLASSES, temperature=4.0)
        assert torch.equal(alone[0], together[place])
    assert codec.decode({name: array[:0] for name, array in arrays.items()}, CLASSES).shape == (0, CLASSES)


@each
def test_the_same_logits_are_encoded_alike_in_the_place_of_a_label(how: dict[str, Any]) -> None:
    codec, logits = fitted(**how), said(4, images=20)
    arrays = flat(codec.encode_shard(logits), VIEWS)
    again = codec.encode_like(logits.reshape(-1, CLASSES), arrays)
    assert again.keys() == arrays.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, arrays[name])


@each
def test_the_tail_weighs_at_temperature_1_what_it_did(how: dict[str, Any]) -> None:
    codec, logits = fitted(**how), said(7)
    stored = decoded(codec, logits)
    kept = logits.topk(min(codec.k, CLASSES), -1).indices
    tails = [1 - rows.softmax(-1).gather(2, kept).sum(-1) for rows in (logits, stored)]
    sure = tails[0] > 1e-3
    assert float((tails[1] / tails[0])[sure].log().abs().mean()) < 0.1


@each
@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
def test_whatever_the_rows_a_label_is_a_distribution(how: dict[str, Any], temperature: float) -> None:
    codec, rows = fitted(**how), torch.zeros(6, CLASSES)
    rows[1, 7] = 80.0
    rows[2, 7] = -80.0
    rows[3] = torch.linspace(-80, 80, CLASSES)
    rows[4, :200] = 1e-3
    rows[5, 5:] = -1e4
    stored = codec.decode(codec.encode(rows), CLASSES, temperature=temperature)
    assert stored.isfinite().all()
    torch.testing.assert_close((stored / temperature).softmax(-1).sum(-1), torch.ones(6))
    assert stored.argmax(-1)[[1, 3]].tolist() == [7, CLASSES - 1]


def test_a_codec_is_the_mapping_it_was_made_from() -> None:
    codec = fitted()
    assert isinstance(codec, ShardCodec)
    text = json.dumps(codec.model_dump(mode="json"))
    assert CODECS.make(json.loads(text)) == codec
    assert spelled(codec) == "transform:40"
    assert spelled(CODECS.make("transform:12.5 k=4")) == "transform:12.5 k=4"
    assert fitted().fit == CODECS.make("transform:40").fit_to(said(9), views=VIEWS, weight=weight()).fit  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "no base64!"}, "not base64"),
        ({"components": 47}, "fit a basis of 47"),
        ({"zeros": ""}, "0 thresholds"),
        ({"unit": -1.0}, "more than 0"),
        ({"basis": "AAAA"}, "no rows of"),
    ],
)
def test_a_damaged_card_is_refused(change: dict[str, Any], message: str) -> None:
    mapping = fitted().model_dump(mode="json")
    mapping["fit"] |= change
    with pytest.raises(ConfigError, match=message):
        CODECS.make(mapping)


def test_a_damaged_label_is_a_label_or_a_store_error() -> None:
    codec, rng = fitted(), np.random.default_rng(1)
    layout = codec.layout(CLASSES)
    refused = 0
    for _ in range(100):
        arrays = {name: rng.integers(0, 256, (3, *field.shape), np.uint8) for name, field in layout.items()}
        try:
            assert codec.decode(arrays, CLASSES).isfinite().all()
        except StoreError as error:
            refused += 1
            assert "verify" in str(error)
    assert refused
    good = codec.encode(said()[0])
    for wrong in ({}, {"record": good["record"]}, {name: array[:, :-1] for name, array in good.items()}):
        with pytest.raises(StoreError, match="transform"):
            codec.decode(wrong, CLASSES)
    with pytest.raises(StoreError, match="300 classes, the labels 299"):
        codec.decode(good, 299)


def test_what_cannot_be_learnt_is_one_line() -> None:
    codec = CODECS.make("transform:40")
    assert isinstance(codec, TransformCoding)
    for logits, options, message in (
        (said(images=12), {}, "37 images or more .* there are 12"),
        (torch.zeros(2, 40, 300), {}, "equal logits"),
        (torch.zeros(2, 40, 1), {}, "two classes"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            codec.fit_to(logits, views=4, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"transform:6 is too little.* take [\d.]+ bytes"):
        CODECS.make("transform:6").fit_to(said(), views=4, weight=weight())  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="learnt from a teacher"):
        codec.encode(said()[0])
    with pytest.raises(ConfigError, match=r"from 0\.5 upward"):
        codec.check_temperature(0.4)


def test_few_images_will_do_where_the_classifier_is_known() -> None:
    few = said(images=3, views=4)
    codec = CODECS.make("transform:60").fit_to(few, views=4, weight=weight())  # type: ignore[attr-defined]
    assert cosine(few, decoded(codec, few, 4.0), 4.0) > 0.9


@pytest.mark.parametrize(("classes", "features"), [(2, 8), (10, 64), (40, 5), (2000, 16)])
def test_it_fits_any_number_of_classes(classes: int, features: int) -> None:
    rng = np.random.default_rng(classes)
    own = torch.from_numpy(rng.normal(0, 1, (classes, features))).float()
    logits = torch.from_numpy(rng.normal(0, 1, (4, 32, features))).float() @ own.T
    codec = CODECS.make("transform:200").fit_to(logits, views=4, weight=own)  # type: ignore[attr-defined]
    assert codec.fitted.components <= min(classes - 1, features)
    assert cosine(logits, decoded(codec, logits, 4.0), 4.0) > 0.99
