"""Operating points: thresholds at fixed false-positive rates of the parent population, their errors, and the freeze.

The parent population is pool N1 of the candidate table (all galaxies that pass the cuts), so a sampled negative counts
with the inverse of its inclusion probability. The footprint weight is *not* part of the definition: a threshold is a
property of the catalogue at hand; the rate averaged over the survey's mix of conditions is reported beside it as
``achieved_test_fpr_footprint``. Undiscovered lenses among the negatives belong to the parent population; how many they
can be is bounded by `bound_contamination`.
"""

import numpy as np
import pandas as pd
from scipy.special import logit

from lensaudit.artifacts import UserError, hash_file, hash_object
from lensaudit.rng import make_stream
from lensaudit.stats import draw_multiplicities, jeffreys_interval, kish_n_eff, summarise_draws, weighted_quantile

# Galaxy-galaxy lenses among ~43 M scanned galaxies: 0.23-0.48 per square degree (Collett 2015, LensPop).
PREVALENCE_RANGE = (0.8e-4, 1.6e-4)


def name_threshold(fpr):
    """Return the name of the operating point at one false-positive rate, such as ``fpr_1e-2``."""
    mantissa, exponent = f"{fpr:e}".split("e")
    return f"fpr_{float(mantissa):g}e{int(exponent)}"


def parent_weights(table):
    """Return the weight of each row in the parent population: 1 / inclusion probability in N1, 0 elsewhere.

    Parameters
    ----------
    table : DataFrame with ``label``, ``pool``, ``inclusion_probability``

    Returns
    -------
    ndarray of shape (N,)

    Raises
    ------
    UserError
        When an N1 row has no inclusion probability in (0, 1].
    """
    parent = ((table["label"] == 0) & (table["pool"] == "N1")).to_numpy()
    probability = table["inclusion_probability"].to_numpy(dtype=float)
    bad = parent & ~((probability > 0) & (probability <= 1))
    if bad.any():
        row = table.loc[bad, "galaxy_id"].iloc[0]
        raise UserError(f"inclusion_probability of negative {row} is outside (0, 1]; run 02_sampling again")
    return np.where(parent, 1.0 / np.where(parent, probability, 1.0), 0.0)


def grade_count(n, fpr, config):
    """Return the status of a target rate on n negatives: ``headline``, ``reported`` or ``cannot be computed``."""
    expected = n * fpr * (1 + 1e-9)
    if expected >= config.headline_exceedances:
        return "headline"
    return "reported" if expected >= config.min_exceedances else "cannot be computed"


def draw_thresholds(values, weights, groups, fprs, n, rng):
    """Bootstrap the weighted upper quantiles over groups.

    Parameters
    ----------
    values, weights, groups : array_like of shape (N,)
    fprs : sequence of float, length F
    n : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (n, F)
    """
    order = np.argsort(values, kind="stable")
    values, weights, groups = np.asarray(values)[order], np.asarray(weights)[order], np.asarray(groups)[order]
    out = [np.empty((0, len(fprs)))]
    for multiplicity in draw_multiplicities(groups, n, rng):
        share = np.cumsum(multiplicity * weights, axis=1)
        cut = (1.0 - np.asarray(fprs)) - 1e-12
        index = np.sum(share[:, None] < cut[:, None] * share[:, None, -1:], axis=2)
        out.append(values[np.minimum(index, len(values) - 1)])
    return np.concatenate(out)


def set_thresholds(val, config, seed):
    """Set the operating points on validation negatives.

    Parameters
    ----------
    val : DataFrame
        Joined validation table: ``label``, ``pool``, ``inclusion_probability``, ``healpix_128``, ``logit``.
    config : lensaudit.config.EvaluationConfig
    seed : int

    Returns
    -------
    thresholds : dict of dict
        Per operating point ``threshold`` on the logit (an object is selected when its logit is larger), ``lower`` and
        ``upper`` (95 %, negatives resampled by region) and ``lower_68``, ``upper_68``, ``n_negatives``,
        ``expected_exceedances``, ``n_exceedances``, ``weighted_n_eff``, ``status``, ``reason``.
    draws : DataFrame of shape (n_bootstrap, points)
        Thresholds of the resamples, for propagating their error.
    """
    weights = parent_weights(val)
    parent = val[weights > 0]
    weights, values = weights[weights > 0], parent["logit"].to_numpy(dtype=float)
    if not len(parent):
        raise UserError("no negative of pool N1 among the validation scores; thresholds need the parent population")
    possible = [f for f in config.fprs if grade_count(len(parent), f, config) != "cannot be computed"]
    draws = draw_thresholds(values, weights, parent["healpix_128"], possible, config.n_bootstrap,
                            make_stream(seed, "evaluation/thresholds"))  # fmt: skip
    draws = pd.DataFrame(draws, columns=[name_threshold(f) for f in possible])
    thresholds = {}
    for fpr in config.fprs:
        name, expected = name_threshold(fpr), len(parent) * fpr
        entry = {"fpr": fpr, "n_negatives": len(parent), "expected_exceedances": expected,
                 "weighted_n_eff": kish_n_eff(weights), "status": grade_count(len(parent), fpr, config)}  # fmt: skip
        if name not in draws:
            entry |= dict.fromkeys(("threshold", "lower", "upper", "lower_68", "upper_68", "n_exceedances"))
            entry["reason"] = f"{expected:.1f} exceedances expected, {config.min_exceedances} needed"
        else:
            value = float(weighted_quantile(values, 1.0 - fpr, weights))
            (lower, upper), (lower_68, upper_68) = summarise_draws(draws[name]), summarise_draws(draws[name], 0.68)
            entry |= {"threshold": value, "lower": float(lower), "upper": float(upper), "lower_68": float(lower_68),
                      "upper_68": float(upper_68), "n_exceedances": int(np.sum(values > value)),
                      "reason": ""}  # fmt: skip
        thresholds[name] = entry
    for score in config.fixed_thresholds:
        value, name = float(logit(score)), f"score_{score:g}"
        draws[name] = value
        thresholds[name] = {"fpr": None, "threshold": value, "lower": value, "upper": value, "lower_68": value,
                            "upper_68": value, "status": "fixed", "reason": ""}  # fmt: skip
    return thresholds, draws


