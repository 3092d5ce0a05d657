"""Features in 8 bits: what comes back, to the last bit, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softlabels.codecs import CODECS, Int8, check_for_logits, spelled
from softlabels.errors import ConfigError, StoreError

CODEC = Int8()


def written_out(rows: np.ndarray) -> np.ndarray:
    """The records by the page's words, value by value."""
    made = []
    for row in rows:
        scale = np.float32(np.float32(np.abs(row).max()) / np.float32(127))
        numbers = [0 if scale == 0 else int(np.rint(np.float32(value / scale))) for value in row]
        made.append([*np.array([scale], "<f4").view(np.uint8), *(number % 256 for number in numbers)])
    return np.array(made, np.uint8)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_a_record_is_a_scale_and_a_signed_byte_for_each_value(size: float) -> None:
    rows = (np.random.default_rng(0).standard_normal((40, 17)) * size).astype(np.float32)
    rows[3], rows[4, :5] = 0, -rows[4, 5]
    arrays = CODEC.encode(torch.from_numpy(rows))
    np.testing.assert_array_equal(arrays["record"], written_out(rows))
    stored = CODEC.decode(arrays, 17).numpy()
    most = np.abs(rows).max(1, keepdims=True)
    assert (np.abs(stored - rows) <= most / 254 * (1 + 1e-5)).all()
    assert (stored[3] == 0).all() and (np.sign(stored) * np.sign(rows) >= 0).all()
    assert CODEC.bytes_per_label(17) == 21 == arrays["record"].shape[1]


def test_a_rows_bytes_depend_on_that_row_alone_and_storing_again_changes_nothing() -> None:
    rows = torch.randn(9, 33, generator=torch.Generator().manual_seed(1))
    together = CODEC.encode(rows)["record"]
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(CODEC.encode(row[None])["record"][0], together[place])
    once = CODEC.decode({"record": together}, 33)
    torch.testing.assert_close(CODEC.decode(CODEC.encode(once), 33), once, rtol=1e-6, atol=0)
    assert CODEC.decode(CODEC.encode(torch.zeros(0, 5)), 5).shape == (0, 5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_refused(wrong: float) -> None:
    rows = torch.zeros(4, 3)
    rows[2, 1] = wrong
    with pytest.raises(ConfigError, match="row 2"):
        CODEC.encode(rows)


def test_it_is_a_codec_of_the_table_and_none_for_logits() -> None:
    assert CODECS.make("int8") == CODEC == CODECS.make(CODEC.model_dump(mode="json"))
    assert spelled(CODEC) == "int8"
    with pytest.raises(ConfigError, match=r"output=NAME=int8.*quantized"):
        check_for_logits(CODEC)
    with pytest.raises(StoreError, match="int8"):
        CODEC.decode(CODEC.encode(torch.zeros(2, 4)), 5)
