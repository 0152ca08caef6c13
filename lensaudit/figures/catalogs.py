"""Figures of the catalogue stage: where systems lie, how well they match, what the cuts remove, what was drawn."""

import numpy as np
from matplotlib.colors import to_rgba

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import SPLITS, TIERS, name_cut, spell_out

_TIERS = {"A": COLOURS["blue"], "B": COLOURS["orange"], "S": COLOURS["green"]}
_SPLITS = {"train": COLOURS["blue"], "val": COLOURS["orange"], "test": COLOURS["green"], "silver": COLOURS["purple"]}
_ROWS = {"A": COLOURS["blue"], "B": COLOURS["sky"], "S": COLOURS["purple"], "N1": COLOURS["grey"],
         "N2": COLOURS["orange"]}  # fmt: skip


def plot_sky_map(table, by="tier", simulated=True):
    """Draw positions on the sky, coloured by tier or split.

    Parameters
    ----------
    table : pandas.DataFrame
        ra, dec in degrees and the column `by`.
    by : str
        ``"tier"`` or ``"split"``.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = new_figure("text", 1.75)
    colours = _TIERS if by == "tier" else _SPLITS
    for (name, colour), marker in zip(colours.items(), "os^D", strict=False):
        part = table[table[by] == name]
        if len(part):
            axis.scatter(part["ra"], part["dec"], s=4, lw=0, color=colour, marker=marker, alpha=0.8, rasterized=True,
                         label=f"{(TIERS if by == 'tier' else SPLITS).get(name, name)} ({len(part):,})")
    axis.set(xlabel=label("ra"), ylabel=label("dec"), xlim=(360, 0), aspect="equal")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, markerscale=2.5,
                  handletextpad=0.2)  # fmt: skip
    return mark_simulated(figure, simulated)


def plot_separations(separations, accept_radius, simulated=True):
    """Draw the distance from catalogue entries to their nearest extended source, by tier, on logarithmic axes.

    Parameters
    ----------
    separations : pandas.DataFrame
        tier, separation [arcsec].
    accept_radius : float
        Arcsec.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = new_figure("column", 2.4)
    edges = np.logspace(-3, np.log10(12.0), 42)
    for name, colour in _TIERS.items():
        values = separations.loc[separations["tier"] == name, "separation"].clip(lower=edges[0])
        if len(values):
            axis.hist(values, edges, histtype="step", color=colour, lw=1.1, label=f"{TIERS[name]} ({len(values):,})")
    axis.axvline(accept_radius, color=COLOURS["black"], ls="--", lw=0.8, label=f"accepted: {accept_radius:g} arcsec")
    axis.set(xscale="log", yscale="log", xlabel=label("separation"), ylabel="entries per bin", ylim=(0.7, None))
    axis.set_ylim(top=15 * axis.get_ylim()[1])  # room for the legend
    axis.legend(loc="upper left")
    return mark_simulated(figure, simulated)


