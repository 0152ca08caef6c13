"""The same injection by lenstronomy: the check of the engine, and `engine="lenstronomy"` for any row.

Shares only the table's meaning and the PSF's parameters with the engine: deflection, brightness, convolution and
sampling are lenstronomy's and scipy's.
"""

import numpy as np
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Profiles.sersic_utils import SersicUtil
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.signal import fftconvolve
from scipy.special import gamma

from lensaudit import rng
from lensaudit.constants import BANDS, PIXEL_SCALE, RENDER_SIZE
from lensaudit.injection.inject import MAX_CLUMPS, band_fluxes, host_rows, moffat_radii
from lensaudit.lensing.sources import CLUMP_INDEX, place_clumps, sersic_b


def to_lens_kwargs(row):
    """Return lenstronomy's keyword arguments of the mass model of a row, for ``["SIE", "SHEAR"]``."""
    e1, e2 = phi_q2_ellipticity(row["phi"], row["q"])
    return [{"theta_E": row["theta_E"], "e1": e1, "e2": e2, "center_x": 0.0, "center_y": 0.0},
            {"gamma1": row["gamma1"], "gamma2": row["gamma2"], "ra_0": 0.0, "dec_0": 0.0}]  # fmt: skip


def to_light_kwargs(flux, x, y, R, n, q, phi):
    """Return lenstronomy's keyword arguments of a Sersic profile of total flux, for ``SERSIC_ELLIPSE``.

    Notes
    -----
    lenstronomy approximates b_n, so its R_sersic is not quite the half-light radius; R is rescaled to describe the same
    profile, and the amplitude [flux / arcsec^2] is that at R_sersic.
    """
    approximate, exact = SersicUtil().b_n(n), sersic_b(n)
    central = flux * exact ** (2 * n) / (2 * np.pi * n * R**2 * gamma(2 * n))
    e1, e2 = phi_q2_ellipticity(phi, q)
    return {"amp": central * np.exp(-approximate), "R_sersic": R * (approximate / exact) ** n, "n_sersic": n, "e1": e1,
            "e2": e2, "center_x": x, "center_y": y}  # fmt: skip


def source_kwargs(row, seed):
    """Return lenstronomy's keyword arguments of a row's disc and of its clumps, each group of unit flux.

    Parameters
    ----------
    row : pandas.DataFrame
        One row of an injection table.
    seed : int
        Of the injections: it places the clumps.
    """
    shape = [row[c].to_numpy(dtype=np.float64) for c in ("source_R", "source_q", "source_phi")]
    u = rng.draw_uniforms(seed, "injection/clumps", row["injection_id"].to_numpy(), 4 * MAX_CLUMPS)
    clumps = {k: v[0] for k, v in place_clumps(u, *shape, row["n_clumps"].to_numpy(), MAX_CLUMPS).items()}
    x, y, n = (row[c].iloc[0] for c in ("source_x", "source_y", "source_n"))
    disc = to_light_kwargs(1.0, x, y, shape[0][0], n, shape[1][0], shape[2][0])
    present = np.flatnonzero(clumps["share"])
    return [disc], [to_light_kwargs(clumps["share"][k], x + clumps["dx"][k], y + clumps["dy"][k], clumps["R"][k],
                                    CLUMP_INDEX, 1.0, 0.0) for k in present]  # fmt: skip


def render_with_lenstronomy(row, host, seed, supersampling=5, size=RENDER_SIZE, psf_mode="moffat"):
    """Render the noiseless arcs of one injection.

    Parameters
    ----------
    row : pandas.DataFrame
        One row of an injection table.
    host : pandas.DataFrame
        Host table holding its host.
    seed : int
        Of the injections: it places the clumps.
    supersampling : int
        Odd, so that a sample lies on each pixel's centre.
    size : int
    psf_mode : str
        See `inject.moffat_radii`.

    Returns
    -------
    ndarray of shape (3, size, size), float64
        Extincted flux per pixel [nMgy].
    """
    row = row.reset_index(drop=True)
    own, values = host_rows(row, host), row.iloc[0]
    (disc,), (knots,) = band_fluxes(row, own)
    smooth, knotted = source_kwargs(row, seed)
    s, length = supersampling, size * supersampling
    grid = (np.arange(length) - (length - 1) / 2) * PIXEL_SCALE / s
    xx, yy = (a.ravel() for a in np.meshgrid(grid, grid))
    beta_x, beta_y = LensModel(["SIE", "SHEAR"]).ray_shooting(xx, yy, to_lens_kwargs(values))
    area = (PIXEL_SCALE / s) ** 2
    # A new LightModel per object: lenstronomy's interpolated profiles keep the first image they are given.
    discs = area * LightModel(["SERSIC_ELLIPSE"]).surface_brightness(beta_x, beta_y, smooth).reshape(length, length)
    lumps = np.zeros_like(discs)
    if knotted:
        model = LightModel(["SERSIC_ELLIPSE"] * len(knotted))
        lumps = area * model.surface_brightness(beta_x, beta_y, knotted).reshape(length, length)
    alpha, beta = moffat_radii(row, own, BANDS, psf_mode)
    offset = (np.arange(2 * length - 1) - (length - 1)) / s
    radius2 = offset[:, None] ** 2 + offset[None, :] ** 2
    images = np.empty((len(BANDS), size, size))
    centre = slice(s // 2, None, s)
    for k in range(len(BANDS)):
        if np.isinf(beta[0]):
            kernel = np.exp(-0.5 * radius2 / alpha[0, k] ** 2) / (2 * np.pi * alpha[0, k] ** 2)
        else:
            kernel = (1 + radius2 / alpha[0, k] ** 2) ** -beta[0] * (beta[0] - 1) / (np.pi * alpha[0, k] ** 2)
        images[k] = fftconvolve(disc[k] * discs + knots[k] * lumps, kernel, mode="same")[centre, centre]
    return images
