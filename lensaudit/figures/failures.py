"""Figures of the failure modes: gallery, rates by category, purity, composition, misses, channels."""

import numpy as np

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import POINTS, name_category, name_stratum, spell_out

OUTCOME_NAMES = {"found": "found, seen by gate D", "found, not seen by D": "found, not seen by gate D",
                 "missed, seen by D": "missed, seen by gate D",
                 "missed, not seen by D": "missed, not seen by gate D"}  # fmt: skip
OUTCOME_COLOURS = {"found": COLOURS["blue"], "found, not seen by D": COLOURS["sky"],
                   "missed, seen by D": COLOURS["vermilion"], "missed, not seen by D": COLOURS["grey"]}  # fmt: skip
COMPONENT_COLOURS = [COLOURS[c] for c in ("orange", "green", "vermilion", "purple", "sky", "yellow", "black", "grey")]


def plot_gallery(gallery, pictures, simulated=True):
    """Failure gallery: one row of pictures per kind of failure.

    Parameters
    ----------
    gallery : DataFrame
        ``row``, ``logit``, ``note``, one line per picture.
    pictures : ndarray of shape (N, S, S, 3), in [0, 1]
        In the order of `gallery`.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = list(gallery["row"].unique())
    columns = int(gallery["row"].value_counts().max()) if len(gallery) else 1
    fig, axes = new_figure("text", 0.35 + 1.32 * max(len(names), 1), nrows=max(len(names), 1), ncols=columns,
                           squeeze=False)  # fmt: skip
    for line, name in enumerate(names):
        members = np.flatnonzero((gallery["row"] == name).to_numpy())
        for column, axis in enumerate(axes[line]):
            axis.set(xticks=[], yticks=[])
            if column >= len(members):
                axis.set_visible(False)
                continue
            own = gallery.iloc[members[column]]
            axis.imshow(pictures[members[column]], extent=(-1, 1, -1, 1))
            logit = f"logit {own['logit']:.1f}".replace("-", "\N{MINUS SIGN}")
            axis.set_title(f"{name_category(own['note'])}\n{logit}", fontsize=6, pad=2)
        axes[line, 0].set_ylabel(OUTCOME_NAMES.get(name, name), fontsize=7)
    for axis in axes.flat if not names else []:
        axis.set_visible(False)
    return mark_simulated(fig, simulated)


def plot_rates(rates, axes_shown=("all", "pool", "confuser proxy", "confuser label", "TYPE"), simulated=True):
    """False positives per 10^4 galaxies by pool, category and TYPE, with 95 per cent intervals.

    Parameters
    ----------
    rates : DataFrame
        From `audit.failures.rate_false_positives`.
    axes_shown : sequence of str
    simulated : bool
    """
    table = rates[rates["axis"].isin(axes_shown)]
    strata = table[["axis", "stratum"]].drop_duplicates().reset_index(drop=True)
    place = -np.arange(len(strata), dtype=float) - np.cumsum(strata["axis"] != strata["axis"].shift())
    position = {(a, s): y for a, s, y in zip(strata["axis"], strata["stratum"], place, strict=True)}
    fig, axis = new_figure("column", 0.8 + 0.16 * len(strata))
    for number, (point, part) in enumerate(table.groupby("point", sort=False)):
        y = np.array([position[key] for key in zip(part["axis"], part["stratum"], strict=True)]) - 0.2 * number
        error = np.abs(part[["lower", "upper"]].to_numpy().T - part["per_1e4"].to_numpy())
        axis.errorbar(part["per_1e4"], y, xerr=error, fmt="os"[number % 2], elinewidth=0.7,
                      color=(COLOURS["blue"], COLOURS["vermilion"])[number % 2], label=POINTS.get(point, point))
    names = [name_stratum(a, s) for a, s in zip(strata["axis"], strata["stratum"], strict=True)]
    axis.set_yticks(place, names, fontsize=6)
    axis.set(xlabel=label("fpr_per_1e4"), xscale="symlog", xlim=(0, 2 * table["upper"].max()))
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    axis.grid(axis="x", lw=0.3, color=COLOURS["grey"], alpha=0.5)
    return mark_simulated(fig, simulated)


def plot_purity(purity, prevalence_range, simulated=True):
    """Purity against prevalence at each operating point, with 68 and 95 per cent bands.

    Parameters
    ----------
    purity : DataFrame
        From `audit.prevalence.tabulate_purity`.
    prevalence_range : tuple of float
        Range expected for the survey, shaded.
    simulated : bool
    """
    fig, axis = new_figure("column", 2.5)
    axis.axvspan(*prevalence_range, color=COLOURS["grey"], alpha=0.15, lw=0)
    looks = zip(("blue", "orange", "green", "vermilion", "purple"), "os^Dv", strict=True)
    for (point, part), (name, marker) in zip(purity.groupby("point", sort=False), looks, strict=False):
        colour = COLOURS[name]
        for low, high, alpha in (("lower", "upper", 0.12), ("lower_68", "upper_68", 0.22)):
            axis.fill_between(part["prevalence"], part[low], part[high], color=colour, alpha=alpha, lw=0)
        axis.plot(part["prevalence"], part["purity"], marker + "-", color=colour, label=POINTS.get(point, point))
    axis.set(xscale="log", yscale="log", xlabel="prevalence (lenses per galaxy)", ylabel=label("purity"))
    axis.set_xticks(purity["prevalence"].unique(), [_write_power(p) for p in purity["prevalence"].unique()])
    axis.minorticks_off()
    axis.legend(loc="upper left")
    return mark_simulated(fig, simulated)


def plot_composition(composition, simulated=True):
    """Expected composition of the top of a ranking: stacked shares per cut and prevalence; bounds where not computable.

    Parameters
    ----------
    composition : DataFrame
        From `audit.prevalence.compose_top`.
    simulated : bool
    """
    fig, axis = new_figure("text", 2.6)
    cases = composition[["top", "prevalence"]].drop_duplicates()
    cases = cases.sort_values(["top", "prevalence"], ascending=[False, True])
    reported = composition[(composition["status"] == "reported") & (composition["component"] != "lens")]
    order = reported.groupby("component")["share"].sum().sort_values(ascending=False).index
    named = list(order[:7])
    colours = dict(zip([*named, "other"], COMPONENT_COLOURS, strict=False)) | {"lens": COLOURS["blue"]}
    labelled = set()
    for x, case in enumerate(cases.itertuples()):
        own = composition[(composition["top"] == case.top) & (composition["prevalence"] == case.prevalence)]
        if own["status"].iloc[0] != "reported":
            axis.bar(x, own["share"].iloc[0], width=0.8, fill=False, edgecolor=COLOURS["blue"], ls="--", lw=0.8)
            axis.text(x, own["share"].iloc[0] + 0.02, "lenses:\nbound only", ha="center", va="bottom", fontsize=5.5)
            continue
        names = own["component"].where(own["component"].isin(["lens", *named]), "other")
        base = 0.0
        for name, share in own.groupby(names)["share"].sum().reindex(["lens", *named, "other"]).dropna().items():
            axis.bar(x, share, bottom=base, width=0.8, color=colours[name], lw=0,
                     label=None if name in labelled else name_category(name))  # fmt: skip
            labelled.add(name)
            base += share
    names = [f"{_write_power(c.prevalence)}\ntop {100 * c.top:g} %" for c in cases.itertuples()]
    axis.set_xticks(range(len(cases)), names, fontsize=6)
    axis.tick_params(axis="x", length=0)
    axis.set(ylabel="share of the list", ylim=(0, 1.2), yticks=np.linspace(0, 1, 6),
             xlabel="prevalence and depth of the list")  # fmt: skip
    if labelled:
        order = {name_category(name): place for place, name in enumerate(["lens", *named, "other"])}
        drawn = sorted(zip(*axis.get_legend_handles_labels(), strict=True), key=lambda pair: -order[pair[1]])
        axis.legend(*zip(*drawn, strict=True), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=6)
    return mark_simulated(fig, simulated)


def _write_power(value):
    """Return a small number as mantissa times a power of ten."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa.removesuffix('.0')}\times 10^{{{int(exponent)}}}$"


