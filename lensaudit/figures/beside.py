"""Figures of completeness beside the map: further axes, and columns filled by degraded hosts."""

import numpy as np

from lensaudit.figures.completeness import name_point
from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure


def plot_axes(table, simulated=True, verdict=""):
    """Show completeness along further axes, one panel each, with 95 % intervals.

    Parameters
    ----------
    table : pandas.DataFrame
        From `audit.beside.tabulate_axes`.
    simulated : bool
    verdict : str
        From `selection.card.note_realism`, printed below.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = list(dict.fromkeys(table["axis"]))
    fig, axes = new_figure("text", 2.2, 1, len(names), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for (point, part), colour in zip(table[table["axis"] == name].groupby("threshold_name", sort=False),
                                         ("blue", "vermilion", "green", "purple"), strict=False):  # fmt: skip
            number = part["low"].notna().all()
            x = 0.5 * (part["low"] + part["high"]) if number else np.arange(len(part))
            width = 0.5 * (part["high"] - part["low"]) if number else None
            axis.errorbar(x, part["completeness"], _reach(part, "lower", "upper"), width, fmt="o", ms=3, lw=0.8,
                          color=COLOURS[colour], label=name_point(point))  # fmt: skip
            if not number:
                axis.set(xticks=x, xticklabels=part["bin"], xlim=(-0.5, len(part) - 0.5))
        if name.startswith("nobs"):
            axis.set_xscale("log")
        axis.set_xlabel(label(name))
    axes[0, 0].set(ylabel=label("completeness"), ylim=(0, None))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return mark_simulated(fig, simulated, verdict)


def plot_mode_two(filled, cells, threshold_name, simulated=True, verdict=""):
    """Show completeness of mode (ii) against Einstein radius, a panel per filled column, with mode (i) where it counts.

    Parameters
    ----------
    filled : pandas.DataFrame
        From `audit.beside.run_mode_two`; empty where no column could be filled.
    cells : pandas.DataFrame
        Of mode (i), from `completeness.count_cells`; only its sufficient cells are drawn.
    threshold_name : str
    simulated : bool
    verdict : str
        As in `plot_axes`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    places = filled[["seeing", "depth"]].drop_duplicates().to_numpy() if len(filled) else np.empty((0, 2))
    fig, axes = new_figure("text", 2.3, 1, max(len(places), 1), sharey=True, squeeze=False)
    own = cells[cells["sufficient"].astype(bool)]
    looks = ((filled, "degraded hosts (mode ii)", "vermilion", "o", "white"),
             (own, "hosts as they are (mode i), sufficient cells", "blue", "s", None))  # fmt: skip
    for axis, (seeing, depth) in zip(axes[0], places, strict=False):
        for table, text, colour, marker, fill in looks:
            part = table[(table["seeing"] == seeing) & (table["depth"] == depth)
                         & (table["threshold_name"] == threshold_name)]  # fmt: skip
            axis.errorbar(part["theta_E"] + (0.04 if fill else 0.0), part["completeness"],
                          _reach(part, "lower_95", "upper_95"), fmt=marker, mfc=fill, ms=3, lw=0.8,
                          color=COLOURS[colour], label=text)  # fmt: skip
        axis.set(xlabel=label("theta_E"), title=f"seeing {seeing:.2f}, depth {depth:.1f}")
    if not len(places):
        axes[0, 0].text(0.5, 0.5, "no column could be filled", ha="center", transform=axes[0, 0].transAxes)
    axes[0, 0].set(ylabel=f"completeness at {name_point(threshold_name)}", ylim=(0, None))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return mark_simulated(fig, simulated, verdict)


def _reach(part, lower, upper):
    return np.clip([part["completeness"] - part[lower], part[upper] - part["completeness"]], 0.0, None)
