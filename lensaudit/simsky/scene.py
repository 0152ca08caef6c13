"""Drawing one stamp: Sersic profiles in Fourier space, Gaussians, rings, the coadd's PSF and its noise.

Everything is drawn on a periodic grid wider than the stamp, as the continuous profile convolved with the PSF and
sampled at pixel centres. The PSF of a coadd contains the pixel already, so nothing is integrated over pixels again.
"""

import functools

import numpy as np
from scipy import fft
from scipy.special import gamma, gammaincinv, j0

from lensaudit.simsky.physics import noise_filter

STAMP = 101
GRID = 144  # pixels; profiles wider than a few arcsec use twice as much
_LOG_X = np.linspace(-4.0, 4.5, 4000)  # log10 of k R, tabulated


@functools.lru_cache(maxsize=256)
def sersic_table(tenths):
    """Hankel transform of the unit circular Sersic profile of index tenths/10, half-light radius 1, on `_LOG_X`."""
    n = tenths / 10.0
    b = gammaincinv(2.0 * n, 0.5)
    log_r = np.linspace(-9.0, 7.0, 8192)
    r = 10.0**log_r
    profile = np.exp(-b * r ** (1.0 / n)) * b ** (2 * n) / (2 * np.pi * n * gamma(2 * n))
    step = (log_r[1] - log_r[0]) * np.log(10)
    offset = fft.fhtoffset(step, mu=0.0)
    k = np.exp(offset) / r[::-1]
    transform = 2.0 * np.pi * fft.fht(profile * r, step, mu=0.0, offset=offset) / k
    return np.interp(_LOG_X, np.log10(k), transform).astype(np.float32)


@functools.lru_cache(maxsize=8)
def frequencies(size):
    """Angular frequencies of a real FFT in rad/pixel: (size, 1) and (1, size//2+1), float32."""
    ky = 2 * np.pi * np.fft.fftfreq(size)[:, None]
    kx = 2 * np.pi * np.fft.rfftfreq(size)[None, :]
    return ky.astype(np.float32), kx.astype(np.float32)


def _stretch(size, q, pa):
    # k_e for unit intermediate-axis radius of an ellipse with its major axis at `pa` from +x.
    ky, kx = frequencies(size)
    c, s = np.float32(np.cos(pa)), np.float32(np.sin(pa))
    along, across = c * kx + s * ky, c * ky - s * kx
    return np.sqrt(along * along * np.float32(1.0 / q) + across * across * np.float32(q))


def shift_phases(size, x, y):
    """Phase vectors that put unit points at (x, y) pixels of the stamp: (size, K) and (K, size//2+1), complex64.

    Parameters
    ----------
    size : int
    x, y : array_like of shape (K,)
        Pixels of the stamp; its first pixel is 0.
    """
    origin = (size - STAMP) // 2
    ky, kx = frequencies(size)
    rows = np.exp(-1j * ky * (np.asarray(y, np.float32) + origin)[None, :])
    columns = np.exp(-1j * (np.asarray(x, np.float32) + origin)[:, None] * kx)
    return rows.astype(np.complex64), columns.astype(np.complex64)


def draw_sersic(size, x, y, radius, q, pa, n):
    """Fourier image of a unit-flux Sersic galaxy.

    Parameters
    ----------
    size : int
        Grid.
    x, y : float
        Centre in pixels of the stamp.
    radius : float
        Half-light radius on the intermediate axis, pixels.
    q, pa : float
        Axis ratio and angle of the major axis, radians counter-clockwise from +x.
    n : float
        Sersic index, rounded to 0.1.

    Returns
    -------
    ndarray of shape (size, size//2+1), complex64
    """
    k = _stretch(size, q, pa) * np.float32(radius)
    k[0, 0] = 1e-4
    table = sersic_table(int(np.clip(round(10 * n), 5, 80)))
    position = (np.log10(k) - _LOG_X[0]) * np.float32(1.0 / (_LOG_X[1] - _LOG_X[0]))
    np.clip(position, 0, len(_LOG_X) - 2, out=position)
    index = position.astype(np.int32)
    value = table[index]
    value += (table[index + 1] - value) * (position - index)
    rows, columns = shift_phases(size, [x], [y])
    return value * rows * columns


