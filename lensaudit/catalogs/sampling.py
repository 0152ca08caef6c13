"""Negatives: the cuts that make the parent sample, each one counted, and the draw from it.

Start with `select_candidates`, then `draw_samples`. Every choice is a hash of the object's id, so the sample does not
depend on the order of rows, on files or on the machine.
"""

import numpy as np
import pandas as pd

from lensaudit import rng
from lensaudit.catalogs import confusers, sphere, splits
from lensaudit.constants import BANDS, MASKBITS

PARITY_MASK = ("BRIGHT", "ALLMASK_G", "ALLMASK_R", "ALLMASK_Z", "MEDIUM", "GALAXY", "CLUSTER")  # 1 5 6 7 11 12 13
APART_TYPE = "EXP"  # pool N1b, kept apart and never drawn
NOBS_BINS = ("0", "1-2", "3-5", "6-10", "11+")
GOAL_RATIO = 100  # negatives per positive and stratum, a goal for the full survey
REGION_NSIDE = 16  # parent pixels of nside 64 and 128, so folds of regions never cut a split pixel


def bin_nobs(nobs):
    """Return the stratum name of an exposure count: 0, 1-2, 3-5, 6-10 or 11+."""
    return np.asarray(NOBS_BINS, object)[np.digitize(np.asarray(nobs), [1, 3, 6, 11])]


def bin_type(kind):
    """Return the stratum name of a Tractor type: SER, DEV, REX, EXP or other."""
    kind = np.asarray(kind, object)
    return np.where(np.isin(kind, ["SER", "DEV", "REX", "EXP"]), kind, "other")


def flag_cuts(galaxies, systems, config):
    """Say which rows pass each cut of the parent sample.

    Parameters
    ----------
    galaxies : pandas.DataFrame
        Survey columns.
    systems : pandas.DataFrame
        All known lens and candidate positions, matched or not: ra, dec.
    config : lensaudit.config.SamplingConfig

    Returns
    -------
    pandas.DataFrame of bool
        One column per cut, in order.
    """
    mask = sum(1 << MASKBITS[name] for name in PARITY_MASK)
    ra, dec = galaxies["ra"].to_numpy(float), galaxies["dec"].to_numpy(float)
    finite = np.isfinite(ra) & np.isfinite(dec)
    near = np.zeros(len(galaxies), bool)
    _, distance = sphere.find_nearest(ra[finite], dec[finite], systems["ra"], systems["dec"])
    near[finite] = distance <= config.exclusion
    nobs = galaxies[[f"nobs_{band}" for band in BANDS]].to_numpy()
    flux = galaxies["flux_z"].to_numpy(float)
    return pd.DataFrame({
        "coordinates": finite,
        "declination": (dec > config.dec_min) & (dec < config.dec_max),
        "type": galaxies["type"].isin(config.types).to_numpy(),
        "maskbits": (galaxies["maskbits"].to_numpy() & mask) == 0,
        "nobs": (nobs >= config.nobs_min).all(axis=1),
        "z_flux": flux > 0,
        "z_mag": ~(galaxies["mag_z"].to_numpy() >= config.z_max),
        "known_lens": ~near,
    })  # fmt: skip


def measure_parity(galaxies, flags, config):
    """Count what each cut removes, in order and alone.

    Parameters
    ----------
    galaxies : pandas.DataFrame
    flags : pandas.DataFrame of bool
        From `flag_cuts`.
    config : lensaudit.config.SamplingConfig

    Returns
    -------
    pandas.DataFrame
        cut, is_detail, n_removed_alone, n_removed_in_order, n_left. Detail rows split a cut (exposure failures per
        band, mask bits) among the rows that reach it; they overlap and do not add up, and n_left is that of the cut.
    """
    left = np.ones(len(flags), bool)
    rows = [("all", False, 0, 0, len(flags))]
    for cut in flags:
        fails, before = ~flags[cut].to_numpy(), left
        left = before & ~fails
        rows.append((cut, False, int(fails.sum()), int((before & fails).sum()), int(left.sum())))
        parts = {}
        if cut == "nobs":
            parts = {f"nobs_{band}": galaxies[f"nobs_{band}"].to_numpy() < config.nobs_min for band in BANDS}
        elif cut == "maskbits":
            bits = galaxies["maskbits"].to_numpy()
            parts = {f"maskbit {MASKBITS[n]} {n}": (bits >> MASKBITS[n]) & 1 == 1 for n in PARITY_MASK}
        rows += [(k, True, int(v.sum()), int((before & v).sum()), int(left.sum())) for k, v in parts.items()]
    return pd.DataFrame(rows, columns=["cut", "is_detail", "n_removed_alone", "n_removed_in_order", "n_left"])


