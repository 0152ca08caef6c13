"""Injections between two priors: each ingredient from the one or from the other, on shared random numbers.

A plan fixes, once, the Einstein radius, seeing and depth of every injection. Whatever is drawn after that comes from
streams keyed by the injection's id, and an ingredient that both priors draw takes the same quantile of either. So two
sets that differ in one ingredient differ by that ingredient, not by luck.
"""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lensaudit import photometry, rng
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS
from lensaudit.injection.cells import assign_bins, bin_edges, source_kernel, tabulate_sources
from lensaudit.injection.forecast import bound_arcs, forecast_arcs
from lensaudit.injection.inject import measure_injections
from lensaudit.injection.population import draw_parents, draw_sources, theta_to_sigma
from lensaudit.injection.priors import ROUGH_SLACK, SLACK, draw_geometry

FIRST_ID = 4_000_000_000  # injection ids of the ladder start apart from other sets, so that no two share noise
DRAWN = ("magnitudes", "colours", "radius", "clumps", "index", "axis_ratio", "position", "cuts", "hosts", "tie",
         "mass")  # fmt: skip
N_SOURCE, N_GEOMETRY = 12, 7  # uniforms of `draw_sources` and `draw_geometry`, some to spare
N_UNIFORMS = N_SOURCE + N_GEOMETRY + 1  # and one for the source's redshift
ROUNDS = (12, 52, 192, 768)  # proposals per id; one without an accepted proposal after all is left out
N_NEAR = 60  # hosts of like seeing and depth to choose among
MATCH = (0.08, 0.2)  # psfsize_r [arcsec] and depth_r [mag] that count as one unit of difference, as in `swap_hosts`
HOSTS = {(False, False): "random", (False, True): "random_tied", (True, False): "deflectors",
         (True, True): "deflectors_tied"}  # fmt: skip
MIN_HOSTS = 5  # deflector-like hosts a column of seeing and depth must have
PLAUSIBLE = -4.5  # log of the chance of the velocity dispersion, relative to its peak, below which a host is untied


def plan_rungs(hosts, grid, n, seed, prior):
    """Fix Einstein radius, seeing and depth of every injection of the ladder, and its hosts of either kind.

    Parameters
    ----------
    hosts : pandas.DataFrame
    grid : lensaudit.config.CompletenessConfig
        theta_E, seeing and depth: bin centres.
    n : int
    seed : int
    prior : dict
        The fiducial one, for the Einstein radii of its parents.

    Returns
    -------
    pandas.DataFrame
        injection_id, theta_E, anchor (row of the host whose seeing and depth are to be matched), flat_weight,
        population_weight; row_<kind> (in the host table) and untied_<kind> of `HOSTS`.

    Notes
    -----
    Half the rows are even over the cells theta_E x seeing x depth that have deflector-like hosts; the others follow the
    parents' theta_E and the hosts of the survey. Both weights are target density over that of the mixture, at most 2.
    """
    seeing, depth = assign_bins(hosts["psfsize_r"], grid.seeing), assign_bins(hosts["depth_r"], grid.depth)
    column = np.where((seeing >= 0) & (depth >= 0) & hosts["in_deflector"], seeing * len(grid.depth) + depth, -1)
    numbers, counts = np.unique(column[column >= 0], return_counts=True)
    numbers = numbers[counts >= MIN_HOSTS]
    if not len(numbers):
        raise UserError(f"host table: no column of seeing and depth has {MIN_HOSTS} deflector-like hosts; take a "
                        "larger test split")  # fmt: skip
    weight = hosts["deflector_weight"].to_numpy() * hosts.get("footprint_weight", pd.Series(1.0, hosts.index))
    share = np.array([weight[column == number].sum() for number in numbers])
    share, edges = share / share.sum(), bin_edges(grid.theta_E)
    parents = draw_parents(rng.make_stream(seed, "injection/ladder/parents").random((20_000, 4)), prior)["theta_E"]
    chance = np.histogram(parents, edges)[0] + 1.0
    chance = chance / chance.sum()
    ids = FIRST_ID + np.arange(n)
    stream = rng.make_stream(seed, "injection/ladder/plan")
    even, u, inside = np.arange(n) % 2 == 0, np.empty((n, 2)), stream.random((n, 2))
    for half in (even, ~even):  # in even strata of both axes
        strata = stream.permuted(np.tile(np.arange(half.sum()), (2, 1)), axis=1).T
        u[half] = (strata + stream.random(strata.shape)) / max(half.sum(), 1)
    cell = np.where(even, (u[:, 0] * len(chance)).astype(int), _invert(chance, u[:, 0]))
    place = np.where(even, (u[:, 1] * len(numbers)).astype(int), _invert(share, u[:, 1]))
    members = [np.flatnonzero(column == number) for number in numbers]
    anchor = np.array([members[k][int(v * len(members[k]))] for k, v in zip(place, inside[:, 1], strict=True)])
    flat = 1.0 / (len(chance) * len(numbers))
    target = chance[cell] * share[place]
    plan = pd.DataFrame({
        "injection_id": ids, "theta_E": edges[cell] + np.diff(edges)[cell] * inside[:, 0], "anchor": anchor,
        "flat_weight": flat / (0.5 * (flat + target)), "population_weight": target / (0.5 * (flat + target)),
    })  # fmt: skip
    for (deflectors, tied), kind in HOSTS.items():
        plan[f"row_{kind}"], plan[f"untied_{kind}"] = choose_hosts(plan, hosts, deflectors, tied, seed, prior)
    return plan


