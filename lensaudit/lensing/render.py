"""Rendering lensed sources: light sampled where the source is, transformed once, convolved and folded per band.

The maps of `sample.sample_maps` are transformed once per colour group; each band multiplies them with its PSF's
transfer function and comes back on native pixels (frequencies beyond the pixel grid are folded, as sampling a
continuous image folds them). A stamp's result does not depend on the others in its batch.
"""

import functools

import numpy as np
import torch
from scipy.fft import next_fast_len

from lensaudit.constants import PIXEL_SCALE, RENDER_SIZE
from lensaudit.lensing.psf import transfer_moffat
from lensaudit.lensing.quadrature import CELL
from lensaudit.lensing.sample import PANEL_WIDTH, sample_maps
from lensaudit.lensing.sources import point_terms

try:
    from lensaudit.lensing import compiled_fold
except ImportError:  # numba is optional
    compiled_fold = None

LENS = ("theta_E", "q", "phi", "gamma1", "gamma2")


def choose_period(size):
    """Return the period [pixel] of the transforms of a stamp of `size`: room for wings, and a length that is fast.

    Notes
    -----
    What leaves the box on one side comes back on the other. Arcs are near the centre, so what a period of 89 pixels or
    more brings back is below 3e-4 of the flux for the widest wings (Moffat of beta 2.5).
    """
    return next_fast_len(max(size + 7, 89), real=True)


def list_frequencies(period):
    """Return the angular frequencies [rad / pixel] of spectra: rows (2 period, FFT order) and columns (period)."""
    rows = torch.fft.fftfreq(2 * period, 0.5, dtype=torch.float64) * (2.0 * np.pi)
    return rows, torch.arange(period, dtype=torch.float64) * (2.0 * np.pi / period)


def make_transfer(alpha, beta, period, dtype=torch.float32, device="cpu"):
    """Return transfer functions of circular Moffats.

    Parameters
    ----------
    alpha : Tensor of shape (N, bands)
        Moffat radius [pixel]; of a Gaussian its sigma.
    beta : ndarray of shape (N,)
        Moffat index; infinity is a Gaussian.
    period : int
        See `choose_period`.

    Returns
    -------
    Tensor of shape (N, bands, period + 1, period)
        The quarter of non-negative frequencies, from 0; `mirror_transfer` gives the rest.
    """
    half = torch.arange(period + 1, dtype=dtype, device=device) * (2.0 * np.pi / period)
    k = torch.sqrt(half[:, None] ** 2 + half[None, :-1] ** 2)
    quarter = torch.empty((*alpha.shape, period + 1, period), dtype=dtype, device=device)
    beta = np.asarray(beta, dtype=np.float64)
    for value in np.unique(beta):
        rows = torch.as_tensor(np.flatnonzero(beta == value), device=device)
        quarter[rows] = transfer_moffat(k, alpha[rows][..., None, None], float(value))
    return quarter


def mirror_transfer(quarter):
    """Return round transfer functions at all rows: -period to period - 1 cycles per period, in FFT order."""
    period = quarter.shape[-1]
    rows = torch.arange(2 * period, device=quarter.device)
    return quarter.index_select(-2, torch.where(rows <= period, rows, 2 * period - rows))


@functools.cache
def _undo_gridding(period, dtype, device):
    """Return what turns the transform of spread samples into the spectrum about the first pixel's centre."""
    cycles = np.fft.fftfreq(2 * period, 1.0 / 2.0)  # per pixel
    axis = CELL * np.exp(0.5j * np.pi * cycles) / np.sinc(0.5 * cycles) ** 4
    factor = axis[:, None] * axis[None, :period]
    return torch.as_tensor(factor, dtype=torch.complex64 if dtype == torch.float32 else torch.complex128, device=device)


def transform_maps(maps, period):
    """Return the spectrum of the light in the maps of `sample.sample_maps`.

    Parameters
    ----------
    maps : Tensor of shape (planes, 2 period, 2 period)

    Returns
    -------
    complex Tensor of shape (planes, 2 period, period)
        In units of flux, at the frequencies of `make_transfer`.
    """
    spectrum = torch.fft.rfft2(maps)[..., :period]
    return spectrum * _undo_gridding(period, maps.dtype, maps.device)