def list_points(thresholds):
    """Return the names of the operating points that have a threshold."""
    return [name for name, entry in thresholds.items() if entry["threshold"] is not None]


def choose_points(thresholds):
    """Return the operating points to report, loosest rate first; the first is the headline.

    They are the computed false-positive rates. A sample too small for any (the profile that only proves the graph)
    still needs one selection and gets the last fixed score.
    """
    rates = {name: thresholds[name]["fpr"] for name in list_points(thresholds) if thresholds[name]["fpr"]}
    return sorted(rates, key=rates.get, reverse=True) or list_points(thresholds)[-1:]


def tabulate_points(thresholds):
    """Return the operating points as a table, one row each, for reading."""
    return pd.DataFrame(thresholds).T.drop(columns=["fpr", "lower_68", "upper_68"])


def weigh_fraction(flag, weights, level=0.95):
    """Weighted fraction with the Jeffreys interval at the Kish effective size.

    Returns
    -------
    fraction, lower, upper : float
        NaN for an empty sample.
    """
    weights, flag = np.asarray(weights, dtype=float), np.asarray(flag, dtype=float)
    size = kish_n_eff(weights)
    if size == 0:
        return np.nan, np.nan, np.nan
    fraction = float(np.average(flag, weights=weights))
    lower, upper = jeffreys_interval(fraction * size, size, level)
    return fraction, float(lower), float(upper)


def measure_achieved(thresholds, test):
    """Add the false-positive rate achieved on test negatives of the parent population to each operating point.

    Parameters
    ----------
    thresholds : dict
        From `set_thresholds`; not changed.
    test : DataFrame
        As `val` there, with ``footprint_weight``.

    Returns
    -------
    dict
        Adds ``achieved_test_fpr``, ``..._lower``, ``..._upper`` (95 %), ``..._footprint``, ``n_test_negatives``,
        ``n_test_exceedances``, ``n_test_eff`` (Kish).
    """
    weights = parent_weights(test)
    parent, weights = test[weights > 0], weights[weights > 0]
    footprint = weights * parent["footprint_weight"].to_numpy(dtype=float)
    out = {}
    for name, entry in thresholds.items():
        out[name] = dict(entry)
        if entry["threshold"] is None:
            continue
        flag = parent["logit"].to_numpy() > entry["threshold"]
        fraction, lower, upper = weigh_fraction(flag, weights)
        out[name] |= {"achieved_test_fpr": fraction, "achieved_test_fpr_lower": lower,
                      "achieved_test_fpr_upper": upper, "n_test_negatives": len(parent),
                      "achieved_test_fpr_footprint": weigh_fraction(flag, footprint)[0],
                      "n_test_exceedances": int(flag.sum()), "n_test_eff": kish_n_eff(weights)}  # fmt: skip
    return out


def bound_contamination(recall, fpr=1e-4, prevalence=PREVALENCE_RANGE):
    """Bound the share of a false-positive rate that unknown lenses among the negatives can make up.

    Parameters
    ----------
    recall : DataFrame
        From `evaluation.measure_recall`. Recall falls with the rate, so the upper bound for Tier A at the tightest
        computed false-positive rate bounds that at `fpr`. Fixed scores have no stated rate and are left out; without
        any computed rate the bound is 1.
    fpr : float
    prevalence : tuple of float
        Lowest and highest fraction of galaxies that are lenses.

    Returns
    -------
    dict
        ``rate`` = prevalence x recall (largest), ``share`` = rate / fpr, capped at 1.
    """
    rated = (recall["subset"] == "Tier A") & recall["point"].str.startswith("fpr_")
    upper = float(recall.loc[rated, "upper_total"].min()) if rated.any() else 1.0
    rate = max(prevalence) * upper
    return {"prevalence": list(prevalence), "recall_upper": upper, "fpr": fpr, "rate": rate,
            "share": min(rate / fpr, 1.0)}  # fmt: skip


def freeze_detector(detector_id, weights, preprocessing, thresholds):
    """Describe the frozen detector by content, so that every later table can name what it audited.

    Parameters
    ----------
    detector_id : str
    weights, preprocessing : path
        Files of the checkpoint.
    thresholds : dict
        As written to ``thresholds.json``; the values alone enter the hash.

    Returns
    -------
    dict
        ``model``, ``weights``, ``preprocessing``, ``thresholds`` (sha256) and ``detector``, a short hash of all four.
    """
    content = {"model": str(detector_id), "weights": hash_file(weights), "preprocessing": hash_file(preprocessing),
               "thresholds": hash_object({k: v["threshold"] for k, v in thresholds.items()})}  # fmt: skip
    return content | {"detector": hash_object(content)[:12]}
