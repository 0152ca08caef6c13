"""The look of every figure: journal widths, serif 8 pt, a colour-blind-safe palette, labels with units."""

import matplotlib
from matplotlib import pyplot

# Widths of the journal's column and page in inches (84 mm and 177 mm).
WIDTHS = {"column": 3.32, "text": 6.97}

# Okabe & Ito (2008), distinguishable with every common colour-vision deficiency.
COLOURS = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "vermilion": "#D55E00", "purple": "#CC79A7",
    "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000", "grey": "#7F7F7F",
}  # fmt: skip

# Sequential maps that keep their order in grey print; the second is for maps of a difference around zero.
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"

RC = {
    "font.family": "serif", "font.serif": ["STIXGeneral"], "mathtext.fontset": "stix", "font.size": 8.0,
    "axes.titlesize": 8.0, "axes.labelsize": 8.0, "xtick.labelsize": 7.0, "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0, "figure.titlesize": 8.0, "legend.frameon": False, "legend.handlelength": 1.6,
    "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 3.5, "patch.linewidth": 0.6,
    "errorbar.capsize": 1.5, "xtick.direction": "in", "ytick.direction": "in", "xtick.top": True,
    "ytick.right": True, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4, "axes.prop_cycle": matplotlib.cycler(color=[
        COLOURS[name] for name in ("blue", "orange", "green", "vermilion", "purple", "sky", "black")]),
    "image.cmap": SEQUENTIAL, "image.origin": "lower", "image.interpolation": "nearest",
    "figure.constrained_layout.use": True, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "lensaudit",
    "figure.dpi": 100, "savefig.bbox": "standard",
}  # fmt: skip

BAND_COLOURS = {"g": COLOURS["green"], "r": COLOURS["vermilion"], "z": COLOURS["purple"]}

LABELS = {
    "theta_E": r"$\theta_{\rm E}$ [arcsec]", "seeing": r"psfsize$_r$ [arcsec]", "depth": r"depth$_r$ [AB mag]",
    "depth_r": r"depth$_r$ [AB mag]", "psf_fwhm": "true FWHM [arcsec]", "separation": "separation [arcsec]",
    "ra": "RA [deg]", "dec": "Dec [deg]", "ebv": r"$E(B-V)$ [mag]", "q": r"axis ratio $q$", "phi": r"$\phi$ [rad]",
    "z_lens": r"$z_{\rm l}$", "z_source": r"$z_{\rm s}$", "z_phot": r"$z_{\rm phot}$",
    "sigma_v": r"$\sigma_v$ [km s$^{-1}$]", "mu": r"magnification $\mu$", "source_R": r"source $R_{\rm e}$ [arcsec]",
    "source_n": "source Sersic $n$", "source_q": "source axis ratio", "shape_r": "half-light radius [arcsec]",
    "sersic": "Sersic $n$", "ellipticity": "ellipticity", "logit": "logit", "score": "score",
    "fpr": "false positive rate", "tpr": "true positive rate", "recall": "recall", "precision": "precision",
    "purity": "purity", "prevalence": "prevalence", "completeness": "completeness", "predicted": "predicted recall",
    "threshold": "threshold [logit]", "epoch": "epoch", "loss": "weighted cross-entropy", "auc": "AUC",
    "n_eff": r"$n_{\rm eff}$",
    "arc_snr": r"arc S/N ($r$)", "arc_snr_true": r"true arc S/N ($r$)", "snr_true": r"true arc S/N ($r$)",
    "mag_host": r"host $r$ [mag]",
    "arc_g_r": r"arc $g-r$ [mag]", "arc_r_z": r"arc $r-z$ [mag]", "g_r": r"$g-r$ [mag]", "r_z": r"$r-z$ [mag]",
    "arc_surface_brightness": r"arc brightness, $r$ [mag arcsec$^{-2}$]",
    "arc_width": "arc width [arcsec]", "arc_radius": "arc radius [arcsec]", "asymmetry": "asymmetry",
    "ridge": "ridge energy", "sky_sigma": r"sky $\sigma$ [nMgy pixel$^{-1}$]", "flux": "flux [nMgy]",
    "healpix_128": "HEALPix pixel", "region_id": "region", "type": "morphological type",
    "nobs_z_bin": r"exposures in $z$",
    "fpr_per_1e4": r"false positives per $10^4$ galaxies", "n": "number", "count": "number",
}  # fmt: skip
LABELS |= {f"mag_{b}": rf"${b}$ [AB mag]" for b in "grz"} | {f"flux_{b}": rf"flux$_{b}$ [nMgy]" for b in "grz"}
LABELS |= {f"psfsize_{b}": rf"psfsize$_{b}$ [arcsec]" for b in "grz"}
LABELS |= {f"nobs_{b}": rf"exposures in ${b}$" for b in "grz"}
LABELS |= {f"mag_source_{b}": rf"unlensed source ${b}$ [AB mag]" for b in "grz"}
LABELS |= {f"mag_lensed_{b}": rf"lensed source ${b}$ [AB mag]" for b in "grz"}
LABELS |= {f"noise_ratio_{b}": rf"noise ratio, ${b}$" for b in "grz"}


def use_style():
    """Set the journal style for this process; safe to call again."""
    matplotlib.rcParams.update(RC)


def new_figure(width="column", height=2.6, nrows=1, ncols=1, **kw):
    """Make a figure of journal width with constrained layout.

    Parameters
    ----------
    width : str or float
        ``"column"`` (3.32 in), ``"text"`` (6.97 in) or inches.
    height : float
        Inches.
    nrows, ncols : int
        Panels.
    **kw
        For `matplotlib.figure.Figure.subplots`, such as ``sharex``, ``gridspec_kw``, ``squeeze``.

    Returns
    -------
    fig : matplotlib.figure.Figure
        Already closed for pyplot, so that a notebook shows it once, as the value of its cell.
    axes : Axes or ndarray of Axes
        As `subplots` returns them: one Axes when there is one panel.
    """
    use_style()
    fig = pyplot.figure(figsize=(WIDTHS.get(width, width), height), layout="constrained")
    pyplot.close(fig)
    return fig, fig.subplots(nrows, ncols, **kw)


def mark_simulated(fig, simulated=True, verdict=""):
    """Print "simulated sky" in the lower right corner of a figure that shows simulated data, and a map's verdict.

    The note takes a line of its own below the panels (constrained layout keeps it free). Call it once, last.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    simulated : bool
    verdict : str
        What is known of the injections behind a map, from `selection.card.note_realism`; printed red where they are
        not validated.
    """
    texts = [text for text in (verdict, "simulated sky" if simulated else "") if text]
    colour = "vermilion" if verdict.startswith("not validated") else "black" if verdict else "grey"
    if texts:
        joint = "; " if fig.get_figwidth() > WIDTHS["column"] else "\n"
        fig.supxlabel(joint.join(texts), x=0.995, ha="right", fontsize=6.5 if verdict else 5.5, color=COLOURS[colour],
                      style="italic")  # fmt: skip
    return fig


def label(name):
    """Return the axis label, with unit, of a standard column; an unknown name keeps its words."""
    return LABELS.get(name, str(name).replace("_", " "))
