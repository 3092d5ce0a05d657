"""The random words under every view."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabels.core.philox import hash_keys, philox

WORD = st.integers(0, 2**64 - 1)


@settings(max_examples=50, deadline=None)
@given(key=st.tuples(WORD, WORD), counter=st.tuples(WORD, WORD, WORD, WORD))
def test_raw_words_are_those_of_numpys_philox(key, counter):
    as_one = sum(part << (64 * i) for i, part in enumerate(counter))
    before = (as_one - 1) % 2**256  # numpy counts up before it draws
    parts = np.array([before >> (64 * i) & (2**64 - 1) for i in range(4)], np.uint64)
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=parts)
    assert np.array_equal(philox(key, counter), bits.random_raw(4))


def test_words_of_many_keys_and_counters_equal_those_of_each_alone():
    keys, counts = np.arange(5, dtype=np.uint64)[:, None] << np.uint64(60), np.arange(3, dtype=np.uint64)
    together = philox((keys, 7), (counts, 2, 3, 4))
    assert together.shape == (5, 3, 4)
    for i in range(5):
        for j in range(3):
            assert np.array_equal(together[i, j], philox((keys[i, 0], 7), (counts[j], 2, 3, 4)))


def test_key_hashes_are_the_first_eight_bytes_of_blake2b():
    assert hash_keys(["", "train/00042"]).tolist() == [0xB4B2797457A0A6E4, 0xE70C14104EDA9E5B]
