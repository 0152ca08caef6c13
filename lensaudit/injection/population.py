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

ARCSEC = 206264.8  # per radian
LIGHT_SPEED = 299792.458  # km/s
WAVELENGTH = {"g": 4800.0, "r": 6400.0, "z": 9200.0}  # effective, Angstrom (DECam)
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


@functools.cache
def _distances(h, omega_m):
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(100.0 * h, omega_m)
    z = np.linspace(0.0, 8.0, 1601)
    comoving = cosmology.comoving_distance(z).value
    volume = comoving**2 * LIGHT_SPEED / (100.0 * h * cosmology.efunc(z))
    return z, comoving, volume


def comoving_distance(z, prior):
    """Return the comoving distance [Mpc]."""
    grid, distance, _ = _distances(prior["cosmology"]["h"], prior["cosmology"]["omega_m"])
    return np.interp(z, grid, distance)


def distance_modulus(z, prior):
    """Return the distance modulus [mag]."""
    return 5.0 * np.log10((1.0 + np.asarray(z)) * comoving_distance(z, prior)) + 25.0


def volume_element(z, prior):
    """Return the comoving volume per unit redshift and steradian [Mpc^3]."""
    grid, _, volume = _distances(prior["cosmology"]["h"], prior["cosmology"]["omega_m"])
    return np.interp(z, grid, volume)


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


def source_magnitude(M_uv, z, wavelength, slope, step, prior):
    """Return the apparent AB magnitude of a star-forming galaxy at an observed wavelength [Angstrom].

    Notes
    -----
    Rest-frame spectrum: a power law of index `slope` in f_lambda from 1216 to 3600 A, brighter by `step` mag across
    3600-4200 A, the optical slope redward, a constant dimming below Lyman alpha.
    """
    rest = np.asarray(wavelength) / (1.0 + np.asarray(z))
    s = prior["source"]
    uv = -2.5 * (slope + 2.0) * np.log10(np.minimum(rest, 3600.0) / 1500.0)
    jump = -step * np.clip((rest - 3600.0) / 600.0, 0.0, 1.0)
    red = -2.5 * (s["optical_slope"] + 2.0) * np.log10(np.maximum(rest, 4200.0) / 4200.0)
    lyman = np.where(rest < 1216.0, s["lyman_dimming"], 0.0)
    return M_uv + uv + jump + red + lyman + distance_modulus(z, prior) - 2.5 * np.log10(1.0 + np.asarray(z))


def _key(prior):
    """Return a prior as text, so that tables are remembered by what it says and not by its name."""
    return json.dumps({k: v for k, v in prior.items() if k != "hash"}, sort_keys=True)


@functools.cache
def _source_tables(key):
    prior = json.loads(key)
    s = prior["source"]
    z = np.arange(s["z"][0], s["z"][1], 0.05) + 0.025
    M = np.arange(-24.0, -10.0, 0.05) + 0.025
    star, phi, alpha = (np.interp(z, s["lf_z"], s[k])[:, None] for k in ("lf_m_star", "lf_phi", "lf_alpha"))
    x = 10.0 ** (-0.4 * (M[None] - star))
    number = 0.4 * np.log(10.0) * phi * x ** (alpha + 1.0) * np.exp(-x) * 0.05
    mag = source_magnitude(M[None], z[:, None], WAVELENGTH["r"], s["uv_slope"][0], s["balmer_break"][0], prior)
    number = np.where(mag < s["mag_limit"], number, 0.0)
    total = number.sum(axis=1)
    cumulative = np.cumsum(number, axis=1) / np.maximum(total, 1e-300)[:, None]
    density = total * volume_element(z, prior) * 0.05
    return z, M, cumulative, density


def source_density(prior):
    """Return redshifts (bin centres, width 0.05) and relative numbers of sources above the prior's limit."""
    z, _, _, density = _source_tables(_key(prior))
    return z, density


