"""Figures of the evaluation: score distributions, recall against false-positive rate, reliability, strata."""

import numpy as np
import seaborn

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import POINTS, name_gate, name_stratum, spell_out

CLASS_COLOURS = {"Tier A lenses": COLOURS["blue"], "Tier B lenses": COLOURS["sky"], "galaxies (N1)": COLOURS["black"],
                 "confusers (N2)": COLOURS["vermilion"]}  # fmt: skip


def plot_scores(table, thresholds, simulated=True):
    """Distributions of the logit by class (left) and of Tier-A lenses by seeing (right).

    Parameters
    ----------
    table : DataFrame
        ``class``, ``seeing_bin``, ``seeing_order``, ``logit``, one row per object.
    thresholds : dict
        Operating points; those at fixed rates are marked.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axes = new_figure("text", 2.5, ncols=2, sharex=True)
    number = table["class"].value_counts()
    palette = {f"{name} ({number[name]:,})": colour for name, colour in CLASS_COLOURS.items() if name in number}
    common = {"x": "logit", "common_norm": False, "fill": False, "linewidth": 1.1, "bw_adjust": 0.8, "cut": 0,
              "warn_singular": False}  # a bin with a single lens has no curve; its number stands in the legend
    named = table.assign(**{"class": table["class"].map(lambda name: f"{name} ({number[name]:,})")})
    seaborn.kdeplot(named, hue="class", hue_order=list(palette), palette=palette, ax=axes[0], **common)
    lenses = table[table["class"] == "Tier A lenses"].rename(columns={"seeing_bin": label("psfsize_r")})
    lenses[label("psfsize_r")] = lenses[label("psfsize_r")].map(spell_out)
    number = lenses[label("psfsize_r")].value_counts()
    lenses[label("psfsize_r")] = lenses[label("psfsize_r")].map(lambda name: f"{name} ({number[name]})")
    order = list(dict.fromkeys(lenses.sort_values("seeing_order")[label("psfsize_r")]))
    colours = [COLOURS["purple"], COLOURS["green"], COLOURS["orange"]][: len(order)]
    seaborn.kdeplot(lenses, hue=label("psfsize_r"), hue_order=order, palette=colours, ax=axes[1], **common)
    marked = [(POINTS[k], e["threshold"]) for k, e in thresholds.items() if e["fpr"] and e["threshold"] is not None]
    for axis, title in zip(axes, (None, "Tier A lenses, " + label("psfsize_r").partition(" [")[0]), strict=True):
        axis.set_ylim(top=1.15 * axis.get_ylim()[1])  # room for the thresholds' names above the curves
        for (name, threshold), style, height in zip(marked, ("--", ":"), (0.98, 0.90), strict=False):
            axis.axvline(threshold, color=COLOURS["grey"], ls=style, lw=0.8)
            axis.text(threshold, height, f" {name}", va="top", fontsize=6, color="0.25",
                      transform=axis.get_xaxis_transform())  # fmt: skip
        axis.set(xlabel=label("logit"), ylabel="density")
        if axis.get_legend():
            seaborn.move_legend(axis, "lower center", bbox_to_anchor=(0.5, 1.0), ncols=3 if title else 2, title=title,
                                columnspacing=0.9, handlelength=1.0)  # fmt: skip
    return mark_simulated(fig, simulated)


def plot_recall_curve(curve, points, simulated=True):
    """Recall against the false-positive rate of the parent population, with its interval, and the operating points.

    Parameters
    ----------
    curve : DataFrame
        ``subset``, ``fpr``, ``recall``, ``lower``, ``upper``; only rates that the sample can give.
    points : DataFrame
        ``subset``, ``achieved_fpr``, ``fpr_lower``, ``fpr_upper``, ``recall``, ``lower_total``, ``upper_total``.
    simulated : bool
    """
    fig, axis = new_figure("column", 2.6)
    looks = (("blue", "-", "o"), ("orange", "--", "s"), ("green", ":", "^"))
    for (subset, part), (colour, line, marker) in zip(curve.groupby("subset", sort=False), looks, strict=False):
        colour = COLOURS[colour]
        axis.fill_between(part["fpr"], part["lower"], part["upper"], color=colour, alpha=0.2, lw=0, step="pre")
        axis.step(part["fpr"], part["recall"], color=colour, ls=line, label=subset)
        own = points[points["subset"] == subset]
        axis.errorbar(own["achieved_fpr"], own["recall"], fmt=marker, color=colour,
                      xerr=np.abs(own[["fpr_lower", "fpr_upper"]].to_numpy().T - own["achieved_fpr"].to_numpy()),
                      yerr=np.abs(own[["lower_total", "upper_total"]].to_numpy().T - own["recall"].to_numpy()),
                      elinewidth=0.7)  # fmt: skip
    axis.set(xscale="log", xlabel="false positive rate of the parent galaxies", ylabel=label("recall"), ylim=(0, 1))
    axis.legend(loc="upper left")
    return mark_simulated(fig, simulated)


def plot_reliability(bins, top, simulated=True):
    """Reliability of the score in equal-frequency bins and in its highest 0.1, 0.3 and 1 per cent.

    Bins without any lens stand at the lower edge.

    Parameters
    ----------
    bins, top : DataFrame
        ``mean_score``, ``fraction``, ``fraction_lower``, ``fraction_upper``; `top` also ``top``.
    simulated : bool
    """
    fig, axis = new_figure("column", 2.7)
    low = max(min(bins["mean_score"].min(), 0.5) * 0.5, 1e-4)
    axis.plot([low, 1], [low, 1], color=COLOURS["grey"], lw=0.8, ls="--")
    for table, name, marker, colour in ((bins, "equal-frequency bins", "o", COLOURS["blue"]),
                                        (top, "top 0.1, 0.3, 1 %", "s", COLOURS["vermilion"])):  # fmt: skip
        values = np.clip(table["fraction"].to_numpy(), low, None)
        error = np.stack([values - np.clip(table["fraction_lower"], low, None), table["fraction_upper"] - values])
        axis.errorbar(table["mean_score"], values, yerr=np.clip(error, 0, None), fmt=marker, color=colour, label=name,
                      elinewidth=0.7)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(low, 1.3), ylim=(0.8 * low, 1.3), xlabel="mean score",
             ylabel="fraction of lenses in the test sample")  # fmt: skip
    axis.legend(loc="upper left")
    return mark_simulated(fig, simulated)


def plot_strata(strata, axes_shown=("seeing x depth", "TYPE", "nobs_z"), simulated=True):
    """Recall and false-positive rate per stratum, with 95 per cent intervals.

    Parameters
    ----------
    strata : DataFrame
        From `audit.evaluation.measure_strata`.
    axes_shown : sequence of str
    simulated : bool
    """
    table = strata[strata["axis"].isin(axes_shown)].reset_index(drop=True)
    fig, (left, right) = new_figure("text", 0.8 + 0.155 * len(table), ncols=2, sharey=True)
    place = -np.arange(len(table), dtype=float) - np.cumsum(table["axis"] != table["axis"].shift())
    for axis, name, scale, colour in ((left, "recall", 1.0, COLOURS["blue"]),
                                      (right, "fpr", 1e4, COLOURS["vermilion"])):  # fmt: skip
        value, bounds = scale * table[name], scale * table[[f"{name}_lower", f"{name}_upper"]].to_numpy().T
        axis.errorbar(value, place, xerr=np.abs(bounds - value.to_numpy()), fmt="o", color=colour, elinewidth=0.7)
    left.set_yticks(place, [
        f"{name_stratum(a, s)} ({n})"
        for a, s, n in zip(table["axis"], table["stratum"], table["n_positive"], strict=True)
    ])
    left.tick_params(axis="y", labelsize=6)
    left.set(xlabel="recall of labelled lenses", xlim=(0, 1))
    right.set(xlabel=label("fpr_per_1e4"), xscale="symlog", xlim=(0, 2e4 * table["fpr_upper"].max()))
    for axis in (left, right):
        axis.grid(axis="x", lw=0.3, color=COLOURS["grey"], alpha=0.5)
    return mark_simulated(fig, simulated)


def plot_recall_cells(table, simulated=True):
    """Recall of Tier-A lenses by theta_E (or arc radius) and by seeing.

    Parameters
    ----------
    table : DataFrame
        ``covariate`` (column name), ``centre``, ``low``, ``high``, ``point``, ``recall``, ``lower``, ``upper``, ``n``.
    simulated : bool
    """
    names = list(table["covariate"].unique())
    fig, axes = new_figure("text", 2.3, ncols=len(names), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = table[table["covariate"] == name]
        looks = (("blue", "o", -0.01), ("vermilion", "s", 0.01), ("green", "^", 0.03))
        for (point, rows), (colour, marker, shift) in zip(part.groupby("point", sort=False), looks, strict=False):
            colour = COLOURS[colour]
            span = 0.0 if name == "arc_snr" else part["high"].max() - part["low"].min()
            error = np.abs(rows[["lower", "upper"]].to_numpy().T - rows["recall"].to_numpy())
            axis.errorbar(rows["centre"] + shift * span, rows["recall"], yerr=error, fmt=marker, color=colour,
                          elinewidth=0.7, label=POINTS.get(point, point))  # fmt: skip
            axis.hlines(rows["recall"], rows["low"], rows["high"], color=colour, lw=0.6, alpha=0.6)
        axis.set(xlabel=label(name), ylim=(0, 1))
        if name == "arc_snr":  # linear within the noise, logarithmic above: a few bright arcs span the axis otherwise
            axis.set_xscale("symlog", linthresh=3.0)
            axis.set_xticks([-10, 0, 10, 100, 1000], ["$-10$", "0", "10", "100", "1000"])
            axis.set_xlim(min(part["low"].min(), -3.0), part["high"].max())
            axis.minorticks_off()
    axes[0, 0].set_ylabel("recall, Tier A")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)


def plot_centre_mask(curve, simulated=True):
    """Recall of test lenses against the radius of the masked centre."""
    fig, axis = new_figure("column", 2.2)
    error = np.abs(curve[["lower", "upper"]].to_numpy().T - curve["recall"].to_numpy())
    axis.errorbar(curve["radius"], curve["recall"], yerr=error, fmt="o-", color=COLOURS["blue"], elinewidth=0.7)
    axis.set(xlabel="radius of the masked centre [pixel]", ylabel=label("recall"), ylim=(0, None))
    return mark_simulated(fig, simulated)


def plot_comparison(table, simulated=True):
    """Held-out, cross-validated and other-channel recall side by side.

    Parameters
    ----------
    table : DataFrame
        ``group`` (held-out, fold of regions, other channel), ``name``, ``point``, ``n``, ``recall``, ``lower``,
        ``upper``.
    simulated : bool
    """
    points = list(table["point"].unique())
    names = table[["group", "name"]].drop_duplicates().reset_index(drop=True)
    place = {name: -i - 0.6 * g for i, (name, g) in enumerate(
        zip(names["name"], names["group"].ne(names["group"].shift()).cumsum(), strict=True))}  # fmt: skip
    fig, axis = new_figure("column", 0.9 + 0.19 * len(names))
    for number, point in enumerate(points):
        part = table[table["point"] == point]
        y = part["name"].map(place).to_numpy() + 0.22 * (0.5 * (len(points) - 1) - number)
        error = np.abs(part[["lower", "upper"]].to_numpy().T - part["recall"].to_numpy())
        axis.errorbar(part["recall"], y, xerr=error, fmt="os^"[number % 3], elinewidth=0.7,
                      color=(COLOURS["blue"], COLOURS["vermilion"], COLOURS["green"])[number % 3],
                      label=POINTS.get(point, point))  # fmt: skip
    first = table.drop_duplicates("name").set_index("name")["n"]
    axis.set_yticks(list(place.values()), [f"{n} ({first[n]})" for n in place], fontsize=6)
    axis.set(xlabel=label("recall"), xlim=(0, 1))
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    axis.grid(axis="x", lw=0.3, color=COLOURS["grey"], alpha=0.5)
    return mark_simulated(fig, simulated)


def plot_gates(table, simulated=True):
    """The gates that have an interval: value, rule and outcome."""
    # Counts (bands, splits) and exact differences stand in the table; here are those with an interval.
    shown = table[np.isfinite(table["lower"])].iloc[::-1].reset_index(drop=True)
    looks = {"pass": ("green", "o"), "fail": ("vermilion", "X"), "cannot be computed": ("grey", "s")}
    fig, axis = new_figure("text", 0.9 + 0.17 * len(shown))
    place = np.arange(len(shown))
    for outcome, (colour, marker) in looks.items():
        rows = shown[shown["outcome"] == outcome]
        if not len(rows):
            continue
        value = rows["value"].to_numpy()
        error = np.abs(rows[["lower", "upper"]].to_numpy().T - value)
        axis.errorbar(value, place[rows.index], xerr=error, fmt=marker, color=COLOURS[colour], label=outcome,
                      elinewidth=0.7)  # fmt: skip
    axis.set_yticks(place, [f"{name_gate(g)}: {r}" for g, r in zip(shown["gate"], shown["rule"], strict=True)],
                    fontsize=6)  # fmt: skip
    axis.set(xlabel="value of the check (KS distance, AUC, AUC gain, mean score)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=6)
    axis.grid(axis="x", lw=0.3, color=COLOURS["grey"], alpha=0.5)
    return mark_simulated(fig, simulated)
