"""When completeness may be quoted: enough injections, hosts and bricks, and a threshold among the scores."""

import numpy as np

from lensaudit import stats
from lensaudit.artifacts import UserError


def check_thresholds(table, thresholds):
    """Return name -> (threshold, reason), the reason saying that it lies outside the scores and so tells nothing.

    Raises
    ------
    UserError
        When a threshold or a logit is not a finite number.
    """
    logit = table["logit"].to_numpy(dtype=float)
    if not np.isfinite(logit).all():
        raise UserError(f"logit of injection {table['injection_id'][~np.isfinite(logit)].iloc[0]} is not finite")
    out = {}
    for name, value in thresholds.items():
        if value is None or not np.isfinite(value):
            raise UserError(f"threshold {name} is {value}, not a finite logit; leave out points without a threshold")
        above, below = len(logit) and value >= logit.max(), len(logit) and value < logit.min()
        reason = "threshold above every score" if above else "threshold below every score" if below else ""
        out[name] = (float(value), reason)
    return out


def judge_cell(n, n_bricks, config, empty_reason=""):
    """Say why a cell of n injections from n_bricks bricks is not sufficient; empty text when these two do not tell."""
    section = config.completeness
    if n == 0:
        return empty_reason or "no injection"
    if n < section.min_injections:
        return f"fewer than {section.min_injections} injections"
    if n_bricks < section.min_bricks:
        return f"hosts from fewer than {section.min_bricks} bricks"
    return ""


def add_intervals(part, config):
    """Add completeness, its bounds and whether it is sufficient, to a table with n, k, n_eff and reason."""
    with np.errstate(invalid="ignore"):
        part["completeness"] = part["k"] / part["n"].where(part["n"] > 0)
    fraction = part["completeness"].fillna(0.0).to_numpy()
    for level, name in ((0.68, "68"), (0.95, "95")):
        lower, upper = stats.jeffreys_interval(part["n_eff"] * fraction, part["n_eff"], level)
        part[f"lower_{name}"], part[f"upper_{name}"] = lower, upper
    small = (part["reason"] == "") & (part["n_eff"] < config.completeness.min_n_eff)
    part["reason"] = part["reason"].where(~small, f"effective size below {config.completeness.min_n_eff:g}")
    part["sufficient"] = part["reason"] == ""
    return part