def select_candidates(galaxies, systems, stars, labels, config, seed):
    """Make the parent sample of negatives, with pools and splits.

    Parameters
    ----------
    galaxies : pandas.DataFrame
        Survey columns of all sources, with z_phot and footprint_weight.
    systems : pandas.DataFrame
        All known lens and candidate positions: ra, dec.
    stars : pandas.DataFrame
        ra, dec, mag of bright stars.
    labels : pandas.DataFrame
        ra, dec, label of objects people have labelled.
    config : lensaudit.config.SamplingConfig
    seed : int

    Returns
    -------
    candidates : pandas.DataFrame
        Rows that pass all cuts, sorted by galaxy_id: survey columns, pool (N1; N2 when a confuser proxy holds; N1b for
        type EXP), confuser_category, nobs_z_bin, type_bin, healpix_64, healpix_128, region_id, split, star_distance
        [arcsec], star_mag.
    parity : pandas.DataFrame
        From `measure_parity`.
    """
    flags = flag_cuts(galaxies, systems, config)
    parity = measure_parity(galaxies, flags, config)
    apart = (galaxies["type"] == APART_TYPE).to_numpy() & flags.drop(columns="type").all(axis=1).to_numpy()
    keep = flags.all(axis=1).to_numpy() | apart
    candidates = galaxies[keep].sort_values("galaxy_id").reset_index(drop=True)
    candidates["star_distance"], candidates["star_mag"] = confusers.measure_stars(candidates, stars)
    candidates = assign_pools(candidates, galaxies, stars, labels)
    return add_sky_columns(candidates, config, seed), parity


def assign_pools(candidates, survey, stars, labels):
    """Add confuser_category and pool to the candidates; `survey` holds all sources, for neighbours."""
    category = confusers.classify_confusers(candidates, survey, stars, labels)
    apart = (candidates["type"] == APART_TYPE).to_numpy()
    pool = np.select([apart, category != ""], ["N1b", "N2"], "N1")
    return candidates.assign(confuser_category=category.astype(str), pool=pool.astype(str))


def add_sky_columns(table, config, seed):
    """Add healpix_64, healpix_128, region_id, split and the names of the strata."""
    ra, dec = table["ra"], table["dec"]
    return table.assign(
        healpix_64=sphere.index_sky(ra, dec, 64),
        healpix_128=sphere.index_sky(ra, dec, 128),
        region_id=sphere.index_sky(ra, dec, REGION_NSIDE),
        split=splits.assign_splits(ra, dec, seed, config).astype(str),
        nobs_z_bin=bin_nobs(table["nobs_z"]).astype(str),
        type_bin=bin_type(table["type"]).astype(str),
    )


def prepare_positives(positives, config):
    """Give every matched lens its split, tier and weight, and remove what may not be used.

    Parameters
    ----------
    positives : pandas.DataFrame
        From `lensaudit.catalogs.crossmatch.match_lenses`.
    config : lensaudit.config.Config

    Returns
    -------
    rows : pandas.DataFrame
        Positives with split train, val, test or silver.
    counts : dict
        What was moved or dropped, and why.

    Notes
    -----
    A system that an independent channel also lists never helps to make the detector: in a training or validation pixel
    it moves to ``silver``, in a test pixel it stays and keeps ``is_independent``. Systems only that channel lists
    (tier S) are silver everywhere. Where stamps of two splits share sky, the evaluation stamp stays.
    """
    rows = add_sky_columns(positives.sort_values("galaxy_id").reset_index(drop=True), config.sampling, config.seed)
    last = config.sampling.split_names[-1]
    alone = (rows["tier"] == "S").to_numpy()
    moved = rows["is_independent"].to_numpy() & ~alone & (rows["split"] != last).to_numpy()
    counts = {
        "n_matched": len(rows),
        "silver_spectroscopic_only": int(alone.sum()),
        "silver_removed_by_split": {s: int((moved & (rows["split"] == s)).sum()) for s in config.sampling.split_names},
        "independent_kept_in_test": int((rows["is_independent"] & ~alone & ~moved).sum()),
    }
    rows.loc[alone | moved, "split"] = splits.SILVER
    flags = flag_cuts(rows, rows.iloc[:0], config.sampling)
    rows["in_parent"] = flags.all(axis=1)
    counts["n_in_parent"] = int(rows["in_parent"].sum())
    counts["failing_a_parity_cut"] = {cut: int((~flags[cut]).sum()) for cut in flags if cut != "known_lens"}
    kept, dropped = rows[rows["split"] == last], {}
    for name in (splits.SILVER, *reversed(config.sampling.split_names[:-1])):
        part = rows[rows["split"] == name]
        overlap = splits.find_overlaps(part, kept)
        kept, dropped[name] = pd.concat([kept, part[~overlap]]), int(overlap.sum())
    counts["dropped_for_shared_sky"] = dropped
    weight = kept["tier"].map({"A": 1.0, "B": config.crossmatch.tier_b_weight, "S": 1.0}).astype(float)
    kept = kept.assign(label=np.int64(1), pool="", confuser_category="", cutout_type="positive",
                       sample_weight=weight, weight=weight, inclusion_probability=1.0)
    return kept.sort_values("galaxy_id").reset_index(drop=True), counts


