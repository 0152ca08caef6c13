"""Source galaxies of a prior of kind ``population``: luminosity functions, spectra, sizes, and their density.

A population is a sum of components (``[[source.component]]``), each with a Schechter function of the absolute magnitude
at its own rest wavelength, over its own redshifts, and with its own spectra. Given redshift, component and absolute
magnitude, magnitudes and log size are linear in normal deviates: so `measure_galaxy_density` is the density of
`draw_galaxies` in closed form but for one sum over absolute magnitude.
"""

import functools
import json

import numpy as np
from scipy.special import ndtri

from lensaudit.injection.distances import comoving_distance, distance_modulus, volume_element

ARCSEC = 206264.8  # per radian
WAVELENGTH = {"g": 4800.0, "r": 6400.0, "z": 9200.0}  # effective, Angstrom (DECam)
V_BAND = 5500.0  # Angstrom, rest frame; sizes follow its absolute magnitude
Z_STEP, M_STEP = 0.05, 0.05
N_NODES = 9  # of the sum over absolute magnitude


def make_key(prior):
    """Return a prior as text, so that tables are remembered by what it says and not by its name."""
    return json.dumps({k: v for k, v in prior.items() if k != "hash"}, sort_keys=True)


def respond(rest, component, lyman_dimming):
    """Return how the magnitude at a rest wavelength depends on the spectrum's parameters.

    Parameters
    ----------
    rest : array_like
        Rest wavelength [Angstrom].
    component : dict
        wavelength [Angstrom] of the luminosity function, near_uv_change, optical_slope.
    lyman_dimming : float
        mag

    Returns
    -------
    (ndarray, ndarray, ndarray)
        Constant, slope and step: M(rest) = M(wavelength) + constant + slope x uv_slope + step x balmer_break.

    Notes
    -----
    A power law of index uv_slope in f_lambda from 1216 to 2300 A, near_uv_change more to 3600 A, brighter by
    balmer_break mag across 3600-4200 A, the optical slope redward, a constant dimming below Lyman alpha. AB magnitudes:
    m = -2.5 (slope + 2) log10 lambda.
    """
    first = np.asarray(rest, dtype=np.float64)

    def terms(wave):
        slope = -2.5 * np.log10(np.minimum(wave, 3600.0) / 1500.0)
        step = -np.clip((wave - 3600.0) / 600.0, 0.0, 1.0)
        red = -2.5 * (component["optical_slope"] + 2.0) * np.log10(np.maximum(wave, 4200.0) / 4200.0)
        red = red - 2.5 * component["near_uv_change"] * np.log10(np.clip(wave, 2300.0, 3600.0) / 2300.0)
        return 2.0 * slope + red + np.where(wave < 1216.0, lyman_dimming, 0.0), slope, step

    return tuple(a - b for a, b in zip(terms(first), terms(np.asarray(component["wavelength"])), strict=True))


def _observe(z, component, prior):
    """Return constant and responses, each of shape (5, N), of g, r, z and V (rest) magnitudes and log size at M = 0.

    Rows: constant, M, slope's deviate, break's deviate.
    """
    s, z = prior["source"], np.asarray(z, dtype=np.float64)
    rest = np.stack([*(w / (1.0 + z) for w in WAVELENGTH.values()), np.full(z.shape, V_BAND)])
    constant, slope, step = respond(rest, component, s["lyman_dimming"])
    mean = np.interp(z, component["lf_z"], component["uv_slope"])
    change = component["uv_slope_change"]
    jump, jump_scatter = component["balmer_break"]
    constant = constant + slope * (mean - change * component["uv_slope_pivot"]) + step * jump
    constant[:3] += distance_modulus(z, prior) - 2.5 * np.log10(1.0 + z)
    return constant, 1.0 + slope * change, slope * component["uv_slope_scatter"], step * jump_scatter


