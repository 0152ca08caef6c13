"""Point-spread functions as transfer functions: Moffat and Gaussian in closed form, images by FFT.

A coadd's PSF already contains the pixel, so images are point samples at pixel centres and nothing is averaged over the
pixel again.
"""

import numpy as np
import torch
from scipy.special import gamma, kv

from lensaudit.artifacts import UserError


def moffat_alpha(fwhm, beta):
    """Return alpha of a Moffat (1 + r^2/alpha^2)^-beta, in the unit of `fwhm`."""
    return np.asarray(fwhm) / (2.0 * np.sqrt(2.0 ** (1.0 / np.asarray(beta)) - 1.0))


def transfer_moffat(k, alpha, beta):
    """Return the transfer function of a circular Moffat of unit flux, untruncated.

    Parameters
    ----------
    k : Tensor of shape (..., H, W)
        Angular frequency [rad / pixel].
    alpha : Tensor of shape (..., 1, 1)
        Moffat radius [pixel].
    beta : float
        Moffat index, > 1; infinity means a Gaussian whose *sigma* is `alpha`.

    Notes
    -----
    F(k) = 2 (k alpha / 2)^(beta-1) K_{beta-1}(k alpha) / Gamma(beta - 1); for half-integer order, beta = 2.5, 3.5, 4.5,
    it is exp(-x) times a polynomial in x = k alpha.
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
    order, values = beta - 1.0, x.double().cpu().numpy()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        out = 2.0 * (0.5 * values) ** order * kv(order, values) / gamma(order)
    return torch.as_tensor(np.where(values < 1e-8, 1.0, out), dtype=k.dtype, device=k.device)


def check_kernel(kernel, size, name="PSF image"):
    """Return a PSF image as a normalised array, or refuse it.

    Raises
    ------
    UserError
        When it is not square and odd-sized, is larger than the stamp, is not finite or has no flux.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.shape[-1] != kernel.shape[-2] or kernel.shape[-1] % 2 == 0:
        raise UserError(f"{name}: shape {kernel.shape[-2:]} is not odd and square; crop it to an odd number of pixels")
    if kernel.shape[-1] > size:
        raise UserError(f"{name}: {kernel.shape[-1]} pixels is larger than the stamp's {size}; crop the PSF")
    total = kernel.sum(axis=(-2, -1), keepdims=True)
    if not np.isfinite(kernel).all() or (total <= 0).any():
        raise UserError(f"{name}: not finite or without flux; give a PSF with positive sum")
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
