"""Arcs put into real pixels: the engine of the audit on stamps that no simulation made, before and after.

A demonstration on a few bright nearby galaxies, not a measurement of completeness: these hosts are no deflectors, and
what a file does not say (PSF, visits, extinction) is assumed below.
"""

import numpy as np
import pandas as pd

from lensaudit import photometry
from lensaudit.audit.detectability import crop_box, measure_arcs
from lensaudit.constants import BANDS, LANCZOS_RMS
from lensaudit.injection.inject import inject, measure_injections

# Assumed where the files are silent: typical true FWHM of DECaLS [arcsec], three visits, no extinction.
ASSUMED_FWHM = {"g": 1.29, "r": 1.18, "z": 1.11}
ASSUMED_VISITS = 3
PSF_BETA = 3.5
# Two arcs from the percentiles of the expected detectable lenses of a DES-like survey (Collett 2015, LensPop rows):
# the median one, and a wide one with a bright source (95th percentile of theta_E, 5th of the source's magnitude).
ARCS = pd.DataFrame(
    [("median", 1.29, 24.2, 0.28, 0.31), ("wide", 2.16, 22.6, 0.28, 0.31)],
    columns=["arc", "theta_E", "mag_source_r", "source_R", "offset"],
)
SHAPE = {"q": 0.8, "phi": 0.6, "gamma1": 0.03, "gamma2": -0.02, "source_n": 1.0, "source_q": 0.7, "source_phi": 1.1,
         "n_clumps": 3, "z_lens": 0.43, "z_source": 1.85, "psf_beta": PSF_BETA}  # fmt: skip
COLOUR_G_R, COLOUR_R_Z = -0.01, 0.2  # source colours [mag]; g-r is the median of the same rows, r-z an assumption


def make_real_hosts(table):
    """Make the host table of the accepted galaxies without a known lens.

    Parameters
    ----------
    table : pandas.DataFrame
        From `stamps.read_stamps`.

    Returns
    -------
    pandas.DataFrame
        host_index (row among the accepted stamps), galaxy_id (file), psfsize, psfdepth, nobs and mw_transmission per
        band. Of a galaxy served twice the stamp with the coadd's own pixels is kept. psfdepth comes from the sky noise
        in the file's rim, the rest is assumed.
    """
    accepted = table[table["accepted"]].reset_index(drop=True)
    hosts = accepted[accepted["dataset"] == "decals_cutouts"].sort_values("resampled", kind="stable")
    same = hosts[["ra", "dec"]].round(4).duplicated()
    hosts = hosts[~same].sort_index()
    out = pd.DataFrame({"host_index": hosts.index, "galaxy_id": hosts["file"], "resampled": hosts["resampled"]})
    for band in BANDS:
        psfsize = float(photometry.fwhm_to_psfsize(ASSUMED_FWHM[band], PSF_BETA))
        out[f"psfsize_{band}"], out[f"nobs_{band}"], out[f"mw_transmission_{band}"] = psfsize, ASSUMED_VISITS, 1.0
        out[f"psfdepth_{band}"] = photometry.sigma_to_depth(hosts[f"sky_{band}"] / LANCZOS_RMS, psfsize)
    return out.reset_index(drop=True)


def make_arc_table(hosts):
    """Cross every host with every arc of `ARCS`; an injection table, one row per pair."""
    table = hosts[["host_index", "galaxy_id"]].merge(ARCS, how="cross")
    table = table.assign(injection_id=np.arange(len(table), dtype=np.int64), **SHAPE)
    reach = table["offset"] * table["theta_E"]
    return table.assign(
        source_x=reach * np.cos(0.9), source_y=reach * np.sin(0.9),
        mag_source_g=table["mag_source_r"] + COLOUR_G_R, mag_source_z=table["mag_source_r"] - COLOUR_R_Z,
    )  # fmt: skip


def inject_real(table, images, detector, config):
    """Put the arcs of `ARCS` into the real galaxies and measure and score before and after.

    Parameters
    ----------
    table, images
        From `stamps.read_stamps`.
    detector : lensaudit.detectors.scoring.Detector
        Anything with ``score(images)``.
    config : lensaudit.config.Config

    Returns
    -------
    injected : pandas.DataFrame
        host, arc, theta_E [arcsec], mu, mag_lensed_r, arc_snr_true, arc_snr_before, arc_snr, logit_before, logit,
        resampled.
    before, arcs, after : ndarray of shape (N, 3, 65, 65), float32 [nMgy]
        Host, noiseless arc, host with the arc and its shot noise; rows as in the table.
    """
    hosts = make_real_hosts(table)
    rows = measure_injections(make_arc_table(hosts), hosts, config, config.seed)
    before = crop_box(images[rows["host_index"].to_numpy()])
    after, arcs = inject(rows, hosts, before, config, config.seed)
    out = rows[["arc", "theta_E", "mu", "mag_lensed_r", "arc_snr_true"]].copy()
    out.insert(0, "host", rows["galaxy_id"].str.split("/").str[-1])
    out["arc_snr_before"], out["arc_snr"] = measure_arcs(before)["arc_snr"], measure_arcs(after)["arc_snr"]
    out["logit_before"], out["logit"] = np.asarray(detector.score(before)), np.asarray(detector.score(after))
    out["resampled"] = rows["host_index"].map(hosts.set_index("host_index")["resampled"])
    return out, before, arcs, after
