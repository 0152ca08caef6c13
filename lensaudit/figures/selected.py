"""Figures of what is selected: one-dimensional selection, corrected distributions, quads, what real lists hold."""

from itertools import cycle

import numpy as np
from matplotlib.patches import Patch

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import LISTS, POINTS, spell_out

POINT_COLOURS = ("blue", "vermilion", "green", "purple")


def plot_curves(curves, quantiles, simulated=True):
    """Show each parameter's distribution before and after selection, and the share recovered along it.

    Parameters
    ----------
    curves : pandas.DataFrame
        From `selected.trace_curves`.
    quantiles : pandas.DataFrame
        From `selected.measure_quantiles`, with share 0.5: the medians are marked above.
    simulated : bool
    """
    names, points = curves["variable"].unique(), curves["threshold_name"].unique()
    fig, axes = new_figure("text", 3.6, 2, len(names), sharex="col", sharey="row", squeeze=False)
    middle = quantiles[quantiles["share"] == 0.5].set_index(["variable", "sample"])
    for column, name in enumerate(names):
        top, bottom = axes[:, column]
        own = curves[curves["variable"] == name]
        first = own[own["threshold_name"] == points[0]]
        edges = np.append(first["left"], first["right"].iloc[-1])
        highest = own[["parents", "selected"]].max(axis=None)  # densities have a unit; the shape is what is shown
        top.stairs(first["parents"] / highest, edges, color=COLOURS["grey"], label="injected")
        top.axvline(middle.loc[(name, "parents"), "value"], ymin=0.88, color=COLOURS["grey"])
        for colour, point in zip(POINT_COLOURS, points, strict=False):
            part = own[own["threshold_name"] == point]
            top.stairs(part["selected"] / highest, edges, color=COLOURS[colour], label=POINTS.get(point, point))
            top.axvline(middle.loc[(name, point), "value"], ymin=0.88, color=COLOURS[colour])
            bottom.errorbar(part["x"], part["completeness"], color=COLOURS[colour], marker="o", markersize=2,
                            linewidth=0.7, yerr=_lengths(part, "completeness"))  # fmt: skip
        top.set_xlim(edges[0], min(edges[-1], first["x"].max() + 0.5 * (first["x"].max() - edges[-2])))
        top.set_ylim(0, 1.25)
        bottom.set(xlabel=label(name), ylim=(0, None))
    axes[0, 0].set_ylabel("number, scaled")
    axes[1, 0].set_ylabel(label("completeness"))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(points) + 1)
    return mark_simulated(fig, simulated)


def _lengths(table, column):
    """Return lower and upper lengths of error bars, shape (2, N)."""
    return np.maximum([table[column] - table["lower"], table["upper"] - table[column]], 0)


def plot_corrected(table, simulated=True):
    """Show distributions of found lenses, corrected with C, and the truth of the simulated sky.

    Parameters
    ----------
    table : pandas.DataFrame
        From `selected.correct_catalogue`.
    simulated : bool
    """
    parts = dict(tuple(table.groupby("variable", sort=False)))
    fig, axes = new_figure("text", 2.5, 1, len(parts), squeeze=False)
    floor = 0.5  # of a logarithmic axis of counts: an empty bin lies on it
    for axis, (name, part) in zip(axes[0], parts.items(), strict=True):
        edges, names = _find_edges(part)
        x = 0.5 * (edges[1:] + edges[:-1])
        axis.stairs(part["n_found"].clip(lower=floor), edges, baseline=floor, color=COLOURS["blue"], fill=True,
                    alpha=0.35, label="found")  # fmt: skip
        if "n_true" in part:
            axis.stairs(part["n_true"].clip(lower=floor), edges, baseline=floor, color="black", label="true")
        own = (part["n_used"] > 0).to_numpy()
        guarded = bool(part["guard_ok"].all())
        axis.errorbar(x[own], part["corrected"][own], yerr=_lengths(part[own], "corrected"), fmt="o",
                      color=COLOURS["vermilion"], linewidth=0.9, markerfacecolor=None if guarded else "white",
                      label="found / C, 95 %" + ("" if guarded else ", weights fail their guard"))  # fmt: skip
        if names is not None:
            axis.set_xticks(x, names)
        # A found lens where C is nearly zero leaves its bin without an upper bound: such bars run out of the frame.
        highest = part.filter(["n_found", "n_true", "corrected"]).max(axis=None)
        axis.set(xlabel=label(name), yscale="log", ylim=(floor, 8 * max(highest, 1)), xlim=(edges[0], edges[-1]))
    axes[0, 0].set_ylabel("lenses per bin")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)


def _find_edges(part):
    """Return the edges of the bins of one distribution, and the names of its classes or None."""
    if part["left"].notna().all():
        return np.append(part["left"], part["right"].iloc[-1]), None
    return np.arange(len(part) + 1) - 0.5, list(part["name"])


def plot_lists(table):
    """Show the observed distributions of published lists of lenses, each normalised to its own entries.

    Parameters
    ----------
    table : pandas.DataFrame
        From `real_input.tables.observe_lists`.
    """
    parts = dict(tuple(table.groupby("variable", sort=False)))
    lists = table["catalog"].unique()
    palette = cycle(c for k, c in COLOURS.items() if k not in ("yellow", "grey"))
    colours = dict(zip(lists, palette, strict=False))
    fig, axes = new_figure("text", 2.6, 1, len(parts), squeeze=False)
    for axis, (variable, part) in zip(axes[0], parts.items(), strict=True):
        own = dict(tuple(part.groupby("catalog", sort=False)))
        for place, (name, rows) in enumerate(own.items()):
            edges, names = _find_edges(rows)
            share = rows["n_found"] / rows["n_found"].sum()
            if names is None:
                axis.stairs(share, edges, color=colours[name])
            else:  # classes stand beside each other
                x = np.arange(len(names)) + 0.8 * ((place + 0.5) / len(own) - 0.5)
                axis.bar(x, share, 0.8 / len(own), color=colours[name])
                axis.set_xticks(np.arange(len(names)), names)
        axis.set(xlabel=label(variable), ylim=(0, None))
    axes[0, 0].set_ylabel("share of the list's entries")
    shown = [Patch(color=colours[name], label=LISTS.get(name, name)) for name in lists]
    fig.legend(handles=shown, loc="outside upper center", ncols=4)
    return fig


def plot_images(images, simulated=True):
    """Show the share of quads in each sample with its 95 % interval.

    Parameters
    ----------
    images : pandas.DataFrame
        From `selected.compare_images`.
    simulated : bool
    """
    fig, axis = new_figure("column", 0.7 + 0.25 * len(images))
    y = np.arange(len(images))[::-1]
    axis.errorbar(images["quad_fraction"], y, xerr=_lengths(images, "quad_fraction"), fmt="o", color=COLOURS["blue"])
    axis.set_yticks(y, [f"{spell_out(row.sample)} ({row.n})" for row in images.itertuples()])
    axis.set(xlabel="quads / (quads + doubles)", xlim=(0, None), ylim=(-0.6, len(images) - 0.4))
    return mark_simulated(fig, simulated)
