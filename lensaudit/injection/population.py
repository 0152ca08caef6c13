"""Who lenses whom: named priors, cosmology, deflectors from the velocity-dispersion function, sources from luminosity
functions.

Priors are files, ``data_manifests/priors/<name>.toml``, identified by their hash. Everything here is a function of
uniforms, so a draw is fixed by its stream.
"""

import functools
import json
import tomllib

import numpy as np
from scipy.special import gamma, ndtr, ndtri

from lensaudit import rng
from lensaudit.artifacts import UserError, find_root, hash_object
from lensaudit.injection.distances import LIGHT_SPEED, comoving_distance, distance_modulus, volume_element
from lensaudit.injection.galaxies import ARCSEC, WAVELENGTH, draw_galaxies, make_key, source_density

RED_SEQUENCE = {"g-r": 0.75, "r-z": 0.65}  # rest-frame colours of a passive galaxy, mag
EVOLUTION = 0.85  # mag brighter per unit redshift, early types in r (Bernardi+ 2003)


@functools.cache
def _read_prior(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_prior(name="collett"):
    """Return a named prior as a dict with its ``hash``.

    Parameters
    ----------
    name : str or dict
        A file of ``data_manifests/priors`` (``collett`` is the fiducial one); a loaded prior passes through.

    Raises
    ------
    UserError
    """
    if isinstance(name, dict):
        return name
    folder = find_root() / "data_manifests" / "priors"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise UserError(f"prior {name!r} not found; known are {known}")
    try:
        prior = _read_prior(path)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"data_manifests/priors/{name}.toml: not valid TOML ({error})") from None
    return prior | {"hash": hash_object(prior)}


def sigma_to_theta(sigma, z_lens, z_source, prior):
    """Return theta_E [arcsec] = 4 pi (sigma/c)^2 D_ls/D_s of an isothermal lens, 0 behind the source.

    Notes
    -----
    In a flat universe D_ls/D_s = 1 - chi_l/chi_s.
    """
    ratio = 1.0 - comoving_distance(z_lens, prior) / comoving_distance(z_source, prior)
    return 4.0 * np.pi * (np.asarray(sigma) / LIGHT_SPEED) ** 2 * np.maximum(ratio, 0.0) * ARCSEC


def theta_to_sigma(theta_E, z_lens, z_source, prior):
    """Return the velocity dispersion [km/s] of an isothermal lens with Einstein radius theta_E [arcsec]."""
    unit = sigma_to_theta(1.0, z_lens, z_source, prior)
    return np.sqrt(np.asarray(theta_E) / np.maximum(unit, 1e-12))


def velocity_dispersion_function(sigma, prior):
    """Return dn/dsigma [Mpc^-3 (km/s)^-1] (FACTS 4: Collett 2015 after Choi+ 2007, non-evolving)."""
    d, x = prior["deflector"], np.asarray(sigma) / prior["deflector"]["sigma_star"]
    shape = x ** d["alpha"] * np.exp(-(x ** d["beta"])) * d["beta"] / gamma(d["alpha"] / d["beta"])
    return d["phi_star"] * prior["cosmology"]["h"] ** 3 * shape / np.asarray(sigma)


def magnitude_to_sigma(M_r, z):
    """Return the velocity dispersion [km/s] of an early type of rest-frame r-band absolute magnitude.

    Notes
    -----
    log10 sigma = -2.97 - 0.37 M_r - 0.006 M_r^2 (Hyde & Bernardi 2009), after removing passive evolution.
    """
    M = np.asarray(M_r) + EVOLUTION * np.asarray(z)
    return 10.0 ** (-2.97 - 0.37 * M - 0.006 * M**2)


def sigma_to_magnitude(sigma, z):
    """Return the rest-frame r-band absolute magnitude: the inverse of `magnitude_to_sigma`."""
    log = np.log10(np.asarray(sigma, dtype=np.float64))
    M = (-0.37 + np.sqrt(0.37**2 - 0.024 * (2.97 + log))) / 0.012
    return M - EVOLUTION * np.asarray(z)


def rest_magnitude(mag_r, mag_z, z, prior):
    """Return the rest-frame r-band absolute magnitude from observed r and z, extinction corrected.

    Notes
    -----
    The observed magnitude at 6400 (1 + z) Angstrom follows from a straight line in log wavelength through r and z,
    extrapolated beyond z band; M = m - DM + 2.5 log10(1 + z), so no template is needed.
    """
    z = np.maximum(np.asarray(z, dtype=np.float64), 0.01)
    weight = np.log(1.0 + z) / np.log(WAVELENGTH["z"] / WAVELENGTH["r"])
    mag = np.asarray(mag_r) + np.minimum(weight, 1.6) * (np.asarray(mag_z) - np.asarray(mag_r))
    return mag - distance_modulus(z, prior) + 2.5 * np.log10(1.0 + z)


