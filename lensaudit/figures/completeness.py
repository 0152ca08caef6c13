"""Figures of the completeness stage: maps, slices, C(theta_E, z_l), two gates, closure."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lensaudit.figures.style import COLOURS, SEQUENTIAL, label, mark_simulated, new_figure
from lensaudit.wording import CLOSURE_PARTS, POINTS, name_closure_row


def plot_maps(cells, threshold_name, simulated=True, verdict=""):
    """Map completeness over seeing and depth, one panel per Einstein radius; cells without support are hatched.

    Parameters
    ----------
    cells : pandas.DataFrame
        From `completeness.count_cells`.
    threshold_name : str
    simulated : bool
    verdict : str
        From `selection.card.note_realism`, printed below.

    Returns
    -------
    matplotlib.figure.Figure
    """
    own = cells[cells["threshold_name"] == threshold_name]
    radii = np.sort(own["theta_E"].unique())
    highest = own.loc[own["sufficient"].astype(bool), "completeness"].max()
    top = min(1.0, np.ceil(10 * highest) / 10) if np.isfinite(highest) and highest > 0 else 1.0
    fig, axes = new_figure("text", 4.6, 3, 4, sharex=True, sharey=True)
    for axis, radius in zip(axes.flat, radii, strict=False):
        part = own[own["theta_E"] == radius]
        table = part.pivot(index="depth", columns="seeing", values="completeness")
        sufficient = part.pivot(index="depth", columns="seeing", values="sufficient").to_numpy(dtype=bool)
        x, y = table.columns.to_numpy(), table.index.to_numpy()
        dx, dy = x[1] - x[0], y[1] - y[0]
        image = axis.pcolormesh(_edges(x), _edges(y), table.to_numpy(), vmin=0, vmax=top, cmap=SEQUENTIAL)
        for j, i in zip(*np.nonzero(~sufficient), strict=True):
            axis.add_patch(Rectangle((x[i] - dx / 2, y[j] - dy / 2), dx, dy, facecolor="0.9", edgecolor="0.55",
                                     hatch="/////", linewidth=0))  # fmt: skip
        axis.set_title(rf"$\theta_{{\rm E}}$ = {radius:.2f} arcsec", pad=2)
        axis.set_xticks(x[::2])
    for axis in list(axes.flat)[len(radii) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel(label("depth"))
    for column in range(4):
        lowest = max((row for row in range(3) if row * 4 + column < len(radii)), default=0)
        axes[lowest, column].set_xlabel(label("seeing"))
        axes[lowest, column].tick_params(labelbottom=True)
    place = axes.flat[len(radii)] if len(radii) < axes.size else axes.flat[-1]
    bar = fig.colorbar(image, cax=place.inset_axes([0.05, 0.62, 0.9, 0.09]), orientation="horizontal")
    bar.set_label(f"completeness at {name_point(threshold_name)}")
    legend = Rectangle((0, 0), 1, 1, facecolor="0.9", edgecolor="0.55", hatch="/////", linewidth=0)
    place.legend([legend], ["insufficient"], loc="lower center")
    return mark_simulated(fig, simulated, verdict)


def _edges(centres):
    step = centres[1] - centres[0]
    return np.append(centres - step / 2, centres[-1] + step / 2)


def name_point(threshold_name):
    """Return the readable name of an operating point, such as FPR 10^-2 or score > 0.3."""
    return POINTS.get(threshold_name, threshold_name.replace("_", " "))


def plot_slices(marginals, simulated=True, verdict=""):
    """Show completeness along each axis, averaged over the others, footprint-weighted against flat.

    Parameters
    ----------
    marginals : dict of axis -> pandas.DataFrame
        From `completeness.average_cells`, several weightings and thresholds.
    simulated : bool
    verdict : str
        From `selection.card.note_realism`, printed below.
    """
    fig, axes = new_figure("text", 2.6, 1, len(marginals), sharey=True)
    colours = [COLOURS[name] for name in ("blue", "vermilion", "green", "purple")]
    for axis, (name, table) in zip(np.atleast_1d(axes), marginals.items(), strict=True):
        for colour, point in zip(colours, table["threshold_name"].unique(), strict=False):
            for weighting, style in (("footprint", "-"), ("flat", ":")):
                part = table[(table["threshold_name"] == point) & (table["weighting"] == weighting)].sort_values(name)
                if part.empty:
                    continue
                text = name_point(point) + (", survey's mix" if weighting == "footprint" else ", flat average")
                axis.plot(part[name], part["completeness"], style, color=colour, label=text, marker=".")
                if weighting == "footprint":
                    axis.fill_between(part[name], part["lower"], part["upper"], color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=label(name), ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel(label("completeness"))
    fig.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return mark_simulated(fig, simulated, verdict)


def plot_zlens(curve, threshold_name, simulated=True, verdict=""):
    """Show C(theta_E) in bins of lens redshift, with 95 % intervals.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `completeness.tabulate_bins` over theta_E and z_lens.
    threshold_name : str
    simulated : bool
    verdict : str
        From `selection.card.note_realism`, printed below.
    """
    fig, axis = new_figure("column", 2.6)
    own = curve[curve["threshold_name"] == threshold_name]
    looks = zip(("blue", "green", "orange", "vermilion", "purple", "black"), "os^Dvx", strict=True)
    for (colour, marker), (z, part) in zip(looks, own.groupby("z_lens"), strict=False):
        part = part.sort_values("theta_E")
        axis.plot(part["theta_E"], part["completeness"], color=COLOURS[colour], marker=marker, ms=3,
                  label=rf"$z_{{\rm l}}$ = {z:.2f}")  # fmt: skip
        axis.fill_between(part["theta_E"], part["lower"], part["upper"], color=COLOURS[colour], alpha=0.15, linewidth=0)
    axis.set(xlabel=label("theta_E"), ylabel=f"completeness at {name_point(threshold_name)}", ylim=(0, None))
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, columnspacing=1.0)
    return mark_simulated(fig, simulated, verdict)


def plot_gates(gates, simulated=True):
    """Show what is in the data (gate D) and what the model finds of it, by condition, lenses against injections.

    Parameters
    ----------
    gates : pandas.DataFrame
        From `two_gates.compare_gates`, rows of several axes and the populations "lenses" and "injections", and from
        `two_gates.trace_gates`, shown in the last panel.
    simulated : bool
    """
    axes_names = [name for name in ("theta_E", "psfsize_r", "depth_r", "arc_snr_true") if name in set(gates["axis"])]
    fig, axes = new_figure("text", 4.2, 2, 3, sharey=True)
    styles = (("p_d", "blue", "seen by gate D: P(D)"), ("p_m_d", "green", "found of these: P(M$|$D)"),
              ("p_m_nd", "vermilion", "found of the rest: P(M$|$not D)"))  # fmt: skip
    for axis, name in zip(axes.flat, axes_names, strict=False):
        part = gates[gates["axis"] == name]
        span = part["upper_edge"].max() - part["lower_edge"].min()
        for population, marker, fill, shift in (("injections", "s", "none", -0.05), ("lenses", "o", None, 0.01)):
            own = part[(part["population"] == population) & (part["n"] > 0)]
            centre = 0.5 * (own["lower_edge"] + own["upper_edge"])
            for place, (column, colour, text) in enumerate(styles):
                axis.errorbar(centre + (shift + 0.02 * place) * span, own[column], _bars(own, column), fmt=marker,
                              mfc=fill, color=COLOURS[colour], ms=3.5, lw=0.8,
                              label=f"{text}, {population}")  # fmt: skip
        axis.set(xlabel=label({"psfsize_r": "seeing"}.get(name, name)), ylim=(-0.02, 1.02))
    for axis in list(axes.flat)[len(axes_names) :]:
        axis.axis("off")
    _draw_gate_rates(axes[1, 1], gates[gates["axis"] == "gate_fpr"])
    for axis in axes[:, 0]:
        axis.set_ylabel("fraction")
    for axis, place, title in ((axes[0, 0], "upper left", "by condition"), (axes[1, 1], "lower left", "by its rate")):
        first = axes[1, 2].get_legend()
        axes[1, 2].legend(*axis.get_legend_handles_labels(), loc=place, fontsize=6, borderaxespad=0.0, title=title,
                          title_fontsize=6, alignment="left")  # fmt: skip
        if first:  # the axes forget it otherwise
            axes[1, 2].add_artist(first)
    return mark_simulated(fig, simulated)


def _draw_gate_rates(axis, table):
    """Draw what gate D sees, and which share of the misses it does not see, against its false-positive rate."""
    if not len(table):
        return
    axis.axis("on")
    for column, colour, text in (("p_d", "blue", "P(D)"), ("missed_invisible", "purple", "not seen, of the missed")):
        for population, marker, fill in (("injections", "s", "white"), ("lenses", "o", None)):
            own = table[table["population"] == population].sort_values("lower_edge")
            axis.errorbar(own["lower_edge"], own[column], _bars(own, column), fmt=marker + "-", mfc=fill, ms=3, lw=0.8,
                          color=COLOURS[colour], label=f"{text}, {population}")  # fmt: skip
    axis.set(xscale="log", xlabel="false positive rate of gate D", ylim=(-0.02, 1.02))


def plot_closure(table, tertiles, simulated=True):
    """Show predicted against observed recall: rows by detector and operating point, tertile bins, negative controls.

    Parameters
    ----------
    table : pandas.DataFrame
        From `verdict.tabulate_closure`, of one or two detectors.
    tertiles : pandas.DataFrame
        From `verdict.tabulate_tertiles`; a column detector names "audited" (filled) and "companion" (open).
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
        Above, one panel per operating point: predictive 95 % intervals (bars), observed recall of the same lenses
        (ticks) and that of the audited detector's headline lenses (line, and band: 95 % Jeffreys). Below, the same of
        the controls at the headline's point, and its tertile bins. Colours are verdicts, red where it does not close.
    """
    fig, axes = new_figure("text", 5.6, 2, 2, gridspec_kw={"height_ratios": [1, 1.15]})
    points = list(dict.fromkeys(table["operating_point"]))[:2]
    control = table["row"].str.contains(" / ")
    names = {point: name_point("fpr_1e-2" if point == "headline" else point) for point in points}
    for axis, point in zip(axes[0], points, strict=False):
        own = table[~control & (table["operating_point"] == point)]
        _draw_rows(axis, own, own["row"], own["detector"], {"audited": "o", "companion": "s"})
        axis.set(title="closure at " + names[point], xlabel="recall", xlim=(0, 1))
    for axis in axes[0, len(points) :]:
        axis.axis("off")
    own = table[control & (table["operating_point"] == points[0]) & (table["detector"] == "audited")]
    names_of = own["row"].str.split(" / ")
    _draw_rows(axes[1, 0], own, names_of.str[0], names_of.str[-1], dict(zip(CLOSURE_PARTS, "os^", strict=True)))
    axes[1, 0].set(title=f"negative controls at {names[points[0]]}", xlabel="recall", xlim=(0, 1))
    _draw_tertiles(axes[1, 1], tertiles, names[points[0]])
    handles = [Line2D([], [], color=colour, lw=1.5, label=text) for text, colour in VERDICT_COLOURS.items()]
    handles.append(Line2D([], [], color=COLOURS["blue"], lw=0, marker="|", ms=6, label="observed recall"))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=6)
    return mark_simulated(fig, simulated)


VERDICT_COLOURS = {"closes": COLOURS["green"], "does not close": COLOURS["vermilion"],
                   "inconclusive or too few": COLOURS["black"], "refused by a guard": "0.6"}  # fmt: skip


def _colour_verdict(verdict):
    if verdict in VERDICT_COLOURS:
        return VERDICT_COLOURS[verdict]
    return VERDICT_COLOURS["refused by a guard" if verdict == "refused" else "inconclusive or too few"]


def _bars(table, column):
    return np.clip([table[column] - table[f"{column}_lower"], table[f"{column}_upper"] - table[column]], 0, None)


def _draw_rows(axis, table, kinds, parts, markers):
    """Draw one line per kind of row, its parts below each other."""
    if not len(table) or not np.isfinite(table["recall"].astype(float)).any():
        axis.text(0.5, 0.5, "cannot be computed: too few", ha="center", transform=axis.transAxes)
        axis.set(yticks=[])
        return
    main = table[np.isfinite(table["recall"].astype(float))].iloc[0]
    axis.axvspan(main["recall_lower"], main["recall_upper"], color=COLOURS["sky"], alpha=0.2, lw=0)
    axis.axvline(main["recall"], color=COLOURS["blue"], lw=0.6)
    lines, used = list(dict.fromkeys(kinds)), [part for part in markers if part in set(parts)]
    for (_, row), kind, part in zip(table.iterrows(), kinds, parts, strict=True):
        place = lines.index(kind) + 0.25 * (used.index(part) - 0.5 * (len(used) - 1))
        if not np.isfinite(row["predicted"]):
            axis.text(main["recall"], place, "cannot be computed", va="center", fontsize=5)
            continue
        colour = _colour_verdict(row["verdict"])
        errors = _bars(row.to_frame().T.astype({"predicted": float}), "predicted").astype(float)
        axis.errorbar([row["predicted"]], [place], xerr=errors, fmt=markers[part], color=colour, ms=3, lw=0.9,
                      mfc=colour if part == used[0] else "white")  # fmt: skip
        axis.plot([row["recall"]], [place], marker="|", color=COLOURS["blue"], ms=5)
    for place in range(1, len(lines)):
        axis.axhline(place - 0.5, color="0.9", lw=0.5)
    axis.set(yticks=range(len(lines)), yticklabels=map(name_closure_row, lines), ylim=(len(lines) - 0.5, -0.5))
    axis.tick_params(axis="y", labelsize=6, length=0)
    shapes = [Line2D([], [], color="black", lw=0, marker=markers[part], ms=3, label=CLOSURE_PARTS.get(part, part),
                     mfc="black" if part == used[0] else "white") for part in used]  # fmt: skip
    axis.legend(handles=shapes, loc="lower right", fontsize=5.5, handletextpad=0.2, borderaxespad=0.2)


def _draw_tertiles(axis, tertiles, point):
    colours = {"theta_E": "blue", "seeing": "orange", "depth": "green"}
    axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    tertiles = tertiles if "detector" in tertiles else tertiles.assign(detector="audited")
    for (detector, name), part in tertiles.groupby(["detector", "axis"]) if len(tertiles) else ():
        own = detector == "audited"
        axis.errorbar(part["predicted"], part["recall"], _bars(part, "recall"), _bars(part, "predicted"),
                      fmt="o" if own else "s", mfc=None if own else "white", ms=3, lw=0.7, color=COLOURS[colours[name]],
                      label=f"tertiles of {label(name).partition(' [')[0]}" if own else None)  # fmt: skip
    if (tertiles["detector"] == "companion").any():
        axis.plot([], [], "s", mfc="white", ms=3, color="0.3", label="open: companion")
    axis.set(title=f"closure set at {point}", xlabel="predicted recall", ylabel="observed recall",
             xlim=(0, 1), ylim=(0, 1), aspect="equal")  # fmt: skip
    if len(tertiles):
        axis.legend(loc="lower right", fontsize=6)
