"""Filling the sky with lenses: rounds of parents at the known positions, undiscovered lenses at the physical rate."""

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.rng import make_stream
from lensaudit.simsky import lenses as lens_model
from lensaudit.simsky import physics, scene
from lensaudit.simsky.conditions import make_psf
from lensaudit.simsky.population import load_population

MAX_ROUNDS = 40
AREA = 0.0625  # square degrees per brick
MASS_COLUMNS = ("theta_E", "q", "phi", "gamma1", "gamma2", "slope")
# What drawing a lens's arcs needs of its row.
ARC_COLUMNS = (
    *MASS_COLUMNS,
    *("source_x", "source_y", "source_R", "source_q", "source_phi", "source_key"),
    *("mag_source_g", "mag_source_r", "mag_source_z"),
)


@contextlib.contextmanager
def open_map(workers):
    """Yield a function map(function, tasks, label) that works in `workers` spawned processes and keeps the order."""
    if workers <= 1:
        yield lambda function, tasks, label: [function(t) for t in tasks]
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, tasks, label: _collect(pool.map(function, tasks, chunksize=16), len(tasks), label)


def _collect(results, total, label):
    out = []
    for result in results:
        out.append(result)
        if len(out) % 256 == 0 or len(out) == total:
            print(
                f"{label}: {len(out)}/{total}   ", end="\n" if len(out) == total else "\r", file=sys.stderr, flush=True
            )
    return out


def list_conditions(quarters, ebv):
    """Return, per quarter of each brick, the mapping that discovery needs."""
    names = ("fwhm_r", "psfsize_r", "sigma_pix_r", "psfdepth_r")
    mw = np.repeat(physics.transmission(ebv, "r"), 4)
    rows = quarters[list(names)].to_dict("records")
    return [row | {"mw_r": float(m)} for row, m in zip(rows, mw, strict=True)]


def find_lenses(seed, spots, quarters, bricks, sky, run):
    """Send parents to all known positions at the same rate until enough lenses are catalogued.

    Parameters
    ----------
    seed : int
    spots : pandas.DataFrame
        Positions with brick and quarter.
    quarters, bricks : pandas.DataFrame
    sky : SkyConfig
    run : callable
        Of `open_map`.

    Returns
    -------
    found, spectroscopic : pandas.DataFrame
        Parents found by imaging or citizens (the catalogued lenses), and by spectroscopy alone.
    counts : dict
        n_parents (theta_E > 0.5 arcsec, mu > 3) tried, accepted_fraction, n_positions.

    Notes
    -----
    Positions with poor seeing or depth accept fewer parents and are filled later, or never: the catalogue inherits
    the selection. Each position's parents are a stream of their own.
    """
    conditions = list_conditions(quarters, bricks["ebv"].to_numpy())
    wanted = sky.n_lenses - round(sky.n_lenses * (1 - sky.tier_a_fraction) * sky.wrong_fraction)
    keys = _key_positions(spots)
    hits, single = _run_rounds(seed, keys, [conditions[i] for i in spots["brick"] * 4 + spots["quarter"]], wanted, run)
    if len(hits) < wanted:
        raise UserError(f"only {len(hits)} of {wanted} lenses were found; lower [sky] n_lenses or raise n_bricks")
    order = sorted(hits, key=lambda i: (hits[i][0], keys[i]))[:wanted]
    last = hits[order[-1]][0]
    tried = sum(min(hits[i][0], last) if i in hits else last for i in range(len(spots)))
    parents = tried * lens_model.measure_fraction(seed)
    counts = {
        "n_positions": len(spots),
        "n_parents": round(parents),
        "accepted_fraction": wanted / parents,
        "n_drawn_positions": int((spots["position_source"] == "drawn").sum()),
    }
    extra = sorted(set(single) - set(order), key=lambda i: keys[i])[: max(4, round(0.04 * sky.n_lenses))]
    place = ["ra", "dec", "brick", "position_source", *(c for c in ("ref", "zlens") if c in spots)]
    frames = []
    for chosen, rows in ((order, [hits[i][1] for i in order]), (extra, [single[i] for i in extra])):
        table = pd.concat([spots.loc[chosen, place].reset_index(drop=True), pd.DataFrame(rows)], axis=1)
        frames.append(_as_galaxies(table.assign(spot=chosen, is_catalogued=len(frames) == 0)))
    return frames[0], frames[1], counts


def _run_rounds(seed, keys, conditions, wanted, run):
    # All positions still open get the same number of parents per round, until enough lenses are found.
    open_rows, hits, single = range(len(keys)), {}, {}
    for number in range(MAX_ROUNDS):
        tasks = [(seed, keys[i], conditions[i], number) for i in open_rows]
        results = run(lens_model.search_position, tasks, f"lenses, round {number + 1}")
        for i, result in zip(open_rows, results, strict=True):
            if result["found_spectroscopic"]:
                single.setdefault(i, result["found_spectroscopic"])
            if result["found"]:
                hits[i] = (number * lens_model.ROUND + result["tries"], result["found"])
        open_rows = [i for i in open_rows if i not in hits]
        if len(hits) >= wanted:
            break
    return hits, single


