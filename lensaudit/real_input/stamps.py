"""Real stamps: read or refused, brought to the survey's pixels, measured, scored.

A handful of stamps shows that the way from a file to a score works on real pixels; it measures no recall and no false
positive rate, and nothing here says so.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, load_dataset
from lensaudit.audit.detectability import measure_arcs
from lensaudit.audit.thresholds import freeze_detector
from lensaudit.constants import BANDS, STAMP_SIZE
from lensaudit.detectors.scoring import load_detector
from lensaudit.pixels.formats import find_refusal, measure_gaps, read_fits_cutout, read_stamp_npz, select_bands
from lensaudit.pixels.quality import measure_quality
from lensaudit.pixels.resampling import measure_aperture, resample_stamp
from lensaudit.real_input.tables import STAMPS, find_data_root, list_files

APERTURE = 10.0  # arcsec, radius in which the flux kept by resampling is measured
MAX_FLUX_CHANGE = 0.02
RIM = 10  # pixels, width of the frame in which the sky of the whole file is measured
CORRELATED = 0.5  # correlation of neighbours above which a noise annulus holds more than coadd noise
ARC_COLUMNS = ("arc_snr", "arc_snr_g", "arc_snr_z", "arc_g_r", "arc_r_z", "arc_radius", "detectability",
               "sigma_pix_g", "sigma_pix_r", "sigma_pix_z", "rho10")  # fmt: skip
QUALITY_COLUMNS = ("nan_frac", "central_nan_frac", "clip_frac_r", "background_r", "quality_ok")


def read_stamps(config):
    """Read every described stamp file; refuse with the reason what cannot be measured.

    Parameters
    ----------
    config : lensaudit.config.Config

    Returns
    -------
    table : pandas.DataFrame
        One row per file: file, dataset, release, ra, dec [deg], bands, pixel_scale [arcsec], width [px], resampled,
        flux_kept (ratio of the 10-arcsec flux after and before, of the band that changed most), empty_{g,r,z}
        (share of pixels without data), sky_{g,r,z} [nMgy per pixel of 0.262 arcsec], accepted, reason.
    images : ndarray of shape (n_accepted, 3, 101, 101), float32 [nMgy]
        Of the accepted rows, in order; bands g, r, z, centred.
    """
    root, files = find_data_root(config), list_files()
    rows, images = [], []
    for item in files[files["dataset"].isin(STAMPS)].itertuples():
        row, image = _read_one(root / item.file, item.dataset)
        rows.append({"file": item.file} | row)
        if image is not None:
            images.append(image)
    images = np.stack(images) if images else np.empty((0, len(BANDS), STAMP_SIZE, STAMP_SIZE), np.float32)
    table = pd.DataFrame(rows)
    return table, images


def _read_one(path, dataset):
    row = {"dataset": dataset, "accepted": False, "resampled": False}
    reader = read_stamp_npz if path.suffix == ".npz" else read_fits_cutout
    try:
        stamp = reader(path)
    except UserError as error:
        return row | {"reason": str(error).removeprefix(f"{path.name}: ")}, None
    row |= {
        "release": stamp.meta.get("layer", stamp.meta.get("version", "")), "ra": stamp.ra, "dec": stamp.dec,
        "bands": "".join(stamp.bands), "pixel_scale": stamp.pixel_scale, "width": stamp.images.shape[-1],
        "resampled": stamp.resampled,
    }  # fmt: skip
    gaps = measure_gaps(stamp) if set(BANDS) <= set(stamp.bands) else {}
    row |= {f"empty_{b}": g["all"] for b, g in gaps.items()}
    reason = find_refusal(stamp)
    if reason:
        return row | {"reason": reason}, None
    centred = resample_stamp(stamp)
    kept = measure_aperture(centred, APERTURE) / measure_aperture(stamp, APERTURE)
    row["flux_kept"] = float(kept[np.argmax(np.abs(kept - 1))])
    row |= dict(zip((f"sky_{b}" for b in BANDS), measure_rim(stamp), strict=True))
    image = select_bands(centred)
    quality = measure_quality(image[None]).iloc[0]
    if not quality["quality_ok"]:
        return row | {"reason": quality["reason"]}, None
    return row | {"accepted": True, "reason": ""}, image


def measure_rim(stamp):
    """Measure the sky noise in the frame of the whole file, far from its galaxy.

    Parameters
    ----------
    stamp : lensaudit.pixels.formats.Stamp

    Returns
    -------
    ndarray of shape (3,), nMgy
        1.4826 MAD per pixel of 0.262 arcsec in the outer 10 pixels; of a resampled file the noise of its new pixels.
    """
    side = int(min(stamp.images.shape[-2:]) * stamp.pixel_scale / 0.262 + 1e-6)
    field = select_bands(resample_stamp(stamp, size=side - 1 + side % 2))
    frame = np.ones(field.shape[-2:], bool)
    frame[RIM:-RIM, RIM:-RIM] = False
    values = np.where(field == 0, np.nan, field)[:, frame]
    centre = np.nanmedian(values, axis=1, keepdims=True)
    return 1.4826 * np.nanmedian(np.abs(values - centre), axis=1)


def select_accepted(table):
    """Return the accepted rows of the table of `read_stamps`, in the order of its images."""
    return table[table["accepted"]].reset_index(drop=True)


def measure_stamps(table, images):
    """Measure quality, background and arcs of the accepted stamps, blindly and as for any other stamp.

    `table` and `images` are those of `read_stamps`.

    Returns
    -------
    pandas.DataFrame
        One row per accepted stamp: file, resampled, quality columns, arc columns of `detectability.measure_arcs`,
        and ``noise_note``: why sigma_pix is not the sky's, empty when it is.
    """
    accepted = select_accepted(table)
    quality = measure_quality(images)[list(QUALITY_COLUMNS)]
    arcs = measure_arcs(images)[list(ARC_COLUMNS)]
    out = pd.concat([accepted[["file", "dataset", "resampled"]], quality, arcs], axis=1)
    crowded = out["rho10"] > CORRELATED
    out["noise_note"] = np.select(
        [out["resampled"] & crowded, out["resampled"], crowded],
        ["resampled: noise is correlated; galaxy light in the noise annulus", "resampled: noise is correlated",
         "galaxy light in the noise annulus"], "",
    )  # fmt: skip
    return out


def compare_statistics(config):
    """Compare what is measured on the DR10 stamps with what their makers measured and stored in the files.

    Returns
    -------
    pandas.DataFrame
        statistic, stored, measured (medians over the stamps), largest relative difference over the stamps. Only
        statistics of the whole stamp are compared: the makers' regions differ.
    """
    root, files = find_data_root(config), list_files()
    names = ("median_r", "mad_r", "mean_r", "std_r", "percentile_1_r", "percentile_99_r", "core_max_r")
    stamps = [read_stamp_npz(root / f) for f in files.loc[files["dataset"] == "dr10_lens_stamps", "file"]]
    measured = measure_quality(np.stack([select_bands(s) for s in stamps]))[list(names)]
    stored = pd.DataFrame([{n: s.meta.get(n, np.nan) for n in names} for s in stamps])
    return pd.DataFrame({
        "statistic": names, "stored": stored.median().to_numpy(), "measured": measured.median().to_numpy(),
        "largest_difference": ((measured - stored) / stored).abs().max().to_numpy(),
    })  # fmt: skip


def compare_noise(table, images):
    """Compare the noise of the DR10 stamps with the range quoted for files of the same origin.

    Parameters
    ----------
    table, images
        As `measure_stamps` takes them.

    Returns
    -------
    pandas.DataFrame
        band, quoted_min, quoted_max, lowest, highest [nMgy per pixel; 1.4826 MAD of the whole stamp, as quoted], inside
        (to the two digits of the quotation), sky (median over the stamps of the noise in the rim).
    """
    quoted = load_dataset("dr10_lens_stamps")["quoted"]
    accepted = select_accepted(table)
    own = (accepted["dataset"] == "dr10_lens_stamps").to_numpy()
    pixels = images[own].reshape(own.sum(), len(BANDS), -1)
    spread = 1.4826 * np.median(np.abs(pixels - np.median(pixels, axis=2, keepdims=True)), axis=2)
    rows = []
    for band, values in zip(BANDS, spread.T, strict=True):
        low, high = quoted[f"sky_{band}"]
        inside = bool(values.size) and values.min() >= 0.98 * low and values.max() <= 1.02 * high
        rows.append({
            "band": band, "quoted_min": low, "quoted_max": high, "lowest": values.min(initial=np.inf),
            "highest": values.max(initial=-np.inf), "inside": inside, "sky": accepted.loc[own, f"sky_{band}"].median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def load_frozen(stage, training, evaluation):
    """Load the frozen detector of another profile and its operating points.

    Parameters
    ----------
    stage : lensaudit.artifacts.Stage
        Declares both stages as inputs.
    training, evaluation : str
        Such as ``"04_training@demo"`` and ``"05_evaluation@demo"``.

    Returns
    -------
    detector : lensaudit.detectors.scoring.Detector
    thresholds : dict

    Raises
    ------
    UserError
        When the checkpoint is not the one that was frozen.
    """
    weights, preprocessing = (
        stage.input(training, f"checkpoint/{name}") for name in ("weights.safetensors", "preprocessing.json")
    )
    for name in ("config.json", "model.json"):
        stage.input(training, f"checkpoint/{name}")
    detector = load_detector(weights.parent, stage.config.device)
    thresholds, frozen = (stage.read_json(evaluation, f"{n}.json") for n in ("thresholds", "frozen_detector"))
    found = freeze_detector(detector.id, weights, preprocessing, thresholds)
    changed = [name for name in ("model", "weights", "preprocessing") if found[name] != frozen[name]]
    if changed:
        raise UserError(f"{training}: {', '.join(changed)} differ from the frozen detector; run {evaluation} again")
    return detector, thresholds


def score_stamps(table, images, detector, thresholds):
    """Score the accepted stamps with a frozen detector.

    Parameters
    ----------
    table, images
        From `read_stamps`.
    detector : lensaudit.detectors.scoring.Detector
    thresholds : dict
        Of the detector's evaluation: name -> {"threshold": logit, ...}.

    Returns
    -------
    pandas.DataFrame
        file, dataset, logit, score, above_<operating point> (bool) for every threshold that exists.
    """
    accepted = table[table["accepted"]].reset_index(drop=True)
    logit = np.asarray(detector.score(images, ids=[Path(f).name for f in accepted["file"]]), dtype=float)
    out = accepted[["file", "dataset"]].assign(logit=logit, score=1 / (1 + np.exp(-logit)))
    for name, point in thresholds.items():
        if isinstance(point, dict) and point.get("threshold") is not None:
            out[f"above_{name}"] = logit > point["threshold"]
    return out


def describe_scores(scores):
    """Return the sentence that goes with the scores: how many there are and what they do not say."""
    counts = scores["dataset"].value_counts()
    lenses, others = int(counts.get("dr10_lens_stamps", 0)), int(counts.get("decals_cutouts", 0))
    return (
        f"{len(scores)} stamps scored: {lenses} published lens candidates and {others} galaxies without a known lens. "
        "A handful of stamps: no recall and no false positive rate is claimed from them."
    )
