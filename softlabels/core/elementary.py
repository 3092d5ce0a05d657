"""Elementary functions made of + - * / and sqrt alone, which IEEE 754 rounds the same everywhere.

The libraries' own exp, log and cos differ in the last bit between versions and processors, and a view must not.
Each is within a few units in the last place of the true value.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_INVERSE_LN2 = 1.44269504088896338700e00
_TAU = 6.283185307179586477
_EXP = [1 / math.factorial(k) for k in range(15)]
_ATANH = [2 / (2 * k + 1) for k in range(12)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(13)]


def exp(x: Reals) -> Reals:
    """e to the `x`: Taylor's series after taking out powers of two; infinite beyond the largest number."""
    x = np.clip(np.asarray(x, np.float64), -800.0, 800.0)
    twos = np.rint(x * _INVERSE_LN2)
    rest = (x - twos * _LN2_HIGH) - twos * _LN2_LOW
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(_polynomial(rest, _EXP), twos.astype(np.int32))


def log(x: Reals) -> Reals:
    """The natural logarithm of `x` > 0: twice the series of artanh((m - 1) / (m + 1)), m the mantissa near 1."""
    mantissa, twos = np.frexp(np.asarray(x, np.float64))
    small = mantissa < math.sqrt(0.5)
    mantissa, twos = np.where(small, mantissa * 2.0, mantissa), twos - small
    z = (mantissa - 1.0) / (mantissa + 1.0)
    return twos * _LN2_HIGH + (z * _polynomial(z * z, _ATANH) + twos * _LN2_LOW)


def cos_of_turns(x: Reals) -> Reals:
    """The cosine of `x` full turns, by Taylor's series on a quarter turn."""
    x = np.asarray(x, np.float64)
    x = np.abs(x - np.rint(x))
    far = x > 0.25
    angle = np.where(far, 0.5 - x, x) * _TAU
    value = _polynomial(angle * angle, _COS)
    return np.where(far, -value, value)


def _polynomial(x: Reals, coefficients: list[float]) -> Reals:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total
