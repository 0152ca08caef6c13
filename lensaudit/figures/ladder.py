"""Figures of what opens a gap: the ablation ladder, and the truths between closure's prediction and the recall."""

import numpy as np

from lensaudit.figures.style import COLOURS, mark_simulated, new_figure
from lensaudit.wording import POINTS

KINDS = ("path", "added", "retrained")
TITLES = {"flat": "flat grid average", "population": "survey's mix", "lenses": "weighted to the lenses",
          "lenses_snr": "the same, true arc S/N too"}  # fmt: skip
MARKS = {"flat": ("s", COLOURS["grey"]), "population": ("D", COLOURS["green"]), "lenses": ("o", COLOURS["purple"]),
         "lenses_snr": ("^", COLOURS["black"])}  # fmt: skip


def plot_ladder(table, simulated=True, points=None, weightings=("flat", "lenses")):
    """Show what every rung changes first-in and last-out, and how completeness climbs, beside the observed recall.

    Parameters
    ----------
    table : pandas.DataFrame
        From `audit.ladder.tabulate_ladder`.
    simulated : bool
    points : sequence of str, optional
        Operating points (threshold_name), a row of panels each; the first in the table by default. Others than those
        of the table are left out.
    weightings : sequence of str
        One panel of differences each. The last panel of a row shows every weighting in the table.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Rungs of the path stand in the order of the cumulative steps in the last panel; below the line, rungs that neither
    end has, added to either end; then what needs training, where it was run. The published completeness and recall
    stand as thin lines in the last panel, where there are such at this operating point.
    """
    known = list(table["threshold_name"].dropna().unique())
    points = [point for point in points or known[:1] if point in known]
    rows = table[table["kind"].isin(KINDS) & table["threshold_name"].isin(points)].drop_duplicates("rung")
    rows = rows.sort_values("kind", key=lambda k: k.map(KINDS.index), kind="stable")
    places = {name: k + 1 for k, name in enumerate(rows["rung"])}
    pitch = 0.17 if len(points) == 1 else 0.122
    fig, axes = new_figure("text", 0.6 + len(points) * (0.35 + pitch * (len(rows) + 2)), len(points),
                           len(weightings) + 1, sharey=True, squeeze=False,
                           gridspec_kw={"width_ratios": [1.0] * len(weightings) + [1.35]})  # fmt: skip
    for line, point in zip(axes, points, strict=True):
        own = table[table["threshold_name"] == point]
        for axis, weighting in zip(line, weightings, strict=False):
            _draw_steps(axis, own[(own["weighting"] == weighting) & own["kind"].isin(KINDS)], places)
            axis.set_title(f"{TITLES[weighting]}, {POINTS.get(point, point)}")
        _draw_levels(line[-1], own, places)
        line[-1].set_title(f"published to fiducial, {POINTS.get(point, point)}")
    limit = max(abs(value) for axis in axes[:, :-1].flat for value in axis.get_xlim())
    for axis in axes[:, :-1].flat:
        axis.set_xlim(-limit, limit)
    for axis, text in zip(axes[-1], ["change of completeness"] * len(weightings) + ["completeness, steps added one by "
                                                                                   "one"], strict=True):  # fmt: skip
        axis.set_xlabel(text)
    for axis in axes.flat:
        axis.axhline(int(rows["kind"].eq("path").sum()) + 0.5, color="0.5", lw=0.5)
        axis.tick_params(axis="y", length=0, labelsize=7 if len(points) == 1 else 6)
    missing = table.loc[table["status"] == "not run", "label"]
    if len(missing):
        axes[0, -1].text(0.03, len(rows) + 0.4, "not run: " + ",\n".join(missing), fontsize=6, va="bottom",
                         transform=axes[0, -1].get_yaxis_transform())  # fmt: skip
    names = {0: "published set-up", **dict(zip(places.values(), rows["label"], strict=True))}
    axes[0, 0].set(yticks=list(names), yticklabels=[name.replace("theta_E", r"$\theta_{\rm E}$").replace(
        "sigma", r"$\sigma_v$") for name in names.values()], ylim=(len(rows) + 0.6, -0.6))  # fmt: skip
    found = [axis.get_legend_handles_labels() for axis in (axes[0, 0], *axes[:, -1])]
    shown = {text: handle for handles, texts in found for handle, text in zip(handles, texts, strict=True)}
    fig.legend(shown.values(), shown, loc="outside upper center", ncols=4)
    return mark_simulated(fig, simulated)


