r"""Words for readers: what a column, cut, gate, check or category of the code is called in a figure or a table.

The texts are read by matplotlib and by LaTeX alike, so mathematics stands in ``$...$`` and no text holds a character
that LaTeX treats specially. A name that is not known keeps its words, with blanks for underscores.
"""

import re

# Operating points by their key in thresholds.json.
POINTS = {
    "fpr_1e-2": r"FPR $10^{-2}$", "fpr_1e-3": r"FPR $10^{-3}$", "fpr_1e-4": r"FPR $10^{-4}$",
    "score_0.3": r"score $> 0.3$", "score_0.5": r"score $> 0.5$",
}  # fmt: skip
SPLITS = {"train": "training", "val": "validation", "test": "test", "silver": "silver"}
TIERS = {"A": "Tier A lenses", "B": "Tier B lenses", "S": "Tier S lenses", "N1": "parent galaxies (N1)",
         "N2": "confusers (N2)"}  # fmt: skip
CATEGORIES = {
    "all": "all parent galaxies", "N1": TIERS["N1"], "N2": TIERS["N2"], "agn_proxy": "active-nucleus proxy",
    "blue_clumpy": "blue clumpy galaxy", "bright_star_neighbourhood": "near a bright star",
    "edge_on_proxy": "edge-on proxy", "large_galaxy": "large galaxy", "merger_neighbour": "merging neighbour",
}  # fmt: skip
TYPES = ("DEV", "EXP", "REX", "SER", "PSF", "DUP")
CUTS = {
    "all": "all sources", "coordinates": "finite coordinates", "type": "morphological type", "maskbits": "mask bits",
    "nobs": "exposures", "nobs_g": "exposures in $g$", "nobs_r": "exposures in $r$", "nobs_z": "exposures in $z$",
    "z_flux": "positive $z$ flux", "z_mag": "$z$ magnitude", "known_lens": "near a known lens",
}  # fmt: skip
MASKS = {"BRIGHT": "bright star", "ALLMASK_G": "no good pixel in $g$", "ALLMASK_R": "no good pixel in $r$",
         "ALLMASK_Z": "no good pixel in $z$", "MEDIUM": "medium-bright star", "GALAXY": "large galaxy",
         "CLUSTER": "globular cluster"}  # fmt: skip
FEATURES = {
    "nan_frac": "share of empty pixels", "core_brightness_r": "core brightness",
    "core_brightness_4_r": "core brightness, 4 pixel", "core_brightness_12_r": "core brightness, 12 pixel",
    "core_max_r": "brightest core pixel",
    "annulus_brightness_r": "arc annulus, brightness", "annulus_std_r": "arc annulus, scatter",
    "annulus_brightness_16_28_r": "annulus 16–28 pixel, brightness", "outer_brightness_r": "outer brightness",
    "background_r": "background", "radial_gradient_r": "core minus annulus", "mad_r": "median absolute deviation",
    "std_r": "standard deviation", "median_r": "median", "mean_r": "mean", "percentile_1_r": "first percentile",
    "percentile_99_r": "99th percentile", "clip_frac_r": "share of clipped pixels",
    "high_frequency_r": "fine structure", "asymmetry_r": "asymmetry", "ridge_r": "ridge energy",
    "annulus_core_g_r": "annulus minus core $g-r$", "annulus_core_r_z": "annulus minus core $r-z$",
    "saturation_r": "flat core", "edge_score_r": "edge score", "psfsize_r": r"psfsize$_r$", "psfdepth_r": "depth$_r$",
    "nobs_z": "exposures in $z$", "ebv": "$E(B-V)$", "noise_ratio_r": "noise ratio in $r$",
    "rho10": "correlation of neighbouring pixels", "skew": "skewness of the noise",
}  # fmt: skip
GATES = {
    "bandset": "bands of every stamp", "core only probe": "probe of the core alone",
    "colour only probe": "probe of colours alone", "noise only probe": "probe of the noise alone",
    "control scores": "scores of control stamps", "annulus against core": "arc annulus against core",
}  # fmt: skip
CHECKS = {
    "arc_snr quantile 0.1": "arc S/N, 10th percentile, ratio", "arc_snr quantile 0.5": "arc S/N, median, ratio",
    "arc_snr quantile 0.9": "arc S/N, 90th percentile, ratio",
    "arc_g_r median": "arc $g-r$, median, difference [mag]", "arc_r_z median": "arc $r-z$, median, difference [mag]",
    "regions agree, chi-squared p": r"regions of the sky agree, $p$ of $\chi^2$",
    "regions, smallest difference seen": "regions of the sky, smallest difference seen",
    "matching, effective number of injections": "two-sample test, effective number of injections after matching",
    "matching, arc g-r left, median": "two-sample test, arc $g-r$ left after matching, median, difference [mag]",
    "matching, arc r-z left, median": "two-sample test, arc $r-z$ left after matching, median, difference [mag]",
}  # fmt: skip
FEATURE_SETS = {"hand-made": "measured features", "penultimate": "features of the network"}
PROBES = {"": "AUC, colours matched", "permutation p": "permutation $p$",
          "colours not matched": "AUC, colours not matched",
          "smallest planted g-r shift seen": "smallest planted $g-r$ shift seen [mag]"}  # fmt: skip
