"""Mode (ii): a host stamp brought to a worse seeing and depth, exact in quadrature; it never sharpens or deepens.

The stamp is convolved with the kernel whose transfer function is target PSF over own PSF. The noise it already has is
smoothed with it, so the noise that is added has the power spectrum that is missing to the target's coadd noise, at
every frequency. Every stamp is a pure function of (seed, injection_id).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import fft

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.injection.noise import resampling_matrix
from lensaudit.lensing.psf import moffat_alpha, transfer_moffat

MARGIN = 24  # pixels mirrored beyond the edge, wider than the kernels
SLACK = 1e-6  # relative, for rounding in tables


@dataclass(frozen=True)
class Conditions:
    """Seeing and noise of N stamps in their bands.

    Parameters
    ----------
    fwhm : ndarray of shape (N, bands)
        True FWHM [arcsec].
    beta : ndarray of shape (N,)
        Moffat index; infinity is a Gaussian.
    sigma : ndarray of shape (N, bands)
        White-equivalent noise per pixel [nMgy].
    """

    fwhm: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray


def make_conditions(psfsize, psfdepth, beta):
    """Return the conditions that survey columns stand for.

    Parameters
    ----------
    psfsize : array_like of shape (N, bands)
        The survey's PSF size [arcsec].
    psfdepth : array_like of shape (N, bands)
        Point-source detection inverse variance [nMgy^-2]; `photometry.depth_to_ivar` of a depth in mag.
    beta : array_like of shape (N,)

    Returns
    -------
    Conditions
    """
    psfsize, beta = np.atleast_2d(np.asarray(psfsize, dtype=np.float64)), np.atleast_1d(np.asarray(beta, np.float64))
    sigma = photometry.depth_to_sigma(psfdepth, psfsize)
    return Conditions(photometry.psfsize_to_fwhm(psfsize, beta[:, None]), beta, np.atleast_2d(sigma))


def degrade_hosts(own, psfsize, depth, bands=BANDS):
    """Return host rows with the target's columns, for the injection into degraded stamps.

    Parameters
    ----------
    own : pandas.DataFrame
        Host of each injection, N rows, from `light.host_rows`.
    psfsize : ndarray of shape (N, bands)
        Target [arcsec].
    depth : ndarray of shape (N, bands)
        Target 5-sigma AB depth [mag].

    Returns
    -------
    pandas.DataFrame
        psfsize, psfdepth and, where there is one, depth of every band replaced; an exposure time is shortened as the
        noise says, so the arc's own noise is that of the target. `host_index` is the injection's row and `parent_index`
        the host's: reuse is counted on the latter.
    """
    psfsize, depth = np.asarray(psfsize, dtype=np.float64), np.asarray(depth, dtype=np.float64)
    columns = {"parent_index": own["host_index"].to_numpy(), "host_index": np.arange(len(own))}
    for index, band in enumerate(bands):
        before = photometry.depth_to_sigma(own[f"psfdepth_{band}"], own[f"psfsize_{band}"])
        columns[f"psfsize_{band}"] = psfsize[:, index]
        columns[f"psfdepth_{band}"] = photometry.depth_to_ivar(depth[:, index])
        after = photometry.depth_to_sigma(columns[f"psfdepth_{band}"], psfsize[:, index])
        if f"depth_{band}" in own:
            columns[f"depth_{band}"] = depth[:, index]
        if f"exptime_{band}" in own:
            columns[f"exptime_{band}"] = own[f"exptime_{band}"].to_numpy() * (before / after) ** 2
    return own.assign(**columns)


def degrade_stamps(images, own, target, ids, seed, gains=None, bands=BANDS):
    """Bring host stamps to the target's seeing and depth.

    Parameters
    ----------
    images : ndarray of shape (N, bands, S, S)
        Host stamps [nMgy]; not-finite and exactly zero pixels are "no data" and stay what they are.
    own, target : Conditions
        Of the stamps as they are and as they shall be.
    ids : sequence of int, length N
        Injection ids.
    seed : int
    gains : (ndarray, ndarray), each of shape (N, bands), optional
        Gain [e-/nMgy] before and after, from `noise.list_gains`: the galaxy's photon noise is then brought to the
        target too. Without it the sky noise alone is.
    bands : sequence of str

    Returns
    -------
    ndarray of shape (N, bands, S, S), float32 [nMgy]
        A band whose target is its own conditions keeps its bits.

    Raises
    ------
    UserError
        Naming the first injection whose target is sharper or deeper than its host in any band.

    Notes
    -----
    Own noise has the power sigma_o^2 L(k), L being Lanczos-3's, after the kernel T it is sigma_o^2 L T^2; added is
    L (sigma_t^2 - sigma_o^2 T^2), drawn from a stream of the injection's own. The sum is sigma_t^2 L at every
    frequency. Within `MARGIN` pixels of the edge the kernel also sees mirrored light, which matters for objects there.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[:2] != (len(ids), len(bands)) or images.shape[2] != images.shape[3]:
        raise UserError(f"host stamps have shape {images.shape}; expected ({len(ids)}, {len(bands)}, S, S)")
    _check_target(own, target, ids, bands)
    side = padded_size(images.shape[-1])
    k = np.hypot(*make_frequencies(side))
    out = images.copy()
    for row, number in enumerate(ids):
        same = (target.fwhm[row] == own.fwhm[row]) & (target.sigma[row] == own.sigma[row])
        changed = np.flatnonzero(~same | (target.beta[row] != own.beta[row]))
        if len(changed) == 0:
            continue
        stream = rng.make_stream(seed, "injection/degrade", int(number))
        shape = (len(bands), side, side)
        white = stream.standard_normal(shape, dtype=np.float32)[changed]
        kernel = make_kernel(own, target, row, k)[changed]
        sigmas = own.sigma[row, changed], target.sigma[row, changed]
        smooth, valid = filter_stamp(images[row, changed], kernel, f"injection {number}")
        smooth += draw_missing_noise(white, kernel, *sigmas, images.shape[-1])
        if gains is not None:
            pair = (gains[0][row, changed], gains[1][row, changed])
            white = stream.standard_normal(shape, dtype=np.float32)[changed]
            smooth += draw_photon_noise(white, images[row, changed], valid, kernel, pair)
        out[row, changed] = np.where(valid, smooth, images[row, changed])
    return out