def _invert(chance, u):
    return np.minimum(np.searchsorted(np.cumsum(chance), u, side="right"), len(chance) - 1)


def choose_hosts(plan, hosts, deflectors, tied, seed, prior):
    """Choose a host of like seeing and depth for every row of a plan.

    Parameters
    ----------
    plan, hosts : pandas.DataFrame
    deflectors : bool
        Among deflector-like galaxies, by deflector_weight; else any galaxy of the parent population, all alike.
    tied : bool
        In proportion, too, to the chance that the host's velocity dispersion makes the Einstein radius.
    seed : int
    prior : dict
        With ``deflector.kind = "vdf"``.

    Returns
    -------
    (ndarray of shape (N,), ndarray of shape (N,))
        Row in the host table; whether the host could not make this arc, or was not asked.
    """
    rows = np.flatnonzero(hosts["in_deflector" if deflectors else "in_deployment"])
    base = hosts["deflector_weight"].to_numpy()[rows] if deflectors else np.ones(len(rows))
    points = hosts[["psfsize_r", "depth_r"]].to_numpy() / MATCH
    k = min(N_NEAR, len(rows))
    near = cKDTree(points[rows]).query(points[plan["anchor"]], k=k)[1].reshape(len(plan), k)
    weight, untied = base[near], np.ones(len(plan), dtype=bool)
    if tied:
        own = hosts.iloc[rows[near.ravel()]]
        log_sigma = np.log10(np.maximum(own["sigma_v"].fillna(1.0), 1.0))
        theta_E = np.repeat(plan["theta_E"].to_numpy(), k)
        kernel, _, density = source_kernel(theta_E, np.clip(own["z_phot"], *prior["deflector"]["z"]), log_sigma, prior)
        best = kernel.max(axis=1).reshape(len(plan), k)
        peak = best.max(axis=1)
        scaled = np.exp(kernel - np.repeat(peak, k)[:, None]) @ density
        weight = weight * scaled.reshape(len(plan), k)
    u = rng.draw_uniforms(seed, "injection/ladder/hosts", plan["injection_id"].to_numpy(), 1)
    cumulative = np.cumsum(weight, axis=1)
    pick = np.minimum((cumulative <= u * cumulative[:, -1:]).sum(axis=1), k - 1)
    if tied:
        untied = best[np.arange(len(plan)), pick] < PLAUSIBLE
    return rows[near[np.arange(len(plan)), pick]], untied


def draw_rung(plan, hosts, fiducial, priors, config, seed):
    """Draw the injections of one combination of ingredients.

    Parameters
    ----------
    plan : pandas.DataFrame
        From `plan_rungs`.
    hosts : pandas.DataFrame
    fiducial : set of str
        Which of `DRAWN` come from the second prior. magnitudes: r; colours: g-r and r-z; position: of the source
        behind the lens; cuts: multiply imaged, mu and arc_snr_true above the configuration's limits; tie: theta_E to
        the host's velocity dispersion; mass: axis ratio, angle, shear.
    priors : (dict, dict)
        The published and the fiducial prior.
    config : lensaudit.config.Config
    seed : int

    Returns
    -------
    pandas.DataFrame
        Injection table, measured with the hosts' own Moffat PSF whatever the rung renders; rows without an accepted
        proposal are absent.
    """
    kind = HOSTS["hosts" in fiducial, "tie" in fiducial]
    own = hosts.iloc[plan[f"row_{kind}"]].reset_index(drop=True)
    base = {"theta_E": plan["theta_E"].to_numpy(), "z_lens": np.clip(own["z_phot"], *priors[1]["deflector"]["z"])}
    cumulative = None
    if "tie" in fiducial:
        log_sigma = np.log10(np.maximum(own["sigma_v"].fillna(1.0), 1.0))
        cumulative = tabulate_sources(base["theta_E"], base["z_lens"], log_sigma, priors[1])
    names = {k: own[k].to_numpy() for k in ("host_index", "galaxy_id", "brickname")}
    weights = {k: plan[k].to_numpy() for k in ("flat_weight", "population_weight")}
    base = pd.DataFrame({"injection_id": plan["injection_id"].to_numpy(), **names, **base, **weights,
                         "untied": plan[f"untied_{kind}"].to_numpy()})  # fmt: skip
    left, done = np.arange(len(plan)), []
    for attempt, tries in enumerate(ROUNDS if "cuts" in fiducial else (1,)):
        ids = base["injection_id"].to_numpy()[left]
        u = rng.draw_uniforms(seed, f"injection/ladder/{attempt}", ids, tries * N_UNIFORMS).reshape(-1, N_UNIFORMS)
        owner = np.repeat(left, tries)
        table = _propose(u, base.iloc[owner].reset_index(drop=True), own.iloc[owner], fiducial, priors, cumulative,
                         owner, config)  # fmt: skip
        done.append(_accept(table, hosts, fiducial, config, seed))
        left = left[~np.isin(ids, done[-1]["injection_id"])]
        if not len(left):
            break
    return pd.concat(done, ignore_index=True).sort_values("injection_id", ignore_index=True)