def draw_ring(size, x, y, radius, width, q, pa):
    """Fourier image of a unit-flux elliptical ring with a Gaussian cross-section (pixels)."""
    k = _stretch(size, q, pa)
    value = (j0(k * radius) * np.exp(-0.5 * (k * width) ** 2)).astype(np.float32)
    rows, columns = shift_phases(size, [x], [y])
    return value * rows * columns


def draw_gaussians(size, x, y, width, flux):
    """Fourier images, one per band, of round Gaussians.

    Parameters
    ----------
    size : int
    x, y, width : array_like of shape (K,)
        Centre and sigma, pixels; zero sigma is a point.
    flux : array_like of shape (n_bands, K)

    Returns
    -------
    ndarray of shape (n_bands, size, size//2+1), complex64
    """
    ky, kx = frequencies(size)
    rows, columns = shift_phases(size, x, y)
    half = -0.5 * np.asarray(width, np.float32) ** 2
    rows = rows * np.exp(half[None, :] * ky**2)
    columns = columns * np.exp(half[:, None] * kx**2)
    return np.stack([(rows * np.asarray(band, np.float32)[None, :]) @ columns for band in flux])


def draw_samples(size, image, x0, y0, step):
    """Fourier image of point samples on a fine regular grid, each of the flux `image` gives.

    Parameters
    ----------
    size : int
    image : ndarray of shape (ny, nx)
        Flux per sample.
    x0, y0 : float
        Position of sample (0, 0) in pixels of the stamp.
    step : float
        Pixels between samples.
    """
    used = np.flatnonzero(image.any(axis=1))
    if len(used) == 0:
        return np.zeros((size, size // 2 + 1), np.complex64)
    origin = (size - STAMP) // 2
    ky, kx = frequencies(size)
    rows = np.exp(-1j * ky * (y0 + origin + step * used).astype(np.float32)[None, :])
    columns = np.exp(-1j * (x0 + origin + step * np.arange(image.shape[1])).astype(np.float32)[:, None] * kx)
    return rows @ (image[used].astype(np.complex64) @ columns)


def convolve(scene, psf_transforms):
    """Multiply Fourier images by the PSFs and return the stamp.

    Parameters
    ----------
    scene, psf_transforms : ndarray of shape (n_bands, size, size//2+1), complex

    Returns
    -------
    ndarray of shape (n_bands, STAMP, STAMP), float32
    """
    size = scene.shape[1]
    low = (size - STAMP) // 2
    image = fft.irfft2(scene * psf_transforms, s=(size, size))
    return np.ascontiguousarray(image[:, low : low + STAMP, low : low + STAMP])


def transform_psf(psf):
    """Real FFT of a PSF image whose centre is pixel size//2, with the centre moved to the origin; complex64."""
    return fft.rfft2(np.fft.ifftshift(psf).astype(np.float32)).astype(np.complex64)


def add_noise(rng, image, sigma, gain):
    """Return sky and photon noise of an image as a Lanczos-3 coadd has it.

    Parameters
    ----------
    rng : numpy.random.Generator
    image : ndarray of shape (n_bands, n, n)
        Noiseless sources, nMgy.
    sigma : array_like of shape (n_bands,)
        White-equivalent sky sigma per pixel, nMgy.
    gain : array_like of shape (n_bands,)
        Electrons per nMgy: exposure time times the rate of the band.

    Returns
    -------
    ndarray like `image`, float32
    """
    n, margin = image.shape[-1], 4
    size = fft.next_fast_len(n + 2 * margin, real=True)
    noise = rng.standard_normal((len(image), size, size), dtype=np.float32)
    variance = np.asarray(sigma, np.float32)[:, None, None] ** 2
    variance = variance + np.maximum(image, 0) / np.asarray(gain, np.float32)[:, None, None]
    level = np.broadcast_to(np.asarray(sigma, np.float32)[:, None, None], noise.shape).copy()
    level[:, margin : margin + n, margin : margin + n] = np.sqrt(variance)
    noise = fft.irfft2(fft.rfft2(noise * level) * noise_filter(size), s=(size, size))
    return noise[:, margin : margin + n, margin : margin + n]
