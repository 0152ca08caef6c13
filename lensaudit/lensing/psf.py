"""Point-spread functions as transfer functions: elliptical Moffat and Gaussian in closed form, wings, images by FFT.

A coadd's PSF already contains the pixel, so images are point samples at pixel centres and nothing is averaged over the
pixel again.
"""

import functools

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import gamma, kv

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE

# Outer wings of a 22.5-mag star as the survey subtracts them (legacysurvey.org/dr9/psf): amplitude of r^-2
# [nMgy/arcsec^2] in g and r, a Moffat in z (alpha [arcsec], beta, weight).
WING_POWER = {"g": 0.00045, "r": 0.00033}
WING_MOFFAT = {"z": (17.65, 1.7, 0.0145)}
# A power law of -2 has no total: it is flattened inside the first radius and falls as r^-4 outside the second [arcsec].
WING_CUTS = (1.0, 60.0)
TABLE_END = 60.0  # k alpha up to which a Moffat is tabulated; it transmits less than 1e-20 there


def moffat_alpha(fwhm, beta):
    """Return alpha of a Moffat (1 + r^2/alpha^2)^-beta, in the unit of `fwhm`."""
    return np.asarray(fwhm) / (2.0 * np.sqrt(2.0 ** (1.0 / np.asarray(beta)) - 1.0))


def transfer_moffat(k, alpha, beta):
    """Return the transfer function of a circular Moffat of unit flux, untruncated.

    Parameters
    ----------
    k : Tensor of shape (..., H, W)
        Angular frequency [rad / pixel]; of an elliptical Moffat that of `stretch_frequencies`.
    alpha : Tensor of shape (..., 1, 1)
        Moffat radius [pixel].
    beta : float
        Moffat index, > 1; infinity means a Gaussian whose *sigma* is `alpha`.

    Notes
    -----
    F(k) = 2 (k alpha / 2)^(beta-1) K_{beta-1}(k alpha) / Gamma(beta - 1); for half-integer order, beta = 2.5, 3.5, 4.5,
    it is exp(-x) times a polynomial in x = k alpha. Others are evaluated on the CPU, between beta = 1.6 and 10 from a
    table that is within 5e-8 (1e-9 above beta = 2).
    """
    x = k * alpha
    if np.isinf(beta):
        return torch.exp(-0.5 * x * x)
    if beta == 2.5:
        return torch.exp(-x) * (1.0 + x)
    if beta == 3.5:
        return torch.exp(-x) * (1.0 + x + x * x / 3.0)
    if beta == 4.5:
        return torch.exp(-x) * (1.0 + x + x * x * (0.4 + x / 15.0))
    values, tabulated = x.double().cpu().numpy(), 1.6 < beta <= 10.0
    out = _moffat_table(float(beta))(np.sqrt(np.minimum(values, TABLE_END))) if tabulated else _bessel(values, beta)
    return torch.as_tensor(out, dtype=k.dtype, device=k.device)


def _bessel(x, beta):
    order = beta - 1.0
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        out = 2.0 * (0.5 * x) ** order * kv(order, x) / gamma(order)
        # Near the origin K overflows: two terms of the series; far out it underflows and the power overflows.
        series = 1.0 - x**2 / (4.0 * (beta - 2.0)) * (1.0 - x**2 / (8.0 * (beta - 3.0))) if beta > 4.0 else 1.0
    return np.where(x > 600.0, 0.0, np.where(np.isfinite(out) & (x > 1e-12), out, series))


@functools.lru_cache(maxsize=256)
def _moffat_table(beta):
    # In the root of x, so that the term x^(2 beta - 2) at the origin is smooth; beyond its end there is nothing.
    nodes = np.linspace(0.0, np.sqrt(TABLE_END), 2000)
    return CubicSpline(nodes, _bessel(nodes**2, beta))


