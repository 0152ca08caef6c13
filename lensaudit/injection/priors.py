"""Drawing injection tables: the closure set, the completeness grid, twins of known lenses.

Every injection id has its own stream of proposals and takes the first that is accepted: multiply imaged, magnified by
more than `injection.min_mu` and with arc_snr_true above `injection.min_arc_snr_true` on the rendered r-band arc of its
own host (where the prior's ``cuts`` say so). So the table is the prior *conditioned on* those cuts, and no draw depends
on which others are made with it.
"""

import functools

import numpy as np
import pandas as pd
from scipy.special import ndtri

from lensaudit import photometry, rng
from lensaudit.config import Config
from lensaudit.constants import BANDS
from lensaudit.injection.acceptance import add_acceptance
from lensaudit.injection.cells import plan_brief, plan_grid, tabulate_sources
from lensaudit.injection.checks import MAX_CLUMPS
from lensaudit.injection.density import measure_source_density
from lensaudit.injection.forecast import add_brightness, bound_arcs, forecast_arcs
from lensaudit.injection.hosts import HostMatcher, match_conditions, swap_hosts
from lensaudit.injection.inject import measure_injections
from lensaudit.injection.light import read_psf
from lensaudit.injection.population import (
    draw_axis_ratio,
    draw_parents,
    draw_sources,
    draw_structure,
    load_prior,
    theta_to_sigma,
)
from lensaudit.lensing.images import count_images
from lensaudit.lensing.mass import pack_lens
from lensaudit.shards import map_shards

ROUNDS = (16, 48, 128, 256, 352)  # proposals per id; one without an accepted proposal after all is left out
N_UNIFORMS = 24
# The forecast may be this much too low before a proposal is thrown away without rendering, more where it does not know
# the clumps or the mass; of 6,000 acceptable ones, 0.08 per cent are lower.
SLACK, ROUGH_SLACK = 1.2, 1.6
TWIN_IDS = 2_000_000_000  # ids of the sets start apart (grid: `cells.FIRST_ID`), so that no two share noise
COLUMNS = (
    "injection_id", "host_index", "galaxy_id", "brickname", "cell", "theta_E", "q", "phi", "gamma1", "gamma2", "z_lens",
    "z_source", "sigma_v", "source_x", "source_y", "mag_source_g", "mag_source_r", "mag_source_z", "source_R",
    "source_n", "source_q", "source_phi", "n_clumps", "clump_fraction", "psf_beta", "multiplicity", "mu",
    "mag_lensed_g", "mag_lensed_r", "mag_lensed_z", "arc_snr_true", "arc_surface_brightness", "log_q", "untied",
    "weight",
)  # fmt: skip
OPTIONAL = ("slope", "a3", "phi3", "a4", "phi4", "subhalo_theta_E", "subhalo_x", "subhalo_y", "subhalo_r_cut",
            "gradient")  # fmt: skip
HOST_FIELDS = ("z_phot", "sigma_v", "q_light", "phi_light", "psfsize_r", "psfdepth_r", "mw_transmission_r",
               "deployment_weight")  # fmt: skip