def _propose(u, table, own, fiducial, priors, cumulative, owner, config):
    """Return the proposals of uniforms u, each ingredient from its prior."""
    if cumulative is None:
        low, high = priors[0]["source"]["z"]
        z_source = low + (high - low) * u[:, -1]
    else:
        n_z = cumulative.shape[1]
        # One search for all rows: each row's cumulative is raised by its number.
        flat = (cumulative + np.arange(len(cumulative))[:, None]).ravel()
        bin_of = np.searchsorted(flat, owner + u[:, -1], side="right") - owner * n_z
        z_source = priors[1]["source"]["z"][0] + 0.05 * (np.clip(bin_of, 0, n_z - 1) + 0.5)
    table = table.assign(z_source=z_source)
    table["sigma_v"] = np.clip(theta_to_sigma(table["theta_E"], table["z_lens"], np.maximum(
        z_source, table["z_lens"] + 0.05), priors[1]), 50.0, 500.0)  # fmt: skip
    sources = [draw_sources(u[:, :N_SOURCE], z_source, prior) for prior in priors]
    light = {k: own[k].to_numpy() for k in ("q_light", "phi_light")}
    shapes = [draw_geometry(u[:, N_SOURCE:-1], table, light, prior, config) for prior in priors]

    def pick(ingredient, parts, *columns):
        chosen = parts[ingredient in fiducial]
        return {name: np.asarray(chosen[name]) for name in columns}

    out = pick("radius", sources, "source_R") | pick("index", sources, "source_n")
    out |= pick("clumps", sources, "n_clumps", "clump_fraction") | pick("axis_ratio", sources, "source_q", "source_phi")
    out |= pick("position", shapes, "source_x", "source_y")
    out |= pick("mass", shapes, "q", "phi", "gamma1", "gamma2", "psf_beta")
    colours, r = sources["colours" in fiducial], sources["magnitudes" in fiducial]["mag_source_r"]
    out |= {f"mag_source_{b}": r + (colours[f"mag_source_{b}"] - colours["mag_source_r"]) for b in BANDS}
    return table.assign(**out)


def _accept(table, hosts, fiducial, config, seed):
    """Return the first accepted proposal of each id, measured."""
    own = hosts.set_index("host_index").loc[table["host_index"].to_numpy()]
    section, cuts = config.injection, "cuts" in fiducial
    snr = photometry.mag_to_flux(table["mag_source_r"].to_numpy()) * own["mw_transmission_r"].to_numpy()
    snr, psfsize = snr * np.sqrt(own["psfdepth_r"].to_numpy()), own["psfsize_r"].to_numpy()
    columns, limits = {k: table[k].to_numpy() for k in table}, (0.0, 0.0, 1.0)
    if cuts:
        slack = np.where(columns["n_clumps"] > 0, ROUGH_SLACK, SLACK)
        mu, bound = bound_arcs(columns, psfsize, snr)
        keep = (mu * slack > section.min_mu) & (bound * slack > section.min_arc_snr_true)
        table, psfsize, snr = table[keep], psfsize[keep], snr[keep]
        columns = {k: table[k].to_numpy() for k in table}
        limits = (section.min_mu, section.min_arc_snr_true, slack[keep])
    arcs = forecast_arcs(columns, psfsize, snr, *limits)
    table = table.assign(multiplicity=arcs["multiplicity"])
    if cuts:
        table = table[arcs["passed"] & (arcs["multiplicity"] >= 2)]
    done = []
    while len(table):
        first = ~table["injection_id"].duplicated()
        measured = measure_injections(table[first].reset_index(drop=True), hosts, config, seed)
        if cuts:
            measured = measured[(measured["mu"] > section.min_mu)
                                & (measured["arc_snr_true"] > section.min_arc_snr_true)]  # fmt: skip
        done.append(measured)
        table = table[~first & ~table["injection_id"].isin(measured["injection_id"])]
    return pd.concat(done, ignore_index=True) if done else table.assign(mu=0.0, arc_snr_true=0.0)