def stretch_frequencies(kx, ky, e1, e2):
    """Return the frequency at which a circular profile's transfer function gives the elliptical one's.

    Parameters
    ----------
    kx, ky : Tensor, broadcast against each other
        Angular frequencies along columns and rows.
    e1, e2 : Tensor or float, broadcast against `kx` and `ky`
        Ellipticity (1 - q)/(1 + q) (cos 2 phi, sin 2 phi) of the profile, phi counter-clockwise from +x.

    Returns
    -------
    Tensor, in the unit of `kx`

    Notes
    -----
    The profile is f(r) with r^2 = q x'^2 + y'^2/q, x' along the major axis (intermediate axis, area kept), so the
    frequency is k^2 = kx'^2/q + ky'^2 q. Written in e1, e2 it needs no angle. Flux and noise-equivalent area, and so
    psfsize, are those of the circular profile; the FWHM is FWHM/sqrt(q) along and FWHM sqrt(q) across.
    """
    e = e1 * e1 + e2 * e2
    square = (1.0 + e) * (kx * kx + ky * ky) + 2.0 * (e1 * (kx * kx - ky * ky) + 2.0 * e2 * (kx * ky))
    return torch.sqrt(torch.clamp(square / (1.0 - e), min=0.0))


def wing_profile(radius, band):
    """Return the surface brightness [arcsec^-2] of the wings of a PSF of unit flux at `radius` [arcsec].

    Notes
    -----
    g, r: A [1/(r^2 + s^2) - 1/(r^2 + S^2)] with (s, S) = `WING_CUTS`: the survey's A r^-2 to 5 % from 5 to 12 arcsec,
    where it takes over from the core, and finite at both ends. z: the survey's Moffat as it is.
    """
    square = np.asarray(radius, dtype=np.float64) ** 2
    if band in WING_POWER:
        inner, outer = WING_CUTS
        return WING_POWER[band] * (1.0 / (square + inner**2) - 1.0 / (square + outer**2))
    alpha, beta, weight = _find_wings(band)
    return weight * (beta - 1.0) / (np.pi * alpha**2) * (1.0 + square / alpha**2) ** -beta


def wing_flux(radius, band):
    """Return the flux of the wings inside `radius` [arcsec], for a PSF of unit flux; infinity gives their total.

    Notes
    -----
    In all 1.16 / 0.85 / 1.45 per cent of the flux in g / r / z; inside 31.5 pixels (8.25 arcsec), the reach of the
    survey's 63-px PSF images, 0.60 / 0.44 / 0.19 per cent.
    """
    square = np.asarray(radius, dtype=np.float64) ** 2
    if band in WING_POWER:
        inner, outer = WING_CUTS
        with np.errstate(invalid="ignore"):
            ratio = np.where(np.isinf(square), (outer / inner) ** 2, (1 + square / inner**2) / (1 + square / outer**2))
        return np.pi * WING_POWER[band] * np.log(ratio)
    alpha, beta, weight = _find_wings(band)
    return weight * (1.0 - (1.0 + square / alpha**2) ** (1.0 - beta))


def transfer_wings(k, band, pixel_scale=PIXEL_SCALE):
    """Return the transfer function of the survey's outer wings, whose zero frequency is their share of the flux.

    Parameters
    ----------
    k : Tensor
        Angular frequency [rad / pixel]; the wings are round.
    band : str
        g, r or z.
    pixel_scale : float
        arcsec.

    Returns
    -------
    Tensor like `k`

    Notes
    -----
    2 pi A [K0(k s) - K0(k S)] in g and r. The wings are wider than a stamp: on a grid of period P pixels their flux
    beyond P/2 comes back as a floor of about 1e-2/P^2 of the flux per pixel (2e-6 at P = 80).
    """
    if band not in WING_POWER:
        alpha, beta, weight = _find_wings(band)
        return weight * transfer_moffat(k, torch.as_tensor(alpha / pixel_scale, dtype=k.dtype, device=k.device), beta)
    inner, outer = (cut / pixel_scale for cut in WING_CUTS)
    safe = torch.where(k * outer < 1e-4, torch.ones_like(k), k).double()
    value = torch.special.modified_bessel_k0(safe * inner) - torch.special.modified_bessel_k0(safe * outer)
    value = torch.where(k * outer < 1e-4, torch.full_like(value, np.log(outer / inner)), value)
    return (2.0 * np.pi * WING_POWER[band] * value).to(k.dtype)


