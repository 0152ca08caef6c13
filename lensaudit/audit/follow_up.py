"""Which candidates a spectrum is best spent on: how sure each is, and how rare its kind is among the found."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from lensaudit.artifacts import UserError
from lensaudit.audit.campaign import measure_rows
from lensaudit.audit.thresholds import parent_weights
from lensaudit.stats import kish_n_eff

MIN_OBJECTS = 10  # of either class above the threshold, for a slope in the score


def measure_candidates(test, threshold, store, bias):
    """Return the scored objects above a threshold with their blind measurements; without any, none is measured.

    Parameters
    ----------
    test : pandas.DataFrame
        Scored objects with logit and cutout_path.
    threshold : float
        On the logit.
    store, bias
        As `campaign.measure_rows` takes them.
    """
    own = test[test["logit"] > threshold]
    return measure_rows(own, store, bias) if len(own) else own.assign(arc_radius=np.nan)


def infer_purity(scored, logit, threshold, prevalence):
    """Return P(lens | score) of objects above a threshold at a stated prevalence.

    Parameters
    ----------
    scored : pandas.DataFrame
        Scored objects other than the candidates (validation): label, tier, pool, inclusion_probability, logit.
    logit : array_like of shape (N,)
        Of the candidates.
    threshold : float
        On the logit.
    prevalence : float
        Lenses per galaxy of the parent population.

    Returns
    -------
    ndarray of shape (N,), in (0, 1)

    Raises
    ------
    UserError
        Without a Tier-A lens or a galaxy of the parent population among the scored.

    Notes
    -----
    The odds are prevalence / (1 - prevalence) times TPR / FPR at the threshold, shares (k + 1/2) / (n + 1), times
    the ratio of the densities of lenses and galaxies above it, taken as exponential in the logit: its slope is that of
    a logistic regression between the two (Prentice & Pyke 1979, Biometrika 66, 403), its norm the one of a density.
    Scores beyond that of the tenth-highest galaxy count as that score, since the sample cannot say how much purer they
    are. With fewer than 10 lenses or 30 galaxies above the threshold, whose slope would be noise, all have the same P;
    no score counts against a candidate (the slope is not below zero). Lenses are those of Tier A; others may score
    lower.
    """
    value, weight = scored["logit"].to_numpy(dtype=float), parent_weights(scored)
    lens = ((scored["label"] == 1) & (scored["tier"] == "A")).to_numpy()
    if not lens.any() or not weight.any():
        raise UserError("P(lens | score) needs Tier-A lenses and galaxies of pool N1 among the scored objects")
    above, galaxy, size = value > threshold, weight > 0, kish_n_eff(weight)
    tpr = (above[lens].sum() + 0.5) / (lens.sum() + 1)
    fpr = (size * np.average(above, weights=weight) + 0.5) / (size + 1)
    odds = prevalence / (1 - prevalence) * tpr / fpr
    if (lens & above).sum() < MIN_OBJECTS or (galaxy & above).sum() < 3 * MIN_OBJECTS:
        return np.full(len(logit), odds / (1 + odds))
    cap = np.sort(value[galaxy])[-MIN_OBJECTS]
    value, own = np.minimum(value, cap), weight[galaxy & above]
    slope = max(_fit_slope(value[lens & above], value[galaxy & above], own), 0.0)
    norm = np.average(np.exp(slope * (value[galaxy & above] - threshold)), weights=own)
    odds = odds * np.exp(slope * (np.minimum(np.asarray(logit, dtype=float), cap) - threshold)) / norm
    return odds / (1 + odds)


def _fit_slope(first, other, weight):
    """Return the slope of a logistic regression of class on value, each class with the same total weight."""
    x, y = np.concatenate([first, other]), np.repeat([1, 0], [len(first), len(other)])
    if not x.std() > 0:
        return 0.0
    size = min(len(first), kish_n_eff(weight))  # the rarer class sets the scale of the ridge
    own = np.concatenate([np.full(len(first), size / len(first)), size * weight / weight.sum()])
    model = LogisticRegression(C=10.0).fit((x - x.mean())[:, None] / x.std(), y, sample_weight=own)
    return float(model.coef_[0, 0] / x.std())


def convert_radius(arc_radius, injections):
    """Return the Einstein radius that a blindly measured arc radius stands for among found injections.

    Parameters
    ----------
    arc_radius : array_like of shape (N,), arcsec
        NaN where no arc was measured.
    injections : pandas.DataFrame
        Found injections, drawn as the prior has them, measured alike: theta_E, arc_radius [arcsec].

    Returns
    -------
    theta_E : ndarray of shape (N,), arcsec
        NaN for unknown radii, and everywhere when fewer than 10 injections have one.
    scatter : float
        Standard deviation of ln theta_E about the relation: how little one radius says of one lens.

    Notes
    -----
    The least-squares line of ln theta_E on ln arc_radius, the prior's expectation at that radius. The blind radius is
    that of the light left outside the host: it cannot lie far inside the seeing, and a bright counter-image or the
    host's own structure moves it.
    """
    known = injections[["theta_E", "arc_radius"]].dropna()
    radius = np.asarray(arc_radius, dtype=float)
    if len(known) < MIN_OBJECTS or known["arc_radius"].nunique() < 2:
        return np.full(len(radius), np.nan), np.nan
    x, y = np.log(known["arc_radius"].to_numpy()), np.log(known["theta_E"].to_numpy())
    slope, start = np.polyfit(x, y, 1)
    return np.exp(start + slope * np.log(radius)), float(np.std(y - start - slope * x, ddof=2))


def rank_follow_up(candidates, probability, purity):
    """Order candidates by what a spectrum of each would add to the corrected count of lenses.

    Parameters
    ----------
    candidates : pandas.DataFrame
        With galaxy_id.
    probability : pandas.DataFrame
        C of each row, as `correct_distribution` takes it.
    purity : array_like of shape (N,), in [0, 1]
        P(lens | score, prevalence) of each candidate.

    Returns
    -------
    pandas.DataFrame
        The candidates with p, purity, priority, in_support, rank (1 first), in that order.

    Raises
    ------
    UserError
        When numbers of rows differ or a purity lies outside [0, 1].

    Notes
    -----
    The rule: priority = sqrt(P (1 - P)) / C, the standard deviation that not knowing whether this candidate is a lens
    leaves in the corrected count sum 1/C. A sure lens and a sure galaxy need no spectrum; of two doubtful candidates
    the one of a kind that is rarely found goes first. Candidates without a C follow, the purest first.
    """
    purity = np.asarray(purity, dtype=float)
    if not len(candidates) == len(probability) == len(purity):
        raise UserError(f"{len(candidates)} candidates, {len(probability)} probabilities, {len(purity)} purities; give "
                        "one of each per candidate")  # fmt: skip
    bad = ~((purity >= 0) & (purity <= 1))
    if bad.any():
        raise UserError(f"purity of {candidates['galaxy_id'].iloc[int(bad.argmax())]} is not between 0 and 1")
    support, n_eff = probability["in_support"].to_numpy(dtype=bool), probability["n_eff"].to_numpy(dtype=float)
    p = (n_eff * probability["p"].to_numpy(dtype=float) + 0.5) / (n_eff + 1)
    p = np.where(support, p, np.nan)
    out = candidates.assign(p=p, purity=purity, in_support=support, priority=np.sqrt(purity * (1 - purity)) / p)
    out = out.sort_values(["in_support", "priority", "purity", "galaxy_id"], ascending=[False, False, False, True])
    return out.assign(rank=np.arange(1, len(out) + 1)).reset_index(drop=True)