def visible_fraction(sigma, z, prior):
    """Return the chance that a deflector of `sigma` [km/s] at `z` is brighter than the parent sample's z-band limit."""
    d = prior["deflector"]
    stretch = np.log((1.0 + np.asarray(z)) / (WAVELENGTH["z"] / WAVELENGTH["r"]))
    slope = np.where(stretch < 0, RED_SEQUENCE["r-z"] / np.log(WAVELENGTH["z"] / WAVELENGTH["r"]),
                     RED_SEQUENCE["g-r"] / np.log(WAVELENGTH["r"] / WAVELENGTH["g"]))  # fmt: skip
    rest = sigma_to_magnitude(sigma, z) + slope * stretch
    mag = rest + distance_modulus(z, prior) - 2.5 * np.log10(1.0 + np.asarray(z))
    return ndtr((d["z_mag_limit"] - mag) / d["magnitude_scatter"])


def draw_sources(u, z, prior):
    """Draw sources at given redshifts.

    Parameters
    ----------
    u : ndarray of shape (N, 11)
        Uniforms: luminosity, slope, break, size, axis ratio, angle, index, clumps, clump fraction, two of colours.
    z : ndarray of shape (N,)
    prior : dict

    Returns
    -------
    dict of ndarray of shape (N,)
        mag_source_{g,r,z} (unlensed, before extinction), source_R [arcsec, intermediate axis], source_n, source_q,
        source_phi [rad], n_clumps, clump_fraction. Their density is `density.measure_source_density`.
    """
    s = prior["source"]
    if s["kind"] == "population":
        out = draw_galaxies(u[:, [0, 1, 2, 3, 9, 10]], z, prior)
    else:
        low, high = s["mag_r"]
        mag = low + (high - low) * u[:, 0]
        g_r, r_z = (s[k][0] + s[k][1] * ndtri(u[:, j]) for k, j in (("g_r", 1), ("r_z", 2)))
        radius = s["radius"][0] + (s["radius"][1] - s["radius"][0]) * u[:, 3]
        out = {"mag_source_g": mag + g_r, "mag_source_r": mag, "mag_source_z": mag - r_z, "source_R": radius}
    if "axis_ratio_range" in s:
        out["source_q"] = s["axis_ratio_range"][0] + np.ptp(s["axis_ratio_range"]) * u[:, 4]
    else:
        out["source_q"] = draw_axis_ratio(u[:, 4], s["axis_ratio_scale"])
    out["source_phi"] = np.pi * u[:, 5]
    out["source_n"] = s["index"][0] + (s["index"][1] - s["index"][0]) * u[:, 6]
    clumpy = u[:, 7] < s["clumpy_fraction"]
    first, last = s["clumps"]
    which = first + np.floor(u[:, 7] / max(s["clumpy_fraction"], 1e-12) * (last - first + 1))
    out["n_clumps"] = np.where(clumpy, np.minimum(which, last), 0).astype(np.int64)
    low, high = s["clump_fraction"]
    out["clump_fraction"] = np.where(clumpy, low + (high - low) * u[:, 8], 0.0)
    return out


def draw_axis_ratio(u, scale, floor=0.2):
    """Return q = 1 - Rayleigh(scale), cut at `floor` < q < 1, for uniforms `u`."""
    top = 1.0 - np.exp(-0.5 * ((1.0 - floor) / np.asarray(scale)) ** 2)
    return 1.0 - np.asarray(scale) * np.sqrt(-2.0 * np.log1p(-np.asarray(u) * top))


@functools.cache
def _parent_tables(key):
    prior = json.loads(key)
    d = prior["deflector"]
    sigma = np.arange(d["sigma"][0], d["sigma"][1], 5.0) + 2.5
    z_lens = np.arange(d["z"][0], d["z"][1], 0.025) + 0.0125
    z_source, density = source_density(prior)
    theta = sigma_to_theta(sigma[:, None, None], z_lens[None, :, None], z_source[None, None, :], prior)
    deflectors = velocity_dispersion_function(sigma, prior)[:, None] * volume_element(z_lens, prior)[None, :]
    deflectors = deflectors * visible_fraction(sigma[:, None], z_lens[None, :], prior)
    low, high = d["theta_E"]
    weight = deflectors[:, :, None] * density * np.where((theta > low) & (theta < high), theta**2, 0.0)
    return sigma, z_lens, z_source, np.cumsum(weight.ravel())


def draw_parents(u, prior):
    """Draw (sigma_v, z_lens, z_source) of multiply imaging systems, each in proportion to theta_E^2.

    Parameters
    ----------
    u : ndarray of shape (N, 4)
    prior : dict
        With ``deflector.kind = "vdf"``.

    Returns
    -------
    dict of ndarray of shape (N,)
        sigma_v [km/s], z_lens, z_source, theta_E [arcsec], log_q (log density in theta_E and z_source, given z_lens).

    Notes
    -----
    Number of deflectors (velocity-dispersion function, comoving volume, brighter than the parent sample's limit) times
    number of sources times area; cells of 5 km/s, 0.025, 0.05, uniform inside.
    """
    sigma, z_lens, z_source, cumulative = _parent_tables(make_key(prior))
    cell = np.minimum(np.searchsorted(cumulative, u[:, 0] * cumulative[-1], side="right"), len(cumulative) - 1)
    i, j, k = np.unravel_index(cell, (len(sigma), len(z_lens), len(z_source)))
    out = {"sigma_v": sigma[i] + 5.0 * (u[:, 1] - 0.5), "z_lens": z_lens[j] + 0.025 * (u[:, 2] - 0.5),
           "z_source": z_source[k] + 0.05 * (u[:, 3] - 0.5)}  # fmt: skip
    out["theta_E"] = sigma_to_theta(out["sigma_v"], out["z_lens"], out["z_source"], prior)
    out["log_q"] = parent_density(out["theta_E"], out["z_lens"], out["z_source"], prior)
    return out


