"""Drawing injection tables: the closure set, the completeness grid, twins of known lenses.

Every injection id has its own stream of proposals and takes the first that is accepted: multiply imaged, magnified by
more than `injection.min_mu` and with arc_snr_true above `injection.min_arc_snr_true` on the rendered r-band arc of its
own host (where the prior's ``cuts`` say so). So the table is the prior *conditioned on* those cuts, and no draw depends
on which others are made with it.
"""

import functools

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri

from lensaudit import photometry, rng
from lensaudit.config import Config
from lensaudit.injection.cells import plan_grid, source_kernel
from lensaudit.injection.hosts import HostMatcher, match_conditions, swap_hosts
from lensaudit.injection.inject import MAX_CLUMPS, measure_injections, single_thread
from lensaudit.injection.population import (
    draw_axis_ratio,
    draw_parents,
    draw_sources,
    load_prior,
    theta_to_sigma,
)
from lensaudit.lensing.mass import magnify_images
from lensaudit.lensing.render import LENS
from lensaudit.shards import map_shards

TRIES = 32  # proposals per round
MAX_ROUNDS = 25  # an id without an accepted proposal after these is left out, and counted by its absence
N_UNIFORMS = 21
SLACK = 1.6  # the S/N predicted without rendering may be this much too low before a proposal is thrown away
TWIN_IDS = 2_000_000_000  # ids of the sets start apart (grid: `cells.FIRST_ID`), so that no two share noise
COLUMNS = (
    "injection_id", "host_index", "galaxy_id", "brickname", "cell", "theta_E", "q", "phi", "gamma1", "gamma2", "z_lens",
    "z_source", "sigma_v", "source_x", "source_y", "mag_source_g", "mag_source_r", "mag_source_z", "source_R",
    "source_n", "source_q", "source_phi", "n_clumps", "clump_fraction", "psf_beta", "multiplicity", "mu",
    "mag_lensed_g", "mag_lensed_r", "mag_lensed_z", "arc_snr_true", "log_q", "untied", "weight",
)  # fmt: skip


def draw_closure(hosts, n, seed, prior="collett", population="deflector", config=None, first_id=0, workers=1):
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

    Returns
    -------
    pandas.DataFrame
        Injection table (`COLUMNS`). ``weight`` is 1: rows are equally likely draws; multiply with the host's
        footprint_weight for survey averages. Ids without an accepted proposal are absent.
    """
    prior, config = load_prior(prior), config or Config()
    ids = np.arange(first_id, first_id + n)
    table = _draw_sharded(ids, None, hosts, seed, "injection/closure", prior, config, workers)
    if population == "deflector":
        return table
    swapped = swap_hosts(table, hosts, seed, population)
    return measure_injections(swapped, hosts, config, seed)[list(COLUMNS)]


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

    Notes
    -----
    theta_E is uniform inside its bin, in even strata. A host belongs to the column of its own psfsize_r and depth_r and
    is drawn in proportion to deflector_weight x the integral over z_source of the number of sources times
    p(sigma(theta_E, z_lens, z_source) | host); z_source then from that integrand, z_lens is the host's photo-z. At most
    `injection.max_per_host` per host and cell; where plausible hosts do not suffice, the remaining injections go to the
    most massive others and are ``untied`` with ``weight`` 0, and only then is the limit raised. Sources are the
    prior's, multiply imaged and within the cuts of the fiducial prior.
    """
    prior, config = load_prior(prior), config or Config()
    limit, tables, used, missing = config.injection.max_per_host, [], {}, None
    for attempt in range(3):
        plan = plan_grid(hosts, grid, seed, prior, limit, missing, used, attempt)
        if not len(plan):
            break
        ids = plan["injection_id"].to_numpy()
        tables.append(_draw_sharded(ids, plan, hosts, seed, "injection/grid", prior, config, workers))
        for cell, rows in plan.groupby("cell")["row"]:
            used[cell] = np.union1d(used.get(cell, []), rows)
        lost = plan.loc[~plan["injection_id"].isin(tables[-1]["injection_id"]), "cell"]
        missing = lost.value_counts().to_dict()
    if not tables:
        return pd.DataFrame({c: [] for c in COLUMNS})
    return pd.concat(tables, ignore_index=True).sort_values("injection_id").reset_index(drop=True)


