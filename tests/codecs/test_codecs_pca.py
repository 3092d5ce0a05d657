"""Features by principal components: what is learnt, what comes back, and what is refused."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.codecs import CODECS, FittedCodec, PrincipalComponents, ShardCodec, check_for_logits, spelled
from softlabels.errors import ConfigError, StoreError

VALUES = 40


def sample(count: int = 300, rank: int = 6, noise: float = 0.02, seed: int = 0) -> torch.Tensor:
    """Rows (1, count, VALUES) that vary in `rank` directions mostly, around a mean that is not 0."""
    chance = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((rank, VALUES)) * np.linspace(3, 1, rank)[:, None]
    rows = 5 + chance.standard_normal((count, rank)) @ directions + noise * chance.standard_normal((count, VALUES))
    return torch.from_numpy(rows.astype(np.float32))[None]


def fitted(k: int = 6, rows: torch.Tensor | None = None) -> PrincipalComponents:
    return PrincipalComponents(k=k).fit_to(sample() if rows is None else rows, views=1)


def written_out(codec: PrincipalComponents, record: np.ndarray) -> np.ndarray:
    """What a record stands for, by the page's words."""
    assert codec.fit is not None
    mean, deviations = (np.frombuffer(base64.b64decode(text), "<f4") for text in (codec.fit.mean, codec.fit.deviations))
    basis = np.frombuffer(base64.b64decode(codec.fit.basis), "<f2").reshape(codec.k, -1).astype(np.float64)
    scale = record[:, :4].copy().view("<f4").astype(np.float64)
    return mean + scale * record[:, 4:].copy().view(np.int8) * deviations @ basis


def test_directions_are_those_of_the_singular_values_and_the_mean_is_theirs() -> None:
    rows, codec = sample()[0].double().numpy(), fitted()
    assert codec.fit is not None
    mean = np.frombuffer(base64.b64decode(codec.fit.mean), "<f4")
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6)
    _, singular, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    basis = np.frombuffer(base64.b64decode(codec.fit.basis), "<f2").reshape(6, VALUES).astype(np.float64)
    np.testing.assert_allclose(np.abs((basis * right[:6]).sum(axis=1)), 1.0, atol=2e-3)
    deviations = np.frombuffer(base64.b64decode(codec.fit.deviations), "<f4")
    np.testing.assert_allclose(deviations, singular[:6] / np.sqrt(len(rows)), rtol=1e-5)
    assert codec.fit.share == pytest.approx((singular[:6] ** 2).sum() / (singular**2).sum(), abs=1e-9)
    assert codec.fit == fitted().fit  # nothing is drawn


def test_more_values_than_rows_are_learnt_from_alike() -> None:
    rows = sample(count=30)
    wide = torch.cat([rows, torch.zeros(1, 30, 200)], dim=2)
    some, others = fitted(4, rows), PrincipalComponents(k=4).fit_to(wide, views=1)
    stored = others.decode(others.encode(wide[0]), VALUES + 200)
    torch.testing.assert_close(stored[:, :VALUES], some.decode(some.encode(rows[0]), VALUES), atol=0.05, rtol=0)
    assert stored[:, VALUES:].abs().max() < 1e-4