def fold_spectrum(spectrum, size):
    """Return the native-resolution images whose continuous spectrum is given.

    Parameters
    ----------
    spectrum : complex Tensor of shape (..., 2 period, period)
    size : int

    Returns
    -------
    Tensor of shape (..., size, size)

    Notes
    -----
    Sampling at pixel centres adds all frequencies that differ by whole cycles per pixel; those from -1 to 1 cycle are
    kept, beyond which every PSF of the survey transmits less than 1e-6.
    """
    period = spectrum.shape[-1]
    folded = spectrum[..., :period, :] + spectrum[..., period:, :]
    half = period // 2
    back = torch.arange(period, device=spectrum.device)
    mirrored = folded.index_select(-2, (period - back) % period)[..., period - half :].flip(-1).conj()
    native = folded[..., : half + 1].clone()
    native[..., 1:] += mirrored
    return torch.fft.irfft2(native, s=(period, period))[..., :size, :size]


def render_arcs(lens, components, weights, transfer, size=RENDER_SIZE, panel_width=PANEL_WIDTH, inner=None, bank=None,
                points=None):  # fmt: skip
    """Render a batch of lensed sources in all bands.

    Parameters
    ----------
    lens : dict of Tensor of shape (N,)
        See `mass.PACK`.
    components : dict of Tensor of shape (M,)
        See `sample.sample_maps`; of the first N planes plane n is stamp n's first colour group, later ones are named by
        `weights`.
    weights : (Tensor of shape (N, bands), Tensor of shape (L, bands), Tensor of shape (L,) int64)
        Fluxes [nMgy] of the first group of each stamp, of the second groups, and the stamps these belong to. Their type
        and device are the result's.
    transfer : Tensor of shape (N, bands, 2 period, period) or (N, bands, period + 1, period)
        PSF transfer functions, or the quarter of them that round ones need.
    size : int
        Odd number of pixels of the stamp, less than the period.
    panel_width, inner, bank
        See `sample.sample_maps`.
    points : (Tensor of shape (N, I), Tensor of shape (N, I), Tensor of shape (N, I), Tensor of shape (N, bands))
        Positions x, y [arcsec] and magnifications of the images of a point source (0 where there is none), and its
        unlensed flux [nMgy].

    Returns
    -------
    (Tensor of shape (N, bands, size, size), Tensor of shape (N, bands))
        Flux per pixel [nMgy] and total lensed flux in the box before convolution [nMgy].
    """
    first, second, owner = weights
    period = transfer.shape[-1]
    maps = sample_maps(lens, components, size, period, panel_width, first.dtype, first.device, inner, bank)
    spectrum = transform_maps(maps, period)
    n, flux = len(first), spectrum[: len(first), 0, 0].real[:, None] * first
    flux.index_add_(0, owner, spectrum[n:, 0, 0].real[:, None] * second)  # the zero frequency is the sum of the samples
    is_round = transfer.shape[-2] == period + 1
    if compiled_fold is not None and first.device.type == "cpu" and is_round:
        plane, two = np.full(n, -1), torch.zeros_like(first)
        plane[owner.numpy()], two[owner] = n + np.arange(len(owner)), second
        native = torch.empty((*first.shape, period, period // 2 + 1), dtype=spectrum.dtype)
        compiled_fold.fold_bands(spectrum.numpy(), first.numpy(), two.numpy(), plane, transfer.numpy(), native.numpy())
        images = torch.fft.irfft2(native, s=(period, period))[..., :size, :size]
        return _add_points(images, flux, points, transfer, size)
    images = spectrum[:n, None] * first[:, :, None, None]
    images[owner] += spectrum[n:, None] * second[:, :, None, None]
    images = fold_spectrum(images * (mirror_transfer(transfer) if is_round else transfer), size)
    return _add_points(images, flux, points, transfer, size)


def _add_points(images, flux, points, transfer, size):
    """Add point sources to images and to their lensed flux in the box, stamp by stamp, so that no stamp sees others."""
    if points is None:
        return images, flux
    x, y, mu, unlensed = points
    centre, period = 0.5 * (size - 1), transfer.shape[-1]
    rows, columns = (f.to(x) for f in list_frequencies(period))
    for k in (mu != 0).any(1).nonzero().flatten().tolist():
        part = slice(k, k + 1)
        u, v = x[part] / PIXEL_SCALE + centre, y[part] / PIXEL_SCALE + centre
        own = mirror_transfer(transfer[part]) if transfer.shape[-2] == period + 1 else transfer[part]
        spectrum = point_terms(u, v, mu[part], rows, columns)[:, None] * unlensed[part, :, None, None]
        images[part] += fold_spectrum(spectrum * own, size)
        inside = (torch.maximum((u - centre).abs(), (v - centre).abs()) < 0.5 * size) * mu[part].abs()
        flux[part] += inside.sum(1)[:, None] * unlensed[part]
    return images, flux