def parent_density(theta_E, z_lens, z_source, prior):
    """Return the log density of `draw_parents` in theta_E [arcsec] and z_source, given z_lens; -inf outside."""
    sigma, z_l, z_s, cumulative = _parent_tables(make_key(prior))
    speed = theta_to_sigma(theta_E, z_lens, z_source, prior)
    index, inside = [], np.asarray(z_source) > np.asarray(z_lens)
    for value, grid, step in ((speed, sigma, 5.0), (z_lens, z_l, 0.025), (z_source, z_s, 0.05)):
        place = np.floor((np.asarray(value) - grid[0]) / step + 0.5)
        inside = inside & (place >= 0) & (place < len(grid))
        index.append(np.clip(np.nan_to_num(place), 0, len(grid) - 1).astype(int))
    weight = np.diff(cumulative, prepend=0.0).reshape(len(sigma), len(z_l), len(z_s))
    chance = weight[tuple(index)] / weight.sum(axis=(0, 2))[index[1]] / (5.0 * 0.05)
    with np.errstate(divide="ignore"):
        return np.log(np.where(inside, chance * speed / (2.0 * np.asarray(theta_E)), 0.0))


def redshift_density(z_lens, prior):
    """Return the density per unit redshift of lens redshifts in `draw_parents`, 0 outside."""
    _, grid, _, cumulative = _parent_tables(make_key(prior))
    weight = np.diff(cumulative, prepend=0.0).reshape(-1, len(grid), len(source_density(prior)[0])).sum(axis=(0, 2))
    place = np.floor((np.asarray(z_lens) - grid[0]) / 0.025 + 0.5).astype(int)
    inside = (place >= 0) & (place < len(grid))
    return np.where(inside, weight[np.clip(place, 0, len(grid) - 1)] / weight.sum() / 0.025, 0.0)


def draw_structure(seed, name, ids, tries, proposal, table, prior):
    """Draw the optional columns of mass and source that a prior names; none by default.

    Parameters
    ----------
    seed, name : int, str
        Stream.
    ids : ndarray of int
    tries : int
        Proposals per id.
    proposal : ndarray of shape (N,)
        Number of each row among the len(ids) * tries proposals.
    table : dict of ndarray of shape (N,)
        theta_E [arcsec].
    prior : dict
        ``deflector.slope = [mean, scatter]``, ``deflector.multipoles = [scatter of a3, of a4]``,
        ``deflector.subhalo_fraction`` with ``subhalo_theta_E = [low, high]`` (log-uniform, [arcsec]) and
        ``source.gradient`` (largest |gradient|, uniform below).

    Returns
    -------
    dict of ndarray of shape (N,)

    Notes
    -----
    A subhalo lies within 0.3 theta_E of the Einstein ring, where it matters; its cut-off is 5 times its Einstein radius
    (both assumptions). theta_E of the others is 0.
    """
    d, s = prior["deflector"], prior["source"]
    if not {"slope", "multipoles", "subhalo_fraction"} & set(d) and "gradient" not in s:
        return {}
    u = rng.draw_uniforms(seed, name, ids, tries * 10).reshape(-1, 10)[proposal]
    normal, out = ndtri(np.clip(u[:, :3], 1e-9, 1 - 1e-9)), {}
    if "slope" in d:
        out["slope"] = np.clip(d["slope"][0] + d["slope"][1] * normal[:, 0], 1.5, 2.5)
    if "multipoles" in d:
        out |= {"a3": np.abs(d["multipoles"][0] * normal[:, 1]), "phi3": 2.0 * np.pi / 3.0 * u[:, 3],
                "a4": np.abs(d["multipoles"][1] * normal[:, 2]), "phi4": 0.5 * np.pi * u[:, 4]}  # fmt: skip
    if "subhalo_fraction" in d:
        low, high = d["subhalo_theta_E"]
        size = np.where(u[:, 5] < d["subhalo_fraction"], low * (high / low) ** u[:, 6], 0.0)
        radius, angle = table["theta_E"] * (0.7 + 0.6 * u[:, 7]), 2.0 * np.pi * u[:, 8]
        out |= {"subhalo_theta_E": size, "subhalo_x": radius * np.cos(angle), "subhalo_y": radius * np.sin(angle),
                "subhalo_r_cut": np.where(size > 0, 5.0 * size, 1.0)}  # fmt: skip
    if "gradient" in s:
        out["gradient"] = s["gradient"] * (2.0 * u[:, 9] - 1.0)
    return out
