"""Discovery channels: overlaps of their lists, the lenses a pair of lists implies, and what the detector finds of each.

P(selected | features) per channel and a channel classifier are left for later.
"""

import numpy as np
import pandas as pd

from lensaudit.catalogs.lenses import count_overlaps
from lensaudit.stats import jeffreys_interval


def measure_overlaps(systems):
    """Overlaps of channels and catalogues with the 95 % interval of the Jaccard index and a capture-recapture number.

    Parameters
    ----------
    systems : DataFrame
        ``system_id``, ``channel``, ``catalog``; one row per catalogue entry.

    Returns
    -------
    DataFrame
        ``level``, ``first``, ``second``, ``n_first``, ``n_second``, ``n_both``, ``jaccard``, ``lower``, ``upper``,
        ``chapman``, ``chapman_sigma``.

    Notes
    -----
    Chapman's estimate (n1 + 1)(n2 + 1) / (m + 1) - 1 of the lenses both lists draw from assumes that being in one list
    says nothing about being in the other. Finders favour the same bright arcs, so it is a lower bound.
    """
    table = count_overlaps(systems)
    first, second, both = (table[c].to_numpy(dtype=float) for c in ("n_first", "n_second", "n_both"))
    lower, upper = jeffreys_interval(both, first + second - both)
    pair = (table["first"] != table["second"]).to_numpy() & (both > 0)
    chapman = (first + 1) * (second + 1) / (both + 1) - 1
    variance = (first + 1) * (second + 1) * (first - both) * (second - both) / ((both + 1) ** 2 * (both + 2))
    return table.assign(lower=lower, upper=upper, chapman=np.where(pair, chapman, np.nan),
                        chapman_sigma=np.where(pair, np.sqrt(variance), np.nan))  # fmt: skip


def measure_channel_recall(scored, entries, thresholds, points):
    """Recall of the evaluated lenses by every channel that lists them.

    Parameters
    ----------
    scored : DataFrame
        Scored lenses of the evaluation splits: ``system_id``, ``split``, ``logit``.
    entries : DataFrame
        ``system_id``, ``channel``; a lens counts in each of its channels.
    thresholds : dict
    points : sequence of str

    Returns
    -------
    DataFrame
        ``channel``, ``split``, ``point``, ``n``, ``k``, ``recall``, ``lower``, ``upper`` (95 %).
    """
    member = entries[["system_id", "channel"]].drop_duplicates()
    table = scored[["system_id", "split", "logit"]].merge(member, on="system_id", how="inner")
    rows = []
    for (channel, split), part in table.groupby(["channel", "split"]):
        for point in points:
            n, k = len(part), int((part["logit"] > thresholds[point]["threshold"]).sum())
            lower, upper = jeffreys_interval(k, n)
            rows.append({"channel": channel, "split": split, "point": point, "n": n, "k": k, "recall": k / n,
                         "lower": float(lower), "upper": float(upper)})  # fmt: skip
    return pd.DataFrame(rows, columns=["channel", "split", "point", "n", "k", "recall", "lower", "upper"])
