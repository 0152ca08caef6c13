"""Figures of the realism stage: lenses against weighted injections, the weights' effect, checks, estimators."""

import numpy as np
import pandas as pd

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import FEATURE_SETS, SAMPLES, name_check

PANELS = ("arc_snr", "arc_g_r", "arc_r_z", "arc_radius", "arc_width", "asymmetry", "ridge", "noise_ratio_r")
RANGES = {"arc_snr": (-5, 60), "arc_g_r": (-1, 2), "arc_r_z": (-1, 2), "noise_ratio_r": (0.85, 1.15), "ridge": (0, 5)}
# Panels of the validation: what is measured how, and its unit.
ESTIMATORS = {
    "arc_snr": ("flux over error, 4–16 pixels", "S/N"), "arc_energy": ("antisymmetric energy", "S/N"),
    "arc_brightness_r": ("surface brightness after PSF", "brightness [mag arcsec$^{-2}$]"),
    "arc_g_r": ("arc colour", "$g-r$ [mag]"), "arc_r_z": ("arc colour", "$r-z$ [mag]"),
    "arc_width": ("arc width", "width [arcsec]"),
}  # fmt: skip


def _stack(targets, injections, weights, columns):
    first = targets[list(columns)].assign(population="lenses", weight=1.0 / max(len(targets), 1))
    second = injections[list(columns)].assign(population="injections", weight=weights / np.sum(weights))
    return pd.concat([first, second], ignore_index=True)


