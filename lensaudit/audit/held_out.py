"""The held-out lenses of closure: their scores, their truth where it is known, and the parameters their twins take."""

import numpy as np

from lensaudit.artifacts import UserError
from lensaudit.audit.scores import join_scores


def score_lenses(measurements, scores, split="test"):
    """Return the measured lenses of one split with their logit, in the order they stand.

    Parameters
    ----------
    measurements : pandas.DataFrame
        Of positives, with galaxy_id, cutout_path, split.
    scores : pandas.DataFrame
        Score table of that split; scores of other objects are not used.
    split : str

    Raises
    ------
    UserError
        When a lens has no score or more than one, or is measured twice.
    """
    own = measurements[measurements["split"] == split]
    joined = join_scores(own, scores[scores["galaxy_id"].isin(own["galaxy_id"])])
    return own.drop(columns=["logit", "score"], errors="ignore").merge(
        joined[["galaxy_id", "logit"]], on="galaxy_id", validate="one_to_one")  # fmt: skip


def join_lenses(measurements, truth=None, tier="A", split="test"):
    """Return the held-out lenses closure is taken on.

    Parameters
    ----------
    measurements : pandas.DataFrame
        Blind measurements of positives with split, tier, survey columns and logit.
    truth : pandas.DataFrame, optional
        Truth table of the simulated sky (galaxy_id, theta_E); wrong catalogue entries drop out by it. Without it the
        table must hold theta_E or arc_radius, which then stands for it on both sides.
    tier, split : str

    Raises
    ------
    UserError
        When no such lens is left or theta_E is not known.
    """
    lenses = measurements[(measurements["split"] == split) & (measurements["tier"] == tier)].copy()
    if truth is not None:
        known = truth.drop_duplicates("galaxy_id").set_index("galaxy_id")
        lenses["theta_E"] = lenses["galaxy_id"].map(known["theta_E"])
        lenses["arc_snr_true"] = lenses["galaxy_id"].map(known["snr_true"]) if "snr_true" in known else np.nan
        lenses = lenses[lenses["theta_E"].notna()]
    elif "theta_E" not in lenses:
        raise UserError("held-out lenses have no theta_E; hand in a truth table or measure arc_radius on both sides")
    lenses = lenses[lenses["logit"].notna()]
    if lenses.empty:
        raise UserError(f"no scored {split} lens of tier {tier} is left for closure; check samples.parquet and scores")
    return lenses.reset_index(drop=True)


def list_parameters(lenses, truth):
    """Return the true parameters of held-out lenses as an ordinary table for `injection.priors.make_twins`.

    Parameters
    ----------
    lenses : pandas.DataFrame
        From `join_lenses`: galaxy_id and the survey columns twins are matched on.
    truth : pandas.DataFrame
        Truth table of the simulated sky.
    """
    truth = truth.drop_duplicates("galaxy_id")
    kept = [c for c in lenses if c == "galaxy_id" or c not in truth]
    return lenses[kept].merge(truth, on="galaxy_id", validate="one_to_one").reset_index(drop=True)
