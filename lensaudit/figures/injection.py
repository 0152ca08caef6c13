"""Figures of the injection engine: what injections look like, and how far they are from lenstronomy."""

from matplotlib.lines import Line2D

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure


def plot_contact_sheet(images, theta_E, seeing, simulated=True):
    """Show injections by Einstein radius (columns) and seeing (rows).

    Parameters
    ----------
    images : ndarray of shape (n_seeing, n_theta, S, S, 3), uint8
        Colour composites; black where there is none.
    theta_E, seeing : sequence of float
        Values of columns and rows [arcsec].
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows, columns = images.shape[:2]
    fig, axes = new_figure("text", 0.3 + 6.97 * rows / columns, rows, columns, squeeze=False)
    for i in range(rows):
        for j in range(columns):
            axis = axes[i, j]
            axis.imshow(images[i, j], origin="lower", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(rf"$\theta_{{\rm E}} = {theta_E[j]:.2f}''$")
            if j == 0:
                axis.set_ylabel(rf"psfsize$_r$ {seeing[i]:.2f}$''$")
    return mark_simulated(fig, simulated)


def plot_residuals(table, simulated=True):
    """Show the engine's residual from lenstronomy against source size.

    Parameters
    ----------
    table : pandas.DataFrame
        source_R [arcsec], residual (largest difference over the peak), n_clumps.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axis = new_figure("column", 2.5)
    clumpy = table["n_clumps"].to_numpy() > 0
    for chosen, colour, marker in ((~clumpy, COLOURS["blue"], "o"), (clumpy, COLOURS["vermilion"], "^")):
        axis.plot(table["source_R"][chosen], table["residual"][chosen], marker, ms=3, color=colour, alpha=0.7, lw=0)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(label("source_R"))
    axis.set_ylabel("largest residual / peak")
    handles = [Line2D([], [], marker="o", lw=0, ms=3, color=COLOURS["blue"], label="smooth"),
               Line2D([], [], marker="^", lw=0, ms=3, color=COLOURS["vermilion"], label="with clumps")]  # fmt: skip
    axis.legend(handles=handles, loc="best")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 1e-4), max(high, 1e-2))
    axis.grid(alpha=0.3, which="major", lw=0.4)
    return mark_simulated(fig, simulated)
