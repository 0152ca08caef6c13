"""What a survey list would hold: purity against prevalence, and the composition of the top of a ranking.

A test sample holds far more lenses than the sky, so no precision measured on it carries over. Here the measured recall
and false-positive rates are combined with *stated* prevalences; the recall is that of catalogued Tier-A lenses, which
need not be that of all lenses, and the rates are those of the parent population.
Conformal lists with a controlled false-discovery rate are left for later.
"""

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError
from lensaudit.audit.thresholds import parent_weights
from lensaudit.rng import make_stream
from lensaudit.stats import summarise_draws

# Lenses per scanned galaxy. The middle two span 0.23-0.48 lenses per square degree among ~43 M galaxies over the
# 14,000 square degrees of the DR10 search (FACTS 4: Collett 2015; Inchausti et al. 2025); the outer two are a factor
# of three away.
PREVALENCES = (3e-5, 0.8e-4, 1.6e-4, 5e-4)
N_SCANNED = 43_000_000  # galaxies scored by Inchausti et al. 2025
TOP_FRACTIONS = (1e-2, 1e-3, 1e-4)
MIN_EXCEEDANCES = 10


def compute_purity(prevalence, tpr, fpr):
    """Return the share of lenses among the selected, p t / (p t + (1 - p) f), broadcast; NaN when none is selected."""
    prevalence, tpr, fpr = (np.asarray(x, dtype=float) for x in (prevalence, tpr, fpr))
    found = prevalence * tpr
    with np.errstate(invalid="ignore"):
        return (found / (found + (1.0 - prevalence) * fpr))[()]


def tabulate_purity(recall, thresholds, seed, subset="Tier A", prevalences=PREVALENCES, n_draws=4000):
    """Purity and list size against prevalence at every operating point.

    Parameters
    ----------
    recall : DataFrame
        From `evaluation.measure_recall`: ``subset``, ``point``, ``n``, ``k``.
    thresholds : dict
        With the achieved test rates of `thresholds.measure_achieved`.
    seed : int
    subset : str
    prevalences : sequence of float
    n_draws : int

    Returns
    -------
    DataFrame
        ``point``, ``prevalence``, ``recall``, ``fpr``, ``purity`` with ``lower``, ``upper`` (95 %) and ``lower_68``,
        ``upper_68`` from the Jeffreys posteriors of recall and rate, ``n_lenses`` and ``n_selected`` expected among
        43 million galaxies, ``status`` by the count rule on test negatives.
    """
    rows = []
    for row in recall[recall["subset"] == subset].itertuples():
        entry = thresholds[row.point]
        fpr, size = entry["achieved_test_fpr"], entry["n_test_eff"]
        rng = make_stream(seed, "prevalence/purity", row.point)
        tpr_draws = rng.beta(row.k + 0.5, row.n - row.k + 0.5, n_draws)
        fpr_draws = rng.beta(fpr * size + 0.5, size * (1.0 - fpr) + 0.5, n_draws)
        status = "reported" if entry["n_test_exceedances"] >= MIN_EXCEEDANCES else "few exceedances"
        for prevalence in prevalences:
            draws = compute_purity(prevalence, tpr_draws, fpr_draws)
            (lower, upper), (lower_68, upper_68) = summarise_draws(draws), summarise_draws(draws, 0.68)
            found = N_SCANNED * prevalence * row.recall
            rows.append({"point": row.point, "prevalence": prevalence, "recall": row.recall, "fpr": fpr,
                         "purity": compute_purity(prevalence, row.recall, fpr), "lower": lower, "upper": upper,
                         "lower_68": lower_68, "upper_68": upper_68, "n_lenses": found,
                         "n_selected": found + N_SCANNED * (1.0 - prevalence) * fpr, "status": status})  # fmt: skip
    return pd.DataFrame(rows)


def name_components(table):
    """Return what each negative is in a list: its confuser proxy, or its TYPE when no proxy applies."""
    category = table["confuser_category"].fillna("").astype(str)
    return np.where(category != "", category, "plain " + table["type"].astype(str))


def compose_top(test, prevalences=PREVALENCES, fractions=TOP_FRACTIONS, n_scanned=N_SCANNED):
    """Expected composition of the highest-scoring fraction of a survey under stated prevalences.

    Parameters
    ----------
    test : DataFrame
        Joined test table; Tier-A lenses stand for lenses, negatives of N1 (with their inverse inclusion
        probabilities) for the galaxies. N1 holds confusers at their natural rate; N2 is a further draw of confusers
        and would count them twice.
    prevalences, fractions : sequence of float
    n_scanned : int

    Returns
    -------
    DataFrame
        ``prevalence``, ``top`` (fraction), ``component``, ``share`` of the list, ``expected`` number among `n_scanned`,
        ``n_sampled`` (test objects behind it), ``n_negatives`` above the cut, ``status``. Where fewer than 10
        sampled negatives lie above the cut the composition "cannot be computed": the only row is the component
        "lens" with its upper bound as ``share``, min(1, prevalence x recall at the loosest computable cut / top).
    """
    lens = (test["label"] == 1) & (test["tier"] == "A")
    galaxy_weight = parent_weights(test)
    table = test[lens | (galaxy_weight > 0)]
    is_lens = table["label"].to_numpy() == 1
    if not is_lens.any() or is_lens.all():
        raise UserError("the composition of the top needs Tier-A lenses and galaxies in the test table")
    mass = np.where(is_lens, 1.0, galaxy_weight[lens | (galaxy_weight > 0)])
    component = np.where(is_lens, "lens", name_components(table))
    order = np.argsort(-table["logit"].to_numpy(), kind="stable")
    lens_share = np.cumsum(is_lens[order]) / is_lens.sum()
    rows = []
    for prevalence in prevalences:
        part = np.where(is_lens, prevalence / mass[is_lens].sum(), (1.0 - prevalence) / mass[~is_lens].sum()) * mass
        total = np.cumsum(part[order])
        n_negatives = np.cumsum(~is_lens[order])
        # The tightest cut that still has enough sampled negatives bounds the recall of any tighter one.
        bound_recall = lens_share[min(np.searchsorted(n_negatives, MIN_EXCEEDANCES), len(order) - 1)]
        for top in fractions:
            stop = min(int(np.searchsorted(total, top)) + 1, len(order))
            common = {"prevalence": prevalence, "top": top, "n_negatives": int(n_negatives[stop - 1])}
            if common["n_negatives"] < MIN_EXCEEDANCES:
                bound = min(1.0, prevalence * bound_recall / top)
                rows.append(common | {"component": "lens", "share": bound, "expected": bound * top * n_scanned,
                                      "n_sampled": int(is_lens[order[:stop]].sum()),
                                      "status": "cannot be computed (upper bound)"})  # fmt: skip
                continue
            above = pd.DataFrame({"component": component[order[:stop]], "mass": part[order[:stop]]})
            grouped = above.groupby("component")["mass"].agg(["sum", "size"])
            for name, values in grouped.sort_values("sum", ascending=False).iterrows():
                share = values["sum"] / grouped["sum"].sum()
                rows.append(common | {"component": name, "share": share, "expected": share * top * n_scanned,
                                      "n_sampled": int(values["size"]), "status": "reported"})  # fmt: skip
    return pd.DataFrame(rows)