def _draw_steps(axis, part, places):
    """Draw first-in and last-out differences with their intervals."""
    axis.axvline(0.0, color="0.6", lw=0.6)
    for column, shift, colour, mark in (("first_in", -0.16, "blue", "o"), ("last_out", 0.16, "orange", "s")):
        value = part[column].to_numpy(dtype=float)
        errors = [value - part[f"{column}_lower"], part[f"{column}_upper"] - value]
        axis.errorbar(value, part["rung"].map(places) + shift, xerr=np.clip(errors, 0.0, None), fmt=mark, ms=2.8,
                      color=COLOURS[colour], elinewidth=0.9, capsize=0,
                      label={"first_in": "first in", "last_out": "last out"}[column])  # fmt: skip


def _draw_levels(axis, own, places):
    """Draw completeness after each step under every weighting, and the observed recall as a band."""
    seen = own[own["kind"] == "observed"].head(1)
    for _, row in seen.iterrows():
        axis.axvspan(row["lower"], row["upper"], color=COLOURS["yellow"], alpha=0.35, lw=0)
        axis.axvline(row["completeness"], color=COLOURS["vermilion"], lw=0.9, label="recall of held-out lenses")
    for _, row in own[own["kind"] == "published"].iterrows():
        axis.axvline(row["completeness"], color="0.35", lw=0.6, ls=(0, (4, 2)) if row["rung"] == "recall" else ":",
                     label=f"published {row['rung']}, {row['label'].partition(' (')[0]}")  # fmt: skip
    last = own.loc[own["kind"] == "path", "rung"].iloc[-1]  # its cumulative step is the other end
    levels = own[(own["kind"] == "end") | (own["kind"] == "cumulative") & (own["rung"] != last)]
    places = {**places, "published_2026": 0, "collett": places[last]}
    levels = levels.sort_values("rung", key=lambda names: names.map(places), kind="stable")
    for k, (weighting, part) in enumerate(levels.groupby("weighting", sort=False)):
        value = part["completeness"].to_numpy(dtype=float)
        where = part["rung"].map(places) + 0.12 * (k - 1.5)
        errors = np.clip([value - part["lower"], part["upper"] - value], 0.0, None)
        mark, colour = MARKS[weighting]
        axis.errorbar(value, where, xerr=errors, fmt=mark + "-", ms=2.6, lw=0.6, color=colour, elinewidth=0.7,
                      capsize=0, label=TITLES[weighting])  # fmt: skip
    axis.set_xlim(0, None)


STEPS = {"measured": "measured covariates", "true S/N": "true arc S/N", "source colours": "+ source colours",
         "source and arc": "+ size, magnification", "lens and host": "+ lens, redshifts, host", "twins": "twins",
         "lenses": "held-out lenses"}  # fmt: skip


def plot_gap(table, simulated=True):
    """Show how the predicted recall of the lenses' twins grows as a model is told more of the truth.

    Parameters
    ----------
    table : pandas.DataFrame
        From `audit.gap.trace_gap`.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axis = new_figure("column", 2.1)
    told = ~table["step"].isin(("twins", "lenses")).to_numpy()
    for rows, mark, colour, text in ((told, "o", "blue", "predicted for the twins"),
                                     (~told, "s", "vermilion", "observed")):
        own, where = table[rows], np.flatnonzero(rows)
        errors = np.clip([own["predicted"] - own["lower"], own["upper"] - own["predicted"]], 0.0, None)
        axis.errorbar(own["predicted"], where, xerr=errors, fmt=mark, color=COLOURS[colour], ms=3.2, elinewidth=0.9,
                      capsize=0, label=text)  # fmt: skip
    axis.axhline(told.sum() - 0.5, color="0.5", lw=0.5)
    axis.tick_params(axis="y", length=0)
    right = min(1.0, 1.08 * float(table["upper"].max())) if len(table) else 1.0
    axis.set(yticks=range(len(table)), yticklabels=[STEPS[step] for step in table["step"]], xlim=(0.0, right),
             ylim=(max(len(table), 1) - 0.5, -0.5), xlabel=r"recall at FPR $10^{-2}$")  # fmt: skip
    fig.legend(loc="outside upper center", ncols=2)
    return mark_simulated(fig, simulated)