@functools.cache
def _tables(key):
    """Return redshifts, absolute magnitudes (bin centres), the share of every (component, M) in each redshift as
    cumulative sum, of shape (Nz, Nc x NM), and the number of sources per redshift bin and steradian."""
    prior = json.loads(key)
    s = prior["source"]
    z = np.arange(s["z"][0], s["z"][1] - 1e-9, Z_STEP) + 0.5 * Z_STEP
    M = np.arange(-26.0, -10.0, M_STEP) + 0.5 * M_STEP
    parts = []
    for c in s["component"]:
        star, phi, alpha = (np.interp(z, c["lf_z"], c[k])[:, None] for k in ("lf_m_star", "lf_phi", "lf_alpha"))
        x = 10.0 ** (-0.4 * (M[None] - star))
        number = 0.4 * np.log(10.0) * phi * x ** (alpha + 1.0) * np.exp(-x) * M_STEP
        constant, luminosity = (v[1][:, None] for v in _observe(z, c, prior)[:2])
        seen = (constant + luminosity * M[None] < s["mag_limit"]) & (z >= c["z"][0])[:, None] & (z < c["z"][1])[:, None]
        parts.append(np.where(seen, number, 0.0))
    number = np.concatenate(parts, axis=1)
    total = number.sum(axis=1)
    cumulative = np.cumsum(number, axis=1) / np.maximum(total, 1e-300)[:, None]
    return z, M, cumulative, total * volume_element(z, prior) * Z_STEP


def source_density(prior):
    """Return redshifts (bin centres, width 0.05) and numbers of sources per steradian above the prior's limit."""
    z, _, _, density = _tables(make_key(prior))
    return z, density


def source_number(M, z, which, prior):
    """Return the density per mag of absolute magnitude in component number `which`, 0 beyond the prior's limits.

    Normalised so that all components together have 1 at each redshift.
    """
    grid, mags, cumulative, _ = _tables(make_key(prior))
    row = np.floor((np.asarray(z) - prior["source"]["z"][0]) / Z_STEP).astype(int)
    column = np.floor((np.asarray(M) - mags[0]) / M_STEP + 0.5).astype(int)
    inside = (row >= 0) & (row < len(grid)) & (column >= 0) & (column < len(mags))
    row, place = np.clip(row, 0, len(grid) - 1), np.clip(column, 0, len(mags) - 1) + which * len(mags)
    step = cumulative[row, place] - np.where(place > 0, cumulative[row, np.maximum(place - 1, 0)], 0.0)
    return np.where(inside, step / M_STEP, 0.0)


def draw_galaxies(u, z, prior):
    """Draw magnitudes and sizes of sources at given redshifts.

    Parameters
    ----------
    u : ndarray of shape (N, 6)
        Uniforms: component and luminosity, slope, break, size, g-r, r-z.
    z : ndarray of shape (N,)
    prior : dict

    Returns
    -------
    dict of ndarray of shape (N,)
        mag_source_{g,r,z}, source_R [arcsec].
    """
    s = prior["source"]
    grid, M, cumulative, _ = _tables(make_key(prior))
    row = np.clip(((z - s["z"][0]) / Z_STEP).astype(int), 0, len(grid) - 1)
    # One search for all rows: each row's cumulative is raised by its number.
    flat, width = (cumulative + np.arange(len(grid))[:, None]).ravel(), cumulative.shape[1]
    column = np.minimum(np.searchsorted(flat, row + u[:, 0], side="right"), (row + 1) * width - 1) - row * width
    before = np.where(column > 0, cumulative[row, np.maximum(column - 1, 0)], 0.0)
    step = np.maximum(cumulative[row, column] - before, 1e-300)
    which, column = np.divmod(column, len(M))
    absolute = M[column] + M_STEP * (np.clip((u[:, 0] - before) / step, 0.0, 1.0) - 0.5)
    normal, mags = ndtri(u[:, 1:6]), np.empty((4, len(z)))
    for number, c in enumerate(s["component"]):
        own = which == number
        constant, luminosity, slope, jump = _observe(z[own], c, prior)
        mags[:, own] = constant + luminosity * absolute[own] + slope * normal[own, 0] + jump * normal[own, 1]
    radius = 10.0 ** (mean_log_size(mags[3], z, prior) + s["size_scatter"] * normal[:, 2])
    return {"mag_source_g": mags[0] + s["colour_scatter"] * normal[:, 3], "mag_source_r": mags[1],
            "mag_source_z": mags[2] - s["colour_scatter"] * normal[:, 4],
            "source_R": np.clip(radius, 0.02, 3.0)}  # fmt: skip


