"""Lens systems matched to survey sources on the sphere, with a reason for every system that finds none."""

import numpy as np
import pandas as pd

from lensaudit.catalogs import sphere
from lensaudit.constants import MASKBITS

REASONS = ("outside footprint", "masked", "point source only", "beyond accept radius", "no source",
           "source already taken")  # fmt: skip
_FOOTPRINT_RADIUS = 120.0  # arcsec: z < 20 sources are some 30 arcsec apart, so an empty disc of this size is an edge
# Bits that say a bright star, a large galaxy or a globular cluster covers the place.
_FOREGROUND = sum(1 << MASKBITS[name] for name in ("BRIGHT", "MEDIUM", "GALAXY", "CLUSTER"))
_TIER_RANK = {"A": 0, "B": 1, "S": 2}


def keep_galaxies(systems):
    """Return the entries that are lenses on the scale of a galaxy or group: no clusters, no cluster compilations."""
    return systems[~systems["is_compilation"] & (systems["lens_type"] != "cluster")].reset_index(drop=True)


def match_lenses(systems, galaxies, config):
    """Match every system to the survey.

    Parameters
    ----------
    systems : pandas.DataFrame
        From `lensaudit.catalogs.lenses.group_systems`. Clusters and cluster compilations take no part.
    galaxies : pandas.DataFrame
        Survey columns of `lensaudit.catalogs.sweeps`, all types.
    config : lensaudit.config.CrossmatchConfig

    Returns
    -------
    positives : pandas.DataFrame
        One row per matched system, sorted by galaxy_id: survey columns of the nearest extended source within the
        accept radius, with system_id, entry_id, name, tier, channel, channels (all of the system), match_type
        (``unique`` or ``ambiguous``: another extended source within the accept radius), separation [arcsec], z_lens,
        n_entries, is_independent and is_confirmed (a measured Einstein radius is on record).
    unmatched : pandas.DataFrame
        system_id, entry_id, name, ra, dec, tier, channel, reason (one of `REASONS`), separation of the nearest
        source [arcsec, infinite when there is none].
    report : dict
        Counts and separation percentiles, ready for JSON.

    Notes
    -----
    A system takes the tier of its most confident imaging entry (A before B); S means that only independent channels
    list it. `unmatched` names the same entry, chosen by tier and then entry_id.
    """
    entries = keep_galaxies(systems)
    extended = np.flatnonzero(~galaxies["type"].isin(["PSF", "DUP"]))
    ra, dec = galaxies["ra"].to_numpy(), galaxies["dec"].to_numpy()
    i, j, separation = sphere.find_pairs(entries["ra"], entries["dec"], ra[extended], dec[extended],
                                         config.search_radius)
    pairs = pd.DataFrame({"entry": i, "galaxy": extended[j], "separation": separation})
    rank = entries["tier"].map(_TIER_RANK).to_numpy()
    pairs["rank"] = rank[pairs["entry"]]
    pairs["system_id"] = entries["system_id"].to_numpy()[pairs["entry"]]
    close = pairs[pairs["separation"] <= config.accept_radius]
    best = close.sort_values(["system_id", "rank", "separation", "entry"]).drop_duplicates("system_id")
    options = close.groupby("system_id")["galaxy"].nunique()
    best = best.assign(match_type=np.where(best["system_id"].map(options) > 1, "ambiguous", "unique"))
    taken = best.sort_values(["rank", "separation", "system_id"]).duplicated("galaxy").reindex(best.index)
    positives = _describe_positives(best[~taken], entries, galaxies)
    lost = ~entries["system_id"].isin(best.loc[~taken, "system_id"])
    unmatched = entries[lost].assign(rank=rank[lost.to_numpy()]).sort_values(["system_id", "rank", "entry_id"])
    unmatched = unmatched.drop_duplicates("system_id").reset_index(drop=True)
    unmatched["reason"], unmatched["separation"] = _explain(
        unmatched, pairs, galaxies, set(best["system_id"]), config.search_radius)
    unmatched = unmatched[["system_id", "entry_id", "name", "ra", "dec", "tier", "channel", "reason", "separation"]]
    return positives, unmatched, _summarise(systems, entries, positives, unmatched, pairs)