def draw_closure(hosts, n, seed, prior="collett", population="deflector", config=None, first_id=0, workers=1,
                 tilt=None, n_fair=0):  # fmt: skip
    """Draw `n` injections from a prior into matched hosts.

    Parameters
    ----------
    hosts : pandas.DataFrame
        From `hosts.make_hosts`.
    n : int
    seed : int
    prior : str or dict
    population : str
        ``"deflector"``: hosts that fit the deflector (main). ``"deployment"``, ``"random"``: the same arcs put into
        other hosts of like seeing and depth (`hosts.swap_hosts`); a negative control of closure.
    config : lensaudit.config.Config, optional
    first_id : int
        injection_id of the first; ids may be cut in blocks without changing any row.
    workers : int
        Processes; the table does not depend on it.
    tilt : (float, float), optional
        Reference and power: a proposal of forecast S/N s is kept with the chance min(1, (s / reference)^power), so that
        bright arcs, which a catalogue holds and a prior seldom draws, are many.
    n_fair : int
        Of the rows, the first ones, that the tilt leaves alone.

    Returns
    -------
    pandas.DataFrame
        Injection table (`COLUMNS`; log_q: see `density`) with ``tilted`` where there is a tilt. ``weight`` undoes it
        and is 1 without one; multiply with the host's footprint_weight for survey averages. Ids without an accepted
        proposal are absent.

    Notes
    -----
    Fair and tilted rows together are a mixture of two densities, the prior's p and p k / E[k] of the chance k, and are
    weighted with p over that mixture (the balance heuristic of Veach & Guibas 1995); E[k] is the mean over fair rows.
    """
    prior, config = load_prior(prior), config or Config()
    ids, below = np.arange(first_id, first_id + n), first_id + n_fair
    table = _draw_sharded(ids, None, hosts, seed, "injection/closure", prior, config, workers, tilt and (*tilt, below))
    if tilt:
        fair, chance = (table["injection_id"] < below).to_numpy(), table["weight"].to_numpy()
        mean = chance[fair].mean() if fair.any() else 1.0
        table = table.assign(tilted=~fair, weight=1.0 / (fair.mean() + (1.0 - fair.mean()) * chance / mean))
    if population == "deflector":
        return order_columns(table)
    swapped = swap_hosts(table, hosts, seed, population)
    return order_columns(add_brightness(measure_injections(swapped, hosts, config, seed), hosts))


def draw_grid(hosts, grid, seed, prior="collett", config=None, workers=1):
    """Draw the injections of the completeness grid: theta_E x seeing x depth.

    Parameters
    ----------
    hosts : pandas.DataFrame
    grid : lensaudit.config.CompletenessConfig
        Bin centres (theta_E, seeing, depth) and n_per_cell. Edges lie half a step outside; hosts beyond them are in no
        cell.
    seed : int
    prior : str or dict
    config : lensaudit.config.Config, optional
    workers : int

    Returns
    -------
    pandas.DataFrame
        Injection table; ``cell`` = (i_theta * n_seeing + i_seeing) * n_depth + i_depth. Cells without hosts are absent.
        log_acceptance: see `acceptance`.

    Notes
    -----
    theta_E is uniform inside its bin, in even strata. A host belongs to the column of its own psfsize_r and depth_r and
    is drawn in proportion to deflector_weight x the integral over z_source of the number of sources times
    p(sigma(theta_E, z_lens, z_source) | host); z_source then from that integrand, z_lens is the host's photo-z. At most
    `injection.max_per_host` per host and cell; where plausible hosts do not suffice, the remaining injections go to the
    most massive others and are ``untied`` with ``weight`` 0, and only then is the limit raised. Sources are the
    prior's, multiply imaged and within the cuts of the fiducial prior. Source position and magnitude are independent
    draws: one proposal in some 100 is accepted, and thinning evenly spread points so far leaves them as random.
    """
    prior, config = load_prior(prior), config or Config()
    limit, tables, plans, used, missing = config.injection.max_per_host, [], [], {}, None
    for attempt in range(3):
        plan = plan_grid(hosts, grid, seed, prior, limit, missing, used, attempt)
        if not len(plan):
            break
        ids = plan["injection_id"].to_numpy()
        tables.append(_draw_sharded(ids, plan, hosts, seed, "injection/grid", prior, config, workers))
        for cell, rows in plan.groupby("cell")["row"]:
            used[cell] = np.union1d(used.get(cell, []), rows)
        plans.append(plan.assign(found=plan["injection_id"].isin(tables[-1]["injection_id"])))
        missing = plan.loc[~plans[-1]["found"], "cell"].value_counts().to_dict()
    if not tables:
        return pd.DataFrame({c: [] for c in (*COLUMNS, "log_acceptance")})
    table = pd.concat(tables, ignore_index=True).sort_values("injection_id").reset_index(drop=True)
    return order_columns(add_acceptance(table, pd.concat(plans), hosts, prior, sum(ROUNDS)))


