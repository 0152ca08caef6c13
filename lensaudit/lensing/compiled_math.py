"""Exponential, logarithm and arc tangents without branch or call, so that loops over them become vector instructions.

The library's own functions are calls, one position at a time. Relative errors, which a test measures: exponential below
1e-12 for |x| <= 700, logarithm below 1e-13 of max(1, |log x|), arc tangents below 3e-10.
"""

import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# No reordering of sums: the roundings below depend on it. Only products with their sums fuse.
FAST = {"contract", "nnan", "nsz"}
_ROUND = 1.5 * 2.0**52  # added and taken away again it rounds to whole numbers, which then stand in the last bits
_LOG2E, _LN2 = 1.0 / math.log(2.0), math.log(2.0)
_EXP = np.array([1.0 / math.factorial(k) for k in range(11)])
_LOG = np.array([2.0 / (2 * k + 1) for k in range(8)])
_SQRT_HALF = np.float64(math.sqrt(0.5)).view(np.int64)
_ONE = np.float64(1.0).view(np.int64)


def _fit_arctan(reach, degree):
    """Return the coefficients of arctan(sqrt(y)) / sqrt(y), which is arctanh(sqrt(-y)) / sqrt(-y), for |y| < reach."""

    def ratio(t):
        root = np.sqrt(np.abs(reach * t))
        return np.where(root < 1e-6, 1.0, np.where(t > 0, np.arctan(root), np.arctanh(root)) / np.maximum(root, 1e-6))

    series = np.polynomial.chebyshev.chebinterpolate(ratio, degree)
    return np.polynomial.chebyshev.cheb2poly(series) / reach ** np.arange(degree + 1)


REACH = 2.0 / 3.0  # |y| up to which the fit holds
_ARCTAN = _fit_arctan(REACH, 20)


@intrinsic
def read_bits(context, value):
    """Return the bits of a float64 as an int64."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), generate


@intrinsic
def write_bits(context, value):
    """Return the float64 of which an int64 holds the bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), generate


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def take_exp(x):
    """Return the exponential of a number between -700 and 700, beyond which it stays what it is there."""
    x = max(min(x, 700.0), -700.0)
    shifted = x * _LOG2E + _ROUND
    rest = x - (shifted - _ROUND) * _LN2
    value = _EXP[10]
    for k in range(9, -1, -1):
        value = value * rest + _EXP[k]
    return value * write_bits((read_bits(shifted) + 1023) << 52)


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def take_log(x):
    """Return the natural logarithm of a number that is not negative; -709 at zero."""
    bits = read_bits(x)
    power = (bits - _SQRT_HALF) >> 52
    mantissa = write_bits(bits - (power << 52))
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    value = _LOG[7]
    for k in range(6, -1, -1):
        value = value * square + _LOG[k]
    return value * z + float(power) * _LN2


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def take_arctan(y):
    """Return arctan(sqrt(y)) / sqrt(y), or of negative y arctanh(sqrt(-y)) / sqrt(-y), for |y| <= `REACH`."""
    value = _ARCTAN[20]
    for k in range(19, -1, -1):
        value = value * y + _ARCTAN[k]
    return value