def source_number(M_uv, z, prior):
    """Return the density per mag of a source's ultraviolet magnitude at its redshift, 0 beyond the prior's limits."""
    grid, M, cumulative, _ = _source_tables(_key(prior))
    row = np.floor((np.asarray(z) - prior["source"]["z"][0]) / 0.05).astype(int)
    column = np.floor((np.asarray(M_uv) - M[0]) / 0.05 + 0.5).astype(int)
    inside = (row >= 0) & (row < len(grid)) & (column >= 0) & (column < len(M))
    step = np.diff(cumulative, axis=1, prepend=0.0) / 0.05
    return np.where(inside, step[np.clip(row, 0, len(grid) - 1), np.clip(column, 0, len(M) - 1)], 0.0)


def draw_sources(u, z, prior):
    """Draw sources at given redshifts.

    Parameters
    ----------
    u : ndarray of shape (N, 9)
        Uniforms: luminosity, slope, break, size, axis ratio, angle, index, clumps, clump fraction.
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
        out = _draw_population(u, z, prior)
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


def _draw_population(u, z, prior):
    s = prior["source"]
    grid, M, cumulative, _ = _source_tables(_key(prior))
    row = np.clip(((z - s["z"][0]) / 0.05).astype(int), 0, len(grid) - 1)
    # One search for all rows: each row's cumulative is raised by its number.
    flat = (cumulative + np.arange(len(grid))[:, None]).ravel()
    cell = np.minimum(np.searchsorted(flat, row + u[:, 0], side="right"), (row + 1) * len(M) - 1)
    column = cell - row * len(M)
    before = np.where(column > 0, cumulative[row, np.maximum(column - 1, 0)], 0.0)
    step = np.maximum(cumulative[row, column] - before, 1e-300)
    M_uv = M[column] - 0.025 + 0.05 * np.clip((u[:, 0] - before) / step, 0.0, 1.0)
    slope = s["uv_slope"][0] + s["uv_slope"][1] * ndtri(u[:, 1])
    jump = np.maximum(s["balmer_break"][0] + s["balmer_break"][1] * ndtri(u[:, 2]), 0.0)
    mags = {b: source_magnitude(M_uv, z, w, slope, jump, prior) for b, w in WAVELENGTH.items()}
    M_v = source_magnitude(M_uv, z, 5500.0 * (1.0 + z), slope, jump, prior) - distance_modulus(z, prior)
    M_v = M_v + 2.5 * np.log10(1.0 + z)
    radius = 10.0 ** (mean_log_size(M_v, z, prior) + s["size_scatter"] * ndtri(u[:, 3]))
    return {"mag_source_g": mags["g"], "mag_source_r": mags["r"], "mag_source_z": mags["z"],
            "source_R": np.clip(radius, 0.02, 3.0)}  # fmt: skip


def mean_log_size(M_v, z, prior):
    """Return log10 of the half-light radius [arcsec] expected of a galaxy of V-band magnitude M_v at z (FACTS 4)."""
    size = -(np.asarray(M_v) + 18.0) / 4.0 - 1.2 * np.log10((1.0 + z) / 1.6)
    return size + np.log10(ARCSEC * (1.0 + z) / (comoving_distance(z, prior) * 1e3))


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
    sigma, z_lens, z_source, cumulative = _parent_tables(_key(prior))
    cell = np.minimum(np.searchsorted(cumulative, u[:, 0] * cumulative[-1], side="right"), len(cumulative) - 1)
    i, j, k = np.unravel_index(cell, (len(sigma), len(z_lens), len(z_source)))
    out = {"sigma_v": sigma[i] + 5.0 * (u[:, 1] - 0.5), "z_lens": z_lens[j] + 0.025 * (u[:, 2] - 0.5),
           "z_source": z_source[k] + 0.05 * (u[:, 3] - 0.5)}  # fmt: skip
    out["theta_E"] = sigma_to_theta(out["sigma_v"], out["z_lens"], out["z_source"], prior)
    out["log_q"] = parent_density(out["theta_E"], out["z_lens"], out["z_source"], prior)
    return out


def parent_density(theta_E, z_lens, z_source, prior):
    """Return the log density of `draw_parents` in theta_E [arcsec] and z_source, given z_lens; -inf outside."""
    sigma, z_l, z_s, cumulative = _parent_tables(_key(prior))
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