def draw_brief(hosts, n_per_cell, seed, prior="brief_grid", config=None, workers=1):
    """Draw a prior's own grid, theta_E x source-lens magnitude difference x source size; see `cells.plan_brief`.

    log_q is NaN, as the grid sets what a prior would draw.
    """
    prior, config = load_prior(prior), config or Config()
    plan = plan_brief(hosts, n_per_cell, seed, prior)
    ids = plan["injection_id"].to_numpy()
    table = _draw_sharded(ids, plan, hosts, seed, "injection/brief", prior, config, workers)
    return order_columns(table.assign(log_q=np.nan))


def _draw_sharded(ids, plan, hosts, seed, name, prior, config, workers, tilt=None):
    """Draw the accepted rows of all ids, in blocks."""
    blocks = np.array_split(np.arange(len(ids)), max(1, len(ids) // 2048))
    shards = [(ids[b], None if plan is None else plan.iloc[b]) for b in blocks if len(b)]
    task = functools.partial(_draw_block, hosts=hosts, seed=seed, name=name, prior=prior, config=config, tilt=tilt)
    parts = map_shards(task, shards, workers, f"drawing {name}" if len(shards) > 1 else "")
    if not any(map(len, parts)):
        return pd.DataFrame({c: [] for c in (*COLUMNS, "n_trials")})
    return pd.concat(parts).sort_values("injection_id").reset_index(drop=True)


def order_columns(table):
    """Return the table's columns in their order, the optional ones last, others left out."""
    return table[[*COLUMNS, *(c for c in (*OPTIONAL, "log_acceptance", "tilted") if c in table)]]


def _draw_block(shard, hosts, seed, name, prior, config, tilt=None):
    ids, plan = shard
    fields = {k: hosts[k].to_numpy(dtype=np.float64) for k in HOST_FIELDS}
    tied = prior["deflector"]["kind"] == "vdf"
    matcher = HostMatcher(hosts) if plan is None and tied else None
    work = {"injection_id": np.asarray(ids)}
    if plan is not None:
        names = ("cell", "theta_E", "row", "untied", "log_q", "mag_source_r", "source_R")
        work |= {k: plan[k].to_numpy() for k in names if k in plan}
    if plan is not None and tied:
        z_lens = _clip_redshift(fields["z_phot"][work["row"]], prior)
        work["sources"] = tabulate_sources(work["theta_E"], z_lens, np.log10(fields["sigma_v"][work["row"]]), prior)
    done = []
    for attempt, tries in enumerate(ROUNDS):
        accepted = _run_round(work, attempt, tries, matcher, fields, hosts, seed, name, prior, config, tilt)
        done += accepted
        found = np.concatenate([np.zeros(0, int), *(part["injection_id"].to_numpy() for part in accepted)])
        left = ~np.isin(work["injection_id"], found)
        work = {k: v[left] for k, v in work.items()}
        if not left.any():
            break
    return pd.concat(done, ignore_index=True) if done else pd.DataFrame()


def _run_round(work, attempt, tries, matcher, fields, hosts, seed, name, prior, config, tilt):
    """Return tables with the accepted row of each id that has one among this round's proposals."""
    ids = work["injection_id"]
    u = rng.draw_uniforms(seed, f"{name}/{attempt}", ids, tries * N_UNIFORMS).reshape(-1, N_UNIFORMS)
    owner = np.repeat(np.arange(len(ids)), tries)
    table = _propose(u, owner, work, matcher, fields, prior, config)
    table |= draw_structure(seed, f"{name}/structure/{attempt}", ids, tries, table["proposal"], table, prior)
    # A fair row is kept whatever its chance.
    lot = u[:, -1] * (ids[owner] >= tilt[2]) if tilt else None
    table = _forecast(table, fields, prior, config, tilt, lot)
    trial = table.pop("proposal")
    owner, table["n_trials"] = owner[trial], sum(ROUNDS[:attempt]) + trial % tries + 1
    section, accepted = config.injection, []
    while len(owner):
        first = np.append(True, owner[1:] != owner[:-1])
        measured = _measure({k: v[first] for k, v in table.items()}, ids[owner[first]], hosts, prior, config, seed)
        good = np.ones(len(measured), dtype=bool)
        if prior["cuts"]["selection"]:
            bright = measured["arc_snr_true"] > section.min_arc_snr_true
            good = ((measured["mu"] > section.min_mu) & bright).to_numpy()
        accepted.append(measured[good])
        keep = ~first & ~np.isin(owner, owner[first][good])
        table, owner = {k: v[keep] for k, v in table.items()}, owner[keep]
    return [part for part in accepted if len(part)]


def _measure(columns, ids, hosts, prior, config, seed):
    """Return the injection table of the proposals, rendered."""
    row = columns.pop("row")
    own = hosts.iloc[row]
    names = {k: own[k].to_numpy() for k in ("host_index", "galaxy_id", "brickname")}
    table = pd.DataFrame({"injection_id": ids, **names, **columns})
    table["log_q"] += measure_source_density(table, prior)
    used = hosts.iloc[np.unique(row)]
    return add_brightness(measure_injections(table, used, config, seed, **read_psf(prior, own)), used)


def _clip_redshift(z_phot, prior):
    return np.clip(z_phot, *prior["deflector"]["z"])


def _propose(u, owner, work, matcher, fields, prior, config):
    """Turn uniforms into proposals; those without a host or source, or too faint, are dropped.

    ``proposal`` is the row of u, ``row`` that of the host table.
    """
    d, n = prior["deflector"], len(u)
    out = {"proposal": np.arange(n), "cell": np.full(n, -1), "untied": np.zeros(n, dtype=bool), "weight": np.ones(n)}
    if matcher is not None:
        out |= draw_parents(u[:, :4], prior)
        out["row"] = matcher.pick(out["sigma_v"], out["z_lens"], u[:, 4])
    else:
        if "row" in work:
            out |= {k: work[k][owner] for k in ("cell", "theta_E", "row", "untied")}
            out["weight"] = np.where(out["untied"] & (d["kind"] == "vdf"), 0.0, 1.0)
            out["log_q"] = work["log_q"][owner] if "log_q" in work else np.zeros(n)
        else:
            weight = np.cumsum(fields["deployment_weight"])
            out["row"] = np.minimum(np.searchsorted(weight, u[:, 4] * weight[-1], side="right"), len(weight) - 1)
            low, high = d["theta_E"]
            out |= {"theta_E": low + (high - low) * u[:, 0], "untied": np.ones(n, dtype=bool)}
            out["log_q"] = np.full(n, -np.log(high - low))
        out["z_lens"] = _clip_redshift(fields["z_phot"][out["row"]], prior)
        out["z_source"], log_q = _draw_z_source(u, owner, work, prior)
        out["log_q"] = out["log_q"] + log_q
        out["sigma_v"] = theta_to_sigma(out["theta_E"], out["z_lens"], out["z_source"], prior)
    keep = (out["row"] >= 0) & (out["z_source"] > out["z_lens"])
    out, u = {k: v[keep] for k, v in out.items()}, u[keep]
    source = draw_sources(u[:, 5:16], out["z_source"], prior)
    if "mag_source_r" in work:  # a grid that sets the source's magnitude and size
        shift = work["mag_source_r"][owner[keep]] - source["mag_source_r"]
        source |= {f"mag_source_{b}": source[f"mag_source_{b}"] + shift for b in BANDS}
        source["source_R"] = work["source_R"][owner[keep]]
    out |= source
    keep = _can_pass(out, fields, prior, config)
    out, u = {k: v[keep] for k, v in out.items()}, u[keep]
    own = {k: fields[k][out["row"]] for k in ("q_light", "phi_light")}
    out |= draw_geometry(u[:, 16:], out, own, prior, config)
    keep = _can_pass(out, fields, prior, config)
    return {k: v[keep] for k, v in out.items()}


def _can_pass(table, fields, prior, config):
    """Say which proposals the cuts do not rule out at first sight."""
    if not prior["cuts"]["selection"]:
        return np.ones(len(table["row"]), dtype=bool)
    own = {k: fields[k][table["row"]] for k in ("psfsize_r", "psfdepth_r", "mw_transmission_r")}
    mu, snr = bound_arcs(table, own["psfsize_r"], _point_snr(table, own))
    slack = np.where(table["n_clumps"] > 0, ROUGH_SLACK, SLACK)
    return (mu * slack > config.injection.min_mu) & (snr * slack > config.injection.min_arc_snr_true)


def _point_snr(table, own):
    """Return the r-band S/N of the unlensed source, were it a point."""
    return photometry.mag_to_flux(table["mag_source_r"]) * own["mw_transmission_r"] * np.sqrt(own["psfdepth_r"])


def _draw_z_source(u, owner, work, prior):
    """Return the redshifts and their log density."""
    if "sources" not in work:
        low, high = prior["source"]["z"]
        return low + (high - low) * u[:, 1], np.full(len(u), -np.log(high - low))
    z, cumulative = prior["source"]["z"][0] + 0.025 + 0.05 * np.arange(work["sources"].shape[1]), work["sources"]
    # One search for all rows: each row's cumulative is raised by its number.
    flat = (cumulative + np.arange(len(cumulative))[:, None]).ravel()
    cell = np.searchsorted(flat, owner + u[:, 0], side="right")
    pick = np.clip(cell - owner * len(z), 0, len(z) - 1)
    chance = cumulative[owner, pick] - np.where(pick > 0, cumulative[owner, np.maximum(pick - 1, 0)], 0.0)
    return z[pick] + 0.05 * (u[:, 1] - 0.5), np.log(np.maximum(chance, 1e-300) / 0.05)


def draw_geometry(u, table, own, prior, config):
    """Draw source position, mass shape tied to the light, shear and the PSF's nuisance beta from 7 uniforms."""
    d = prior["deflector"]
    low, high = prior["source"]["position"]
    radius = table["theta_E"] * np.sqrt(low**2 + (high**2 - low**2) * u[:, 0])
    angle = 2.0 * np.pi * u[:, 1]
    light, phi = own["q_light"], own["phi_light"]
    if "axis_ratio_range" in d:
        q, phi = d["axis_ratio_range"][0] + np.ptp(d["axis_ratio_range"]) * u[:, 2], np.pi * u[:, 3]
    else:
        # A round light profile says nothing of the mass's angle, so that q comes from the population.
        a, b = d["axis_ratio"]
        free = draw_axis_ratio(u[:, 2], np.maximum(a - b * table["sigma_v"], 0.05))
        tied = np.clip(light + d["axis_ratio_scatter"] * ndtri(np.clip(u[:, 2], 1e-9, 1 - 1e-9)), 0.2, 1.0)
        spread = np.minimum(d["angle_scatter"] * 0.3 / np.maximum(1.0 - light, 0.03), 1.5)
        turned = phi + spread * ndtri(np.clip(u[:, 3], 1e-9, 1 - 1e-9))
        q, phi = np.where(light > 0.97, free, tied), np.where(light > 0.97, np.pi * u[:, 3], turned)
    shear = d["shear"] * np.clip(ndtri(np.clip(u[:, 4:6], 1e-9, 1 - 1e-9)), -4.0, 4.0)
    betas = np.asarray(config.injection.psf_betas)
    return {
        "source_x": radius * np.cos(angle), "source_y": radius * np.sin(angle),
        "q": q, "phi": phi, "gamma1": shear[:, 0], "gamma2": shear[:, 1],
        "psf_beta": betas[np.minimum((u[:, 6] * len(betas)).astype(int), len(betas) - 1)],
    }  # fmt: skip


def _forecast(table, fields, prior, config, tilt, lot):
    """Add the multiplicity and drop proposals that cannot pass: singly imaged, or too faint for rendering to mend.

    With a tilt, a lot in [0, 1) for each row of u decides which of the others are kept; their weight is the chance.
    """
    section, cuts = config.injection, prior["cuts"]
    mass, limits = [k for k in OPTIONAL[:-1] if k in table], (0.0, 0.0, 1.0)
    if cuts["selection"]:
        slack = np.where((table["n_clumps"] > 0) | bool(mass), ROUGH_SLACK, SLACK)
        limits = (section.min_mu, section.min_arc_snr_true, slack)
    own = {k: fields[k][table["row"]] for k in ("psfsize_r", "psfdepth_r", "mw_transmission_r")}
    arcs = forecast_arcs(table, own["psfsize_r"], _point_snr(table, own), *limits)
    keep, table = arcs["passed"] | (not cuts["selection"]), table | {"multiplicity": arcs["multiplicity"]}
    if tilt is not None:
        chance = np.minimum(1.0, (arcs["snr"] / tilt[0]) ** tilt[1])
        keep &= lot[table["proposal"]] < chance
        table["weight"] = chance
    table = {k: v[keep] for k, v in table.items()}
    if mass:
        table["multiplicity"] = count_images(table["source_x"], table["source_y"], pack_lens(table))[0]
    keep = (table["multiplicity"] >= 2) | (not cuts["multiply_imaged"])
    return {k: v[keep] for k, v in table.items()}


def make_twins(parameters, hosts, n, seed, config=None):
    """Give known lenses `n` twins each: their own parameters in other galaxies like their hosts.

    Parameters
    ----------
    parameters : pandas.DataFrame
        Per lens: galaxy_id, theta_E, q, phi, gamma1, gamma2, z_lens, z_source, source_x, source_y, source_R, source_n,
        source_q, source_phi, mag_source_{g,r,z} (unlensed, before extinction), and for the match psfsize_r, depth_r,
        mag_r (mag_g, mag_z, mw_transmission_* where known). Other columns are ignored.
    hosts : pandas.DataFrame
    n : int
    seed : int
    config : lensaudit.config.Config, optional

    Returns
    -------
    pandas.DataFrame
        Injection table with ``lens_id`` = the lens's galaxy_id, n rows per lens. No cuts are applied.

    Notes
    -----
    Rendered as SIE + shear with the lens's theta_E, q and phi, whatever its true slope, and as a disc with or without
    clumps, whatever its true structure: what the twins miss of these is part of what closure tests.
    """
    config, prior = config or Config(), load_prior("collett")
    rows = match_conditions(hosts, parameters.reset_index(drop=True), n, seed)
    index = np.repeat(np.arange(len(parameters)), n)
    own = hosts.iloc[rows.ravel()]
    table = parameters.iloc[index].reset_index(drop=True)
    names = [c for c in COLUMNS if c in table and c not in ("galaxy_id", "brickname", "weight", "untied")]
    lens_id = table["galaxy_id"].to_numpy()
    table = table[names].assign(injection_id=TWIN_IDS + np.arange(len(table)))
    u = rng.draw_uniforms(seed, "injection/twins", table["injection_id"].to_numpy(), 11)
    s, betas = draw_sources(u, np.full(len(u), 1.0), prior), np.asarray(config.injection.psf_betas)
    table = table.assign(
        **{c: own[c].to_numpy() for c in ("host_index", "galaxy_id", "brickname")}, cell=-1,
        n_clumps=np.minimum(s["n_clumps"], MAX_CLUMPS), clump_fraction=s["clump_fraction"],
        psf_beta=betas[np.minimum((u[:, 0] * len(betas)).astype(int), len(betas) - 1)], log_q=np.nan, untied=False,
        weight=1.0, multiplicity=0,
    )  # fmt: skip
    if "sigma_v" not in table:
        table["sigma_v"] = theta_to_sigma(table["theta_E"], table["z_lens"], table["z_source"], prior)
    table["q"], table["source_q"] = table["q"].clip(0.1, 1.0), table["source_q"].clip(0.1, 1.0)
    table["source_R"], table["source_n"] = table["source_R"].clip(0.01, 5.0), table["source_n"].clip(0.4, 6.0)
    arcs = forecast_arcs(table, own["psfsize_r"], np.ones(len(table)))
    table = measure_injections(table.assign(multiplicity=arcs["multiplicity"]), hosts, config, seed)
    return order_columns(add_brightness(table, hosts)).assign(lens_id=lens_id)
