"""Observing conditions: exposures are drawn, and PSFSIZE, PSFDEPTH, GALDEPTH and NOBS are measured from them.

Each quarter of a brick has, per band, a true PSF (elliptical Moffat with outer wings), a sky brightness and a list of
exposures. Depth is never drawn alone: a target is reached by choosing exposure times and sky, then all is measured.
"""

import functools

import numpy as np
import pandas as pd
from scipy import fft

from lensaudit.rng import make_stream
from lensaudit.simsky.physics import BANDS, DARK_SKY, GAIN, PIXEL, READ_NOISE, to_flux

MEASURE_SIZE = 63  # pixels, the survey's PSF image
# Share of the exposure modes in the survey part, FACTS 2: depths (5 sigma, AB) and medians of the true seeing (arcsec).
DEPTH = {"deep": {"g": 25.35, "r": 25.15, "z": 23.85}, "shallow": {"g": 24.75, "r": 24.25, "z": 23.35}}
SEEING = {"deep": {"g": 1.11, "r": 0.95, "z": 0.83}, "shallow": {"g": 1.29, "r": 1.18, "z": 1.11}}
DEEP_SHARE = 0.30
# Outer wings of a star of 1 nMgy: amplitude of r^-2 in nMgy/arcsec^2 (g, r), softened at 1 arcsec; a Moffat in z.
WING_POWER = {"g": 0.00045, "r": 0.00033}
WING_MOFFAT = {"z": (17.65, 1.7, 0.0145)}  # alpha in arcsec, beta, weight