def plot_misses(misses, simulated=True):
    """Shares of found, overlooked and invisible injections by theta_E, one panel per seeing.

    The bar at the top of each found part is the 95 per cent interval of that part's own share.

    Parameters
    ----------
    misses : DataFrame
        From `audit.failures.tabulate_misses`.
    simulated : bool
    """
    order = ["all", *[s for s in misses["seeing_bin"].unique() if s != "all"]]
    fig, axes = new_figure("text", 2.4, ncols=len(order), sharey=True, squeeze=False)
    bins = misses[misses["seeing_bin"] == "all"].sort_values("median_theta_E")["theta_E_bin"].unique()
    for axis, name in zip(axes[0], order, strict=True):
        part, base = misses[misses["seeing_bin"] == name], np.zeros(len(bins))
        for outcome, colour in OUTCOME_COLOURS.items():
            rows = part[part["outcome"] == outcome].set_index("theta_E_bin").reindex(bins)
            share = rows["share"].fillna(0.0).to_numpy()
            axis.bar(np.arange(len(bins)), share, bottom=base, width=0.85, color=colour, lw=0,
                     label=OUTCOME_NAMES[outcome])  # fmt: skip
            if outcome.startswith("found"):
                error = np.abs(rows[["lower", "upper"]].to_numpy().T - rows["share"].to_numpy())
                axis.errorbar(np.arange(len(bins)), base + share, yerr=error, fmt="none", lw=0.6,
                              ecolor=COLOURS["black"])  # fmt: skip
            base += share
        axis.set_xticks(range(len(bins)), [spell_out(b) for b in bins], rotation=60, fontsize=6)
        title = "all seeing" if name == "all" else f"psfsize$_r$ {spell_out(name)} arcsec"
        axis.set(xlabel=label("theta_E"), title=title, ylim=(0, 1))
    axes[0, 0].set_ylabel("share of injections")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    return mark_simulated(fig, simulated)


def plot_channels(overlaps, simulated=True):
    """Jaccard index of every pair of channels as a matrix, with the number in common."""
    table = overlaps[overlaps["level"] == "channel"]
    names = sorted(set(table["first"]) | set(table["second"]))
    matrix, counts = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), dtype=int)
    for row in table.itertuples():
        i, j = names.index(row.first), names.index(row.second)
        matrix[i, j] = matrix[j, i] = row.jaccard
        counts[i, j] = counts[j, i] = row.n_both
    fig, axis = new_figure("column", 2.9)
    shown = axis.imshow(np.where(np.eye(len(names), dtype=bool), np.nan, matrix), vmin=0, origin="upper")
    middle = 0.5 * shown.get_clim()[1]
    for i, j in np.ndindex(*matrix.shape):
        dark = i != j and not matrix[i, j] > middle
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_xticks(range(len(names)), [n.replace("_", " ") for n in names], rotation=45, ha="right", fontsize=6)
    axis.set_yticks(range(len(names)), [n.replace("_", " ") for n in names], fontsize=6)
    axis.tick_params(length=0)
    fig.colorbar(shown, ax=axis, label="Jaccard index", shrink=0.8)
    return mark_simulated(fig, simulated)
