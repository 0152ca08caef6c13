"""Hosts: real galaxies of the test split that lenses are put into, and how well each fits a given deflector.

Two populations: deployment (usable test negatives of N1, weighted to the parent sample) and deflector (luminous red
galaxies whose velocity dispersion, from magnitude and redshift, can make the wanted Einstein radius).
"""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS
from lensaudit.injection.population import load_prior, magnitude_to_sigma, rest_magnitude

N_RECENTRE = 16  # steps that take the regression to the mean out of the twins' hosts
# What counts as one unit of difference between a lens and a twin's host. First what changes an arc's S/N and contrast:
# seeing (ln psfsize), depth and magnitude [mag], size [dex], light of neighbours (log10(fracflux_r + 0.01)), r-z; the
# rest an arc's visibility depends on less. Chosen on covariate balance alone, before any score was looked at.
MATCH_SCALES = {"psfsize_r": 0.06, "psfsize_g": 0.2, "psfsize_z": 0.25, "depth_r": 0.12, "mag_r": 0.13, "size": 0.06,
                "axis_ratio": 0.5, "sersic": 0.5, "neighbours": 0.6, "z": 0.1, "g_r": 0.25, "r_z": 0.1}  # fmt: skip
SIGMA_SCATTER = 0.08  # dex of sigma at fixed magnitude (Hyde & Bernardi 2009: 0.07-0.08), photo-z error included
SIGMA_FLOOR = 120.0  # km/s; fainter galaxies lens no arc wider than 0.4 arcsec
REDSHIFT_SCATTER = 0.03  # of (1 + z), photo-z error and matching tolerance together
MAX_DEVIATION = 3.0  # standard deviations beyond which a host is not plausible for a deflector
KEEP = ("galaxy_id", "brickname", "ra", "dec", "type", "ebv", "maskbits", "shape_r", "shape_e1", "shape_e2", "sersic",
        "flux_w1", "nobs_z_bin", "confuser_category", "pool", "z_phot", "footprint_weight", "healpix_128", "region_id",
        "depth_r", "fracflux_r")  # fmt: skip
PER_BAND = ("mag", "flux", "psfsize", "psfdepth", "nobs", "mw_transmission", "exptime")


def is_red(g_r, r_z, z):
    """Say which galaxies are red enough to be early types.

    Parameters
    ----------
    g_r, r_z : array_like
        Observed colours, extinction corrected.
    z : array_like
        Photometric redshift.

    Notes
    -----
    The red sequence runs from g-r = 0.8 at z = 0.1 to 1.6 at z = 0.4, where the 4000-A break leaves g; r-z from 0.5 to
    1.6 at z = 0.75. The cuts lie 0.2-0.4 mag below it, so that colour errors lose few.
    """
    z = np.asarray(z)
    return (np.asarray(g_r) > 0.45 + 1.5 * np.minimum(z, 0.45)) & (np.asarray(r_z) > 0.25 + 0.9 * np.minimum(z, 0.8))


def estimate_sigma(table, prior="collett"):
    """Return the velocity dispersion [km/s] expected from r, z magnitudes and photo-z; NaN where they lack.

    Parameters
    ----------
    table : pandas.DataFrame
        mag_r, mag_z (not extinction corrected), mw_transmission_r, mw_transmission_z, z_phot.
    """
    mags = [table[f"mag_{b}"] + 2.5 * np.log10(table[f"mw_transmission_{b}"]) for b in ("r", "z")]
    z = table["z_phot"].to_numpy(dtype=np.float64)
    M = rest_magnitude(mags[0].to_numpy(), mags[1].to_numpy(), z, load_prior(prior))
    return np.where(z > 0.01, magnitude_to_sigma(np.clip(M, -25.0, -16.0), z), np.nan)