def _find_wings(band):
    if band not in WING_MOFFAT:
        raise UserError(f"band {band!r} has no outer wings; known are {', '.join((*WING_POWER, *WING_MOFFAT))}")
    return WING_MOFFAT[band]


def transfer_psf(kx, ky, alpha, beta, e1=None, e2=None, wings=None, bands=BANDS):
    """Return the transfer functions of elliptical Moffats with or without the survey's outer wings, unit flux.

    Parameters
    ----------
    kx : Tensor of shape (W,)
    ky : Tensor of shape (H,)
        Angular frequencies [rad / pixel], any order.
    alpha : Tensor of shape (N, bands)
        Moffat radius on the intermediate axis [pixel]; of a Gaussian its sigma.
    beta : array_like of shape (N,)
        Moffat index; infinity is a Gaussian.
    e1, e2 : Tensor of shape (N,) or (N, bands), optional
        Ellipticity of the core, see `stretch_frequencies`; round when not given.
    wings : array_like of bool, shape (N,), optional
        Rows with outer wings: their core has the rest of the flux. `narrow_core` gives the alpha that keeps psfsize.

    Returns
    -------
    Tensor of shape (N, bands, H, W)
    """
    beta = np.asarray(beta, dtype=np.float64)
    columns, rows = kx[None, :], ky[:, None]
    circle = torch.sqrt(columns * columns + rows * rows)
    if e1 is not None:
        shape = [e[:, None].expand(alpha.shape) if e.ndim == 1 else e for e in (e1, e2)]
        shape = [e.to(alpha.dtype)[..., None, None] for e in shape]
    out = torch.empty((*alpha.shape, len(ky), len(kx)), dtype=alpha.dtype, device=alpha.device)
    for value in np.unique(beta):
        picked = torch.as_tensor(np.flatnonzero(beta == value), device=alpha.device)
        k = circle if e1 is None else stretch_frequencies(columns, rows, *(e[picked] for e in shape))
        out[picked] = transfer_moffat(k, alpha[picked][..., None, None], float(value))
    if wings is not None and np.any(wings):
        picked = torch.as_tensor(np.flatnonzero(wings), device=alpha.device)
        for index, band in enumerate(bands):
            core = 1.0 - float(wing_flux(np.inf, band))
            out[picked, index] = core * out[picked, index] + transfer_wings(circle, band)
    return out


def narrow_core(alpha, beta, bands=BANDS):
    """Return the core's alpha with which core and wings have the noise-equivalent area of the Moffat alone.

    Parameters
    ----------
    alpha : ndarray of shape (N, bands)
        Moffat radius [pixel] from psfsize, without wings.
    beta : ndarray of shape (N,)

    Returns
    -------
    ndarray of shape (N, bands)
        About 1 per cent smaller: psfsize is measured on the whole PSF.

    Notes
    -----
    1/NEA = integral |T|^2 k dk / (2 pi). Three fixed-point steps; the ellipticity does not matter to a few 1e-5.
    """
    alpha, beta = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    k = torch.exp(torch.linspace(np.log(1e-6), np.log(60.0), 1500, dtype=torch.float64))
    out = alpha.copy()
    for index, band in enumerate(bands):
        wings, core = transfer_wings(k, band), 1.0 - float(wing_flux(np.inf, band))
        for value in np.unique(beta):
            rows = np.flatnonzero(beta == value)

            def invert_area(radius, share, extra, value=value):
                moffat = transfer_moffat(k[None], torch.as_tensor(radius)[:, None], float(value))
                return torch.trapezoid((share * moffat + extra) ** 2 * k * k, torch.log(k), dim=-1).numpy()

            target = invert_area(alpha[rows, index], 1.0, 0.0)
            for _ in range(3):
                out[rows, index] *= np.sqrt(invert_area(out[rows, index], core, wings) / target)
    return out