def _describe_positives(best, entries, galaxies):
    chosen = entries.iloc[best["entry"].to_numpy()].reset_index(drop=True)
    by_system = entries[entries["system_id"].isin(best["system_id"])].groupby("system_id")
    ranked = entries.assign(rank=entries["tier"].map(_TIER_RANK)).sort_values(["system_id", "rank", "entry_id"])
    facts = pd.DataFrame({
        "tier": ranked.groupby("system_id")["tier"].first(),
        "z_lens": ranked.groupby("system_id")["z_lens"].first(),
        "channels": by_system["channel"].agg(lambda c: "+".join(sorted(set(c)))),
        "n_entries": by_system.size(),
        "is_confirmed": by_system["theta_E"].agg(lambda t: bool(np.isfinite(t).any())),
    })  # fmt: skip
    table = galaxies.iloc[best["galaxy"].to_numpy()].reset_index(drop=True)
    chosen = chosen[["system_id", "entry_id", "name", "channel", "is_independent"]]
    table = pd.concat([table, chosen], axis=1).merge(facts, left_on="system_id", right_index=True, how="left")
    table["match_type"] = best["match_type"].to_numpy()
    table["separation"] = best["separation"].to_numpy()
    return table.sort_values("galaxy_id").reset_index(drop=True)


def _explain(unmatched, pairs, galaxies, found, search_radius):
    """Return the reason and the separation of the nearest source for systems without a match."""
    ra, dec = galaxies["ra"].to_numpy(), galaxies["dec"].to_numpy()
    nearest, distance = sphere.find_nearest(unmatched["ra"], unmatched["dec"], ra, dec)
    mask = galaxies["maskbits"].to_numpy()[nearest] if len(galaxies) else np.zeros(len(unmatched), int)
    reach = pairs.groupby("system_id")["separation"].min()
    extended = reach.reindex(unmatched["system_id"]).to_numpy(float)
    conditions = [
        unmatched["system_id"].isin(found).to_numpy(),
        distance > _FOOTPRINT_RADIUS,
        (mask & _FOREGROUND) != 0,
        np.isfinite(extended),
        distance <= search_radius,
    ]
    names = ["source already taken", "outside footprint", "masked", "beyond accept radius", "point source only"]
    return np.select(conditions, names, "no source"), distance


def _summarise(systems, entries, positives, unmatched, pairs):
    quantiles = (5, 16, 50, 84, 95)
    values = np.percentile(positives["separation"], quantiles) if len(positives) else np.full(5, np.nan)
    n_systems = entries["system_id"].nunique()
    return {
        "n_entries": len(systems),
        "n_entries_of_clusters": len(systems) - len(entries),
        "n_systems": n_systems,
        "n_systems_with_several_entries": int((entries.groupby("system_id").size() > 1).sum()),
        "n_systems_in_several_catalogs": int((entries.groupby("system_id")["catalog"].nunique() > 1).sum()),
        "n_matched": len(positives),
        "fraction_matched": len(positives) / n_systems if n_systems else np.nan,
        "n_ambiguous": int((positives["match_type"] == "ambiguous").sum()),
        "n_unmatched": len(unmatched),
        "unmatched_by_reason": {r: int((unmatched["reason"] == r).sum()) for r in REASONS},
        "n_by_tier": {t: int((positives["tier"] == t).sum()) for t in _TIER_RANK},
        "n_independent": int(positives["is_independent"].sum()),
        "n_confirmed": int(positives["is_confirmed"].sum()),
        "separation_arcsec": {f"p{q:02d}": float(v) for q, v in zip(quantiles, values, strict=True)},
        "n_candidate_pairs": len(pairs),
    }


def measure_separations(systems, galaxies, config):
    """Return the distance from every entry to its nearest extended source within the search radius.

    Returns
    -------
    pandas.DataFrame
        entry_id, tier, channel, separation [arcsec]; entries with nothing inside the radius are left out.
    """
    entries = keep_galaxies(systems)
    sources = galaxies[~galaxies["type"].isin(["PSF", "DUP"])]
    _, separation = sphere.find_nearest(entries["ra"], entries["dec"], sources["ra"], sources["dec"])
    table = entries[["entry_id", "tier", "channel"]].assign(separation=separation)
    return table[separation <= config.search_radius].reset_index(drop=True)
