"""Figures of the real input: what the lens lists share, the real stamps, arcs put into real pixels."""

import numpy as np
import seaborn
from matplotlib.colors import LogNorm

from lensaudit.constants import PIXEL_SCALE
from lensaudit.figures.style import COLOURS, SEQUENTIAL, new_figure
from lensaudit.wording import LISTS

STRETCH = {"g": 1.0, "r": 1.4, "z": 2.4}  # relative weights of the colour picture, red light is brighter


def plot_overlaps(overlaps):
    """Draw how many systems two lens lists, or two discovery channels, have in common.

    Parameters
    ----------
    overlaps : pandas.DataFrame
        level (``catalog`` or ``channel``), first, second, n_both: systems.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = new_figure("text", 3.3, ncols=2)
    for axis, level in zip(axes, ("catalog", "channel"), strict=True):
        part = overlaps[overlaps["level"] == level]
        square = part.pivot(index="first", columns="second", values="n_both")
        order = part[part["first"] == part["second"]].sort_values("n_both", ascending=False)["first"]
        square = square.combine_first(square.T).reindex(index=order, columns=order).fillna(0)
        lower = np.triu(np.ones(square.shape, bool), 1) | (square.to_numpy() == 0)
        seaborn.heatmap(
            square, mask=lower, annot=True, fmt=".0f", annot_kws={"size": 5.5}, cmap=SEQUENTIAL, square=True, ax=axis,
            norm=LogNorm(vmin=1, vmax=square.to_numpy().max()), cbar_kws={"label": "systems in common", "shrink": 0.6},
        )  # fmt: skip
        axis.set_xlabel("")
        axis.set_ylabel("")
        axis.set_title("lens lists" if level == "catalog" else "discovery channels")
        axis.tick_params(top=False, right=False, labelsize=6)
        axis.set_xticklabels([_wrap(t.get_text()) for t in axis.get_xticklabels()], rotation=60, ha="right")
        axis.set_yticklabels([_wrap(t.get_text()) for t in axis.get_yticklabels()], rotation=0)
    return figure


def _wrap(name):
    return LISTS.get(name, name.replace("_", " "))


def make_picture(image, softening, peak):
    """Turn one stamp into a colour picture.

    Parameters
    ----------
    image : ndarray of shape (3, S, S), nMgy
        g, r, z.
    softening : float
        nMgy per pixel below which the stretch is linear.
    peak : float
        nMgy per pixel shown as white.

    Returns
    -------
    ndarray of shape (S, S, 3) in [0, 1], red from z
    """
    weights = np.array([STRETCH["g"], STRETCH["r"], STRETCH["z"]])[:, None, None]
    scaled = image / weights
    mean = scaled.mean(axis=0)
    stretched = np.arcsinh(np.maximum(mean, 0) / softening) / np.arcsinh(peak / softening)
    colour = scaled / np.maximum(mean, 0.3 * softening) * stretched
    return np.clip(colour[::-1].transpose(1, 2, 0) + 0.04, 0, 1)


def plot_stamps(images, table):
    """Draw the accepted real stamps in colour with what was measured on each.

    Parameters
    ----------
    images : ndarray of shape (N, 3, S, S), nMgy
    table : pandas.DataFrame of N rows
        file, arc_snr, logit, dataset.

    Returns
    -------
    matplotlib.figure.Figure
    """
    columns = 5
    rows = -(-len(table) // columns)
    figure, axes = new_figure("text", 1.75 * rows + 0.2, nrows=rows, ncols=columns, squeeze=False)
    half = images.shape[-1] * PIXEL_SCALE / 2
    for axis, image, row in zip(axes.flat, images, table.itertuples(), strict=False):
        _show(axis, image, half)
        kind = "lens candidate" if row.dataset == "dr10_lens_stamps" else "galaxy"
        name = row.file.rsplit("/", 1)[-1]
        axis.set_title(f"{name}\n{kind}\narc S/N {row.arc_snr:.1f}, logit {row.logit:.2f}", size=6)
    for axis in list(axes.flat)[len(table):]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("arcsec", size=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("arcsec", size=7)
    return figure


def _show(axis, image, half):
    image = image - np.median(image, axis=(1, 2), keepdims=True)
    noise = 1.4826 * np.median(np.abs(image[1]))
    softening = 2 * max(noise, 1e-4)
    peak = max(np.quantile(image[1], 0.999), 10 * softening)
    axis.imshow(make_picture(image, softening, peak), extent=(-half, half, -half, half))
    axis.tick_params(color="white", labelsize=6)


def plot_injections(before, arcs, after, table):
    """Draw arcs put into real pixels: before, the noiseless arc, after, and what was added with its shot noise.

    Parameters
    ----------
    before, arcs, after : ndarray of shape (N, 3, S, S), nMgy
    table : pandas.DataFrame of N rows
        host, arc (name of the parameter set), theta_E [arcsec], mag_lensed_r, arc_snr_before, arc_snr, logit_before,
        logit.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = ("before", "arc alone (own stretch)", "after", "after minus before, $r$")
    figure, axes = new_figure("text", 1.62 * len(table) + 0.3, nrows=len(table), ncols=4, squeeze=False,
                              sharex=True, sharey=True)  # fmt: skip
    half = before.shape[-1] * PIXEL_SCALE / 2
    for line, row, host, arc, both in zip(axes, table.itertuples(), before, arcs, after, strict=True):
        level = np.median(host, axis=(1, 2), keepdims=True)
        noise = 1.4826 * np.median(np.abs(host[1] - level[1]))
        softening = 2 * noise
        peak = max(np.quantile(host[1] - level[1], 0.995), 10 * softening)
        box = (-half, half, -half, half)
        pictures = ((host - level, peak), (arc, arc[1].max()), (both - level, peak))
        for axis, (image, top) in zip(line[:3], pictures, strict=True):
            axis.imshow(make_picture(image, min(softening, top / 10), top), extent=box)
        limit = max(arc[1].max(), noise)
        line[3].imshow(both[1] - host[1], extent=box, cmap=SEQUENTIAL, vmin=-0.1 * limit, vmax=limit)
        angle = np.linspace(0, 2 * np.pi, 181)
        line[3].plot(row.theta_E * np.cos(angle), row.theta_E * np.sin(angle), color=COLOURS["orange"], lw=0.5, ls="--")
        line[0].set_ylabel(f"{row.host}\n{row.arc} arc\narcsec", size=6)
        texts = (f"logit {row.logit_before:.2f}, arc S/N {row.arc_snr_before:.1f}",
                 rf"$\theta_{{\rm E}}$ {row.theta_E:.2f}$''$, $r$ = {row.mag_lensed_r:.1f} mag",
                 f"logit {row.logit:.2f}, arc S/N {row.arc_snr:.1f}", "")  # fmt: skip
        for axis, text in zip(line, texts, strict=True):
            axis.text(0.04, 0.06, text, transform=axis.transAxes, color="white", size=5.5)
            axis.tick_params(color="white", labelsize=6)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("arcsec", size=7)
    return figure