def _key_positions(spots):
    # A position's stream depends on where it is, not on which others there are.
    ra, dec = np.round(spots["ra"] % 360.0 * 36000), np.round((spots["dec"] + 90.0) * 36000)
    return (ra.astype(np.int64) * 10_000_000 + dec.astype(np.int64)).tolist()


def _as_galaxies(table):
    # A parent as an object of the sky: its light keeps its own axis ratio and angle.
    return table.rename(columns={"q": "mass_q"}).assign(
        q=table["light_q"] if len(table) else [], R=table["light_R"] if len(table) else [], kind="lens", is_lens=True
    )


def find_undiscovered(seed, quarters, bricks):
    """Draw the lenses nobody has found, at the physical rate, in all bricks.

    Returns
    -------
    pandas.DataFrame
        Parents with theta_E > 0.5 arcsec and mu > 3 and the index of their brick; where bricks have known lenses those
        that a channel would find are left out, in blank bricks they stay.
    """
    rng = make_stream(seed, "simsky/undiscovered")
    density = lens_model.make_library(seed)[2]
    n = int(rng.poisson(density * AREA * len(bricks)))
    rows, draws = lens_model.draw_parents(rng, seed, n), rng.random((n, len(lens_model.CHANNELS)))
    brick, quarter = rng.integers(0, len(bricks), n), rng.integers(0, 4, n)
    conditions = list_conditions(quarters, bricks["ebv"].to_numpy())
    kept, least = [], load_population()["lenses"]["mu_min"]
    for k in range(n):
        row, sky_here = lens_model.take_row(rows, k), conditions[brick[k] * 4 + quarter[k]]
        mu, snr = lens_model.estimate_arcs(row, sky_here)
        if mu < least:
            continue
        chance = [
            lens_model.discovery_probability(c, row["theta_E"], snr, sky_here["fwhm_r"]) for c in lens_model.CHANNELS
        ]
        if not bricks["is_blank"].iloc[brick[k]] and (draws[k] < np.array(chance)).any():
            continue
        if (n_images := lens_model.count_images(row)) < 2:
            continue
        kept.append(
            row
            | {
                "brick": int(brick[k]),
                "quarter": int(quarter[k]),
                "mu": mu,
                "snr_discovery": snr,
                "n_images": n_images,
                "channel": "",
                "discovery_probability": float(1 - np.prod(1 - np.array(chance))),
            }
        )
    return _as_galaxies(pd.DataFrame(kept).assign(spot=-1, is_catalogued=False, position_source="field"))


def measure_arcs(task):
    """Render one lens without noise: lensed flux per band (unit transmission included), mu and ideal-observer S/N in r.

    Parameters
    ----------
    task : tuple
        Truth of the lens (mapping), its quarter's conditions (mapping), transmissions g, r, z.

    Returns
    -------
    dict
    """
    row, c, mw = task
    arcs = np.tensordot(lens_model.mix_bands(row, mw), lens_model.draw_arcs(row, scene.GRID, 50.0, 50.0), axes=1)
    flux = arcs[:, 0, 0].real
    psf = scene.transform_psf(make_psf(c["fwhm_r"], c["beta_r"], c["psf_e1_r"], c["psf_e2_r"], "r", scene.GRID))
    image = scene.convolve(arcs[1:2], psf[None])[0]
    out = {f"flux_lensed_{b}": float(f) for b, f in zip(physics.BANDS, flux, strict=True)}
    unlensed = physics.to_flux(row["mag_source_r"]) * mw[1]
    return out | {"mu": float(flux[1] / unlensed), "snr_true": float(np.sqrt(np.sum(image**2)) / c["sigma_pix_r"])}


def measure_lenses(galaxies, quarters, quarter_row, run):
    """Return the truth table of all lenses of the sky, one row per lens, keyed by galaxy_id."""
    rows = np.flatnonzero(galaxies["is_lens"])
    table = (
        galaxies.iloc[rows].reset_index(drop=True).drop(columns="q").rename(columns={"mass_q": "q", "z_true": "z_lens"})
    )
    conditions = quarters.iloc[quarter_row[rows]].to_dict("records")
    tasks = [
        (
            {name: r[name] for name in ARC_COLUMNS},
            c,
            [r["mw_g"], r["mw_r"], r["mw_z"]],
        )
        for r, c in zip(table.to_dict("records"), conditions, strict=True)
    ]
    measured = pd.DataFrame(run(measure_arcs, tasks, "lenses, noiseless light"))
    table = pd.concat([table.drop(columns="mu"), measured], axis=1)
    for band in physics.BANDS:
        table[f"psf_fwhm_{band}"] = [c[f"fwhm_{band}"] for c in conditions]
    table["lens_name"] = [f"SIM{i:05d}" for i in range(len(table))]
    table["source_key"] = table["source_key"].astype("int64")
    table["n_images"] = table["n_images"].astype("int64")
    names = [
        *("galaxy_id", "lens_name", "ra", "dec", *MASS_COLUMNS, "z_lens", "z_source"),
        *("sigma_v", "source_x", "source_y", "source_R", "source_n", "source_q", "source_phi", "source_key"),
        *(f"{name}_{band}" for name in ("mag_source", "flux_lensed", "psf_fwhm") for band in physics.BANDS),
        *("mu", "snr_true", "snr_discovery", "n_images", "is_catalogued", "channel", "tier", "discovery_probability"),
        "position_source",
    ]
    return table[names]
