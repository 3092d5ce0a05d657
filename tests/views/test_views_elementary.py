"""Our own exp, log and cos against the library's."""

import math

import numpy as np

from softlabels.core.elementary import cos_of_turns, exp, log


def test_exp_is_within_a_few_units_in_the_last_place():
    x = np.concatenate([np.linspace(-700, 700, 20001), np.linspace(-2, 2, 20001)])
    assert np.abs(exp(x) / np.exp(x) - 1).max() < 1e-15
    assert exp(np.array([0.0, 1000.0, -1000.0])).tolist() == [1.0, math.inf, 0.0]


def test_log_is_within_a_few_units_in_the_last_place():
    x = np.concatenate([np.geomspace(1e-300, 1e300, 20001), np.linspace(0.5, 2, 20000)])
    assert np.allclose(log(x), np.log(x), rtol=1e-15, atol=1e-16)
    assert log(np.array([1.0])) == 0.0


def test_cosine_of_turns():
    x = np.linspace(-3, 3, 60001)
    assert np.abs(cos_of_turns(x) - np.cos(2 * np.pi * x)).max() < 4e-15
    assert cos_of_turns(np.array([0.0, 0.5, 1.0])).tolist() == [1.0, -1.0, 1.0]
