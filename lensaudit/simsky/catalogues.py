"""The lens catalogues of the simulated sky: grades, wrong entries, position errors and repeats, as real lists have."""

import numpy as np
import pandas as pd

from lensaudit.rng import hash_order, make_stream

REFERENCES = {"imaging": "Simulated imaging search", "citizen": "Simulated citizen science search",
              "spectroscopic": "Simulated spectroscopic search"}  # fmt: skip
OFFSET_FRACTION, FAR_FRACTION, REPEAT_FRACTION = (
    0.012,
    0.006,
    0.08,
)  # entries misplaced by 3-9 arcsec, lost, listed twice


def grade_lenses(seed, found, sky):
    """Give catalogued lenses their tier: A for the better-looking ones, with scatter, to the wanted number."""
    rng = make_stream(seed, "simsky/tiers")
    looks = np.log(found["snr_discovery"]) + rng.normal(0, 0.6, len(found))
    rank = np.argsort(np.argsort(-looks.to_numpy()))
    return found.assign(tier=np.where(rank < round(sky.tier_a_fraction * sky.n_lenses), "A", "B"))


def choose_wrong(seed, spots, found, spectroscopic, sky):
    """Choose positions without a lens for the wrong Tier-B entries."""
    n = sky.n_lenses - len(found)
    free = spots.drop(index=[*found["spot"], *spectroscopic["spot"]])
    free = free.iloc[np.argsort(hash_order(seed, "simsky/wrong", free.index))][:n]
    columns = ["ra", "dec", "brick", *(c for c in ("ref", "zlens") if c in free)]
    return free[columns].assign(is_wrong=True, tier="B")


def _name(rows, prefix):
    return [f"{prefix}-{ra:08.4f}{dec:+08.4f}" for ra, dec in zip(rows["ra"], rows["dec"], strict=True)]


def list_lenscat(seed, galaxies, systems):
    """Write the community catalogue of this sky in the schema of the real one.

    Parameters
    ----------
    seed : int
    galaxies : pandas.DataFrame
    systems : pandas.DataFrame
        All real positions; a few outside the sky are listed too, as entries without pixels.

    Returns
    -------
    pandas.DataFrame
        name, RA [deg], DEC [deg], zlens (text), type, grading, ref.
    """
    rng = make_stream(seed, "simsky/lenscat")
    rows = galaxies[galaxies["is_catalogued"] | galaxies["is_wrong"]].reset_index(drop=True)
    repeat = rows[rng.random(len(rows)) < REPEAT_FRACTION]
    listed = pd.concat([rows, repeat], ignore_index=True)
    shift = rng.normal(0, 0.04, (2, len(listed)))
    far = np.flatnonzero(rng.random(len(rows)) < OFFSET_FRACTION)
    angle, size = rng.uniform(0, 2 * np.pi, len(far)), rng.uniform(3, 9, len(far))
    shift[:, far] = size * np.stack([np.cos(angle), np.sin(angle)])
    ra = listed["ra"] + shift[0] / 3600.0 / np.cos(np.radians(listed["dec"]))
    dec = listed["dec"] + shift[1] / 3600.0
    redshift = [f"{z:.4f}" if u < 0.5 else "-" for z, u in zip(listed["z_true"], rng.random(len(listed)), strict=True)]
    citizen = listed["channel"].astype(str).str.startswith("citizen")
    table = pd.DataFrame(
        {
            "ra": ra % 360.0,
            "dec": dec,
            "zlens": redshift,
            "type": "galaxy",
            "grading": np.where(listed["tier"] == "A", "confident", "probable"),
            "ref": np.where(citizen, REFERENCES["citizen"], REFERENCES["imaging"]),
        }
    )
    table.loc[len(rows) :, "ref"] = REFERENCES["citizen"]
    n_far = max(3, round(FAR_FRACTION * len(rows)))
    outside = systems[~systems["dec"].round(5).isin(rows["dec"].round(5))].iloc[-n_far:]
    lost = pd.DataFrame(
        {
            "ra": outside["ra"],
            "dec": outside["dec"],
            "zlens": "-",
            "type": "galaxy",
            "grading": "probable",
            "ref": REFERENCES["imaging"],
        }
    )
    clusters = lost.iloc[: max(2, n_far // 3)].assign(type="cluster", ref="Simulated cluster compilation")
    table = pd.concat([table, lost, clusters], ignore_index=True)
    table.insert(0, "name", _name(table, "SIM"))
    table["ra"], table["dec"] = table["ra"].round(6), table["dec"].round(6)
    return table.rename(columns={"ra": "RA [deg]", "dec": "DEC [deg]"})


def list_spectroscopic(seed, galaxies, lenses):
    """Write the independent-channel list: lenses found by spectroscopy, some of them in the community catalogue too."""
    rng = make_stream(seed, "simsky/spectroscopic")
    found = lenses[lenses["channel"].str.contains("spectroscopic")]
    known = lenses[lenses["is_catalogued"] & ~lenses["channel"].str.contains("spectroscopic")]
    overlap = known[rng.random(len(known)) < 0.015]
    rows = pd.concat([found, overlap]).sort_values("galaxy_id")
    return pd.DataFrame(
        {
            "name": _name(rows, "SPEC"),
            "RA": (rows["ra"] % 360.0).round(6),
            "DEC": rows["dec"].round(6),
            "grade": np.where(rows["snr_true"] > 15, "A", "B"),
        }
    )