def draw_samples(candidates, positives, config):
    """Draw the negatives of every split and join them with the positives.

    Parameters
    ----------
    candidates : pandas.DataFrame
        From `select_candidates`.
    positives : pandas.DataFrame
        From `lensaudit.catalogs.crossmatch.match_lenses`.
    config : lensaudit.config.Config
        Sections sampling and crossmatch, and the seed.

    Returns
    -------
    samples : pandas.DataFrame
        One row per object, sorted by split and galaxy_id.
    report : dict
        Requested and achieved numbers, strata, backfill, pools, guard, positives; ready for JSON.

    Notes
    -----
    Splits are drawn from the last (test) to the first (train). A candidate whose stamp may share sky with a stamp
    already chosen for another split, or with any positive of another split, cannot be drawn; these are counted.
    Weighting pool N1 by 1 / inclusion_probability restores the parent sample of the split (SER, DEV, REX; confusers
    included at their natural rate), with the guarded candidates taken as missing at random inside a stratum.
    """
    rows, counts = prepare_positives(positives, config)
    chosen, parts, reports, strata, moves = rows, [], [], [], []
    for name in reversed(config.sampling.split_names):
        part = candidates[(candidates["split"] == name) & (candidates["pool"] != "N1b")]
        guarded = splits.find_overlaps(part, chosen[chosen["split"] != name])
        drawn, numbers = draw_split(part, ~guarded, rows[rows["split"] == name], name, config)
        strata += numbers.pop("strata")
        moves += numbers.pop("backfill")
        reports.append(numbers | {"n_guarded": int(guarded.sum())})
        parts.append(drawn)
        chosen = pd.concat([chosen, drawn[["ra", "dec", "split"]]])
    samples = pd.concat([rows, *parts], ignore_index=True)
    text = ("system_id", "entry_id", "match_type", "channel", "channels", "name")
    samples = samples.fillna(dict.fromkeys(text, "") | {"n_entries": 0, "in_parent": True})
    samples["n_entries"] = samples["n_entries"].astype(np.int64)
    for column in ("is_independent", "is_confirmed", "in_parent"):
        samples[column] = samples[column].eq(True)
    samples = samples.sort_values(["split", "label", "galaxy_id"]).reset_index(drop=True)
    report = {"positives": counts, "splits": reports[::-1], "strata": strata, "backfill": moves,
              "natural_confuser_rate": measure_natural_rates(candidates),
              "goal_negatives_per_positive": GOAL_RATIO}
    return samples, report


def draw_split(part, eligible, positives, name, config):
    """Draw N1 and N2 of one split; `eligible` marks the candidates the guard leaves. Returns rows and numbers."""
    sizes = config.sampling
    n_total = getattr(sizes, f"n_{name}")
    n_confusers = n_total - int(round(sizes.n1_fraction * n_total))
    category = part["confuser_category"]
    # A confuser may be drawn for N1 or for N2; N1 goes first, so the quota of N2 is what its stock outside N1 allows.
    stratum = part["nobs_z_bin"] + " " + part["type_bin"]
    parent, stock = stratum.value_counts().sort_index(), stratum[eligible].value_counts()
    stock = stock.reindex(parent.index, fill_value=0)
    lenses = (positives["nobs_z_bin"] + " " + positives["type_bin"]).value_counts()
    matched = sizes.matched_fraction if name == sizes.split_names[0] else 0.0
    target = set_targets(parent, lenses.reindex(parent.index, fill_value=0), n_total - n_confusers, matched)
    share, moves = backfill_strata(target, stock)
    order = pd.Series(rng.hash_order(config.seed, "sampling/N1", part["galaxy_id"]), index=part.index)
    first = take_smallest(order[eligible], stratum[eligible], share)
    rest = eligible & ~part.index.isin(first) & (category != "").to_numpy()
    available = category[rest].value_counts().reindex(confusers.CATEGORIES, fill_value=0)
    quota = confusers.allocate_categories(available, n_confusers, sizes.category_cap)
    order = pd.Series(rng.hash_order(config.seed, "sampling/N2", part["galaxy_id"]), index=part.index)
    second = take_smallest(order[rest], category[rest], quota)
    outside = category[~part.index.isin(first) & (category != "").to_numpy()].value_counts()
    drawn = pd.concat([
        part.loc[first].assign(pool="N1", inclusion_probability=stratum.loc[first].map(share / parent)),
        part.loc[second].assign(pool="N2", inclusion_probability=category.loc[second].map(quota / outside)),
    ])  # fmt: skip
    drawn = drawn.assign(label=np.int64(0), tier=drawn["pool"], cutout_type="negative", sample_weight=1.0, weight=1.0)
    numbers = {
        "split": name, "n_parent": len(part), "n_positives": len(positives), "n_requested": n_total,
        "n_drawn": len(drawn), "n1": len(first), "n2": len(second), "n1_requested": n_total - n_confusers,
        "n2_requested": n_confusers, "shortfall": n_total - len(drawn), "matched_fraction": matched,
        "n2_by_category": {k: int(v) for k, v in quota.items()},
        "backfill": [{"split": name, **move} for move in moves],
        "strata": _tabulate_strata(name, drawn, stratum, parent, stock, target, share, lenses),
    }  # fmt: skip
    return drawn, numbers