def test_new_rows_come_back_but_for_what_lies_in_other_directions() -> None:
    codec, rows = fitted(), sample(count=500, seed=7)[0]
    arrays = codec.encode(rows)
    assert arrays["record"].shape == (500, 10) and codec.bytes_per_label(VALUES) == 10
    stored = codec.decode(arrays, VALUES)
    np.testing.assert_allclose(stored.numpy(), written_out(codec, arrays["record"]), rtol=1e-5, atol=1e-5)
    centred = rows - rows.mean(dim=0)
    assert ((stored - rows).norm(dim=1) / centred.norm(dim=1)).mean() < 0.03


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.integers(1, 6))
def test_a_row_is_as_near_as_its_components_allow_within_its_scale(seed: int, size: float, k: int) -> None:
    codec = fitted(k, size * sample())
    rows = size * sample(count=20, seed=seed)[0]
    stored = codec.decode(codec.encode(rows), VALUES).double().numpy()
    assert codec.fit is not None
    basis = np.frombuffer(base64.b64decode(codec.fit.basis), "<f2").reshape(k, -1).astype(np.float64)
    deviations = np.frombuffer(base64.b64decode(codec.fit.deviations), "<f4").astype(np.float64)
    mean = np.frombuffer(base64.b64decode(codec.fit.mean), "<f4").astype(np.float64)
    own = (rows.double().numpy() - mean) @ np.linalg.pinv(basis * deviations[:, None])
    nearest = mean + own * deviations @ basis
    allowed = np.abs(own).max(axis=1) / 254 * np.linalg.norm(deviations) * 1.01 + 1e-5 * size
    assert (np.linalg.norm(stored - nearest, axis=1) <= allowed).all()


def test_a_rows_bytes_depend_on_that_row_alone() -> None:
    codec, rows = fitted(), sample(count=9, seed=3)[0]
    together = codec.encode(rows)["record"]
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(codec.encode(row[None])["record"][0], together[place])
    assert codec.decode(codec.encode(torch.zeros(0, VALUES)), VALUES).shape == (0, VALUES)


def test_directions_without_variance_harm_nothing() -> None:
    flat = sample(rank=2, noise=0.0)
    flat[..., 10:] = 1.5  # channels that are always the same
    codec = fitted(8, flat)
    far = flat[0].clone()
    far[:, 12] += 1.0  # and in a new row are not
    stored = codec.decode(codec.encode(flat[0]), VALUES)
    torch.testing.assert_close(stored, flat[0], atol=0.2, rtol=0)
    assert (codec.decode(codec.encode(far), VALUES)[:, :10] - far[:, :10]).abs().max() < 0.5


def test_what_cannot_be_learnt_is_refused_in_a_line() -> None:
    for k, rows, message in (
        (40, sample(), "saves nothing for rows of 40 values; choose int8"),
        (20, sample(count=20), "more than 20 rows, and there are 20; choose a smaller k, or int8"),
        (64, torch.zeros(1, 3, 100_000), "pool the output"),
        (300, torch.zeros(1, 3, 20_000), "a smaller k"),
        (3, torch.ones(1, 20, 8), "all rows of the sample are equal"),
    ):
        with pytest.raises(ConfigError, match=message):
            PrincipalComponents(k=k).fit_to(rows, views=1)
    with pytest.raises(ConfigError, match="learnt from a teacher"):
        PrincipalComponents().encode(sample()[0])
    wrong = sample()[0]
    wrong[2, 1] = float("nan")
    with pytest.raises(ConfigError, match="row 2"):
        fitted().encode(wrong)
    with pytest.raises(StoreError, match=r"basis has 40 values, the rows 39"):
        fitted().decode(fitted().encode(sample()[0]), 39)
    with pytest.raises(StoreError, match="'record' as uint8"):
        fitted().decode({"record": np.zeros((3, 9), np.uint8)}, VALUES)


def test_it_is_a_codec_of_the_table_and_none_for_logits() -> None:
    codec = fitted()
    assert CODECS.make("pca:6") == PrincipalComponents(k=6)
    assert CODECS.make(codec.model_dump(mode="json")) == codec and spelled(codec) == "pca:6"
    assert isinstance(codec, FittedCodec) and not isinstance(codec, ShardCodec)
    with pytest.raises(ConfigError, match=r"output=NAME=pca.*quantized"):
        check_for_logits(codec)
    with pytest.raises(ConfigError, match="6 components is not one of k=7"):
        CODECS.make({**codec.model_dump(mode="json"), "k": 7})
    broken = codec.model_dump(mode="json")
    broken["fit"]["mean"] = broken["fit"]["mean"][:8]
    with pytest.raises(ConfigError, match="does not fit a mean"):
        CODECS.make(broken)