def make_hosts(samples, stamps, prior="collett"):
    """Make the host table from the negatives of the test split.

    Parameters
    ----------
    samples : pandas.DataFrame
        02_sampling/samples.parquet: survey columns, label, split, z_phot, inclusion_probability, footprint_weight.
    stamps : pandas.DataFrame
        03_cutouts/stamps.parquet: galaxy_id, cutout_path, quality_ok.
    prior : str
        For the cosmology.

    Returns
    -------
    pandas.DataFrame
        host_index, galaxy_id, cutout_path, brickname, survey columns, q_light, phi_light [rad, lenstronomy convention],
        sigma_v [km/s] expected from the photometry, deployment_weight, deflector_weight (both normalised to mean 1
        over their population, 0 outside), in_deployment, in_deflector. Both populations are of pool N1 where the pool
        is given: N1 holds confusers at their natural rate, N2 is a further draw of them and would count them twice.
        Hosts of N2 stay in the table for the random-hosts control. Sorted by galaxy_id, so row order does not depend
        on that of the inputs.

    Raises
    ------
    UserError
        When no test negative has a usable stamp.
    """
    negative = samples[(samples["label"] == 0) & (samples["split"] == "test")]
    good = stamps.loc[stamps["quality_ok"].astype(bool), ["galaxy_id", "cutout_path"]]
    table = negative.drop(columns=[c for c in ("cutout_path",) if c in negative]).merge(good, on="galaxy_id")
    table = table.sort_values("galaxy_id").reset_index(drop=True)
    if table.empty:
        raise UserError("samples.parquet: no negative of the test split has a stamp with quality_ok; make more stamps")
    names = [c for c in KEEP if c in table] + [f"{c}_{b}" for c in PER_BAND for b in BANDS if f"{c}_{b}" in table]
    hosts = table[names + ["cutout_path"]].copy()
    hosts.insert(0, "host_index", np.arange(len(hosts), dtype=np.int64))
    if "depth_r" not in hosts:
        hosts["depth_r"] = photometry.ivar_to_depth(hosts["psfdepth_r"])
    light = photometry.tractor_to_lens_shape(hosts["shape_r"], hosts["shape_e1"], hosts["shape_e2"])
    hosts["q_light"], hosts["phi_light"] = np.clip(light["q"], 0.2, 1.0), light["phi"]
    hosts["sigma_v"] = estimate_sigma(hosts, prior)
    colours = intrinsic_colours(hosts)
    usable = np.isfinite(hosts["sigma_v"]) & (hosts["sigma_v"] > SIGMA_FLOOR)
    hosts["in_deployment"] = (hosts["pool"] == "N1") if "pool" in hosts else True
    red = usable & is_red(colours[:, 0], colours[:, 1], hosts["z_phot"])
    hosts["in_deflector"] = (red & hosts["in_deployment"]).to_numpy()
    chance = table["inclusion_probability"].to_numpy() if "inclusion_probability" in table else np.ones(len(table))
    base = 1.0 / np.clip(np.nan_to_num(chance, nan=1.0), 1e-6, 1.0)
    for name in ("deployment", "deflector"):
        weight = np.where(hosts[f"in_{name}"], base, 0.0)
        hosts[f"{name}_weight"] = weight / max(weight[weight > 0].mean() if (weight > 0).any() else 1.0, 1e-12)
    return hosts


def intrinsic_colours(hosts):
    """Return g-r and r-z corrected for extinction, of shape (N, 2)."""
    mags = [hosts[f"mag_{b}"].to_numpy() + 2.5 * np.log10(hosts[f"mw_transmission_{b}"].to_numpy()) for b in BANDS]
    return np.stack([mags[0] - mags[1], mags[1] - mags[2]], axis=1)


class HostMatcher:
    """Draws a host for a deflector of given velocity dispersion and redshift.

    Parameters
    ----------
    hosts : pandas.DataFrame
        Host table; rows with in_deflector are used.

    Notes
    -----
    p(host | sigma, z) is proportional to deflector_weight x N(log sigma; log sigma_host, 0.08 dex) x
    N(z; z_phot, 0.03 (1 + z)), tabulated in cells of 0.02 dex and 0.02.
    """

    def __init__(self, hosts):
        self.rows = np.flatnonzero(hosts["in_deflector"].to_numpy())
        if not len(self.rows):
            raise UserError("host table: no host is in_deflector; widen the test split or use population='deployment'")
        self.log_sigma = np.log10(hosts["sigma_v"].to_numpy()[self.rows])
        self.z = hosts["z_phot"].to_numpy()[self.rows]
        self.weight = hosts["deflector_weight"].to_numpy()[self.rows]
        self.sigma_edges = np.arange(2.0, 2.76, 0.02)
        self.z_edges = np.arange(0.0, 1.3, 0.02)
        self.tables = {}

    def _table(self, cell):
        if cell not in self.tables:
            i, j = cell
            z = self.z_edges[j] + 0.01
            a = (self.sigma_edges[i] + 0.01 - self.log_sigma) / SIGMA_SCATTER
            b = (z - self.z) / (REDSHIFT_SCATTER * (1.0 + z))
            chi2 = a**2 + b**2
            weight = np.where(chi2 < MAX_DEVIATION**2, self.weight * np.exp(-0.5 * chi2), 0.0)
            near = np.flatnonzero(weight)
            self.tables[cell] = (near, np.cumsum(weight[near]))
        return self.tables[cell]

    def measure_chance(self, rows, sigma_v, z_lens):
        """Return the chance that `pick` takes each host for a deflector, 0 where it never does.

        Parameters
        ----------
        rows : ndarray of shape (N,), int
            In the host table.
        sigma_v, z_lens : ndarray of shape (N,)
            Of the deflector [km/s].
        """
        i, j = self._cells(sigma_v, z_lens)
        codes, inverse = np.unique(i * len(self.z_edges) + j, return_inverse=True)
        tables = [self._table(divmod(int(code), len(self.z_edges)))[1] for code in codes]
        total = np.array([t[-1] if len(t) else np.inf for t in tables])[inverse]
        place = np.searchsorted(self.rows, rows)
        known = np.append(self.rows, -1)[place] == rows
        place = np.minimum(place, len(self.rows) - 1)
        z = self.z_edges[j] + 0.01
        chi2 = ((self.sigma_edges[i] + 0.01 - self.log_sigma[place]) / SIGMA_SCATTER) ** 2
        chi2 += ((z - self.z[place]) / (REDSHIFT_SCATTER * (1.0 + z))) ** 2
        return np.where(known & (chi2 < MAX_DEVIATION**2), self.weight[place] * np.exp(-0.5 * chi2) / total, 0.0)

    def _cells(self, sigma_v, z_lens):
        i = np.clip(np.searchsorted(self.sigma_edges, np.log10(sigma_v)) - 1, 0, len(self.sigma_edges) - 1)
        return i, np.clip(np.searchsorted(self.z_edges, z_lens) - 1, 0, len(self.z_edges) - 1)

    def pick(self, sigma_v, z_lens, u):
        """Return the row in the host table of each deflector, -1 where no host is plausible.

        Parameters
        ----------
        sigma_v, z_lens, u : ndarray of shape (N,)
            km/s, redshift, uniforms.
        """
        i, j = self._cells(sigma_v, z_lens)
        out = np.full(len(i), -1)
        code = i * len(self.z_edges) + j
        for value in np.unique(code):
            which = np.flatnonzero(code == value)
            near, cumulative = self._table(divmod(int(value), len(self.z_edges)))
            if len(near):
                k = np.searchsorted(cumulative, u[which] * cumulative[-1], side="right")
                out[which] = self.rows[near[np.minimum(k, len(near) - 1)]]
        return out


