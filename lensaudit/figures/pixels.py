"""Figures of the pixel and training stages: example stamps, single-feature shortcuts, training curves."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from lensaudit.figures.style import COLOURS, label, mark_simulated, new_figure
from lensaudit.wording import name_category, name_feature

_FLAGS = ("yellow", "red")
# Flux per pixel [nMgy] that is half-way up the colour scale in z, r, g: the colours of a red galaxy come out neutral.
_SOFTENING = np.array([0.06, 0.035, 0.016])[:, None, None]


def make_rgb(image):
    """Return a stamp as a colour picture: arcsinh stretch of z, r, g as red, green, blue.

    Parameters
    ----------
    image : ndarray of shape (3, S, S), bands g, r, z [nMgy]

    Returns
    -------
    ndarray of shape (S, S, 3), in [0, 1]; pixels without data are grey
    """
    scaled = np.arcsinh(image[::-1] / _SOFTENING) / np.arcsinh(40.0) + 0.06
    return np.moveaxis(np.clip(np.nan_to_num(scaled, nan=0.5), 0, 1), 0, -1)


def plot_stamps(images, titles=None, columns=8, pixel_scale=0.262, simulated=True):
    """Draw a grid of stamps in colour.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S), bands g, r, z [nMgy]
    titles : sequence of str, length N, optional
    columns : int
    pixel_scale : float
        Arcsec per pixel, for the scale bar of the first stamp.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = max(1, -(-len(images) // columns))
    step = 6.97 / columns + (0.14 if titles is not None else 0.0)
    figure, axes = new_figure("text", step * rows + 0.15, rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(make_rgb(image), interpolation="nearest")
        if titles is not None:
            axis.set_title(name_category(titles[number].replace(" ", "_")), fontsize=6, pad=1.5)
    first, size = axes.flat[0], images.shape[-1]
    first.plot([0.06 * size, 0.06 * size + 5 / pixel_scale], [0.07 * size] * 2, color="white", lw=1.2)
    first.text(0.06 * size, 0.10 * size, "5 arcsec", color="white", fontsize=5.5)
    return mark_simulated(figure, simulated)


def plot_shortcuts(table, simulated=True):
    """Draw the AUC of every single feature, unmatched and on host-matched pairs, with the limits of the rule.

    Parameters
    ----------
    table : pandas.DataFrame
        feature, auc, lower, upper, auc_matched, lower_matched, upper_matched (95 per cent), flag.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = table.sort_values("auc_matched", na_position="first")
    figure, axis = new_figure("column", 0.14 * len(table) + 0.8)
    y = np.arange(len(table))
    axis.axvspan(0.60, 0.70, color=COLOURS["orange"], alpha=0.12, lw=0)
    axis.axvspan(0.70, 1.0, color=COLOURS["vermilion"], alpha=0.12, lw=0)
    for name, colour, offset, marker in (("", COLOURS["grey"], 0.18, "s"), ("_matched", COLOURS["blue"], -0.18, "o")):
        value = table[f"auc{name}"].to_numpy(float)
        bars = np.abs(np.stack([value - table[f"lower{name}"], table[f"upper{name}"] - value]).astype(float))
        axis.errorbar(value, y + offset, xerr=bars, fmt=marker, ms=2.5, lw=0.7, color=colour,
                      label="matched pairs" if name else "all negatives")  # fmt: skip
    names = [name_feature(name) + (f" ({flag} flag)" if flag in _FLAGS else "")
             for name, flag in zip(table["feature"], table["flag"], strict=True)]  # fmt: skip
    axis.set_yticks(y, names, fontsize=6)
    axis.set(xlabel="AUC of the feature alone", xlim=(0.45, 1.0), ylim=(-0.8, len(table) - 0.2))
    axis.tick_params(axis="y", which="both", length=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return mark_simulated(figure, simulated)


def plot_training(metrics, simulated=True):
    """Draw training loss and validation AUC by epoch, with the kept epoch marked.

    Parameters
    ----------
    metrics : pandas.DataFrame
        epoch, loss, val_auc, is_best.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = new_figure("column", 1.9, 1, 2)
    best = metrics[metrics["is_best"]]
    for axis, column, colour, name in ((axes[0], "loss", "orange", label("loss")),
                                       (axes[1], "val_auc", "blue", "validation AUC")):  # fmt: skip
        axis.plot(metrics["epoch"], metrics[column], "o-", color=COLOURS[colour])
        axis.plot(best["epoch"], best[column], "o", ms=8, mfc="none", mec=COLOURS["black"], label="kept epoch")
        axis.set(xlabel=label("epoch"), ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0].legend(loc="upper right")  # a loss falls: this corner is free
    return mark_simulated(figure, simulated)
