"""Blind arc measurements: the same estimators on real lenses, injections and negatives, and the simple gate D.

`measure_arcs` sees pixels only. `correct_bias` subtracts what it reads in galaxies without an arc; `fit_gate` turns
the measurements into a detectability threshold at a given false-positive rate.

Left for later: the surface brightness after the PSF.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.ndimage import uniform_filter

from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, LANCZOS_RMS, PIXEL_SCALE, RENDER_SIZE, ZERO_POINT
from lensaudit.stats import weighted_quantile

ARC_ANNULUS = (4.0, 16.0)  # pixels
OUTER_ANNULUS = (20.0, 32.0)  # pixels
# Gate D: unbounded pixels would let any bright neighbour pass, and neighbours are far more common than arcs; on the
# small sky this choice finds the most lenses at a given rate of negatives.
GATE_ANNULUS = (4.0, 10.0)  # pixels
GATE_CLIP = 2.0  # sigma_pix
RING = (0.8, 1.6)  # of theta_E
MAD_SIGMA = 1.4826  # MAD to sigma of a normal distribution
MASK_SIGMA = 3.0  # sources in the outer annulus and arc pixels stand out by this much
MIN_ARC_PIXELS = 5
BLOCK = 128  # stamps worked on at once
BAND_PAIRS = ((0, 1), (1, 2), (0, 2))
ARC_COLUMNS = (
    "arc_snr", "arc_snr_g", "arc_snr_z", "arc_snr_ring", "arc_flux_g", "arc_flux_r", "arc_flux_z", "arc_g_r", "arc_r_z",
    "arc_radius", "arc_width", "arc_area", "asymmetry", "ridge", "arc_energy", "coherence", "stability",
    "detectability",
    "sigma_pix_g", "sigma_pix_r", "sigma_pix_z", "rho10", "skew", "mag_host",
)  # fmt: skip


@lru_cache(maxsize=1)
def _geometry():
    """Return the radius map [px], the ring of each used pixel, and one pixel of every mirrored pair sorted by ring."""
    half = RENDER_SIZE // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(x, y)
    ring = np.floor(radius + 0.5).astype(int).ravel()
    used = np.flatnonzero(radius.ravel() < OUTER_ANNULUS[1])
    first = used[used <= RENDER_SIZE**2 // 2]  # pixel k mirrors onto pixel size^2 - 1 - k
    pairs = first[np.argsort(ring[first], kind="stable")]
    edges = np.searchsorted(ring[pairs], np.arange(ring[used].max() + 2))
    return radius, ring, used, pairs, edges


def _annulus(bounds):
    radius = _geometry()[0]
    return (radius >= bounds[0]) & (radius < bounds[1])


def _median_rows(values):
    """Return the median of each row; a full sort is faster than numpy's partition on float32."""
    ordered = np.sort(values, axis=1)
    n = values.shape[1]
    return 0.5 * (ordered[:, (n - 1) // 2] + ordered[:, n // 2])


def crop_box(images):
    """Return the central RENDER_SIZE box of stamps, sharing the centre pixel.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S)
        S odd, at least RENDER_SIZE.

    Raises
    ------
    UserError
        For another shape.
    """
    images = np.asarray(images)
    size = images.shape[-1]
    if images.ndim != 4 or images.shape[1] != len(BANDS) or images.shape[2] != size or size % 2 == 0:
        raise UserError(f"stamps of shape {images.shape} cannot be measured; give (N, 3, S, S) with odd S")
    if size < RENDER_SIZE:
        raise UserError(f"stamps of {size} px are too small to measure; the outer annulus needs {RENDER_SIZE} px")
    start = size // 2 - RENDER_SIZE // 2
    return images[:, :, start : start + RENDER_SIZE, start : start + RENDER_SIZE]


def subtract_host(boxes):
    """Subtract the azimuthal host model, sky included.

    Parameters
    ----------
    boxes : ndarray of shape (N, 3, 65, 65), float32 [nMgy]

    Returns
    -------
    ndarray of the same shape
        Residual, zero in the median of the outer annulus; zero outside it.

    Notes
    -----
    The model is the median, in one-pixel rings, of the lower one of each pair of pixels mirrored through the centre:
    images of about one seeing across cover most of a ring of one arcsec, so that its plain median is arc light, but
    seldom both ends of most diameters. The lower of two noisy pixels lies 0.56 RMS low, everywhere alike; the median of
    the outer annulus takes that out.
    """
    _, ring, used, pairs, edges = _geometry()
    n = boxes.shape[0] * boxes.shape[1]
    flat = boxes.reshape(n, -1)
    lower = np.minimum(flat[:, pairs], flat[:, RENDER_SIZE**2 - 1 - pairs])
    model = np.stack([_median_rows(lower[:, i:j]) for i, j in zip(edges[:-1], edges[1:], strict=True)], axis=1)
    values = flat[:, used] - model[:, ring[used]]
    outer = np.flatnonzero(_geometry()[0].ravel()[used] >= OUTER_ANNULUS[0])
    values -= _median_rows(values[:, outer])[:, None]
    out = np.zeros_like(flat)
    out[:, used] = values
    return out.reshape(boxes.shape)


@lru_cache(maxsize=1)
def _outer_pairs():
    """Return the outer annulus' pixels and, among them, the positions of horizontal neighbours."""
    outer = np.flatnonzero(_annulus(OUTER_ANNULUS).ravel())
    position = {pixel: k for k, pixel in enumerate(outer)}
    left = np.array([k for k, pixel in enumerate(outer) if pixel + 1 in position and (pixel + 1) % RENDER_SIZE])
    right = np.array([position[outer[k] + 1] for k in left])
    return outer, left, right


def measure_noise(residual):
    """Measure the background of ring-subtracted boxes in the source-masked outer annulus.

    Parameters
    ----------
    residual : ndarray of shape (N, 65, 65) [nMgy]

    Returns
    -------
    sigma_pix : ndarray of shape (N,) [nMgy]
        White-equivalent sigma: 1.4826 MAD / 0.894, since resampling lowers the pixels' own RMS by that factor.
    rho10, skew : ndarray of shape (N,)
        Correlation of horizontal neighbours and skewness of the unmasked pixels.
    """
    outer, left, right = _outer_pairs()
    values = residual.reshape(len(residual), -1)[:, outer]
    absolute = np.abs(values)
    ordered = np.sort(absolute, axis=1)
    limit = MASK_SIGMA * MAD_SIGMA * ordered[:, ordered.shape[1] // 2]
    keep = absolute < limit[:, None]
    count = keep.sum(axis=1)  # the kept values are the first `count` of the ordered ones
    mad = np.take_along_axis(ordered, (count // 2)[:, None], axis=1)[:, 0]
    kept = values * keep
    square = kept * kept
    variance = np.maximum(square.sum(axis=1) / np.maximum(count, 1), 1e-30)
    skew = (square * kept).sum(axis=1) / np.maximum(count, 1) / variance**1.5
    both = (keep[:, left] & keep[:, right]).sum(axis=1)
    rho10 = (kept[:, left] * kept[:, right]).sum(axis=1) / np.maximum(both, 1) / variance
    return MAD_SIGMA * mad / LANCZOS_RMS, rho10, skew


def _find_arc(chi, arc):
    """Return the smoothed detection map in units of its own noise and the mask of arc pixels."""
    smooth = uniform_filter(chi.sum(axis=1), size=(1, 3, 3), mode="constant")
    outer = smooth[:, _annulus(OUTER_ANNULUS)]
    noise = MAD_SIGMA * _median_rows(np.abs(outer - _median_rows(outer)[:, None]))
    smooth = smooth / np.maximum(noise, 1e-30)[:, None, None]
    return smooth, arc & (smooth > MASK_SIGMA)


def _measure_host(model):
    """Return the r magnitude of the azimuthal host model within 16 px, above its level in the outer annulus."""
    radius = _geometry()[0]
    flux = (model[:, radius < ARC_ANNULUS[1]] - np.mean(model[:, _annulus(OUTER_ANNULUS)], axis=1)[:, None]).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(flux > 0, ZERO_POINT - 2.5 * np.log10(flux), np.nan)


def _measure_ridge(smooth, arc):
    """Return the root mean square of the ridge curvature of the detection map in the arc annulus [sigma / px^2]."""
    dyy = np.zeros_like(smooth)
    dxx, dxy = np.zeros_like(smooth), np.zeros_like(smooth)
    dyy[:, 1:-1] = smooth[:, 2:] - 2 * smooth[:, 1:-1] + smooth[:, :-2]
    dxx[:, :, 1:-1] = smooth[:, :, 2:] - 2 * smooth[:, :, 1:-1] + smooth[:, :, :-2]
    dxy[:, 1:-1, 1:-1] = 0.25 * (
        smooth[:, 2:, 2:] - smooth[:, 2:, :-2] - smooth[:, :-2, 2:] + smooth[:, :-2, :-2]
    )  # fmt: skip
    dyy, dxx, dxy = dyy[:, arc], dxx[:, arc], dxy[:, arc]
    lowest = 0.5 * (dxx + dyy) - np.hypot(0.5 * (dxx - dyy), dxy)
    return np.sqrt(np.mean(np.minimum(lowest, 0.0) ** 2, axis=1))


def _measure_block(boxes, theta_E):
    radius = _geometry()[0]
    arc = _annulus(ARC_ANNULUS)
    n_arc = int(arc.sum())
    residual = subtract_host(boxes)
    noise = [measure_noise(residual[:, band]) for band in range(len(BANDS))]
    sigma = np.stack([item[0] for item in noise], axis=1)
    chi = residual / np.maximum(sigma, 1e-30)[:, :, None, None]
    snr = chi[:, :, arc].sum(axis=2) / np.sqrt(n_arc)
    odd = chi - chi[:, :, ::-1, ::-1]  # light that is symmetric about the centre, an elliptical host's, cancels
    smooth, mask = _find_arc(odd, arc)
    area = mask.sum(axis=(1, 2))
    seen = area >= MIN_ARC_PIXELS
    flux = np.einsum("nbyx,nyx->nb", odd, mask.astype(odd.dtype)) * sigma
    weight = np.where(mask, smooth, 0.0)
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-30)
    mean = (weight * radius).sum(axis=(1, 2)) / total
    spread = np.sqrt(np.maximum((weight * (radius - mean[:, None, None]) ** 2).sum(axis=(1, 2)) / total, 0.0))
    inside = odd[:, :, arc]
    absolute = np.maximum(2 * np.abs(chi[:, 1])[:, arc].sum(axis=1), 1e-30)
    excess = (inside.sum(axis=1) ** 2).sum(axis=1) / (4 * len(BANDS)) - 0.5 * LANCZOS_RMS**2 * n_arc
    energy = np.sign(excess) * np.sqrt(np.abs(excess))
    norm = np.maximum(np.sqrt((inside**2).sum(axis=2)), 1e-30)
    products = [(inside[:, a] * inside[:, b]).sum(axis=1) for a, b in BAND_PAIRS]
    pairs = [product / (norm[:, a] * norm[:, b]) for product, (a, b) in zip(products, BAND_PAIRS, strict=True)]
    coherence = np.mean(pairs, axis=0)
    stability = _measure_stability(chi)
    out = {
        "arc_snr": snr[:, 1], "arc_snr_g": snr[:, 0], "arc_snr_z": snr[:, 2], "arc_snr_ring": _sum_ring(chi, theta_E),
        "arc_flux_g": flux[:, 0], "arc_flux_r": flux[:, 1], "arc_flux_z": flux[:, 2],
        "arc_g_r": _colour(flux[:, 0], flux[:, 1], seen), "arc_r_z": _colour(flux[:, 1], flux[:, 2], seen),
        "arc_radius": np.where(seen, mean * PIXEL_SCALE, np.nan),
        "arc_width": np.where(seen, 2.355 * spread * PIXEL_SCALE, np.nan),
        "arc_area": area, "asymmetry": np.abs(inside[:, 1]).sum(axis=1) / absolute,
        "ridge": _measure_ridge(smooth, arc), "arc_energy": energy,
        "coherence": coherence, "stability": stability,
        "detectability": _measure_gate(chi) * stability * (coherence > 0),
        "sigma_pix_g": sigma[:, 0], "sigma_pix_r": sigma[:, 1], "sigma_pix_z": sigma[:, 2],
        "rho10": noise[1][1], "skew": noise[1][2], "mag_host": _measure_host(boxes[:, 1] - residual[:, 1]),
    }  # fmt: skip
    return pd.DataFrame({name: np.asarray(out[name], dtype=np.float64) for name in ARC_COLUMNS})


def _measure_gate(chi):
    """Return arc energy plus arc S/N of the g band in 4-10 px, with every pixel held within two sigma."""
    near = _annulus(GATE_ANNULUS)
    n_near = int(near.sum())
    held = np.clip(chi[:, 0], -GATE_CLIP, GATE_CLIP)
    odd = (held - held[:, ::-1, ::-1])[:, near]
    energy = np.sqrt(np.maximum((odd**2).sum(axis=1) / 4 - 0.5 * LANCZOS_RMS**2 * n_near, 0.0))
    return energy + np.maximum(held[:, near].sum(axis=1) / np.sqrt(n_near), 0.0)


def _sum_ring(chi, theta_E):
    """Return the r-band S/N in [0.8, 1.6] theta_E, NaN where theta_E is not known or the annulus leaves the box."""
    edge = theta_E[:, None] * np.asarray(RING) / PIXEL_SCALE
    radius = _geometry()[0].astype(np.float32)
    inside = (radius >= edge[:, :1, None]) & (radius < edge[:, 1:, None])
    count = inside.sum(axis=(1, 2))
    known = (count > 0) & (edge[:, 1] <= OUTER_ANNULUS[0])
    return np.where(known, (chi[:, 1] * inside).sum(axis=(1, 2)) / np.sqrt(np.maximum(count, 1)), np.nan)


def _colour(flux_a, flux_b, seen):
    good = seen & (flux_a > 0) & (flux_b > 0)
    ratio = np.divide(flux_a, flux_b, out=np.ones_like(flux_a), where=good)
    return np.where(good, -2.5 * np.log10(ratio), np.nan)


def _measure_stability(chi):
    """Return 1 / (1 + s): s is the scatter of the outer annulus' quadrant medians beyond noise, in r [sigma_pix]."""
    radius = _geometry()[0]
    half = RENDER_SIZE // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    outer = (radius >= OUTER_ANNULUS[0]) & (radius < OUTER_ANNULUS[1])
    quadrant = (x >= 0) * 2 + (y >= 0)
    medians = np.stack([_median_rows(chi[:, 1][:, outer & (quadrant == k)]) for k in range(4)])
    return 1.0 / (1.0 + medians.std(axis=0))


def measure_arcs(images, theta_E=None):
    """Measure arcs blindly, band by band, after subtracting the azimuthal host model.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S), float32 [nMgy]
        Stamps or boxes in g, r, z; S odd, 65 or more. Only r < 32 px enters, so a 101-px stamp and its central
        65-px box give the same numbers.
    theta_E : array_like of shape (N,), optional
        Einstein radius [arcsec] where it is known; only arc_snr_ring uses it.

    Returns
    -------
    pandas.DataFrame
        One row per stamp, the same bits whatever stamps it comes with:

        - arc_snr (r band), arc_snr_g, arc_snr_z: summed residual in 4-16 px over sigma_pix sqrt(n_pix);
          arc_snr_ring: the same in [0.8, 1.6] theta_E of the r band;
        - arc_flux_{g,r,z} [nMgy], arc_g_r, arc_r_z [mag], arc_radius, arc_width (FWHM of the radial distribution)
          [arcsec]: of the residual minus itself turned by 180 degrees, in which an elliptical host cancels and an arc
          keeps its colour, in the pixels that stand 3 sigma above the noise of its smoothed three-band sum; NaN when
          fewer than 5 do; arc_area [px] is their number;
        - asymmetry: |R - R_180| over 2 |R| of the r band residual R; ridge [sigma / px^2]: RMS curvature of ridges;
        - arc_energy: signed sqrt of sum chi^2 - n in the antisymmetric part, all bands; coherence: mean correlation of
          the bands there; stability: 1 / (1 + scatter of the outer quadrants' medians);
        - detectability: (arc energy + arc S/N of g in 4-10 px, pixels held within 2 sigma) x stability, 0 where the
          bands do not cohere: gate D's number;
        - sigma_pix_{g,r,z} [nMgy]: white-equivalent; rho10, skew of the background in r;
        - mag_host [AB]: r magnitude of the host model within 16 px, which the arc hardly touches, so that host
          brightness too is measured alike with and without an arc.

    Notes
    -----
    sigma_pix stands for the pixel covariance of the coadd (FACTS: psfdepth is computed before resampling), so no
    covariance term is added. A complete ring is taken for host light in part; so it is on both sides.
    """
    boxes = crop_box(images)
    known = np.full(len(boxes), np.nan) if theta_E is None else np.asarray(theta_E, dtype=np.float64)
    parts = []
    for start in range(0, len(boxes), BLOCK):
        rows = np.asarray(boxes[start : start + BLOCK], dtype=np.float32)
        # A sum's rounding depends on the array's shape, so the last block is filled up.
        full = np.concatenate([rows, np.repeat(rows[:1], BLOCK - len(rows), axis=0)])
        rings = np.append(known[start : start + BLOCK], np.full(BLOCK - len(rows), np.nan))
        parts.append(_measure_block(full, rings).head(len(rows)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=ARC_COLUMNS, dtype=np.float64)


def fit_bias(controls, n_bins=6):
    """Fit the arc_snr that galaxies without an arc show, as a function of host magnitude.

    Parameters
    ----------
    controls : pandas.DataFrame
        `measure_arcs` of host stamps alone.
    n_bins : int
        Bins of equal count in mag_host; fewer when there are fewer than 10 controls each.

    Returns
    -------
    pandas.DataFrame
        mag_host (bin medians), and the median arc_snr, arc_snr_g, arc_snr_z of each bin.
    """
    table = controls[["mag_host", "arc_snr", "arc_snr_g", "arc_snr_z"]].dropna()
    if table.empty:
        raise UserError("the injection-free bias needs hosts with a measurable magnitude; there is none")
    n_bins = max(1, min(n_bins, len(table) // 10))
    label = pd.qcut(table["mag_host"].rank(method="first"), n_bins, labels=False)
    return table.groupby(label).median().reset_index(drop=True)


def correct_bias(measurements, bias):
    """Subtract the injection-free bias from arc_snr of every band, interpolated in host magnitude.

    Parameters
    ----------
    measurements : pandas.DataFrame
        From `measure_arcs`.
    bias : pandas.DataFrame
        From `fit_bias`.

    Returns
    -------
    pandas.DataFrame
        A copy with corrected columns and the raw r-band value as arc_snr_raw.
    """
    mag = measurements["mag_host"].fillna(bias["mag_host"].max()).to_numpy()
    columns = {name: measurements[name] - np.interp(mag, bias["mag_host"], bias[name])
               for name in ("arc_snr", "arc_snr_g", "arc_snr_z")}  # fmt: skip
    return measurements.assign(arc_snr_raw=measurements["arc_snr"], **columns)


def fit_gate(detectability, fpr, weights=None, min_exceedances=10):
    """Threshold gate D on negatives at a false-positive rate, as the model is thresholded.

    Parameters
    ----------
    detectability : array_like, length N
        Of the N1 validation negatives that set the model's thresholds.
    fpr : float
    weights : array_like, length N, optional
        In the parent population (`thresholds.parent_weights`).
    min_exceedances : int
        With fewer expected exceedances the status says so.

    Returns
    -------
    dict
        fpr, threshold, n_negatives, n_exceedances, status ("reported" or "too few negatives").
    """
    values = np.asarray(detectability, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    use = np.isfinite(values) & (weights > 0)
    if not use.any():
        raise UserError("gate D has no N1 negatives to be thresholded on; column detectability is empty")
    values, weights = values[use], weights[use]
    threshold = float(weighted_quantile(values, 1.0 - fpr, weights))
    enough = len(values) * fpr * (1 + 1e-9) >= min_exceedances
    return {"fpr": float(fpr), "threshold": threshold, "n_negatives": len(values),
            "n_exceedances": int((values > threshold).sum()),
            "status": "reported" if enough else "too few negatives"}  # fmt: skip