def mean_log_size(M_v, z, prior):
    """Return log10 of the half-light radius [arcsec] expected of a galaxy of V-band magnitude M_v at z (FACTS 4)."""
    size = -(np.asarray(M_v) + 18.0) / 4.0 - 1.2 * np.log10((1.0 + z) / 1.6)
    return size + np.log10(ARCSEC * (1.0 + z) / (comoving_distance(z, prior) * 1e3))


def measure_galaxy_density(table, prior):
    """Return the log density of `draw_galaxies` in r magnitude, g-r, r-z and log10 R at given z_source.

    Parameters
    ----------
    table : dict of ndarray of shape (N,)
        z_source, mag_source_{g,r,z}, source_R [arcsec].
    prior : dict

    Returns
    -------
    ndarray of shape (N,)
    """
    z = np.asarray(table["z_source"], dtype=np.float64)
    total = np.zeros(len(z))
    for number, component in enumerate(prior["source"]["component"]):
        near = (z > component["z"][0] - Z_STEP) & (z < component["z"][1] + Z_STEP)
        part = {k: np.asarray(table[k], dtype=np.float64)[near]
                for k in ("mag_source_g", "mag_source_r", "mag_source_z", "source_R")}  # fmt: skip
        total[near] += _component_density(part, z[near], number, component, prior)
    with np.errstate(divide="ignore"):
        return np.log(total)


def _component_density(t, z, number, component, prior):
    """Return the density that one component contributes.

    Notes
    -----
    With xi the two deviates of the spectrum, m = r0 + a M + r.xi, the colours c = c0 + d M + C xi + noise. At given m,
    M = (m - r0 - r.xi) / a, so that the colours are normal about c0 + d (m - r0) / a, of covariance A A' + noise with
    A = C - d r / a; xi given m and c is normal; M and the V magnitude follow from it. The luminosity function and the
    size are averaged over that M.
    """
    s = prior["source"]
    constant, luminosity, slope, jump = _observe(z, component, prior)
    response = np.stack([slope, jump], axis=2)  # (4, N, 2)
    a, r = luminosity[1], response[1]
    magnitude = (t["mag_source_r"] - constant[1]) / a  # M at xi = 0

    def colour(v):
        return np.stack([v[0] - v[1], v[1] - v[2]], axis=1)

    d = colour(luminosity)
    A = colour(response) - d[:, :, None] * (r / a[:, None])[:, None, :]
    seen = np.stack([t["mag_source_g"] - t["mag_source_r"], t["mag_source_r"] - t["mag_source_z"]], axis=1)
    offset = (seen - colour(constant) - d * magnitude[:, None])[:, :, None]
    covariance = A @ A.transpose(0, 2, 1) + s["colour_scatter"] ** 2 * np.eye(2)
    inverse = np.linalg.inv(covariance)
    log = -0.5 * (offset.transpose(0, 2, 1) @ inverse @ offset)[:, 0, 0] - 0.5 * np.log(np.linalg.det(covariance))
    gain = A.transpose(0, 2, 1) @ inverse
    xi, left = (gain @ offset)[:, :, 0], np.eye(2) - gain @ A
    # M and V move with xi at fixed m by these.
    move = np.stack([-r / a[:, None], response[3] - r * (luminosity[3] / a)[:, None]], axis=1)  # (N, 2, 2)
    M, V = (move @ xi[:, :, None])[:, :, 0].T + np.stack([magnitude, constant[3] + luminosity[3] * magnitude])
    spread = move @ left @ move.transpose(0, 2, 1)
    var = np.maximum(spread[:, 0, 0], 1e-12)
    width = np.sqrt(s["size_scatter"] ** 2 + np.maximum(spread[:, 1, 1] - spread[:, 0, 1] ** 2 / var, 0.0) / 16.0)
    log_size, total = np.log10(t["source_R"]), np.zeros(len(z))
    nodes, share = np.polynomial.hermite_e.hermegauss(N_NODES)
    for node, weight in zip(nodes, share / share.sum(), strict=True):
        mean = mean_log_size(V + spread[:, 0, 1] / np.sqrt(var) * node, z, prior)
        chance = np.exp(-0.5 * ((log_size - mean) / width) ** 2) / (width * np.sqrt(2.0 * np.pi))
        total += weight * chance * source_number(M + np.sqrt(var) * node, z, number, prior)
    return total * np.exp(log) / (2.0 * np.pi * np.abs(a))
