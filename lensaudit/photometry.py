"""Conversions between survey columns and physical quantities: magnitudes, depth, noise, PSF width, gain, shapes.

Numpy only. The survey's conventions and the two that are easily confused are stated where they are used: `psfsize` is
not a true FWHM, and `sigma_pix` is the white-equivalent sigma, not the RMS of the coadd's pixels.
"""

import numpy as np

from lensaudit.constants import EXTINCTION, GAIN_RATE, LANCZOS_RMS, PIXEL_SCALE, VISIT_SECONDS, ZERO_POINT

FWHM_OF_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))

# Sky brightness in AB mag per arcsec^2: 0.1-0.3 mag brighter than the moonless nominal values at the DECam site, chosen
# so that DES coadds at the depth and seeing of FACTS 2 come out at their 900 s; read noise of DECam in electrons.
SKY_BRIGHTNESS = {"g": 21.8, "r": 20.7, "z": 18.4}
READ_NOISE = 7.0


def flux_to_mag(flux):
    """Convert flux [nMgy] to AB magnitude; NaN where the flux is not positive."""
    flux = np.asarray(flux, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(flux > 0, ZERO_POINT - 2.5 * np.log10(flux), np.nan)


def mag_to_flux(mag):
    """Convert AB magnitude to flux [nMgy]; an infinite magnitude is zero flux."""
    return 10.0 ** (-0.4 * (np.asarray(mag, dtype=np.float64) - ZERO_POINT))


def ivar_to_depth(ivar):
    """Convert a detection inverse variance (psfdepth, galdepth) [nMgy^-2] to the 5-sigma AB depth."""
    ivar = np.asarray(ivar, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ivar > 0, flux_to_mag(5.0 / np.sqrt(ivar)), np.nan)


def depth_to_ivar(depth):
    """Convert a 5-sigma AB depth to the detection inverse variance [nMgy^-2]."""
    return (5.0 / mag_to_flux(depth)) ** 2


def noise_equivalent_area(psfsize):
    """Return the noise-equivalent area [arcsec^2] that the survey's psfsize [arcsec] stands for.

    Notes
    -----
    NEA = (sum p)^2 / sum p^2 x pixel area; of a Gaussian 4 pi sigma^2. psfsize is *defined* as the FWHM of the
    Gaussian with the PSF's area, so this holds whatever the PSF's shape.
    """
    return 4.0 * np.pi * (np.asarray(psfsize, dtype=np.float64) / FWHM_OF_SIGMA) ** 2


def depth_to_sigma(psfdepth, psfsize):
    """Return the white-equivalent noise per pixel [nMgy] of a coadd.

    Parameters
    ----------
    psfdepth : array_like
        Point-source detection inverse variance [nMgy^-2].
    psfsize : array_like
        The survey's PSF size [arcsec].

    Notes
    -----
    psfdepth = sum(psf^2) / sigma_pix^2 and sum(psf^2) = pixel area / NEA. The survey computes it from the exposures'
    noise before resampling, so this is the sigma of the white noise whose Lanczos-3 resampling has a pixel RMS of
    0.894 sigma_pix (`sigma_to_rms`).
    """
    return PIXEL_SCALE / np.sqrt(noise_equivalent_area(psfsize) * np.asarray(psfdepth, dtype=np.float64))


def sigma_to_depth(sigma_pix, psfsize):
    """Return the psfdepth [nMgy^-2] of a coadd with white-equivalent noise `sigma_pix` [nMgy per pixel]."""
    return PIXEL_SCALE**2 / (noise_equivalent_area(psfsize) * np.asarray(sigma_pix, dtype=np.float64) ** 2)


def sigma_to_rms(sigma_pix):
    """Return the RMS of the resampled coadd's pixels for a white-equivalent sigma."""
    return LANCZOS_RMS * np.asarray(sigma_pix, dtype=np.float64)


def psfsize_to_fwhm(psfsize, beta):
    """Convert the survey's psfsize [arcsec] to the true FWHM [arcsec] of a circular Moffat.

    Parameters
    ----------
    psfsize : array_like
        FWHM of the Gaussian with the same noise-equivalent area.
    beta : array_like
        Moffat index > 1; infinity is the Gaussian.

    Notes
    -----
    A Moffat (1 + r^2/alpha^2)^-beta has NEA = pi alpha^2 (2 beta - 1) / (beta - 1)^2 and
    FWHM = 2 alpha sqrt(2^(1/beta) - 1), so psfsize exceeds the FWHM by 1.39 / 1.29 / 1.23 / 1.19 / 1.15 at
    beta = 2.5 / 3 / 3.5 / 4 / 4.765.
    """
    beta = np.asarray(beta, dtype=np.float64)
    psfsize = np.asarray(psfsize, dtype=np.float64)
    finite = np.where(np.isfinite(beta), beta, 3.0)
    alpha_of_sigma = 2.0 * (finite - 1.0) / np.sqrt(2.0 * finite - 1.0)
    fwhm = psfsize / FWHM_OF_SIGMA * alpha_of_sigma * 2.0 * np.sqrt(2.0 ** (1.0 / finite) - 1.0)
    return np.where(np.isfinite(beta), fwhm, psfsize)


def fwhm_to_psfsize(fwhm, beta):
    """Convert the true FWHM [arcsec] of a circular Moffat to the survey's psfsize [arcsec]."""
    return np.asarray(fwhm, dtype=np.float64) / psfsize_to_fwhm(1.0, beta)


def gain_of(exptime, band):
    """Return the gain [electrons per nMgy] of a coadd with `exptime` [s] in `band`."""
    return np.asarray(exptime, dtype=np.float64) * GAIN_RATE[band]


def nobs_to_exptime(nobs, band):
    """Return the nominal exposure time [s] of `nobs` visits of typical length, when nothing better is known."""
    return np.asarray(nobs, dtype=np.float64) * VISIT_SECONDS[band]


def estimate_exptime(psfdepth, psfsize, nobs, band):
    """Estimate the exposure time [s] of a coadd from its depth, seeing and number of visits.

    Parameters
    ----------
    psfdepth, psfsize, nobs : array_like
        Survey columns of `band`.

    Notes
    -----
    Sweeps do not hold exposure times. The sky-limited coadd has sigma_pix^2 = (s t + n R^2) / (rate t)^2 with the
    sky rate s [e-/s/pixel], so t follows from psfdepth and psfsize: t is proportional to the depth's inverse
    variance, as it must be. The error is the unknown sky: 0.4 mag of moonlight or twilight is a factor 1.4, and sky
    brightness scatters by about that between visits. With 1.5 in gain the arc's own noise is 1.2 times off, which
    moves the total noise under a bright arc by about one per cent.
    """
    sigma = depth_to_sigma(psfdepth, psfsize)
    rate = GAIN_RATE[band]
    sky = mag_to_flux(SKY_BRIGHTNESS[band]) * PIXEL_SCALE**2 * rate
    variance = (rate * sigma) ** 2
    read = np.asarray(nobs, dtype=np.float64) * READ_NOISE**2
    return (sky + np.sqrt(sky**2 + 4.0 * variance * read)) / (2.0 * variance)


def extinct_flux(flux, ebv, band):
    """Dim a flux by Galactic extinction, A = R_band E(B-V) on the SFD98 scale (FACTS: g 3.214, r 2.165, z 1.211)."""
    return np.asarray(flux, dtype=np.float64) * 10.0 ** (-0.4 * EXTINCTION[band] * np.asarray(ebv, dtype=np.float64))


def brightness_to_pixel(brightness, pixel_scale=PIXEL_SCALE):
    """Convert surface brightness [flux per arcsec^2] to flux per pixel. The only place where the two meet."""
    return brightness * pixel_scale**2


def ellipticity_to_axes(e1, e2):
    """Return axis ratio q and angle phi [rad, counter-clockwise from +x] of lenstronomy ellipticities.

    Notes
    -----
    e1, e2 = (1 - q)/(1 + q) (cos 2 phi, sin 2 phi); not (1 - q^2)/(1 + q^2).
    """
    e = np.minimum(np.hypot(e1, e2), 0.9999)
    return (1.0 - e) / (1.0 + e), 0.5 * np.arctan2(e2, e1)


def axes_to_ellipticity(q, phi):
    """Return lenstronomy's e1, e2 of an axis ratio and an angle [rad]."""
    e = (1.0 - np.asarray(q)) / (1.0 + np.asarray(q))
    return e * np.cos(2.0 * np.asarray(phi)), e * np.sin(2.0 * np.asarray(phi))


def tractor_to_lens_shape(shape_r, shape_e1, shape_e2):
    """Convert Tractor shapes to lenstronomy's.

    Parameters
    ----------
    shape_r : array_like
        Half-light radius on the major axis [arcsec].
    shape_e1, shape_e2 : array_like
        Tractor ellipticities; their angle is a position angle, east of north.

    Returns
    -------
    dict
        R_sersic (half-light radius on the intermediate axis) [arcsec], q, phi [rad], e1, e2.

    Notes
    -----
    With north up and east left the angle from +x is phi = PA + 90 deg, so (e1, e2) change sign.
    """
    e1, e2 = -np.asarray(shape_e1, dtype=np.float64), -np.asarray(shape_e2, dtype=np.float64)
    q, phi = ellipticity_to_axes(e1, e2)
    return {"R_sersic": np.asarray(shape_r, dtype=np.float64) * np.sqrt(q), "q": q, "phi": phi, "e1": e1, "e2": e2}