def find_degradable(own, target):
    """Return which stamps can be brought to the target: better seeing *and* less noise in every band.

    Parameters
    ----------
    own, target : Conditions
        Of N stamps.

    Returns
    -------
    ndarray of bool, shape (N,)
        False where `degrade_stamps` would refuse.
    """
    wider = (target.fwhm >= own.fwhm * (1.0 - SLACK)) & (target.sigma >= own.sigma * (1.0 - SLACK))
    usable = [np.isfinite(v) & (v > 0) for c in (own, target) for v in (c.fwhm, c.sigma)]
    out = wider.all(axis=1) & np.all(usable, axis=(0, 2))
    for row in np.flatnonzero(out & (own.beta != target.beta)):
        out[row] = not _has_sharper_core(own, target, row)
    return out


def _has_sharper_core(own, target, row):
    k = np.linspace(0.0, np.sqrt(2.0) * np.pi, 256)[None]
    return bool(make_kernel(own, target, row, k).max() > 1.0 + SLACK)


def _check_target(own, target, ids, bands):
    for row, number in enumerate(ids):
        for index, band in enumerate(bands):
            who = f"injection {number}"
            values = [getattr(c, name)[row, index] for c in (own, target) for name in ("fwhm", "sigma")]
            if not (np.isfinite(values).all() and min(values) > 0):
                raise UserError(f"{who}: seeing or noise in {band} is not a positive number; drop it")
            fwhm, noise, new_fwhm, new_noise = values
            if new_fwhm < fwhm * (1.0 - SLACK):
                raise UserError(
                    f"{who}: target seeing {new_fwhm:.3f} arcsec in {band} is sharper than the host's {fwhm:.3f}; "
                    "take a host with better seeing"
                )
            if new_noise < noise * (1.0 - SLACK):
                psfsize = photometry.fwhm_to_psfsize(new_fwhm, target.beta[row])
                asked, best = photometry.ivar_to_depth(photometry.sigma_to_depth([new_noise, noise], psfsize))
                raise UserError(
                    f"{who}: target depth {asked:.2f} mag in {band} is deeper than the host allows at the target's "
                    f"seeing, {best:.2f}; take a deeper host"
                )
        if own.beta[row] != target.beta[row] and _has_sharper_core(own, target, row):
            raise UserError(
                f"{who}: the target PSF (beta {target.beta[row]:g}) has a sharper core than the host's "
                f"(beta {own.beta[row]:g}); give both the same beta"
            )


def padded_size(size):
    """Return the odd side of the periodic grid a stamp is filtered on; odd, so that no frequency lacks its partner."""
    side = fft.next_fast_len(size + 2 * MARGIN, real=True)
    while side % 2 == 0:
        side = fft.next_fast_len(side + 1, real=True)
    return side


@functools.cache
def make_frequencies(side):
    """Return angular frequencies [rad / pixel] of a real FFT: ky of shape (side, 1), kx of shape (1, side // 2 + 1)."""
    return 2.0 * np.pi * fft.fftfreq(side)[:, None], 2.0 * np.pi * fft.rfftfreq(side)[None, :]


def make_transfer(fwhm, beta, k):
    """Return transfer functions of round Moffats.

    Parameters
    ----------
    fwhm : array_like of shape (bands,)
        arcsec.
    beta : float
        Infinity is a Gaussian.
    k : ndarray of shape (H, W)
        Angular frequency [rad / pixel].

    Returns
    -------
    ndarray of shape (bands, H, W)
    """
    fwhm = np.asarray(fwhm, dtype=np.float64) / PIXEL_SCALE
    alpha = fwhm / photometry.FWHM_OF_SIGMA if np.isinf(beta) else moffat_alpha(fwhm, beta)
    return transfer_moffat(torch.as_tensor(k), torch.as_tensor(alpha)[:, None, None], float(beta)).numpy()