SAMPLES = {"targets": "training and validation lenses", "test": "test lenses", "pilot": "pilot injections",
           "panel": "human panel"}  # fmt: skip
CLOSURE_ROWS = {
    "main": "closure set", "calibrated": "closure set, selection inferred",
    "extended": "closure set, with arc energy", "oracle": "closure set, with true arc S/N",
    "twins": "twins", "grid": "grid, reweighted", "unspoiled": "correct injections, same number",
    "random_hosts": "random hosts", "faint": "sources 1 mag too faint", "red": "source $g-r$ of lens light",
    "gain_150": r"gain 150 e$^-$ nMgy$^{-1}$", "gaussian_psf": "Gaussian PSF, psfsize as FWHM",
    "psfsize_20": "psfsize a fifth too large",
}  # fmt: skip
# Rows that every negative control is tested on.
CLOSURE_PARTS = {"conditional": "conditional", "calibrated": "selection inferred", "twins": "twins"}
# Lens lists by the name of their description in data_manifests/ or of their file.
LISTS = {
    "literature_lenses": "literature", "slacs": "SLACS", "storfer2024": "Storfer et al. 2024",
    "huang2020": "Huang et al. 2020", "huang2021": "Huang et al. 2021", "inchausti2025": "Inchausti et al. 2025",
}  # fmt: skip


def spell_out(text):
    """Return a name in words: blanks for underscores, signs for >= and <=, en dashes in ranges of numbers."""
    plain = str(text).replace("_", " ").replace(">=", r"$\geq$").replace("<=", r"$\leq$")
    return re.sub(r"(?<=\d)-(?=\d)", "–", plain)


def name_category(key):
    """Return the name of a category of galaxies: pool, confuser proxy or label, Tractor type, or ``plain <type>``."""
    words = str(key).split(" ")
    if words[-1] in TYPES:
        return ("no proxy, " if words[0] == "plain" else "") + f"type {words[-1]}"
    return CATEGORIES.get(key, spell_out(key))


def name_stratum(axis, key):
    """Return the name of a stratum of the audit's axes, such as seeing x depth, TYPE or nobs_z."""
    if axis == "nobs_z":
        return f"{spell_out(key)} exposures in $z$"
    if axis == "confuser label":
        return name_category(f"labelled_{key}")
    return name_category(key).replace(" / ", ", ")


def name_cut(key):
    """Return the name of a cut of the parent sample; a mask bit is named by what it marks."""
    if str(key).startswith("maskbit "):
        _, bit, name = key.split(" ", 2)
        return f"bit {bit}: {MASKS.get(name, spell_out(name).lower())}"
    return CUTS.get(key, spell_out(key))


def name_feature(key):
    """Return the name of a stamp feature or condition; features without a band are those of the r band."""
    return FEATURES.get(key, spell_out(key))


def name_gate(key):
    """Return the name of a gate of the evaluation; those of a single quality column start with ``quality: ``."""
    kind, found, column = str(key).partition("quality: ")
    return f"lenses against galaxies, {name_feature(column)}" if found and not kind else GATES.get(key, spell_out(key))


def name_check(key):
    """Return the name of a check of the realism report."""
    name = str(key).partition(", labels permuted")[0]
    tail = ", labels permuted" if name != str(key) else ""
    if name.startswith("KS "):
        return f"KS distance, {name_feature(name[3:])}"
    if name.startswith("noise ratio "):
        return f"sky noise in ${name[-1]}$, ratio"
    if name.startswith("arc_brightness_"):
        return f"arc surface brightness in ${name[15]}$, median, difference [mag arcsec$^{{-2}}$]"
    if name.startswith("Frechet distance, "):
        layer = name.split(", ")[1]
        return f"Fréchet distance over that of random halves, {FEATURE_SETS.get(layer, layer)}"
    if name.startswith("C2ST "):
        features, _, kind = name[5:].partition(", ")
        return f"two-sample test, {FEATURE_SETS.get(features, features)}, {PROBES.get(kind, kind)}{tail}"
    return CHECKS.get(name, spell_out(name)) + tail


def name_subset(key):
    """Return the name of a subset of labelled lenses."""
    return spell_out(str(key).replace("arc_snr", "arc S/N"))


def name_closure_row(key):
    """Return the name of a row of closure; a control's row is ``<control> / <part>``, parts as in `CLOSURE_PARTS`."""
    kind, _, part = str(key).partition(" / ")
    return CLOSURE_ROWS.get(kind, spell_out(kind)) + (f" ({CLOSURE_PARTS.get(part, spell_out(part))})" if part else "")
