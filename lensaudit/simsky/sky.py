"""Making the simulated sky: bricks, conditions, galaxies, lenses with their discovery, catalogues and truth."""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lensaudit.artifacts import write_atomic
from lensaudit.rng import make_stream
from lensaudit.simsky import physics
from lensaudit.simsky.bricks import choose_bricks, locate_bricks, merge_positions, name_sweeps
from lensaudit.simsky.catalogues import choose_wrong, grade_lenses, list_lenscat, list_spectroscopic
from lensaudit.simsky.conditions import draw_quarters, weigh_footprint
from lensaudit.simsky.discovery import find_lenses, find_undiscovered, measure_lenses, open_map
from lensaudit.simsky.population import (
    draw_early_types,
    draw_galaxies,
    load_population,
    make_early_grid,
    style_confuser,
)
from lensaudit.simsky.tables import RELEASE, add_masks, add_neighbours, measure_catalogue, unit_vectors, write_sweeps

BLENDED = 1.5  # arcsec; closer pairs are one source to the survey
UNITS = {"ra": "deg", "dec": "deg", "theta_E": "arcsec", "source_x": "arcsec", "source_y": "arcsec",
         "source_R": "arcsec", "sigma_v": "km/s", "flux_g": "nMgy", "flux_r": "nMgy", "flux_z": "nMgy", "R": "arcsec",
         "flux_lensed_g": "nMgy", "flux_lensed_r": "nMgy", "flux_lensed_z": "nMgy", "phi": "rad", "pa": "rad",
         "psf_fwhm_g": "arcsec", "psf_fwhm_r": "arcsec", "psf_fwhm_z": "arcsec", "mag": "AB mag"}  # fmt: skip


def make_sky(config, positions, stage):
    """Make the simulated sky and write the files of stage 00_survey.

    Parameters
    ----------
    config : lensaudit.config.Config
    positions : pandas.DataFrame
        Known lens positions: ra, dec [deg], and optionally zlens and ref as text.
    stage : lensaudit.artifacts.Stage

    Returns
    -------
    dict
        Summary: numbers of bricks, objects, lenses; accepted fraction of parents; percentiles of the catalogued
        lenses.
    """
    sky, seed = config.sky, config.seed
    systems = merge_positions(positions)
    bricks = choose_bricks(systems, sky, seed)
    quarters = draw_quarters(seed, bricks["brickid"], bricks["is_tail"])
    bricks["ebv"] = _draw_reddening(seed, len(bricks))
    spots = _list_spots(seed, systems, bricks, sky)
    with open_map(sky.workers) as run:
        found, spectroscopic, counts = find_lenses(seed, spots, quarters, bricks, sky, run)
        undiscovered = find_undiscovered(seed, quarters, bricks)
        found = grade_lenses(seed, found, sky)
        wrong = choose_wrong(seed, spots, found, spectroscopic, sky)
        galaxies = _gather_galaxies(seed, bricks, sky, found, spectroscopic, undiscovered, wrong)
        galaxies = _finish_galaxies(seed, galaxies, bricks)
        quarter_row = galaxies["brick"].to_numpy() * 4 + galaxies["quarter"].to_numpy()
        lenses = measure_lenses(galaxies, quarters, quarter_row, run)
    stars = _draw_stars(seed, bricks)
    _write_survey(seed, stage, galaxies, quarters, quarter_row, stars)
    _write_catalogues(seed, stage, galaxies, lenses, systems)
    return _write_truth(stage, galaxies, lenses, quarters, bricks, counts)


def _draw_reddening(seed, n):
    p = load_population()["field"]
    return p["ebv_median"] * np.exp(p["ebv_sigma"] * make_stream(seed, "simsky/ebv").normal(size=n))


def _list_spots(seed, systems, bricks, sky):
    # Real positions inside the chosen bricks, and, where they do not suffice, drawn ones, marked as such.
    ids = locate_bricks(systems["ra"], systems["dec"])
    rows = np.flatnonzero(np.isin(ids, bricks["brickid"]))
    spots = systems.iloc[rows].assign(brickid=ids[rows], position_source="real").reset_index(drop=True)
    missing = int(1.15 * sky.n_lenses) - len(spots)
    if missing > 0:
        rng = make_stream(seed, "simsky/drawn-positions")
        box = bricks[~bricks["is_blank"]].iloc[rng.integers(0, int((~bricks["is_blank"]).sum()), missing)]
        drawn = pd.DataFrame(
            {
                "ra": rng.uniform(box["ra1"], box["ra2"]),
                "dec": rng.uniform(box["dec1"], box["dec2"]),
                "brickid": box["brickid"].to_numpy(),
                "position_source": "drawn",
            }
        )
        spots = merge_positions(pd.concat([spots, drawn], ignore_index=True))
    index = pd.Series(np.arange(len(bricks)), index=bricks["brickid"])
    spots["brick"] = index.loc[spots["brickid"]].to_numpy()
    spots["quarter"] = _find_quarter(spots, bricks)
    return spots