def plot_parity(parity, simulated=True):
    """Draw what each cut of the parent sample removes, in order and alone.

    Parameters
    ----------
    parity : pandas.DataFrame
        cut, is_detail, n_removed_alone, n_removed_in_order, n_left.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = new_figure("text", 3.4)
    rows = parity[parity["cut"] != "all"].reset_index(drop=True)
    y = -np.arange(len(rows))
    total = int(parity["n_left"].iloc[0])
    for offset, column, colour, name in ((0.2, "n_removed_alone", COLOURS["sky"], "removed, cut alone"),
                                         (-0.2, "n_removed_in_order", COLOURS["blue"], "removed, in order")):
        shades = [to_rgba(colour, 0.5 if detail else 1.0) for detail in rows["is_detail"]]
        axis.barh(y + offset, 100 * rows[column] / total, 0.4, color=shades)
        axis.barh([0], [0], color=colour, label=name)
    main = ~rows["is_detail"]
    axis.plot(100 * rows.loc[main, "n_left"] / total, y[main], "o-", ms=2.5, lw=0.8, color=COLOURS["vermilion"],
              label="left")
    names = [f"of these: {name_cut(c)}" if d else name_cut(c)
             for c, d in zip(rows["cut"], rows["is_detail"], strict=True)]
    axis.set_yticks(y, names)
    axis.set(xlabel=f"per cent of {total:,} sources", xlim=(0, 102))
    axis.tick_params(axis="y", length=0)
    axis.legend(loc="center right")
    return mark_simulated(figure, simulated)


def plot_strata(strata, simulated=True):
    """Draw drawn negatives and lenses by exposure count, type and split.

    Parameters
    ----------
    strata : pandas.DataFrame
        split, stratum (``"<nobs_z_bin> <type_bin>"``), n_parent, n_positives, n1, n2.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = [s for s in ("train", "val", "test") if s in set(strata["split"])]
    figure, axes = new_figure("text", 2.7, 1, len(names), sharey=True, squeeze=False)
    parts = strata["stratum"].str.extract(r"^(\d+)\S* (\S+)$")
    ranked = strata.assign(least=parts[0].astype(int), kind=parts[1]).sort_values(["kind", "least"])
    order = list(ranked["stratum"].unique())
    x = np.arange(len(order))
    for axis, name in zip(axes[0], names, strict=True):
        part = strata[strata["split"] == name].set_index("stratum").reindex(order).fillna(0)
        axis.step(x, part["n_parent"], where="mid", color=COLOURS["black"], lw=0.8, label="parent sample")
        axis.bar(x - 0.3, part["n1"], 0.3, color=_ROWS["N1"], label=TIERS["N1"])
        axis.bar(x, part["n2"], 0.3, color=_ROWS["N2"], label=TIERS["N2"])
        axis.bar(x + 0.3, part["n_positives"], 0.3, color=_ROWS["A"], label="lenses")
        axis.set_xticks(x, [spell_out(s) for s in order], rotation=90)
        axis.set(yscale="log", ylim=(0.7, None), title=SPLITS[name])
        axis.tick_params(axis="x", length=0)
    axes[0, 0].set_ylabel("number of objects")
    axes[0, len(names) // 2].set_xlabel("exposures in $z$ and morphological type")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return mark_simulated(figure, simulated)


def plot_split_counts(counts, simulated=True):
    """Draw the number of objects per split and tier.

    Parameters
    ----------
    counts : pandas.DataFrame
        split, tier (A, B, S, N1, N2), n.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = new_figure("column", 2.7)
    names = [s for s in _SPLITS if s in set(counts["split"])]
    width = 0.8 / len(_ROWS)
    for k, (tier, colour) in enumerate(_ROWS.items()):
        part = counts[counts["tier"] == tier].set_index("split")["n"].reindex(names).fillna(0)
        bars = axis.bar(np.arange(len(names)) + (k - 2) * width, part, width, color=colour, label=TIERS[tier])
        axis.bar_label(bars, [f"{int(n):,}" if n else "" for n in part], rotation=90, fontsize=5.5, padding=1.5)
    axis.set_xticks(np.arange(len(names)), [SPLITS[s] for s in names])
    axis.set(yscale="log", ylabel="number of objects", ylim=(0.7, max(10.0, 8 * counts["n"].max())))
    axis.tick_params(axis="x", length=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=0.9, fontsize=6)
    return mark_simulated(figure, simulated)


def plot_leaks(leaks, simulated=True):
    """Draw evaluation rows by their distance to the nearest training stamp.

    Parameters
    ----------
    leaks : pandas.DataFrame
        split, within_arcsec (upper edge of the bucket, missing for the last), n.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axis = new_figure("column", 2.3)
    upper = leaks["within_arcsec"].astype(float).fillna(np.inf)
    edges = sorted(upper.unique())
    lows = [0.0, *edges[:-1]]
    names = [f"{low:.0f}–{e:.0f}" if np.isfinite(e) else f"> {low:.0f}" for low, e in zip(lows, edges, strict=True)]
    splits = list(dict.fromkeys(leaks["split"]))
    width = 0.8 / max(len(splits), 1)
    for k, split in enumerate(splits):
        chosen = leaks["split"] == split
        fraction = leaks.loc[chosen, "n"] / max(leaks.loc[chosen, "n"].sum(), 1)
        x = np.searchsorted(edges, upper[chosen]) + (k - (len(splits) - 1) / 2) * width
        axis.bar(x, 100 * fraction, width, color=_SPLITS.get(split, COLOURS["grey"]),
                 label=SPLITS.get(split, split))  # fmt: skip
    axis.set_xticks(np.arange(len(edges)), names)
    axis.set(xlabel="nearest training stamp [arcsec]", ylabel="per cent of the split")
    axis.tick_params(axis="x", length=0)
    axis.legend()
    return mark_simulated(figure, simulated)