def average_psfsize(hosts, bands=BANDS):
    """Return the mean psfsize of each host's brick: one PSF per brick, an ablation.

    Parameters
    ----------
    hosts : pandas.DataFrame
        brickname and psfsize_<band> [arcsec]; N rows.
    bands : sequence of str

    Returns
    -------
    ndarray of shape (N, bands) [arcsec]
        To be used for the PSF only: depth and gain stay the host's own.

    Raises
    ------
    UserError
        When a column is missing or a psfsize is not positive.
    """
    columns = [f"psfsize_{band}" for band in bands]
    missing = [name for name in ("brickname", *columns) if name not in hosts]
    if missing:
        raise UserError(f"host table lacks column(s) {', '.join(missing)}")
    values = hosts[columns].to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        who = hosts["galaxy_id"].iloc[row] if "galaxy_id" in hosts else f"in row {row}"
        raise UserError(f"host {who}: {columns[column]} = {values[row, column]:g} is not usable; drop the host")
    _, brick = np.unique(hosts["brickname"].to_numpy().astype(str), return_inverse=True)
    count = np.bincount(brick)
    return np.stack([np.bincount(brick, weights=column) / count for column in values.T], axis=1)[brick]


def check_kernel(kernel, size, name="PSF image", ids=None):
    """Return PSF images as normalised arrays, or refuse them.

    Parameters
    ----------
    kernel : array_like of shape (..., K, K)
    size : int
        Pixels of the stamp.
    ids : sequence, optional
        Ids along the first axis, named in a refusal.

    Raises
    ------
    UserError
        When they are not square and odd-sized, are larger than the stamp, are not finite or have no flux.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2] or kernel.shape[-1] % 2 == 0:
        raise UserError(f"{name}: shape {kernel.shape[-2:]} is not odd and square; crop it to an odd number of pixels")
    if kernel.shape[-1] > size:
        raise UserError(f"{name}: {kernel.shape[-1]} pixels is larger than the stamp's {size}; crop the PSF")
    total = kernel.sum(axis=(-2, -1), keepdims=True)
    bad = ~(np.isfinite(total) & (total > 0))
    if bad.any():
        row = np.argwhere(bad)[0][0] if kernel.ndim > 2 else 0
        who = name if ids is None or kernel.ndim < 3 else f"injection {ids[row]}: {name}"
        raise UserError(f"{who}: not finite or without flux; give a PSF with positive sum")
    return kernel / total


def transfer_image(kernels, period, factor=1):
    """Return the transfer functions of PSF images, on the frequencies `render` uses.

    Parameters
    ----------
    kernels : ndarray of shape (N, bands, K, K)
        Normalised, odd-sized, sampled `factor` times per pixel, centred on the middle sample.
    period : int
        Period of the transform [pixel].
    factor : int
        Samples per pixel: 1 for a PSF image of the survey, which knows no frequency beyond half a cycle (those
        are set to zero).

    Returns
    -------
    Tensor of shape (N, bands, 2 * period, period), complex128
        Rows -period..period-1 cycles per period in FFT order, columns 0..period-1.
    """
    kernels = np.asarray(kernels, dtype=np.float64)
    half, length = kernels.shape[-1] // 2, period * factor
    canvas = np.zeros((*kernels.shape[:-2], length, length))
    index = np.arange(-half, half + 1) % length
    canvas[..., index[:, None], index[None, :]] = kernels
    spectrum = np.fft.fft2(canvas)
    rows = np.fft.fftfreq(2 * period, 1.0 / (2 * period)).astype(int)
    columns = np.arange(period)
    known = (np.abs(rows)[:, None] < (length + 1) // 2) & (columns[None, :] < (length + 1) // 2)
    picked = spectrum[..., (rows % length)[:, None], (columns % length)[None, :]]
    return torch.as_tensor(np.where(known, picked, 0.0))
