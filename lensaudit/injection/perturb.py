"""Domain randomisation for stress tests: what optics, sky, bright stars and detectors may add to a stamp.

The steps come in the order light meets them: PSF anisotropy, background plane, saturation wings, then cosmic rays on
the detector and astrometric jitter before resampling. Amplitudes are in local noise units. Every stamp is a pure
function of (seed, injection_id); a step of amplitude zero leaves the bits alone.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import correlate1d

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.injection.degrade import filter_stamp, make_frequencies, padded_size
from lensaudit.lensing.psf import moffat_alpha, stretch_frequencies, transfer_moffat

ANNULUS = (20.0, 32.0)  # pixels; the background annulus of the detector's preprocessing
REGULARISATION = 0.01  # of the PSF's transfer, below which there is only noise to be changed
STAR_DISTANCE = (26.0, 31.0)  # pixels from the centre: beyond every arc, inside the 65-px stamp
HALO_RADIUS = 1.0 / PIXEL_SCALE  # pixels at which a star's r^-2 wings are flattened
SPIKE_RADIUS, SPIKE_WIDTH = 4.0, 1.0  # pixels along and across
TRACK_LENGTH = (1.0, 4.0, 15.0)  # pixels: shortest, mean excess, longest

STEPS = ("psf", "plane", "saturation", "cosmic_rays", "jitter")
PROFILES = {"none": (), **{step: (step,) for step in STEPS}, "all": STEPS}
SOURCE_MODES = ("sersic", "clumpy", "bank", "point")
COLUMNS = ("source_mode", "artifact_profile", "gen_variant")


@dataclass(frozen=True)
class Amplitudes:
    """Strengths of the steps; starting values, to be calibrated to data.

    Parameters
    ----------
    psf : float
        Ellipticity (1 - q)/(1 + q), its angle drawn per band.
    plane, saturation, cosmic_rays : float
        In units of the stamp's MAD per band (`measure_mad`).
    jitter : float
        RMS of the shift per band and axis [arcsec]. 0.03 is the survey's requirement on systematic astrometric errors
        (legacysurvey.org, description of the imaging surveys).
    ray_rate : float
        Mean number of cosmic rays per stamp and band (an assumption).
    """

    psf: float = 0.05
    plane: float = 0.02
    saturation: float = 12.0
    cosmic_rays: float = 8.0
    jitter: float = 0.03
    ray_rate: float = 2.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, limit = getattr(self, field.name), 0.5 if field.name == "psf" else np.inf
            if not 0.0 <= value < limit:
                raise UserError(f"amplitude {field.name} = {value!r} is not in [0, {limit:g}); give a number in it")


def perturb_stamps(images, ids, fwhm, beta, seed, profiles="all", amplitudes=None, bands=BANDS):
    """Perturb stamps that already hold their arcs.

    Parameters
    ----------
    images : ndarray of shape (N, bands, S, S)
        nMgy; not-finite and exactly zero pixels are "no data" and stay what they are. S >= 65.
    ids : sequence of int, length N
        Injection ids.
    fwhm : ndarray of shape (N, bands)
        True FWHM of the stamps' PSF [arcsec].
    beta : ndarray of shape (N,)
        Moffat index; infinity is a Gaussian.
    seed : int
    profiles : str or sequence of str, length N
        Keys of `PROFILES`: which steps a row gets.
    amplitudes : Amplitudes, optional
    bands : sequence of str

    Returns
    -------
    ndarray like `images`, float32

    Raises
    ------
    UserError
        Naming the first injection with an unknown profile, an unusable PSF or a background without noise.
    """
    images, amplitudes = np.asarray(images, dtype=np.float32), amplitudes or Amplitudes()
    if images.ndim != 4 or images.shape[:2] != (len(ids), len(bands)) or min(images.shape[2:]) < 2 * ANNULUS[1]:
        raise UserError(f"stamps have shape {images.shape}; expected ({len(ids)}, {len(bands)}, S, S) with S >= 65")
    profiles = [profiles] * len(ids) if isinstance(profiles, str) else list(profiles)
    fwhm, beta = np.asarray(fwhm, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    units = measure_mad(images)
    _check_rows(ids, profiles, fwhm, beta, units, bands)
    out = images.copy()
    for row, number in enumerate(ids):
        for step in PROFILES[profiles[row]]:
            amplitude = getattr(amplitudes, step)
            if amplitude == 0 or (step == "cosmic_rays" and amplitudes.ray_rate == 0):
                continue
            stream = rng.make_stream(seed, f"injection/perturb/{step}", int(number))
            if step == "psf":
                out[row] = turn_elliptical(out[row], fwhm[row], beta[row], amplitude, stream)
            elif step == "jitter":
                out[row] = shift_bands(out[row], stream.normal(0.0, amplitude / PIXEL_SCALE, (len(bands), 2)))
            else:
                size, n = images.shape[-1], len(bands)
                if step == "cosmic_rays":
                    pattern = draw_rays(stream, size, n, amplitudes.ray_rate)
                else:
                    pattern = draw_plane(stream, size, n) if step == "plane" else draw_saturation(stream, size, n)
                valid = np.isfinite(out[row]) & (out[row] != 0)
                added = out[row] + (amplitude * units[row])[:, None, None] * pattern
                out[row] = np.where(valid, added, out[row])
    return out


def _check_rows(ids, profiles, fwhm, beta, units, bands):
    for row, number in enumerate(ids):
        if profiles[row] not in PROFILES:
            known = ", ".join(PROFILES)
            raise UserError(f"injection {number}: artifact_profile {profiles[row]!r} unknown; known are {known}")
        for index, band in enumerate(bands):
            if not (0 < fwhm[row, index] < np.inf and beta[row] > 1):
                raise UserError(f"injection {number}: the PSF's FWHM or beta in {band} is not usable; drop it")
            if profiles[row] != "none" and not units[row, index] > 0:
                raise UserError(f"injection {number}: {band} has an empty or constant background; drop it")


def measure_mad(images):
    """Return the local noise unit: the median absolute deviation of the outer annulus.

    Parameters
    ----------
    images : ndarray of shape (N, bands, S, S)

    Returns
    -------
    ndarray of shape (N, bands)
        Not scaled to a sigma: of Gaussian noise it is 0.6745 of the pixel RMS. NaN without data.
    """
    size = images.shape[-1]
    y, x = np.indices((size, size)) - size // 2
    radius = np.hypot(x, y)
    ring = images[..., (radius >= ANNULUS[0]) & (radius < ANNULUS[1])].astype(np.float64)
    out = np.full(ring.shape[:2], np.nan)
    for index in np.ndindex(out.shape):
        good = ring[index][np.isfinite(ring[index]) & (ring[index] != 0)]
        if len(good):
            out[index] = np.median(np.abs(good - np.median(good)))
    return out


def turn_elliptical(image, fwhm, beta, ellipticity, stream):
    """Convolve a stamp so that its round PSF becomes an elliptical one of the same area, at an angle per band.

    Parameters
    ----------
    image : ndarray of shape (bands, S, S)
    fwhm : ndarray of shape (bands,)
        arcsec.
    beta : float
    ellipticity : float
        (1 - q)/(1 + q).
    stream : numpy.random.Generator

    Returns
    -------
    ndarray of shape (bands, S, S)

    Notes
    -----
    The kernel's transfer function is 1 + (E/T - 1) T^2/(T^2 + eps^2) with the round and elliptical PSFs T and E. Along
    the minor axis E/T exceeds one; where the PSF transmits next to nothing it would only raise the pixels' noise, so
    the kernel is left out there. At ellipticity 0.05 and seeing of 0.9 to 1.8 arcsec a
    star's pixels are within 18 per cent of the largest change where they should be, and the noise variance is 0.3 to
    1.3 per cent higher (with E/T alone 9 to 18).
    """
    phi = np.pi * stream.random(len(image))
    ky, kx = (torch.as_tensor(k) for k in make_frequencies(padded_size(image.shape[-1])))
    fwhm = np.asarray(fwhm, dtype=np.float64) / PIXEL_SCALE
    alphas = fwhm / photometry.FWHM_OF_SIGMA if np.isinf(beta) else moffat_alpha(fwhm, beta)
    kernels = []
    for alpha, angle in zip(alphas, phi, strict=True):
        shape = ellipticity * np.cos(2 * angle), ellipticity * np.sin(2 * angle)
        round_psf = transfer_moffat(torch.sqrt(kx * kx + ky * ky), float(alpha), float(beta)).numpy()
        stretched = transfer_moffat(stretch_frequencies(kx, ky, *shape), float(alpha), float(beta)).numpy()
        kernels.append(1.0 + (stretched - round_psf) * round_psf / (round_psf**2 + REGULARISATION**2))
    smooth, valid = filter_stamp(image, np.stack(kernels))
    return np.where(valid, smooth, image)


def draw_plane(stream, size, bands):
    """Draw a tilted background, shape (bands, size, size): of mean +1 or -1, tilted by 1 from centre to edge."""
    x = (np.arange(size) - (size - 1) / 2) / ((size - 1) / 2)
    angle, sign = 2 * np.pi * stream.random(bands), np.where(stream.random(bands) < 0.5, -1.0, 1.0)
    tilt = np.cos(angle)[:, None, None] * x[None, None, :] + np.sin(angle)[:, None, None] * x[None, :, None]
    return sign[:, None, None] + tilt


def draw_saturation(stream, size, bands):
    """Draw the wings of one saturated star near the stamp's edge, shape (bands, size, size), of peak 1.

    Notes
    -----
    The survey's r^-2 halo and a cross of diffraction spikes, the same star in all bands. It sits on a pixel.
    """
    distance, angle, roll = stream.random(3)
    distance, angle = STAR_DISTANCE[0] + distance * (STAR_DISTANCE[1] - STAR_DISTANCE[0]), 2 * np.pi * angle
    y, x = np.indices((size, size)) - size // 2
    x, y = x - np.rint(distance * np.cos(angle)), y - np.rint(distance * np.sin(angle))
    out, roll = 1.0 / (1.0 + (x * x + y * y) / HALO_RADIUS**2), 0.5 * np.pi * roll
    for along, across in ((x * np.cos(roll) + y * np.sin(roll), y * np.cos(roll) - x * np.sin(roll)),
                          (y * np.cos(roll) - x * np.sin(roll), x * np.cos(roll) + y * np.sin(roll))):  # fmt: skip
        out = np.maximum(out, np.exp(-0.5 * (across / SPIKE_WIDTH) ** 2) / (1.0 + np.abs(along) / SPIKE_RADIUS))
    return np.broadcast_to(out, (bands, size, size))


def draw_tracks(stream, size, rate):
    """Draw cosmic-ray tracks on the detector's pixels.

    Parameters
    ----------
    stream : numpy.random.Generator
    size : int
    rate : float
        Mean number.

    Returns
    -------
    (ndarray of shape (size, size), int)
        1 in hit pixels, 0 elsewhere; and the number of tracks, a Poisson number.
    """
    out, count = np.zeros((size, size)), int(stream.poisson(rate))
    shortest, mean, longest = TRACK_LENGTH
    for _ in range(count):
        x, y = stream.uniform(-0.5, size - 0.5, 2)
        angle, length = 2 * np.pi * stream.random(), min(shortest + stream.exponential(mean), longest)
        along = np.arange(0.0, length, 0.25)
        column, row = np.rint(x + along * np.cos(angle)).astype(int), np.rint(y + along * np.sin(angle)).astype(int)
        inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        out[row[inside], column[inside]] = 1.0
    return out, count


def draw_rays(stream, size, bands, rate):
    """Draw the tracks of every band as the coadd shows them, shape (bands, size, size).

    Notes
    -----
    A band's exposures lie at their own sub-pixel phase to the coadd, drawn uniformly: Lanczos-3 lowers a track's peak
    below 1 and keeps its sum.
    """
    out = []
    for _ in range(bands):
        tracks, _ = draw_tracks(stream, size, rate)
        out.append(resample_lanczos(tracks, *stream.uniform(-0.5, 0.5, 2)))
    return np.stack(out)


def resample_lanczos(image, dx, dy):
    """Shift an image by a part of a pixel [pixels] with the normalised Lanczos-3 kernel, as coadds are resampled."""
    for axis, shift in ((-1, dx), (-2, dy)):
        taps = np.arange(-3, 4) + shift
        kernel = np.where(np.abs(taps) < 3, np.sinc(taps) * np.sinc(taps / 3.0), 0.0)
        image = correlate1d(image, kernel / kernel.sum(), axis=axis, mode="constant")
    return image


def shift_bands(image, shifts):
    """Shift the bands of a stamp by (dx, dy) pixels each, with Fourier phases.

    Parameters
    ----------
    image : ndarray of shape (bands, S, S)
    shifts : ndarray of shape (bands, 2)

    Returns
    -------
    ndarray of shape (bands, S, S)

    Notes
    -----
    The stamp has been resampled once already; a phase keeps its noise's power at every frequency, a second Lanczos
    kernel would not.
    """
    ky, kx = make_frequencies(padded_size(image.shape[-1]))
    dx, dy = (np.asarray(shifts, dtype=np.float64)[:, i, None, None] for i in (0, 1))
    shifted, valid = filter_stamp(image, np.exp(-1j * (kx * dx + ky * dy)))
    return np.where(valid, shifted, image)


def assign_variants(table, mix, seed):
    """Assign source mode and artefacts to every row of an injection table.

    Parameters
    ----------
    table : pandas.DataFrame
        With injection_id.
    mix : dict of str to dict
        Variant name to ``share`` (they add up to 1), ``source_mode`` and ``artifact_profile``.
    seed : int

    Returns
    -------
    pandas.DataFrame
        With source_mode, artifact_profile and gen_variant (the variant's name), in place of such columns as exist.

    Raises
    ------
    UserError
        For a mix that is empty, incomplete, of unknown names or whose shares do not add up to 1.

    Notes
    -----
    A row's variant depends on (seed, injection_id) and the mix only, not on other rows or on the order of the mix.
    """
    if "injection_id" not in table:
        raise UserError("injection table lacks column(s) injection_id")
    names = sorted(mix)
    for name in names:
        if set(mix[name]) != {"share", "source_mode", "artifact_profile"}:
            raise UserError(f"variant {name!r}: give exactly share, source_mode and artifact_profile")
        for key, known in (("source_mode", SOURCE_MODES), ("artifact_profile", tuple(PROFILES))):
            if mix[name][key] not in known:
                raise UserError(f"variant {name!r}: {key} {mix[name][key]!r} unknown; known are {', '.join(known)}")
    shares = np.array([mix[name]["share"] for name in names], dtype=np.float64)
    if not (len(shares) and (shares >= 0).all() and abs(shares.sum() - 1.0) < 1e-9):
        raise UserError(f"shares of the variants {', '.join(names)} are not positive numbers that add up to 1")
    uniforms = rng.draw_uniforms(seed, "injection/variants", table["injection_id"].to_numpy(), 1)[:, 0]
    # Variants of share zero are never drawn, not even by rounding at the upper end.
    names, edges = np.array(names)[shares > 0], np.cumsum(shares[shares > 0])
    drawn = names[np.minimum(np.searchsorted(edges, uniforms, side="right"), len(names) - 1)]
    return table.assign(
        source_mode=[mix[name]["source_mode"] for name in drawn],
        artifact_profile=[mix[name]["artifact_profile"] for name in drawn],
        gen_variant=drawn.astype(object),
    )
