"""The light of an injection: its host, the fluxes of its parts, and what a prior says of its PSF."""

import numpy as np
import pandas as pd

from lensaudit import photometry
from lensaudit.artifacts import UserError
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.lensing.psf import moffat_alpha

CLUMP_FRACTION = 0.3  # of the r-band flux when the table does not say
CLUMP_COLOUR = 0.2  # mag in g-r and r-z by which clumps are bluer than the whole source (an assumption)
PSF_MODES = ("moffat", "gaussian_psfsize")


def host_rows(table, hosts):
    """Return the host of each injection, row by row."""
    unique = hosts.drop_duplicates("host_index").set_index("host_index", drop=False)
    return unique.loc[table["host_index"].to_numpy()].reset_index(drop=True)


def band_fluxes(table, own):
    """Return the extincted unlensed flux [nMgy] of disc and clumps per band, each of shape (N, 3).

    Notes
    -----
    The source's total magnitude is kept in every band; clumps are `CLUMP_COLOUR` bluer than the whole in g-r and r-z.
    The share ``quasar_fraction_<band>`` is in neither: `point_fluxes` has it.
    """
    unlensed = [photometry.mag_to_flux(table[f"mag_source_{b}"].to_numpy()) for b in BANDS]
    total = np.stack([f * own[f"mw_transmission_{b}"].to_numpy() for f, b in zip(unlensed, BANDS, strict=True)], 1)
    total = total - point_fluxes(table, own)
    share = table["clump_fraction"] if "clump_fraction" in table else pd.Series(CLUMP_FRACTION, index=table.index)
    share = np.where(table["n_clumps"] > 0, share, 0.0)
    tilt = 10.0 ** (0.4 * CLUMP_COLOUR * np.array([1.0, 0.0, -1.0]))
    clumps = total * np.minimum(share[:, None] * tilt, 0.95)
    return total - clumps, clumps


def point_fluxes(table, own):
    """Return the extincted unlensed flux [nMgy] of each source's point source per band, shape (N, 3)."""
    out = np.zeros((len(table), len(BANDS)))
    for k, band in enumerate(BANDS):
        if f"quasar_fraction_{band}" in table:
            total = photometry.mag_to_flux(table[f"mag_source_{band}"].to_numpy())
            transmission = own[f"mw_transmission_{band}"].to_numpy()
            out[:, k] = table[f"quasar_fraction_{band}"].to_numpy() * total * transmission
    return out


def read_psf(prior, own):
    """Return what a prior's ``[light]`` says of the PSF, as keywords of `render_table`; none for most priors.

    Parameters
    ----------
    prior : dict
        With ``light.psf = "gaussian_psfsize_r"``: a Gaussian of FWHM psfsize_r, unconverted, times
        ``light.psf_scale`` of the band.
    own : pandas.DataFrame
        Host of each injection, N rows.

    Returns
    -------
    dict
        psf_mode and psfsize (N, 3) [arcsec].
    """
    light = prior.get("light", {})
    if "psf" not in light:
        return {}
    scale = light.get("psf_scale", {})
    if light["psf"] != "gaussian_psfsize_r" or set(scale) != set(BANDS):
        raise UserError(f"prior {prior.get('name')}: light.psf {light['psf']!r} with psf_scale of {', '.join(scale)}; "
                        f"known is gaussian_psfsize_r with {', '.join(BANDS)}")  # fmt: skip
    psfsize = own["psfsize_r"].to_numpy(dtype=np.float64)[:, None] * np.array([scale[b] for b in BANDS])
    return {"psf_mode": "gaussian_psfsize", "psfsize": psfsize}


def read_light(prior, own):
    """Return all that a prior's ``[light]`` says, PSF and arc noise, as keywords of `inject`; see `read_psf`."""
    light = prior.get("light", {})
    return read_psf(prior, own) | ({"noise": bool(light["arc_noise"])} if "arc_noise" in light else {})


def moffat_radii(table, own, bands=BANDS, psf_mode="moffat", psfsize=None):
    """Return (alpha [pixel] of shape (N, bands), beta of shape (N,)) of each injection's PSF.

    Notes
    -----
    ``"moffat"``: psfsize converted to the true FWHM for the drawn beta. ``"gaussian_psfsize"``: a Gaussian whose FWHM
    is psfsize, unconverted (ablation). `psfsize` (N, 3) [arcsec] stands in place of the hosts' own.
    """
    if psf_mode not in PSF_MODES:
        raise UserError(f"psf_mode {psf_mode!r} unknown; use {' or '.join(PSF_MODES)}")
    if psfsize is None:
        psfsize = np.stack([own[f"psfsize_{b}"].to_numpy(dtype=np.float64) for b in bands], 1)
    else:
        psfsize = np.asarray(psfsize, dtype=np.float64)[:, [BANDS.index(b) for b in bands]]
    if psf_mode == "gaussian_psfsize":
        return psfsize / photometry.FWHM_OF_SIGMA / PIXEL_SCALE, np.full(len(table), np.inf)
    beta = table["psf_beta"].to_numpy(dtype=np.float64)
    return moffat_alpha(photometry.psfsize_to_fwhm(psfsize, beta[:, None]), beta[:, None]) / PIXEL_SCALE, beta
