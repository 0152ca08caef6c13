"""Figures of what is selected: one-dimensional selection, corrected distributions, quads, the benchmark card."""

import numpy as np

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import POINTS, spell_out

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


def plot_corrected(tables, simulated=True):
    """Show distributions of found lenses, corrected with C where it is known, and the truth of the simulated sky.

    Parameters
    ----------
    tables : dict of column -> pandas.DataFrame
        From `selected.correct_distribution`; tables without ``corrected`` show the observed only.
    simulated : bool
    """
    fig, axes = new_figure("text", 2.5, 1, len(tables), squeeze=False)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        classes = "name" in table
        edges = np.arange(len(table) + 1) - 0.5 if classes else np.append(table["left"], table["right"].iloc[-1])
        x = 0.5 * (edges[1:] + edges[:-1])
        floor = 0.5  # of a logarithmic axis of counts: an empty bin lies on it
        axis.stairs(table["n_found"].clip(lower=floor), edges, baseline=floor, color=COLOURS["blue"], fill=True,
                    alpha=0.35, label="found")  # fmt: skip
        if "n_true" in table:
            axis.stairs(table["n_true"].clip(lower=floor), edges, baseline=floor, color="black", label="true")
        if "corrected" in table:
            own = table["n_used"] > 0
            axis.errorbar(x[own], table["corrected"][own], yerr=_lengths(table[own], "corrected"), fmt="o",
                          color=COLOURS["vermilion"], linewidth=0.9, label="found / C, 95 %")  # fmt: skip
        if classes:
            axis.set_xticks(x, table["name"])
        # A found lens where C is nearly zero leaves its bin without an upper bound: such bars run out of the frame.
        highest = table.filter(["n_found", "n_true", "corrected"]).max(axis=None)
        axis.set(xlabel=label(name), yscale="log", ylim=(floor, 8 * max(highest, 1)), xlim=(edges[0], edges[-1]))
    axes[0, 0].set_ylabel("lenses per bin")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)


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


def plot_card(card, simulated=True):
    """Show the fractions of the benchmark card beside the published ones; other quantities stand in the table only.

    Parameters
    ----------
    card : pandas.DataFrame
        From `card.collect_card`.
    simulated : bool
        Of the values measured here; the published ones are others' own.
    """
    own = card[~card["statistic"].str.startswith("median") & card["value"].notna()]
    own = own.assign(text=[f"{spell_out(r.statistic)}{', ' if r.point else ''}{POINTS.get(r.point, r.point)}"
                           for r in own.itertuples()])  # fmt: skip
    names = list(dict.fromkeys(own["text"]))
    fig, axis = new_figure("text", 0.8 + 0.17 * len(names))
    y = own["text"].map({name: len(names) - i for i, name in enumerate(names)})
    axis.errorbar(own["value"], y, xerr=np.nan_to_num(_lengths(own, "value")), fmt="o", color=COLOURS["blue"],
                  label="measured here, 95 %")  # fmt: skip
    known = own["reference_value"].notna()
    high = own["reference_upper"].fillna(own["reference_value"])
    axis.hlines(y[known] - 0.25, own["reference_value"][known], high[known], color=COLOURS["vermilion"], linewidth=0.8)
    axis.plot(own["reference_value"][known], y[known] - 0.25, "D", color=COLOURS["vermilion"], markersize=2.6,
              label="published (other samples)")  # fmt: skip
    axis.set_yticks(range(1, len(names) + 1), names[::-1])
    axis.set(xlabel="value", xlim=(0, 1.02), ylim=(0.3, len(names) + 0.7))
    axis.grid(axis="y", linewidth=0.3, alpha=0.5)
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return mark_simulated(fig, simulated)