def set_targets(parent, positives, n, matched):
    """Share `n` draws among strata: a part `matched` in proportion to positives, the rest to the parent sample.

    The proportional part keeps every stratum's inclusion probability above zero; the matched part keeps training from
    telling lenses by exposure count or type.
    """
    n_matched = int(round(matched * n)) if positives.sum() else 0
    return confusers.spread_quota(positives, n_matched) + confusers.spread_quota(parent, n - n_matched)


def backfill_strata(target, stock):
    """Move what a stratum cannot supply to its neighbours.

    Parameters
    ----------
    target, stock : pandas.Series
        Indexed by ``"<nobs_z_bin> <type_bin>"``.

    Returns
    -------
    share : pandas.Series of int
        Never above the stock.
    moves : list of dict
        from_stratum, to_stratum, n. The nearest nobs_z bin of the same TYPE comes first, then other types, nearest
        bin first; a move to ``"none"`` is a shortfall.
    """
    share, moves = np.minimum(target, stock).astype(np.int64), []
    place = {s: (NOBS_BINS.index(s.split()[0]), s.split()[1]) for s in target.index}
    for source in target.index:
        lacking = int(target[source] - share[source]) if target[source] > stock[source] else 0
        bin_, kind = place[source]
        near = sorted(place, key=lambda s: (place[s][1] != kind, abs(place[s][0] - bin_), s))
        for other in near:
            # what the neighbour still owes itself is kept for it
            n = min(lacking, int(stock[other] - max(share[other], min(target[other], stock[other]))))
            if n > 0:
                share[other] += n
                lacking -= n
                moves.append({"from_stratum": source, "to_stratum": other, "n": n})
        if lacking:
            moves.append({"from_stratum": source, "to_stratum": "none", "n": lacking})
    return share, moves


def take_smallest(order, group, share):
    """Return the index labels of the `share[g]` smallest values of `order` in every group g."""
    rank = order.groupby(group).rank(method="first")
    quota = share.reindex(group).fillna(0).to_numpy(float)
    return order.index[rank.to_numpy(float) <= quota]


def measure_natural_rates(candidates):
    """Return the share of every confuser category among the parent sample (pools N1 and N2), and their sum."""
    category = candidates.loc[candidates["pool"] != "N1b", "confuser_category"]
    rates = {name: float((category == name).mean()) if len(category) else np.nan for name in confusers.CATEGORIES}
    return rates | {"all": float((category != "").mean()) if len(category) else np.nan}


def _tabulate_strata(name, drawn, stratum, parent, stock, target, share, lenses):
    pool = drawn["pool"].groupby(stratum.loc[drawn.index]).value_counts().unstack(fill_value=0)
    rows = []
    for key in sorted(set(parent.index) | set(lenses.index)):
        n1, n2 = (int(pool[p].get(key, 0)) if p in pool else 0 for p in ("N1", "N2"))
        n_lens = int(lenses.get(key, 0))
        rows.append({
            "split": name, "stratum": key, "n_parent": int(parent.get(key, 0)), "n_eligible": int(stock.get(key, 0)),
            "n_positives": n_lens, "n1_target": int(target.get(key, 0)), "n1": n1, "n2": n2,
            "n2_share": n2 / (n1 + n2) if n1 + n2 else None,
            "negatives_per_positive": (n1 + n2) / n_lens if n_lens else None,
            "is_structurally_empty": int(parent.get(key, 0)) == 0,
        })  # fmt: skip
    return rows