def _find_quarter(rows, bricks):
    box = bricks.iloc[rows["brick"].to_numpy()]
    right = rows["ra"].to_numpy() > (box["ra1"] + box["ra2"]).to_numpy() / 2
    upper = rows["dec"].to_numpy() > (box["dec1"] + box["dec2"]).to_numpy() / 2
    return right.astype(int) + 2 * upper.astype(int)


def _scatter(rng, rows, bricks):
    box = bricks.iloc[rows["brick"].to_numpy()]
    u, v = rng.random((2, len(rows)))
    if "quarter" in rows:  # an object judged under the conditions of a quarter stays in it
        u, v = (u + rows["quarter"] % 2) / 2, (v + rows["quarter"] // 2) / 2
    rows["ra"] = box["ra1"].to_numpy() + np.asarray(u) * (box["ra2"] - box["ra1"]).to_numpy()
    rows["dec"] = box["dec1"].to_numpy() + np.asarray(v) * (box["dec2"] - box["dec1"]).to_numpy()
    return rows


def _gather_galaxies(seed, bricks, sky, found, spectroscopic, undiscovered, wrong):
    # All objects of the sky with unextincted magnitudes; lenses and wrong entries keep their positions.
    rng, p = make_stream(seed, "simsky/galaxies"), load_population()["field"]
    low, high = sky.galaxies_per_brick
    field = draw_galaxies(rng, rng.integers(low, high + 1, len(bricks)))
    field = _scatter(rng, field, bricks)
    companions = rng.random(len(field)) < p["companion_fraction"]
    distance, angle = rng.uniform(1.5, 6.0, len(field)) / 3600.0, rng.uniform(0, 2 * np.pi, len(field))
    mate = rng.permutation(len(field))
    mate = np.where(companions, mate, np.arange(len(field)))
    moved = field.loc[mate, ["ra", "dec", "brick"]].to_numpy()
    field["dec"] = np.where(companions, moved[:, 1] + distance * np.sin(angle), field["dec"])
    field["ra"] = np.where(
        companions, moved[:, 0] + distance * np.cos(angle) / np.cos(np.radians(moved[:, 1])), field["ra"]
    )
    field["brick"] = moved[:, 2].astype(int)
    alone = ~companions
    alone[mate[companions]] = False
    stars = _scatter(rng, _draw_star_rows(rng, len(bricks)), bricks)
    hidden = _scatter(rng, undiscovered, bricks)
    parts = [field, stars, hidden]
    for table in (found, spectroscopic):
        offset = rng.normal(0, 0.06 / 3600.0, (2, len(table)))
        parts.append(
            table.assign(ra=table["ra"] + offset[0] / np.cos(np.radians(table["dec"])), dec=table["dec"] + offset[1])
        )
    parts.append(_draw_wrong(rng, wrong))
    _move_companions(make_stream(seed, "simsky/companions"), field, alone, parts[2:], p["companion_fraction"])
    return pd.concat(parts, ignore_index=True)


def _move_companions(rng, field, alone, tables, fraction):
    # Moves lone galaxies, in place, beside objects that keep their positions: lenses of all kinds and wrong entries. A
    # field galaxy has a companion when it was moved or another was moved to it, 2 f (1 - f) in all; what cannot move is
    # visited that often. A companion comes from the same brick, so that the number and order of a brick's objects,
    # and with them all later draws, stay as they were.
    fixed = pd.concat([t[["ra", "dec", "brick"]] for t in tables], ignore_index=True)
    fixed = fixed[rng.random(len(fixed)) < 2 * fraction * (1 - fraction)]
    fixed = fixed.assign(turn=fixed.groupby("brick").cumcount(), target=fixed.index)
    free = pd.DataFrame({"row": rng.permutation(np.flatnonzero(alone))})
    free["brick"] = field["brick"].to_numpy()[free["row"]]
    pairs = fixed.merge(free.assign(turn=free.groupby("brick").cumcount()), on=["brick", "turn"]).sort_values("target")
    distance, angle = rng.uniform(1.5, 6.0, len(pairs)) / 3600.0, rng.uniform(0, 2 * np.pi, len(pairs))
    row, ra, dec = (pairs[name].to_numpy() for name in ("row", "ra", "dec"))
    field.loc[row, "dec"] = dec + distance * np.sin(angle)
    field.loc[row, "ra"] = ra + distance * np.cos(angle) / np.cos(np.radians(dec))


def _draw_wrong(rng, wrong):
    # Lens-like confusers at catalogued positions.
    base = draw_early_types(rng, int(make_early_grid(19.5).density), 19.5).iloc[: len(wrong)].reset_index(drop=True)
    table = pd.concat([wrong.reset_index(drop=True), base], axis=1)
    table["kind"] = rng.choice(["ring", "spiral", "merger"], len(table), p=[0.4, 0.3, 0.3])
    for kind in ("ring", "spiral", "merger"):
        rows = table["kind"] == kind
        table.loc[rows, :] = style_confuser(rng, table[rows].copy(), kind)
    return table


def _draw_star_rows(rng, n_bricks):
    n = n_bricks * load_population()["field"]["n_star_rows"]
    mag = 21.5 + np.log1p(-(1 - 10 ** (-0.2 * 5.5)) * rng.random(n)) / (0.2 * np.log(10))
    gr = rng.choice([0.5, 1.3], n) + rng.normal(0, 0.15, n)
    table = pd.DataFrame({"brick": np.repeat(np.arange(n_bricks), n // n_bricks), "mag_r": mag, "mag_g": mag + gr})
    table["mag_z"], table["mag_w1"], table["type"], table["kind"] = mag - 0.5 * gr + 0.1, mag - gr, "PSF", "star"
    return table.assign(R=0.0, q=1.0, pa=0.0, n_sersic=0.0, sigma_v=0.0, z_true=0.0)


def _finish_galaxies(seed, galaxies, bricks):
    # Ids, quarters, extinction and photometric redshifts. A galaxy the survey could not tell from a lens is left out;
    # all others stay, so that lenses have companions as often as other galaxies do.
    rng, p = make_stream(seed, "simsky/finish"), load_population()["field"]
    empty = {"is_lens": False, "is_catalogued": False, "is_wrong": False, "tier": "", "channel": "", "kind": "galaxy"}
    for name, value in empty.items():
        galaxies[name] = galaxies[name].where(galaxies[name].notna(), value) if name in galaxies else value
    points = unit_vectors(galaxies["ra"], galaxies["dec"])
    special = (galaxies["is_lens"].astype(bool) | galaxies["is_wrong"].astype(bool)).to_numpy()
    limit = np.radians(BLENDED / 3600.0)
    distance, _ = cKDTree(points[special]).query(points, distance_upper_bound=limit)
    galaxies = galaxies[special | ~(distance < limit)].sort_values("brick", kind="stable").reset_index(drop=True)
    galaxies["quarter"] = _find_quarter(galaxies, bricks)
    box = bricks.iloc[galaxies["brick"].to_numpy()]
    galaxies["brickid"], galaxies["brickname"] = box["brickid"].to_numpy(), box["brickname"].to_numpy()
    galaxies["objid"] = galaxies.groupby("brick").cumcount()
    galaxies["galaxy_id"] = [f"{RELEASE}-{b}-{o}" for b, o in zip(galaxies["brickid"], galaxies["objid"], strict=True)]
    galaxies["ebv"] = box["ebv"].to_numpy() * np.exp(rng.normal(0, 0.03, len(galaxies)))
    for band in physics.BANDS:
        galaxies[f"mw_{band}"] = physics.transmission(galaxies["ebv"], band)
        galaxies[f"flux_{band}"] = physics.to_flux(galaxies[f"mag_{band}"]) * galaxies[f"mw_{band}"]
    galaxies["flux_w1"] = physics.to_flux(galaxies["mag_w1"])
    scatter = p["photoz_scatter"] * (1 + galaxies["z_true"])
    galaxies["z_phot"] = np.maximum(galaxies["z_true"] + scatter * rng.normal(size=len(galaxies)), 0.005)
    flags = ["is_lens", "is_catalogued", "is_wrong"]
    return galaxies.astype(dict.fromkeys(flags, bool) | {"objid": "int64"})


def _draw_stars(seed, bricks):
    rng = make_stream(seed, "simsky/stars")
    n = rng.poisson(load_population()["field"]["n_bright_stars"], len(bricks))
    stars = pd.DataFrame({"brick": np.repeat(np.arange(len(bricks)), n)})
    slope = 0.28 * np.log(10)
    stars["mag"] = 16.0 + np.log1p(-(1 - np.exp(-slope * 8.0)) * rng.random(len(stars))) / slope
    stars = _scatter(rng, stars, bricks)
    stars["brickid"] = bricks["brickid"].to_numpy()[stars["brick"]]
    return stars[["ra", "dec", "mag", "brickid"]]


def _write_survey(seed, stage, galaxies, quarters, quarter_row, stars):
    rng = make_stream(seed, "simsky/catalogue")
    columns = measure_catalogue(rng, galaxies, quarters, quarter_row)
    add_neighbours(columns, galaxies)
    add_masks(rng, columns, galaxies, stars)
    write_sweeps(stage, columns, name_sweeps(galaxies["ra"] % 360.0, galaxies["dec"]))
    counts = np.bincount(quarter_row, minlength=len(quarters)).astype(float)
    weight = weigh_footprint(quarters, counts)
    quarters["footprint_weight"] = weight
    extended = galaxies["type"].to_numpy() != "PSF"
    stage.write_table("photoz.parquet", galaxies.loc[extended, ["galaxy_id", "z_phot"]])
    stage.write_table("footprint.parquet", pd.DataFrame({
        "galaxy_id": galaxies["galaxy_id"], "footprint_weight": weight[quarter_row],
        "quarter": galaxies["quarter"].astype("int64")}))  # fmt: skip
    stage.write_table("stars.parquet", stars, UNITS)
    labelled = galaxies["kind"].isin(["ring", "spiral", "merger"]) & ~galaxies["is_wrong"]
    chosen = galaxies[labelled & (rng.random(len(galaxies)) < 0.6)]
    stage.write_table("labels.parquet", chosen[["ra", "dec"]].assign(label=chosen["kind"]), UNITS)


def _write_catalogues(seed, stage, galaxies, lenses, systems):
    for name, table in (("lenscat", list_lenscat(seed, galaxies, systems)),
                        ("spectroscopic", list_spectroscopic(seed, galaxies, lenses))):  # fmt: skip
        with write_atomic(stage.output(f"catalogs/{name}.csv")) as temporary:
            table.to_csv(temporary, index=False)


def _write_truth(stage, galaxies, lenses, quarters, bricks, counts):
    names = [
        *("galaxy_id", "brickid", "brickname", "quarter", "ra", "dec", "kind", "type", "is_lens", "is_catalogued"),
        *("is_wrong", "z_true", "sigma_v", "flux_g", "flux_r", "flux_z", "R", "q", "pa", "n_sersic", "ebv"),
        *("mw_g", "mw_r", "mw_z"),
    ]
    stage.write_table("truth/galaxies.parquet", galaxies[names], UNITS)
    stage.write_table("truth/lenses.parquet", lenses, UNITS)
    stage.write_table("truth/conditions.parquet", quarters.merge(bricks[["brickid", "is_blank"]], on="brickid"))
    known = lenses[lenses["is_catalogued"]]
    shown = ["theta_E", "mag_source_r", "z_lens", "z_source", "sigma_v", "mu", "source_R"]
    percentiles = {c: [round(float(v), 3) for v in np.percentile(known[c], [5, 16, 50, 84, 95])] for c in shown}
    lensed = physics.to_mag(known["flux_lensed_r"])
    percentiles["mag_lensed_r"] = [round(float(v), 3) for v in np.percentile(lensed, [5, 16, 50, 84, 95])]
    summary = counts | {
        "n_bricks": len(bricks), "n_blank_bricks": int(bricks["is_blank"].sum()), "n_objects": len(galaxies),
        "n_z20": int((galaxies["flux_z"] > 10.0).sum()), "n_lenses": len(lenses), "n_catalogued": len(known),
        "n_tier_a": int((lenses["tier"] == "A").sum()), "n_wrong": int(galaxies["is_wrong"].sum()),
        "n_undiscovered": int((lenses["channel"] == "").sum()), "percentiles": percentiles,
        "kinds": {k: int(v) for k, v in galaxies["kind"].value_counts().items()},
    }  # fmt: skip
    return stage.write_json("summary.json", summary)