def _draw_sharded(ids, plan, hosts, seed, name, prior, config, workers):
    """Draw the accepted rows of all ids, in blocks."""
    blocks = np.array_split(np.arange(len(ids)), max(1, min(len(ids) // 2048, 64)))
    shards = [(ids[b], None if plan is None else plan.iloc[b]) for b in blocks if len(b)]
    task = functools.partial(_draw_block, hosts=hosts, seed=seed, name=name, prior=prior, config=config)
    parts = map_shards(task, shards, workers, f"drawing {name}" if len(shards) > 1 else "")
    parts = [p for p in parts if len(p)]
    if not parts:
        return pd.DataFrame({c: [] for c in COLUMNS})
    return pd.concat(parts, ignore_index=True).sort_values("injection_id").reset_index(drop=True)[list(COLUMNS)]


def _draw_block(shard, hosts, seed, name, prior, config, chunk=8192):
    ids, plan = shard
    tied = prior["deflector"]["kind"] == "vdf"
    matcher = HostMatcher(hosts) if plan is None and tied else None
    done = []
    for start in range(0, len(ids), chunk):
        pending, rows = ids[start : start + chunk], None if plan is None else plan.iloc[start : start + chunk]
        for attempt in range(MAX_ROUNDS):
            accepted = _run_round(pending, rows, attempt, matcher, hosts, seed, name, prior, config)
            done.append(accepted)
            left = ~np.isin(pending, accepted["injection_id"].to_numpy())
            pending, rows = pending[left], None if rows is None else rows[left]
            if not len(pending):
                break
    return pd.concat(done, ignore_index=True)


def _run_round(ids, rows, attempt, matcher, hosts, seed, name, prior, config):
    """Return the accepted row of each id that has one among this round's proposals."""
    u = rng.draw_uniforms(seed, f"{name}/{attempt}", ids, TRIES * N_UNIFORMS).reshape(-1, N_UNIFORMS)
    owner = np.repeat(np.arange(len(ids)), TRIES)
    table = _propose(u, owner, rows, matcher, hosts, prior, config)
    table.insert(0, "injection_id", ids[owner[table.pop("proposal")]])
    table = _precut(table, hosts, prior, config)
    accepted = []
    while len(table):
        first = ~table["injection_id"].duplicated()
        measured = measure_injections(table[first].reset_index(drop=True), hosts, config, seed)
        good = np.ones(len(measured), dtype=bool)
        if prior["cuts"]["selection"]:
            section = config.injection
            bright = measured["arc_snr_true"] > section.min_arc_snr_true
            good = ((measured["mu"] > section.min_mu) & bright).to_numpy()
        accepted.append(measured[good])
        table = table[~first & ~table["injection_id"].isin(measured["injection_id"][good])]
    if not accepted:
        return pd.DataFrame({c: pd.Series(dtype=float) for c in COLUMNS})
    return pd.concat(accepted, ignore_index=True)


def _propose(u, owner, rows, matcher, hosts, prior, config):
    """Turn uniforms into proposals; those without a host or source are dropped. Column ``proposal`` is the row of u."""
    d, out = prior["deflector"], {"proposal": np.arange(len(u))}
    if matcher is not None:
        out |= draw_parents(u[:, :4], prior)
        row = matcher.pick(out["sigma_v"], out["z_lens"], u[:, 4])
        out |= {"cell": np.full(len(u), -1), "untied": np.zeros(len(u), dtype=bool), "weight": np.ones(len(u))}
    else:
        if rows is None:
            weight = np.cumsum(hosts["deployment_weight"].to_numpy())
            row = np.minimum(np.searchsorted(weight, u[:, 4] * weight[-1], side="right"), len(hosts) - 1)
            low, high = d["theta_E"]
            out |= {"theta_E": low + (high - low) * u[:, 0], "cell": np.full(len(u), -1), "weight": np.ones(len(u)),
                    "untied": np.ones(len(u), dtype=bool)}  # fmt: skip
        else:
            plan = rows.iloc[owner]
            row, untied = plan["row"].to_numpy(), plan["untied"].to_numpy()
            keeps = np.where(untied & (d["kind"] == "vdf"), 0.0, 1.0)
            out |= {"theta_E": plan["theta_E"].to_numpy(), "cell": plan["cell"].to_numpy(), "untied": untied,
                    "weight": keeps}  # fmt: skip
        z_lens = np.clip(hosts["z_phot"].to_numpy()[row], d["z"][0], d["z"][1])
        out |= {"z_lens": z_lens, "z_source": _draw_z_source(u[:, 0:2], out["theta_E"], z_lens, hosts, row, prior)}
        out["sigma_v"] = theta_to_sigma(out["theta_E"], z_lens, out["z_source"], prior)
        out["log_q"] = np.zeros(len(u))
    keep = (row >= 0) & (out["z_source"] > out["z_lens"])
    out = {k: v[keep] for k, v in out.items()}
    u, row = u[keep], row[keep]
    source = draw_sources(u[:, 5:14], out["z_source"], prior)
    out["log_q"] = out["log_q"] + source.pop("log_q")
    out |= source | _draw_geometry(u[:, 14:], out, hosts.iloc[row], prior, config)
    own = hosts.iloc[row]
    out |= {name: own[name].to_numpy() for name in ("host_index", "galaxy_id", "brickname")}
    return pd.DataFrame(out)


def _draw_z_source(u, theta_E, z_lens, hosts, row, prior):
    s = prior["source"]
    if prior["deflector"]["kind"] != "vdf":
        return s["z"][0] + (s["z"][1] - s["z"][0]) * u[:, 1]
    log_kernel, z, density = source_kernel(theta_E, z_lens, np.log10(hosts["sigma_v"].to_numpy()[row]), prior)
    weight = np.exp(log_kernel - log_kernel.max(axis=1, keepdims=True)) * density
    cumulative = np.cumsum(weight, axis=1)
    pick = (cumulative < u[:, :1] * cumulative[:, -1:]).sum(axis=1)
    return z[np.minimum(pick, len(z) - 1)] + 0.05 * (u[:, 1] - 0.5)


def _draw_geometry(u, table, own, prior, config):
    """Draw source position, mass shape tied to the light, shear and the PSF's nuisance beta from 7 uniforms."""
    d = prior["deflector"]
    low, high = prior["source"]["position"]
    radius = table["theta_E"] * np.sqrt(low**2 + (high**2 - low**2) * u[:, 0])
    angle = 2.0 * np.pi * u[:, 1]
    a, b = d["axis_ratio"]
    light, phi = own["q_light"].to_numpy(), own["phi_light"].to_numpy()
    # A round light profile says nothing of the mass's angle, so that q comes from the population.
    free = draw_axis_ratio(u[:, 2], np.maximum(a - b * table["sigma_v"], 0.05))
    tied = np.clip(light + d["axis_ratio_scatter"] * ndtri(np.clip(u[:, 2], 1e-9, 1 - 1e-9)), 0.2, 1.0)
    round_light = light > 0.97
    spread = np.minimum(d["angle_scatter"] * 0.3 / np.maximum(1.0 - light, 0.03), 1.5)
    turned = phi + spread * ndtri(np.clip(u[:, 3], 1e-9, 1 - 1e-9))
    shear = d["shear"] * np.clip(ndtri(np.clip(u[:, 4:6], 1e-9, 1 - 1e-9)), -4.0, 4.0)
    betas = np.asarray(config.injection.psf_betas)
    return {
        "source_x": radius * np.cos(angle), "source_y": radius * np.sin(angle),
        "q": np.where(round_light, free, tied), "phi": np.where(round_light, np.pi * u[:, 3], turned),
        "gamma1": shear[:, 0], "gamma2": shear[:, 1],
        "psf_beta": betas[np.minimum((u[:, 6] * len(betas)).astype(int), len(betas) - 1)],
    }  # fmt: skip


def _precut(table, hosts, prior, config):
    """Drop proposals that cannot pass, cheaply: not multiply imaged, or too faint for any rendering to mend."""
    own = hosts.set_index("host_index").loc[table["host_index"].to_numpy()]
    flux = photometry.mag_to_flux(table["mag_source_r"]) * own["mw_transmission_r"].to_numpy()
    point = flux * np.sqrt(own["psfdepth_r"].to_numpy())  # S/N of the unlensed source, were it a point
    section, cuts = config.injection, prior["cuts"]
    if cuts["selection"]:
        bright = point * 100.0 > section.min_arc_snr_true
        table, own, point = table[bright], own[bright], point[bright]
    table = table.assign(multiplicity=0)
    count, total, snr = predict_snr(table, own["psfsize_r"].to_numpy(), point)
    keep = np.ones(len(table), dtype=bool)
    if cuts["multiply_imaged"]:
        keep &= count >= 2
    if cuts["selection"]:
        keep &= (total > 0.5 * section.min_mu) & (snr * SLACK > section.min_arc_snr_true)
    return table.assign(multiplicity=count)[keep]


def predict_snr(table, psfsize, point_snr, block=4096):
    """Return number of images, point-source magnification and a predicted arc_snr_true, without rendering.

    Parameters
    ----------
    table : pandas.DataFrame
        Lens and source parameters, N rows.
    psfsize, point_snr : ndarray of shape (N,)
        r-band psfsize [arcsec]; S/N of the unlensed source if it were a point.

    Notes
    -----
    Each image is a Gaussian of the PSF's noise-equivalent width, widened by the source across and by mu times the
    source along the arc: sum f^2 adds over images. Good to a factor `SLACK`, which is tested.
    """
    count, total, snr = np.zeros(len(table), dtype=np.int64), np.zeros(len(table)), np.zeros(len(table))
    names = ("source_x", "source_y", "source_R", *LENS)
    columns = {k: torch.as_tensor(table[k].to_numpy(dtype=np.float32)) for k in names}
    seeing = torch.as_tensor((np.asarray(psfsize) / photometry.FWHM_OF_SIGMA).astype(np.float32))
    for start in range(0, len(table), block):
        part = {k: v[start : start + block] for k, v in columns.items()}
        s2 = seeing[start : start + block, None] ** 2
        width = 0.84 * part["source_R"][:, None]
        with single_thread():
            mu = magnify_images(part["source_x"], part["source_y"], {k: part[k] for k in LENS})
            mu = torch.minimum(mu, 1.0 + 2.5 * part["theta_E"][:, None] / width)
            power = mu**2 * s2 / torch.sqrt((s2 + width**2) * (s2 + (mu * width) ** 2))
            images, magnification, signal = (mu > 0).sum(1), mu.sum(1), torch.sqrt(power.sum(1))
        stop = start + len(mu)
        count[start:stop], total[start:stop] = images.numpy(), magnification.numpy()
        snr[start:stop] = np.asarray(point_snr)[start:stop] * signal.numpy()
    return count, total, snr


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
    u = rng.draw_uniforms(seed, "injection/twins", table["injection_id"].to_numpy(), 9)
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
    count, _, _ = predict_snr(table, own["psfsize_r"].to_numpy(), np.ones(len(table)))
    table = measure_injections(table.assign(multiplicity=count), hosts, config, seed)
    return table[list(COLUMNS)].assign(lens_id=lens_id)
