"""Figure of the smooth completeness model: curves beside the raw cells, and its calibration on held-out bricks."""

import numpy as np

from lensaudit.figures.completeness import name_point
from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure


def plot_smooth(cells, calibration, threshold_name, simulated=True, verdict=""):
    """Show the smooth model along theta_E beside the raw cells at three depths and seeings, and its calibration.

    Parameters
    ----------
    cells, calibration : pandas.DataFrame
        "cells" and "calibration" of `smooth_checks.audit_smooth`.
    threshold_name : str
    simulated : bool
    verdict : str
        From `selection.card.note_realism`, printed below.

    Returns
    -------
    matplotlib.figure.Figure
        Points: raw cells that are sufficient, with 95 % intervals. Lines and bands: the model averaged over the
        injections of each cell, 68 and 95 %, in every cell with an injection. Right: observed against predicted
        fraction of held-out injections, 95 % with hosts drawn with replacement.
    """
    own = cells[(cells["threshold_name"] == threshold_name) & cells["smooth"].notna()]
    raw = own[own["sufficient"].astype(bool)] if own["sufficient"].any() else own
    radii = raw.groupby(["depth", "seeing"])["theta_E"].transform("size")
    known = raw[radii >= 0.5 * radii.max()]  # a curve with a single raw point shows nothing
    fig, axes = new_figure("text", 2.3, 1, 4)
    top = min(1.0, 1.1 * known[["upper_95", "smooth_upper_95"]].max().max())
    for axis, depth in zip(axes, _spread(known["depth"]), strict=False):
        for place, seeing in enumerate(_spread(known.loc[known["depth"] == depth, "seeing"])):
            chosen = [part[(part["depth"] == depth) & (part["seeing"] == seeing)] for part in (raw, own)]
            _draw_curve(axis, *chosen, place, seeing)
        axis.set(ylim=(0, top), xlabel=label("theta_E"), title=rf"depth$_r$ = {depth:g} mag")
        axis.legend(fontsize=5.5, title=label("seeing"), title_fontsize=5.5)
    for axis in axes[1:3]:
        axis.tick_params(labelleft=False)
    axes[0].set_ylabel(f"completeness at {name_point(threshold_name)}")
    bins = calibration[calibration["threshold_name"] == threshold_name]
    limit = 1.05 * max(bins["observed_upper"].max(), bins["predicted"].max())
    axes[3].plot([0, limit], [0, limit], color="0.6", lw=0.8)
    error = np.clip([bins["observed"] - bins["observed_lower"], bins["observed_upper"] - bins["observed"]], 0, None)
    axes[3].errorbar(bins["predicted"], bins["observed"], error, fmt="o", ms=3, lw=0.8, color=COLOURS["black"])
    axes[3].set(xlim=(0, limit), ylim=(0, limit), xlabel="predicted", ylabel="recovered, held-out", title="calibration")
    return mark_simulated(fig, simulated, verdict)


def _spread(values):
    """Return the lowest, middle and highest of the distinct values."""
    values = np.unique(values)
    return values[np.unique([0, len(values) // 2, len(values) - 1])]


def _draw_curve(axis, raw, part, place, seeing):
    colour, marker = list(COLOURS.values())[place], "osD"[place]
    error = np.clip([raw["completeness"] - raw["lower_95"], raw["upper_95"] - raw["completeness"]], 0, None)
    axis.errorbar(raw["theta_E"] + 0.04 * (place - 1), raw["completeness"], error, fmt=marker, ms=2.2, lw=0.6,
                  color=colour, mfc="none", mew=0.6, label=f"{seeing:.2f}")  # fmt: skip
    part = part.sort_values("theta_E")
    for level, alpha in (("95", 0.15), ("68", 0.3)):
        axis.fill_between(part["theta_E"], part[f"smooth_lower_{level}"], part[f"smooth_upper_{level}"], color=colour,
                          alpha=alpha, lw=0)  # fmt: skip
    axis.plot(part["theta_E"], part["smooth"], color=colour, lw=1.0)
