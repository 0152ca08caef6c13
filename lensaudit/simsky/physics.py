"""Constants, photometry and cosmology of the simulated sky, its own on purpose.

Nothing here is shared with `constants`, `photometry` or `lensing`, so that a wrong conversion there shows in closure.
"""

import functools

import numpy as np
from astropy.cosmology import FlatLambdaCDM

BANDS = ("g", "r", "z")
PIXEL = 0.262  # arcsec, coadds of the Legacy Surveys
ZERO = 22.5  # AB mag of 1 nMgy
GAIN = {"g": 44.0, "r": 53.0, "z": 39.0}  # e-/s/nMgy: zero points 26.61, 26.82, 26.48 at 1 e-/s
EXTINCTION = {"g": 3.214, "r": 2.165, "z": 1.211}  # A/E(B-V) on SFD98
READ_NOISE = 7.0  # e- per pixel and exposure
DARK_SKY = {"g": 22.0, "r": 21.0, "z": 18.4}  # mag/arcsec^2; z so that 10 exposures of 90 s reach the deep mode
LIGHT_SPEED = 299792.458  # km/s
COSMOLOGY = FlatLambdaCDM(H0=70.0, Om0=0.3)
_Z = np.concatenate([[0.0], np.geomspace(1e-3, 8.0, 2000)])


@functools.cache
def _distances():
    return COSMOLOGY.comoving_distance(_Z).value


def comoving_distance(z):
    """Line-of-sight comoving distance in Mpc (flat universe, h = 0.7, Omega_m = 0.3)."""
    return np.interp(z, _Z, _distances())


def angular_distance(z):
    """Angular-diameter distance in Mpc."""
    return comoving_distance(z) / (1.0 + np.asarray(z))


def distance_modulus(z):
    """Distance modulus in mag."""
    return 5.0 * np.log10(comoving_distance(z) * (1.0 + np.asarray(z)) * 1e5)


def volume_element(z):
    """Comoving volume per unit redshift and square degree, in Mpc^3."""
    hubble = 70.0 * np.sqrt(0.3 * (1.0 + np.asarray(z)) ** 3 + 0.7)
    return comoving_distance(z) ** 2 * LIGHT_SPEED / hubble * np.radians(1.0) ** 2


def einstein_radius(sigma_v, z_lens, z_source):
    """theta_E = 4 pi (sigma/c)^2 D_ls/D_s in arcsec; zero for sources in front of the lens."""
    lens, source = comoving_distance(z_lens), comoving_distance(z_source)
    ratio = np.clip(1.0 - lens / source, 0.0, None)
    return np.degrees(4.0 * np.pi * (np.asarray(sigma_v) / LIGHT_SPEED) ** 2 * ratio) * 3600.0


def to_flux(mag):
    """AB magnitude to nMgy."""
    return 10.0 ** (0.4 * (ZERO - np.asarray(mag, dtype=float)))


def to_mag(flux):
    """Positive flux in nMgy to AB magnitude."""
    return ZERO - 2.5 * np.log10(flux)


def transmission(ebv, band):
    """Linear transmission of the Milky Way's dust."""
    return 10.0 ** (-0.4 * EXTINCTION[band] * np.asarray(ebv))


def lanczos3(x):
    """The Lanczos-3 kernel."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(np.asarray(x) / 3.0), 0.0)


@functools.cache
def lanczos_covariance():
    """Covariance of unit white noise at pixel lags 0-5 after Lanczos-3 resampling, averaged over sub-pixel shifts.

    Returns
    -------
    tuple of 6 floats

    Notes
    -----
    The weights of each shift are normalised to unit sum, as a coadd needs to keep flux.
    """
    shifts = (np.arange(4000) + 0.5) / 4000
    weights = lanczos3(shifts[:, None] - np.arange(-3, 5))
    weights /= weights.sum(axis=1, keepdims=True)
    padded = np.pad(weights, ((0, 0), (0, 6)))
    return tuple(float(np.mean(np.sum(padded[:, :8] * padded[:, d : d + 8], axis=1))) for d in range(6))


@functools.cache
def noise_filter(size):
    """Square root of the noise power spectrum on the half-plane of a real FFT, shape (size, size//2+1), float32."""
    lags = lanczos_covariance()

    def power(frequency):
        return lags[0] + 2.0 * sum(c * np.cos(2.0 * np.pi * frequency * d) for d, c in enumerate(lags) if d)

    full, half = power(np.fft.fftfreq(size)), power(np.fft.rfftfreq(size))
    return np.sqrt(np.clip(full[:, None] * half[None, :], 0.0, None)).astype(np.float32)