def match_conditions(hosts, lenses, n, seed, pool=None):
    """Choose `n` hosts like each lens in conditions and in the galaxy itself.

    Parameters
    ----------
    hosts : pandas.DataFrame
        Host table.
    lenses : pandas.DataFrame
        galaxy_id, psfsize_r, depth_r, mag_r, z_lens, and where present mag_g, mag_z (of the whole lens system) with
        mw_transmission_<band>, psfsize_g, psfsize_z, shape_r, shape_e1, shape_e2, sersic, fracflux_r.
    n : int
    seed : int
        Of the order among a lens's hosts.
    pool : int, optional
        Number of nearest hosts drawn from; `n` by default.

    Returns
    -------
    ndarray of shape (len(lenses), n), int64
        Row numbers in the host table; a host repeats only when there are fewer than `n`.

    Notes
    -----
    Nearest in the axes of `MATCH_SCALES` that both tables have, among the deflector population. Bright, large galaxies
    are rare, so that the nearest hosts are fainter and smaller on average; the point searched around is moved, by 3
    units at most, until their mean is the lens. A lens's hosts do not depend on the other lenses. How good a match is
    says `measure_match`.
    """
    rows = np.flatnonzero(hosts["in_deflector"].to_numpy())
    if not len(rows):
        raise UserError("host table: no host is in_deflector, so twins have nowhere to go")
    theirs, target = _stack_axes(hosts.iloc[rows], lenses)
    finite = np.isfinite(theirs).all(axis=1)
    if not finite.any():
        raise UserError("host table: every host in_deflector lacks a column twins are matched on (psfsize, depth, mag)")
    rows, tree = rows[finite], cKDTree(theirs[finite])
    k = min(max(pool or n, n), len(rows))
    known = np.isfinite(target)
    target = np.where(known, target, np.median(tree.data, axis=0))  # what is not known must not pull to one side
    centre = target.copy()
    for step in range(N_RECENTRE):
        near = tree.query(centre, k=k)[1].reshape(len(lenses), k)
        if step < N_RECENTRE - 1:
            offset = np.where(known, tree.data[near].mean(axis=1) - target, 0.0)
            centre = target + np.clip(centre - target - 0.5 * offset, -3.0, 3.0)
    order = np.argsort(rng.draw_uniforms(seed, "hosts/twins", list(lenses["galaxy_id"]), k), axis=1)
    shuffled = np.take_along_axis(near, order, axis=1)
    return rows[shuffled[:, np.arange(n) % k]]