def _radii2(size, e1=0.0, e2=0.0):
    # Squared elliptical radius in arcsec^2, for ellipticity (1-q)/(1+q) in the frame of the image.
    x = (np.arange(size) - size // 2) * PIXEL
    q = (1.0 - np.hypot(e1, e2)) / (1.0 + np.hypot(e1, e2))
    angle = 0.5 * np.arctan2(e2, e1)
    c, s = np.cos(angle), np.sin(angle)
    major = c * x[None, :] + s * x[:, None]
    minor = -s * x[None, :] + c * x[:, None]
    return q * major**2 + minor**2 / q


@functools.lru_cache(maxsize=16)
def wing_image(band, size):
    """Outer wings of a star of 1 nMgy, in nMgy per pixel, shape (size, size), and their total in a 144-px box."""

    def profile(n):
        r2 = _radii2(n)
        if band in WING_POWER:
            return WING_POWER[band] / (r2 + 1.0) * PIXEL**2
        alpha, beta, weight = WING_MOFFAT[band]
        return weight * (beta - 1.0) / (np.pi * alpha**2) * (1.0 + r2 / alpha**2) ** -beta * PIXEL**2

    return profile(size), float(profile(144).sum())


def make_psf(fwhm, beta, e1, e2, band, size):
    """True PSF of the coadd, pixel included, of unit flux in a 144-px box.

    Parameters
    ----------
    fwhm : float
        True FWHM on the intermediate axis, arcsec.
    beta : float
        Moffat index.
    e1, e2 : float
        Ellipticity (1-q)/(1+q) in the frame of the image.
    band : str
    size : int
        Pixels; the centre is pixel size//2.

    Returns
    -------
    ndarray of shape (size, size), float64
    """
    alpha2 = (0.5 * fwhm) ** 2 / (2.0 ** (1.0 / beta) - 1.0)
    core = (beta - 1.0) / (np.pi * alpha2) * PIXEL**2 * np.exp(-beta * np.log1p(_radii2(size, e1, e2) / alpha2))
    wings, share = wing_image(band, size)
    return (1.0 - share) * core + wings


def measure_psf(psf):
    """Measure the noise-equivalent area of a PSF image, as the survey does for PSFSIZE, PSFDEPTH and GALDEPTH.

    Parameters
    ----------
    psf : ndarray of shape (n, n)
        Unit flux.

    Returns
    -------
    psfsize : float
        FWHM in arcsec of the Gaussian with the same sum of squares.
    psf_norm2, galaxy_norm2 : float
        Sum of squares of the PSF, and of a round exponential of half-light radius 0.45 arcsec convolved with it;
        divided by sigma_pix^2 they are PSFDEPTH and GALDEPTH.
    """
    norm2 = float(np.sum(psf**2))
    psfsize = 2.0 * np.sqrt(2.0 * np.log(2.0)) * PIXEL / np.sqrt(4.0 * np.pi * norm2)
    power = np.abs(fft.rfft2(psf, (64, 64))) ** 2 * exponential_power(64)
    weight = np.full(33, 2.0)
    weight[[0, -1]] = 1.0
    return psfsize, norm2, float(np.sum(power * weight) / 64**2)


@functools.lru_cache(maxsize=2)
def exponential_power(size):
    """Power spectrum of the unit round exponential of half-light radius 0.45 arcsec on a real FFT's half-plane."""
    scale = 0.45 / PIXEL / 1.67834699
    k2 = (2 * np.pi) ** 2 * (np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2)
    return (1.0 + k2 * scale**2) ** -3.0


def _moffat_ratio(beta):
    # psfsize / FWHM of a Moffat: FWHM of the Gaussian with the same noise-equivalent area.
    nea = np.pi * (2 * beta - 1) / (beta - 1) ** 2 / (4.0 * (2.0 ** (1.0 / beta) - 1.0))
    return 2.0 * np.sqrt(2.0 * np.log(2.0)) * np.sqrt(nea / (4.0 * np.pi))


def choose_exposures(rng, norm2, depth, n_exposures, band):
    """Choose exposure times and sky so that a 5-sigma depth is reached; returns what was chosen.

    Parameters
    ----------
    rng : numpy.random.Generator
    norm2 : float
        Sum of squares of the PSF image.
    depth : float
        Target 5-sigma point-source depth, AB.
    n_exposures : int
    band : str

    Returns
    -------
    dict with n_exposures, exposure (total, s), sky (mag/arcsec^2), sigma_pix (white-equivalent, nMgy)
    """
    gain, variance = GAIN[band], norm2 / (25.0 / to_flux(depth) ** 2)
    sky = DARK_SKY[band] + rng.normal(-0.1, 0.25)
    rate = to_flux(sky) * PIXEL**2 * gain
    a = variance * gain**2
    total = (rate + np.sqrt(rate**2 + 4.0 * a * n_exposures * READ_NOISE**2)) / (2.0 * a)
    n_exposures = max(n_exposures, int(np.ceil(total / 300.0)))
    shortest = rng.uniform(15.0, 35.0)
    if total < shortest * n_exposures:  # a bright sky, not an impossibly short exposure, makes the image shallow
        total = shortest * n_exposures
        rate = max(a * total - n_exposures * READ_NOISE**2 / total, rate)
        sky = 22.5 - 2.5 * np.log10(rate / (gain * PIXEL**2))
    times = total * rng.dirichlet(np.full(n_exposures, 60.0))
    sigma = np.sqrt(rate * times.sum() + n_exposures * READ_NOISE**2) / (gain * times.sum())
    return {"n_exposures": len(times), "exposure": float(times.sum()), "sky": float(sky), "sigma_pix": float(sigma)}


def _draw_targets(rng, tail):
    # Target seeing (true FWHM) and depth per band, and the number of exposures.
    if not tail:
        mode = "deep" if rng.random() < DEEP_SHARE else "shallow"
        common = rng.normal(0.0, 0.13)
        fwhm = {b: SEEING[mode][b] * np.exp(common + rng.normal(0.0, 0.05)) for b in BANDS}
        # Exposure times follow the conditions, as the survey's did, so a slow trend of depth with seeing is left.
        depth = {b: DEPTH[mode][b] - 0.5 * common + rng.normal(0.0, 0.10) for b in BANDS}
        n = rng.integers(6, 12) if mode == "deep" else rng.choice([2, 3, 4, 5, 6], p=[0.08, 0.27, 0.30, 0.20, 0.15])
        return mode, None, fwhm, depth, int(n)
    psfsize, target = rng.uniform(0.83, 1.88), rng.uniform(22.25, 25.75)
    depth = {"g": target + rng.normal(0.4, 0.12), "r": target, "z": target - rng.normal(1.0, 0.15)}
    few = np.clip((target - 21.5) / 2.0, 0.5, 1.0)  # shallow targets have short lists
    n = max(1, round(few * rng.uniform(3.5, 7.5))) if target < 24.6 else int(rng.integers(4, 11))
    return "tail", psfsize, None, depth, n


def draw_quarters(seed, brickids, tail):
    """Draw and measure the conditions of the four quarters of each brick.

    Parameters
    ----------
    seed : int
    brickids : sequence of int
    tail : sequence of bool
        Bricks of the design tail: targets uniform over psfsize_r 0.83-1.88 arcsec and depth_r 22.25-25.75.

    Returns
    -------
    pandas.DataFrame
        One row per brick and quarter; per band fwhm [arcsec], beta, psf_e1, psf_e2, n_exposures, exposure [s],
        sky [mag/arcsec^2], sigma_pix [nMgy], psfsize [arcsec], psfdepth and galdepth [nMgy^-2].
    """
    rows = []
    for brickid, in_tail in zip(brickids, tail, strict=True):
        rng = make_stream(seed, "simsky/conditions", int(brickid))
        for quarter in range(4):
            mode, psfsize, fwhm, depth, n = _draw_targets(rng, bool(in_tail))
            row = {"brickid": int(brickid), "quarter": quarter, "mode": mode, "is_tail": bool(in_tail)}
            scale = rng.lognormal(0.0, 0.04, 2)
            for band in BANDS:
                beta = rng.uniform(2.6, 4.5)
                e1, e2 = rng.normal(0.0, 0.025, 2)
                if fwhm is None:
                    ratio = {"g": 1.08 * scale[0], "r": 1.0, "z": 0.93 * scale[1]}[band]
                    width = psfsize * ratio / (_moffat_ratio(beta) * 1.01)
                else:
                    width = fwhm[band]
                size, norm2, galaxy = measure_psf(make_psf(width, beta, e1, e2, band, MEASURE_SIZE))
                chosen = choose_exposures(rng, norm2, depth[band], max(1, n + int(rng.integers(-1, 2)) * (n > 4)), band)
                values = {
                    "fwhm": width,
                    "beta": beta,
                    "psf_e1": e1,
                    "psf_e2": e2,
                    **chosen,
                    "psfsize": size,
                    "psfdepth": norm2 / chosen["sigma_pix"] ** 2,
                    "galdepth": galaxy / chosen["sigma_pix"] ** 2,
                }
                row |= {f"{key}_{band}": value for key, value in values.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def weigh_footprint(quarters, counts):
    """Return the weight of each quarter's objects that restores the survey's mix of seeing and depth.

    Parameters
    ----------
    quarters : pandas.DataFrame
        From `draw_quarters`.
    counts : ndarray of shape (n_quarters,)
        Objects per quarter.

    Returns
    -------
    ndarray of shape (n_quarters,)
        Density of the survey part over that of the whole, in bins of psfsize_r (0.05 arcsec) and depth_r (0.25 mag);
        the mean over objects is 1.
    """
    depth = 22.5 - 2.5 * np.log10(5.0 / np.sqrt(quarters["psfdepth_r"]))
    cell = np.floor(quarters["psfsize_r"] / 0.05).astype(int) * 1000 + np.floor(depth / 0.25).astype(int)
    survey = counts * ~quarters["is_tail"]
    whole = pd.Series(counts).groupby(cell.to_numpy()).sum()
    part = pd.Series(survey.to_numpy()).groupby(cell.to_numpy()).sum()
    if part.sum() == 0:
        return np.ones(len(quarters))
    ratio = (part / part.sum()) / (whole.clip(lower=1) / whole.sum())
    return ratio.reindex(cell.to_numpy()).to_numpy()
