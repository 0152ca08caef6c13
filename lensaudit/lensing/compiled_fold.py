"""Colour groups to convolved, folded bands on one processor core: the compiled twin of `render`'s torch code."""

import numpy as np

from lensaudit.lensing.compiled import compile_scalar


@compile_scalar
def fold_bands(spectrum, first, second, plane, quarter, out):
    """Weigh, convolve and fold spectra, without any array in between.

    Parameters
    ----------
    spectrum : complex ndarray of shape (planes, 2 period, period)
        Of `render.transform_maps`; the first N planes are the stamps' first colour groups.
    first, second : ndarray of shape (N, bands)
        Fluxes of both colour groups.
    plane : ndarray of shape (N,), int64
        Plane of each stamp's second group, -1 where there is none.
    quarter : ndarray of shape (N, bands, period + 1, period)
        Of `render.make_transfer`.
    out : complex ndarray of shape (N, bands, period, period // 2 + 1)
        Filled with the half spectra of the images on native pixels; see `render.fold_spectrum`.
    """
    n, bands = first.shape
    period = spectrum.shape[2]
    half = period // 2
    real, imaginary = np.empty((bands, half + 1), first.dtype), np.empty((bands, half + 1), first.dtype)
    for k in range(n):
        other = plane[k]
        for r in range(period):
            real[:], imaginary[:] = 0.0, 0.0
            for side in range(2):
                row = r + side * period
                high = row if row <= period else 2 * period - row
                back = (period - r) % period + side * period  # the row that mirrors frequencies beyond the half
                low = back if back <= period else 2 * period - back
                for b in range(bands):
                    w, v = first[k, b], second[k, b]
                    for c in range(half + 1):
                        t, s = quarter[k, b, high, c], spectrum[k, row, c]
                        x, y = w * s.real, w * s.imag
                        if other >= 0:
                            s = spectrum[other, row, c]
                            x, y = x + v * s.real, y + v * s.imag
                        real[b, c] += t * x
                        imaginary[b, c] += t * y
                    for c in range(1, half + 1):
                        t, s = quarter[k, b, low, period - c], spectrum[k, back, period - c]
                        x, y = w * s.real, w * s.imag
                        if other >= 0:
                            s = spectrum[other, back, period - c]
                            x, y = x + v * s.real, y + v * s.imag
                        real[b, c] += t * x
                        imaginary[b, c] -= t * y
            for b in range(bands):
                for c in range(half + 1):
                    out[k, b, r, c] = complex(real[b, c], imaginary[b, c])
