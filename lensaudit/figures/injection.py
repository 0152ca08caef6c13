"""Figures of the injection engine: what injections look like beside lenses, and how their error falls with sampling."""

import numpy as np
from matplotlib.lines import Line2D

from lensaudit.figures.style import COLOURS, mark_simulated, new_figure

MARKERS = "os^D"


def plot_contact_sheet(injections, lenses, theta_E, seeing, radius="theta_E", simulated=True):
    """Show injections beside lenses by Einstein radius (columns) and seeing (rows).

    Parameters
    ----------
    injections, lenses : ndarray of shape (n_seeing, n_theta, S, S, 3), float in [0, 1]
        Colour composites; black where there is none.
    theta_E, seeing : sequence of float
        Values of columns and rows [arcsec].
    radius : str
        What orders the lenses: ``"theta_E"`` (true Einstein radius) or ``"arc_radius"`` (blind measurement).
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows, columns = injections.shape[:2]
    gap = 0.25  # of a stamp, between the two halves
    height = 0.55 + 6.75 * rows / (2 * columns + gap)
    ratios = [1.0] * columns + [gap] + [1.0] * columns
    fig, axes = new_figure("text", height, rows, 2 * columns + 1, squeeze=False, gridspec_kw={"width_ratios": ratios})
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    names = {"theta_E": r"\theta_{\rm E}", "arc_radius": r"r_{\rm arc}"}
    heads = {0: "injections\n", columns + 1: "lenses of training and validation\n"}
    for axis in axes[:, columns]:
        axis.set_visible(False)
    for images, first, name in ((injections, 0, "theta_E"), (lenses, columns + 1, radius)):
        for i, j in np.ndindex(rows, columns):
            axis = axes[i, first + j]
            axis.imshow(images[i, j], origin="lower", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                above = heads[first] if j == (columns - 1) // 2 else ""
                axis.set_title(above + rf"${names[name]} = {theta_E[j]:.2f}''$", fontsize=7)
            if first + j == 0:
                axis.set_ylabel(rf"psfsize$_r$ {seeing[i]:.2f}$''$", fontsize=7)
    return mark_simulated(fig, simulated)


def plot_convergence(table, panel_width, goal, simulated=True):
    """Show the largest residual over the peak against the engine's panel width and against a fixed grid's sampling.

    Parameters
    ----------
    table : pandas.DataFrame
        From `audit.engine.measure_convergence`.
    panel_width : float
        The one in use; marked.
    goal : float
        Drawn as a line.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axes = new_figure("column", 2.5, 1, 2, sharey=True)
    colours = [COLOURS[name] for name in ("vermilion", "blue", "green", "purple")]
    radii = sorted(table["source_R"].unique())
    for axis, method in zip(axes, ("engine", "fixed grid"), strict=True):
        for colour, marker, radius in zip(colours, MARKERS, radii, strict=False):
            part = table[(table["method"] == method) & (table["source_R"] == radius)].sort_values("setting")
            axis.plot(part["setting"], part["maximum"], marker + "-", color=colour)
            axis.plot(part["setting"], part["median"], marker + "--", color=colour, mfc="white", lw=0.8)
        axis.axhline(goal, color=COLOURS["black"], lw=0.7)
        settings = sorted(table.loc[table["method"] == method, "setting"].unique())
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        shown = [s for s in settings if np.log2(s) % 1 == 0]
        axis.set_xticks(shown, [f"{s:g}" for s in shown])
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="major", lw=0.4)
        axis.set_title(method)
    axes[0].axvline(panel_width, color=COLOURS["grey"], lw=0.7, ls=":")
    axes[0].set_xlabel("panel width\n[scale lengths]")
    axes[1].set_xlabel("samples per pixel\nand axis")
    axes[0].set_ylabel("largest residual / peak")
    axes[0].annotate("goal", (0.03, goal), (0, 2), ("axes fraction", "data"), "offset points", fontsize=7)
    names = [rf"$R_{{\rm e}} = {radius:g}''$" for radius in radii]
    handles = [Line2D([], [], color=c, marker=m, label=name)
               for c, m, name in zip(colours, MARKERS, names, strict=False)]  # fmt: skip
    grey = {"color": COLOURS["grey"], "marker": MARKERS[0]}
    handles += [Line2D([], [], label="largest", **grey),
                Line2D([], [], label="median", mfc="white", ls="--", lw=0.8, **grey)]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return mark_simulated(fig, simulated)
