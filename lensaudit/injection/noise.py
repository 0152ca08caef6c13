"""The coadd's noise: gain, correlation, and draws that depend on the injection's id alone."""

import functools

import numpy as np

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, RENDER_SIZE


def list_gains(own, gain_override=None):
    """Return the coadd gain [e-/nMgy] per row and band, shape (N, 3).

    Notes
    -----
    From columns ``exptime_<band>`` [s] when the host table has them, else from depth and seeing
    (`photometry.estimate_exptime`).
    """
    if gain_override is not None:
        if not 0.0 < gain_override < np.inf:
            raise UserError(f"gain_override = {gain_override:g}; give a gain in e-/nMgy above 0")
        return np.full((len(own), len(BANDS)), float(gain_override))
    out = []
    for band in BANDS:
        if f"exptime_{band}" in own:
            exptime = own[f"exptime_{band}"].to_numpy(dtype=np.float64)
        else:
            if f"nobs_{band}" not in own:
                raise UserError(f"host table lacks column(s) nobs_{band} or exptime_{band}; the arc's noise needs one")
            nobs = own[f"nobs_{band}"].to_numpy(dtype=np.float64)
            exptime = photometry.estimate_exptime(own[f"psfdepth_{band}"], own[f"psfsize_{band}"], nobs, band)
        out.append(photometry.gain_of(exptime, band))
    return np.stack(out, 1)


@functools.cache
def resampling_matrix(size=RENDER_SIZE, reach=6):
    """Return the matrix that gives white noise along one axis the coadd's correlation, float32.

    Notes
    -----
    A coadd averages Lanczos-3 resamplings at all sub-pixel shifts; its power is p(k) = <|sum_i L(i - d) e^(-iki)|^2>_d
    with the kernel normalised at every shift. The zero-phase filter with |H|^2 = p has per-pixel variance x 0.80 and
    rho(1,0) = 0.11, rho(2,0) = -0.076 in two dimensions (FACTS 1).
    """
    shift = (np.arange(512) + 0.5) / 512 - 0.5
    taps = np.arange(-3, 4)[None] - shift[:, None]
    kernel = np.where(np.abs(taps) < 3, np.sinc(taps) * np.sinc(taps / 3.0), 0.0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    power = (np.abs(np.fft.rfft(kernel, n=256, axis=1)) ** 2).mean(axis=0)
    filter_taps = np.fft.irfft(np.sqrt(power))
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    return np.where(np.abs(offset) <= reach, filter_taps[offset % 256], 0.0).astype(np.float32)


def draw_noise(ids, sigma, seed, name="injection/noise", correlated=True):
    """Draw coadd-like noise of a given white-equivalent sigma map.

    Parameters
    ----------
    ids : array_like of int, length N
    sigma : ndarray of shape (N, 3, S, S)
        White-equivalent standard deviation per pixel [nMgy].
    seed : int
    name : str
        Stream.
    correlated : bool
        False leaves the coadd's kernel out: white noise of the same draws (ablation).

    Returns
    -------
    ndarray of shape (N, 3, S, S), float32
    """
    matrix = resampling_matrix(sigma.shape[-1])
    out = np.empty(sigma.shape, dtype=np.float32)
    for row, number in enumerate(ids):
        white = rng.make_stream(seed, name, int(number)).standard_normal(sigma.shape[1:], dtype=np.float32)
        scaled = white * sigma[row].astype(np.float32)
        out[row] = matrix @ scaled @ matrix.T if correlated else scaled
    return out