def plot_distributions(targets, injections, weights, columns=PANELS, simulated=True):
    """Compare the blind measurements of lenses and weighted injections, with the ratio of their medians.

    Parameters
    ----------
    targets, injections : pandas.DataFrame
        Both past gate D.
    weights : ndarray
        Of the injections.
    columns : sequence of str
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = _stack(targets, injections, weights, columns)
    fig, axes = new_figure("text", 3.6, 2, (len(columns) + 1) // 2)
    palette = {"lenses": COLOURS["vermilion"], "injections": COLOURS["blue"]}
    looks = {"lenses": {"histtype": "stepfilled", "color": palette["lenses"], "alpha": 0.35},
             "injections": {"histtype": "step", "color": palette["injections"], "lw": 1.0}}  # fmt: skip
    for axis, column in zip(axes.flat, columns, strict=False):
        values = table[column]
        low, high = RANGES.get(column, tuple(np.nanpercentile(values, [0.5, 98.0])))
        part = table[(values >= low) & (values <= high)]
        for name, look in looks.items():
            own = part[part["population"] == name]
            axis.hist(own[column], 24, (low, high), density=True, weights=own["weight"], label=name, **look)
        middle = [_median(part, column, name) for name in palette]
        for value, colour, style in zip(middle, palette.values(), ("--", ":"), strict=True):
            axis.axvline(value, color=colour, lw=0.9, ls=style)
        axis.set(xlabel=label(column), ylabel="", yticks=[])
        axis.set_title(f"medians {middle[0]:.2f}, {middle[1]:.2f}", fontsize=6.5, pad=2)
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return mark_simulated(fig, simulated)


def _median(table, column, population):
    own = table[(table["population"] == population) & table[column].notna()].sort_values(column)
    if own.empty:
        return np.nan
    share = own["weight"].cumsum() / own["weight"].sum()
    return float(own[column].iloc[int(np.searchsorted(share, 0.5))])


def plot_weights(targets, injections, weights, columns, simulated=True):
    """Show the matched columns before and after weighting, against the lenses.

    Parameters
    ----------
    targets, injections : pandas.DataFrame
        Injections drawn otherwise than the prior has them carry that in their column ``weight``.
    weights : ndarray
    columns : sequence of str
        The columns that were matched.
    simulated : bool
    """
    fig, axes = new_figure("text", 2.0, 1, len(columns))
    for axis, column in zip(axes, columns, strict=True):
        pooled = np.concatenate([targets[column], injections[column]])
        bins = np.linspace(*np.nanpercentile(pooled, [0.5, 99.5]), 25)
        axis.hist(targets[column], bins, density=True, histtype="stepfilled", color=COLOURS["vermilion"], alpha=0.3,
                  label="lenses")  # fmt: skip
        axis.hist(injections[column], bins, density=True, histtype="step", color=COLOURS["grey"], ls=":",
                  weights=injections.get("weight"), label="as the prior has them")  # fmt: skip
        axis.hist(injections[column], bins, density=True, histtype="step", color=COLOURS["blue"], weights=weights,
                  label="weighted")  # fmt: skip
        axis.set(xlabel=label({"psfsize_r": "seeing"}.get(column, column)), yticks=[])
    axes[0].set_ylabel("density")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)


def plot_checks(table, simulated=True):
    """Show every check with limits: its value and interval on a scale where the limits lie at -1 and 1.

    Parameters
    ----------
    table : pandas.DataFrame
        Realism rows (check, value, lower, upper, threshold, outcome, sample); those only reported are left out.
    simulated : bool
    """
    own = table[table["outcome"].isin(["GO", "NO-GO", "inconclusive"])].reset_index(drop=True)
    fig, axis = new_figure("text", 0.9 + 0.145 * max(len(own), 4))
    colours = {"GO": COLOURS["green"], "NO-GO": COLOURS["vermilion"], "inconclusive": COLOURS["orange"]}
    axis.axvspan(-1, 1, color="0.93", lw=0)
    names, samples = [], list(dict.fromkeys(own["sample"]))
    for place, row in own.iterrows():
        low, high = _read_limits(row["threshold"])
        value, lower, upper = ((2 * (row[k] - low) / (high - low) - 1) for k in ("value", "lower", "upper"))
        shown = np.clip([lower, value, upper], -3, 3)
        axis.plot(shown[[0, 2]], [place, place], color=colours[row["outcome"]], lw=1.2)
        axis.plot(shown[1], place, "o", color=colours[row["outcome"]], ms=3.5)
        number = f"{row['value']:.3g}" if np.isfinite(row["value"]) else "–"
        axis.text(3.1, place, f"{number}   {row['outcome']}", va="center", fontsize=6)
        names.append(name_check(row["check"]))
    for sample in samples:
        first = own.index[own["sample"] == sample][0]
        axis.axhline(first - 0.5, color="0.6", lw=0.6)
        axis.text(-2.95, first - 0.4, SAMPLES.get(sample, sample), va="top", fontsize=6, style="italic")
    axis.set(yticks=range(len(own)), yticklabels=names, ylim=(len(own) - 0.5, -0.5), xlim=(-3, 4.2),
             xticks=range(-3, 4), xlabel="value on a scale with the limits at $-1$ and 1")  # fmt: skip
    axis.tick_params(axis="y", labelsize=6, length=0)
    axis.tick_params(axis="x", top=False)  # the first sample's name stands there
    return mark_simulated(fig, simulated)


def _read_limits(text):
    if " to " in text:
        low, high = text.split(" to ")
        return float(low), float(high)
    if text.startswith(">"):
        return float(text.removeprefix(">")), 1.0
    high = float(text.removeprefix("<").split(",")[0])
    return -high if high >= 1 else 0.0, high


def plot_power(power, distances, limit, simulated=True):
    """Show what the classifier test sees: AUC and detection rate by planted shift, and the distance of every layer.

    Parameters
    ----------
    power : pandas.DataFrame
        features, shift, auc, power, from `audit.realism.check_probe`.
    distances : pandas.DataFrame
        From `audit.two_sample.compare_layers`.
    limit : float
        On the AUC; drawn.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axes = new_figure("text", 2.3, 1, 3)
    looks = (("blue", "o-"), ("vermilion", "s--"))
    for (name, own), (colour, mark) in zip(power.groupby("features"), looks, strict=False):
        axes[0].plot(own["shift"], own["auc"], mark, color=COLOURS[colour], label=FEATURE_SETS.get(name, name))
        axes[1].plot(own["shift"], own["power"], mark, color=COLOURS[colour])
    axes[0].axhline(limit, color=COLOURS["grey"], lw=0.7, ls=":")
    axes[0].set(ylim=(0.4, 1.02), xlabel="planted $g-r$ shift [mag]", ylabel="AUC")
    axes[1].set(ylim=(-0.02, 1.02), xlabel="planted $g-r$ shift [mag]", ylabel="share detected")
    places = np.arange(len(distances))
    low, high = (distances[name] / distances["null_median"] for name in ("null_lower", "null_upper"))
    axes[2].vlines(places, low, high, color="0.75", lw=6, label="halves of the injections, 95 %")
    axes[2].plot(places, distances["ratio"], "D", color=COLOURS["black"], label="lenses against injections")
    names = [FEATURE_SETS.get(name, name).replace("features of the network", "last") for name in distances["layer"]]
    axes[2].set(xticks=places, xticklabels=names, ylabel="Fréchet distance over its null", yscale="log")
    fig.legend(*(a + b for a, b in zip(axes[0].get_legend_handles_labels(), axes[2].get_legend_handles_labels(),
                                       strict=True)), loc="outside upper center", ncols=4)  # fmt: skip
    return mark_simulated(fig, simulated)


def plot_estimators(validation, simulated=True):
    """Show the blind estimators against truth, median and 16-84 per cent range in bins of the truth.

    Parameters
    ----------
    validation : pandas.DataFrame
        From `estimators.validate_populations`.
    simulated : bool
    """
    fig, axes = new_figure("text", 4.4, 2, 3)
    looks = {"injections": ("blue", "o-"), "lenses": ("vermilion", "s--")}
    shown = validation[validation["binned_by"] == "truth"]
    for axis, (name, (title, unit)) in zip(axes.flat, ESTIMATORS.items(), strict=True):
        part = shown[shown["estimator"] == name]
        if unit == "S/N":
            axis.set(xscale="log", yscale="symlog")
        for population, own in part.groupby("population"):
            colour, mark = looks[population]
            errors = np.clip([own["median"] - own["lower"], own["upper"] - own["median"]], 0, None)
            axis.errorbar(own["median_true"], own["median"], errors, fmt=mark, color=COLOURS[colour], ms=3,
                          label=population)  # fmt: skip
        if len(part):
            limits = [part["median_true"].min(), part["median_true"].max()]
            axis.plot(limits, limits, color="0.6", lw=0.8, label="equal")
        axis.set(xlabel=f"true {unit}", ylabel=f"blind {unit}")
        axis.set_title(title, pad=3)
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)