def make_kernel(own, target, row, k):
    """Return the transfer functions target PSF over own PSF of one stamp, shape (bands, H, W).

    Notes
    -----
    The ratio of two Moffats of one beta falls with frequency when the target is the wider one, whatever beta is.
    """
    before = make_transfer(own.fwhm[row], own.beta[row], k)
    after = make_transfer(target.fwhm[row], target.beta[row], k)
    # A PSF that transmits nothing at all at a frequency has left nothing there to be smoothed.
    return np.where(before > 1e-250, after / np.maximum(before, 1e-250), 0.0)


def filter_stamp(image, transfer, name="stamp"):
    """Multiply the spectrum of a stamp, mirrored beyond its edge, with transfer functions.

    Parameters
    ----------
    image : ndarray of shape (bands, S, S)
    transfer : ndarray of shape (bands, M, M // 2 + 1), M = `padded_size(S)`
    name : str
        Named in a refusal.

    Returns
    -------
    (ndarray, ndarray), each of shape (bands, S, S)
        float64 image, in which pixels without data took part as the band's median; and where there are data.

    Raises
    ------
    UserError
        When a band holds no data.
    """
    valid = np.isfinite(image) & (image != 0)
    if not valid.any(axis=(1, 2)).all():
        raise UserError(f"{name}: a band holds no data; drop the host")
    size, side = image.shape[-1], transfer.shape[-2]
    values = np.stack([np.where(good, band, np.median(band[good])) for band, good in zip(image, valid, strict=True)])
    low = (side - size) // 2
    wide = np.pad(values.astype(np.float64), ((0, 0), *((low, side - size - low),) * 2), mode="symmetric")
    out = fft.irfft2(fft.rfft2(wide) * transfer, s=(side, side))
    return out[:, low : low + size, low : low + size], valid


@functools.cache
def resampling_amplitude(side):
    """Return the amplitude sqrt(L(k)) of the coadd's resampling on a periodic grid, shape (side, side // 2 + 1)."""
    taps = np.roll(resampling_matrix(side)[side // 2].astype(np.float64), -(side // 2))
    axis = fft.fft(taps).real
    return axis[:, None] * axis[None, : side // 2 + 1]


def draw_missing_noise(white, kernels, own_sigma, target_sigma, size):
    """Return the sky noise that smoothed stamps lack, shape (bands, size, size) [nMgy].

    Parameters
    ----------
    white : ndarray of shape (bands, M, M)
        Standard normal numbers.
    kernels : ndarray of shape (bands, M, M // 2 + 1)
    own_sigma, target_sigma : ndarray of shape (bands,)
        White-equivalent [nMgy].
    """
    side = white.shape[-1]
    power = target_sigma[:, None, None] ** 2 - (own_sigma[:, None, None] * kernels) ** 2
    amplitude = (resampling_amplitude(side) * np.sqrt(np.maximum(power, 0.0))).astype(np.float32)
    return fft.irfft2(fft.rfft2(white) * amplitude, s=(side, side))[:, :size, :size]


def draw_photon_noise(white, image, valid, kernels, gains):
    """Return the photon noise that smoothed galaxies lack, shape (bands, S, S) [nMgy].

    Parameters
    ----------
    white : ndarray of shape (bands, M, M)
        Standard normal numbers.
    image : ndarray of shape (bands, S, S)
        Stamp before smoothing [nMgy].
    valid : ndarray of bool, like `image`
    kernels : ndarray of shape (bands, M, M // 2 + 1)
    gains : (ndarray, ndarray), each of shape (bands,)
        Before and after [e-/nMgy].

    Notes
    -----
    The variance per pixel is exact for light that varies slowly over the kernel; its correlation is Lanczos-3's.
    Coadds are sky-subtracted, so the stamp itself is the light; where its noise leaves nothing missing, nothing is
    added, which raises the variance of empty sky by about 0.2 / (gain sigma_pix) (0.3 per cent at 1e4 and 0.006).
    """
    size, side = image.shape[-1], white.shape[-1]
    light = np.where(valid, image, 0.0)
    wide = np.zeros(white.shape)
    wide[:, :size, :size] = light
    spectrum, resampling = fft.rfft2(wide), resampling_amplitude(side)
    smooth = fft.irfft2(spectrum * kernels, s=(side, side))
    # The variance of noise spreads with the squared kernel, resampling included; both maps are white-equivalent.
    spread = fft.rfft2(fft.irfft2(resampling * kernels, s=(side, side)) ** 2)
    unit = np.sum(fft.irfft2(resampling, s=(side, side)) ** 2)
    before, after = (np.asarray(g, dtype=np.float64)[:, None, None] for g in gains)
    have = fft.irfft2(spectrum * spread, s=(side, side)) / unit / before
    missing = np.sqrt(np.maximum(np.maximum(smooth, 0.0) / after - have, 0.0))
    return fft.irfft2(fft.rfft2(white * missing) * resampling, s=(side, side))[:, :size, :size]