def measure_match(hosts, lenses, rows):
    """Measure how far the hosts `match_conditions` chose are from their lens itself.

    Parameters
    ----------
    hosts, lenses : pandas.DataFrame
        As `match_conditions` takes them.
    rows : ndarray of shape (len(lenses), n), int

    Returns
    -------
    distance : ndarray of shape (len(lenses), n)
        Root mean square difference over the axes known of both, in units of `MATCH_SCALES`.
    offset : ndarray of shape (len(lenses),)
        The same of the mean of a lens's hosts; near 0 for a balanced lens, while a lens brighter or larger than any
        host keeps what moving the point searched around cannot mend.
    """
    theirs, target = _stack_axes(hosts, lenses)
    difference = theirs[rows] - target[:, None]
    known = np.isfinite(difference)
    with np.errstate(invalid="ignore"):
        distance = np.sqrt((np.where(known, difference, 0.0) ** 2).sum(axis=2) / known.sum(axis=2))
        mean = np.where(known, difference, 0.0).sum(axis=1) / known.sum(axis=1)
    return distance, np.sqrt(np.nanmean(mean**2, axis=1))


def _stack_axes(hosts, lenses):
    theirs, ours = _match_axes(hosts.assign(z_lens=hosts["z_phot"])), _match_axes(lenses)
    shared = [k for k in MATCH_SCALES if k in ours and k in theirs]
    return tuple(np.stack([t[k] / MATCH_SCALES[k] for k in shared], axis=1) for t in (theirs, ours))


def _match_axes(table):
    axes = {"depth_r": table["depth_r"], "mag_r": table["mag_r"], "z": table["z_lens"]}
    axes |= {f"psfsize_{b}": np.log(table[f"psfsize_{b}"]) for b in BANDS if f"psfsize_{b}" in table}
    if "shape_r" in table:
        axes["size"] = np.log10(np.clip(table["shape_r"], 0.1, None))
    if "shape_e1" in table and "shape_e2" in table:
        e = np.hypot(table["shape_e1"], table["shape_e2"])
        axes["axis_ratio"] = (1.0 - e) / (1.0 + e)
    if "sersic" in table:
        axes["sersic"] = np.log10(np.clip(table["sersic"], 0.5, 6.0))
    if "fracflux_r" in table:
        axes["neighbours"] = np.log10(np.clip(table["fracflux_r"], 0.0, None) + 0.01)
    mags = {b: table[f"mag_{b}"] for b in BANDS if f"mag_{b}" in table}
    for b in mags:
        if f"mw_transmission_{b}" in table:
            mags[b] = mags[b] + 2.5 * np.log10(table[f"mw_transmission_{b}"])
    if "g" in mags:
        axes["g_r"] = mags["g"] - mags["r"]
    if "z" in mags:
        axes["r_z"] = mags["r"] - mags["z"]
    return {k: np.asarray(v, dtype=np.float64) for k, v in axes.items()}


def swap_hosts(table, hosts, seed, population="deployment"):
    """Put the same arcs into other hosts of like seeing and depth.

    Parameters
    ----------
    table : pandas.DataFrame
        Injection table.
    hosts : pandas.DataFrame
    seed : int
    population : str
        ``"deployment"``: weighted to the parent sample; ``"random"``: every usable test negative alike.

    Returns
    -------
    pandas.DataFrame
        With the new host_index, galaxy_id, brickname; arcs untied to their hosts (untied = True).

    Notes
    -----
    Drawn among the 100 hosts nearest in psfsize_r / 0.08 and depth_r / 0.2.
    """
    weight = hosts["deployment_weight"].to_numpy() if population == "deployment" else np.ones(len(hosts))
    own = hosts.set_index("host_index").loc[table["host_index"].to_numpy()]
    scale = np.array([0.08, 0.2])
    points = hosts[["psfsize_r", "depth_r"]].to_numpy() / scale
    k = min(100, len(hosts))
    _, near = cKDTree(points).query(own[["psfsize_r", "depth_r"]].to_numpy() / scale, k=k)
    near = near.reshape(len(table), k)
    cumulative = np.cumsum(weight[near], axis=1)
    u = rng.draw_uniforms(seed, f"hosts/{population}", table["injection_id"].to_numpy(), 1)
    pick = np.minimum((cumulative < u * cumulative[:, -1:]).sum(axis=1), k - 1)
    chosen = hosts.iloc[near[np.arange(len(table)), pick]]
    names = ("host_index", "galaxy_id", "brickname")
    return table.assign(**{name: chosen[name].to_numpy() for name in names if name in hosts}, untied=True)


def count_deflectors(hosts):
    """Return a one-row summary of the host table for a notebook."""
    whole, d = hosts[hosts["in_deployment"]], hosts[hosts["in_deflector"]]
    return pd.DataFrame({
        "population": ["deployment", "deflector"], "n_hosts": [len(whole), len(d)],
        "n_bricks": [whole["brickname"].nunique(), d["brickname"].nunique()],
        **{name: [whole[name].median(), d[name].median()] for name in ("mag_r", "z_phot", "sigma_v")},
    })  # fmt: skip
