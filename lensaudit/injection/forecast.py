"""What an arc will look like, without rendering it: images, magnification and signal-to-noise from rays of angle.

The deflection of an isothermal lens depends on the angle only, so along a ray from its centre the source plane is
crossed on a straight line. The light of a Gaussian source is then known in closed form on every ray, for every axis
ratio and shear, and one sum over angles replaces the map. Proposals that cannot pass the cuts are told apart so.
"""

from math import atan, atanh, cos, erf, exp, sin, sqrt

import numpy as np
from numba import njit

from lensaudit import photometry
from lensaudit.constants import PIXEL_SCALE
from lensaudit.injection.light import host_rows

# An exponential disc of half-light radius 1 as three Gaussians: share and sigma, least squares in the profile.
SHARES, WIDTHS = (0.0402, 0.3615, 0.5983), (0.2083, 0.5653, 1.1954)
COARSE, FINE = 48, 240  # rays of the first look and of the second
GROUPS = 60  # rays are taken together for S/N: much narrower than a PSF
CLOSE = 2.0  # a first look may be this much too faint before a proposal is thrown away

_compile = njit(nogil=True, cache=True, error_model="numpy")


def forecast_arcs(table, psfsize, point_snr, min_mu=0.0, min_snr=0.0, slack=1.0):
    """Return images, magnification and S/N of lensed exponential discs, without rendering.

    Parameters
    ----------
    table : mapping of str to ndarray of shape (N,)
        source_x, source_y, source_R [arcsec], source_q, source_phi, theta_E, q, phi, gamma1, gamma2.
    psfsize, point_snr : array_like of shape (N,)
        psfsize [arcsec] of the band; S/N of the unlensed source if it were a point.
    min_mu, min_snr : float
        Rows that are certain to fall below either are not finished; their last numbers are those of the first look.
    slack : float or ndarray of shape (N,)
        Certain means below the limit by this factor; the first look, with a fifth of the rays, allows `CLOSE` more.

    Returns
    -------
    dict of ndarray of shape (N,)
        multiplicity (point-source images, the faint central one left out), mu, snr, area (noise-equivalent area of the
        arc over that of the PSF), passed (bool: neither limit missed).

    Notes
    -----
    Along the ray e(t) the offset from the source is r B e - (beta + alpha(t)), B = 1 - shear; with the source made
    round by a linear map of unit determinant, a Gaussian of width sigma gives, per radian, the light
    r0 exp(-d^2 / 2 sigma^2) / (sqrt(2 pi) sigma |B e|), r0 the radius and d the distance of closest approach.
    S/N^2 is the sum over pairs of rays of their light times the overlap of two Gaussian PSFs of the noise-equivalent
    width, widened along the ray by the source. Good to 2 per cent in mu and a tenth in S/N for n = 1. The mass is taken
    as isothermal with external shear; a slope, multipoles or subhaloes in the table are ignored here.
    """
    names = ("source_x", "source_y", "source_R", "source_q", "source_phi", "theta_E", "q", "phi", "gamma1", "gamma2")
    packed = np.stack([np.asarray(table[k], dtype=np.float64) for k in names], axis=1)
    seeing = np.asarray(psfsize, dtype=np.float64) / photometry.FWHM_OF_SIGMA
    count, numbers = np.zeros(len(packed), dtype=np.int64), np.zeros((len(packed), 3))
    passed = np.zeros(len(packed), dtype=np.bool_)
    scale = 1.0 / np.broadcast_to(np.asarray(slack, dtype=np.float64), len(packed))
    _forecast_rows(packed, seeing, np.asarray(point_snr, dtype=np.float64), min_mu * scale, min_snr * scale,
                   count, numbers, passed)  # fmt: skip
    return {"multiplicity": count, "mu": numbers[:, 0], "snr": numbers[:, 1], "area": numbers[:, 2], "passed": passed}


def bound_arcs(table, psfsize, point_snr):
    """Return more than the magnification and S/N of an arc can be, in a few operations.

    Parameters
    ----------
    table : dict of ndarray of shape (N,)
        theta_E, source_R [arcsec]; with source_x, source_y, q, gamma1, gamma2 the bound knows where the source lies,
        without it holds for any place.
    psfsize, point_snr : ndarray of shape (N,)
        psfsize [arcsec]; S/N of the unlensed source if it were a point.

    Returns
    -------
    (ndarray of shape (N,), ndarray of shape (N,))

    Notes
    -----
    An exponential disc centred behind an isothermal sphere is magnified 2 b theta_E / R = 3.36 theta_E / R times, and
    nowhere more; at a distance beta outside the astroid (theta_E (3/4 (1 - q) + 2 gamma) wide) a point is by about
    2 theta_E / beta, here 2.6. The arc's area exceeds mu R^2, which dilutes its light over as many PSFs. Of 140,000
    proposals, none of those the forecast passes lay above the bound.
    """
    theta_E, size = table["theta_E"], table["source_R"]
    if "source_x" in table:
        astroid = theta_E * (0.75 * (1.0 - table["q"]) + 2.0 * np.hypot(table["gamma1"], table["gamma2"]))
        size = np.maximum(size, 1.3 * (np.hypot(table["source_x"], table["source_y"]) - astroid))
    mu = 1.0 + 3.4 * theta_E / size
    seeing = psfsize / photometry.FWHM_OF_SIGMA
    return mu, point_snr * mu / np.sqrt(1.0 + 0.3 * mu * (table["source_R"] / seeing) ** 2)


def add_brightness(table, hosts):
    """Add arc_surface_brightness [mag/arcsec^2] to a measured table.

    Notes
    -----
    The flux-weighted mean surface brightness of the noiseless r-band arc *after* the PSF, extinction removed:
    sum f^2 / sum f per pixel area, with sum f^2 from arc_snr_true and sum f from mag_lensed_r.
    """
    own = host_rows(table, hosts)
    flux = photometry.mag_to_flux(table["mag_lensed_r"].to_numpy()) * own["mw_transmission_r"].to_numpy()
    sigma = photometry.depth_to_sigma(own["psfdepth_r"].to_numpy(), own["psfsize_r"].to_numpy())
    square = (table["arc_snr_true"].to_numpy() * sigma) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = square / flux / PIXEL_SCALE**2 / own["mw_transmission_r"].to_numpy()
        return table.assign(arc_surface_brightness=22.5 - 2.5 * np.log10(mean))


@_compile
def _forecast_rows(packed, seeing, point_snr, min_mu, min_snr, count, numbers, passed):
    light, radius, spread = np.empty(FINE), np.empty(FINE), np.empty(FINE)
    x, y = np.empty(GROUPS), np.empty(GROUPS)
    turns = 2.0 * np.pi * np.arange(FINE) / FINE + 0.01
    cosines, sines = np.cos(turns), np.sin(turns)
    for i in range(len(packed)):
        for step in (FINE // COARSE, 1):
            close = 1.0 if step == 1 else CLOSE
            images, mu = _trace_rays(packed[i], cosines, sines, step, light, radius, spread)
            count[i], numbers[i, 0], numbers[i, 1] = images, mu, 0.0
            # The light of all rays on one point is the most that S/N could be.
            passed[i] = mu * close > min_mu[i] and mu * point_snr[i] * close > min_snr[i]
            if not passed[i]:
                break
            power = _overlap_rays(cosines, sines, step, light, radius, spread, x, y, mu, seeing[i])
            numbers[i, 1], numbers[i, 2] = point_snr[i] * sqrt(power), mu * mu / max(power, 1e-30)
            passed[i] = numbers[i, 1] * close > min_snr[i] or min_snr[i] == 0.0
            if not passed[i]:
                break


@_compile
def _trace_rays(p, cosines, sines, step, light, radius, spread):
    """Fill flux, radius and radial variance of each ray; return the number of images and the magnification."""
    bx, by, size, source_q, source_phi, theta_E, q, phi, gamma1, gamma2 = p
    q = min(q, 1.0 - 1e-8)
    f = sqrt((1.0 - q) * (1.0 + q))
    scale, lens_cos, lens_sin = theta_E * sqrt(q) / f, cos(phi), sin(phi)
    # The linear map that makes the source round, in its own frame.
    axis_cos, axis_sin, stretch = cos(source_phi), sin(source_phi), sqrt(source_q)
    angle = 2.0 * np.pi * step / FINE
    resolved = (0.5 * theta_E * angle) ** 2  # a source narrower than half a step would slip through the rays
    total, images, before, first = 0.0, 0, 0.0, 0.0
    for k in range(0, FINE, step):
        ex, ey = cosines[k], sines[k]
        u, v = ex * lens_cos + ey * lens_sin, ey * lens_cos - ex * lens_sin
        psi = sqrt(q * q * u * u + v * v)
        a, b = scale * atan(f * u / psi), scale * atanh(f * v / psi)
        vx, vy = bx + a * lens_cos - b * lens_sin, by + a * lens_sin + b * lens_cos
        ux, uy = ex - gamma1 * ex - gamma2 * ey, ey - gamma2 * ex + gamma1 * ey
        cross = ux * vy - uy * vx
        along = ux * vx + uy * vy
        if k == 0:
            first = cross
        elif cross * before <= 0.0 and along > 0.0:
            images += 1
        before = cross
        su, tu = (ux * axis_cos + uy * axis_sin) * stretch, (uy * axis_cos - ux * axis_sin) / stretch
        sv, tv = (vx * axis_cos + vy * axis_sin) * stretch, (vy * axis_cos - vx * axis_sin) / stretch
        norm = su * su + tu * tu
        distance, r = cross * cross / norm, (su * sv + tu * tv) / norm
        flux, variance = 0.0, 0.0
        for j in range(3):
            sigma2 = (WIDTHS[j] * size) ** 2 + resolved
            if distance < 40.0 * sigma2:
                width = sqrt(sigma2 / norm)
                reach = r / width
                if reach > -4.0:
                    mean = r
                    if reach < 4.0:  # the centre cuts the ray off
                        mean = 0.5 * r * (1.0 + erf(reach / sqrt(2.0)))
                        mean += width * exp(-0.5 * reach * reach) / sqrt(2.0 * np.pi)
                    part = SHARES[j] * mean * exp(-0.5 * distance / sigma2) / (sqrt(2.0 * np.pi * sigma2 * norm))
                    flux += part
                    variance += part * width * width
        light[k], radius[k] = flux * angle, max(r, 0.0)
        spread[k] = variance / flux if flux > 0.0 else 0.0
        total += light[k]
    if first * before <= 0.0 and along > 0.0:
        images += 1
    return images, total


@_compile
def _overlap_rays(cosines, sines, step, light, radius, spread, x, y, total, seeing):
    """Return the sum over pairs of rays of light times light times the PSFs' overlap, 1 for a point of flux 1.

    Rays are taken together in `GROUPS`; the arrays are overwritten.
    """
    n, members = 0, max(FINE // GROUPS, step)
    for group in range(FINE // members):
        flux, gx, gy, width = 0.0, 0.0, 0.0, 0.0
        for k in range(group * members, (group + 1) * members, step):
            flux += light[k]
            gx += light[k] * radius[k] * cosines[k]
            gy += light[k] * radius[k] * sines[k]
            width += light[k] * spread[k]
        if flux > 1e-3 * total:
            x[n], y[n], light[n], spread[n] = gx / flux, gy / flux, flux, width / flux
            n += 1
    s2, power = seeing * seeing, 0.0
    for i in range(n):
        wide, r = s2 + spread[i], sqrt(x[i] * x[i] + y[i] * y[i])
        own, near = seeing / sqrt(wide), 0.5 * light[i]
        ex, ey = (x[i] / r, y[i] / r) if r > 0.0 else (1.0, 0.0)
        for j in range(i + 1, n):
            dx, dy = x[j] - x[i], y[j] - y[i]
            radial = dx * ex + dy * ey
            square = radial * radial / wide + (dx * dx + dy * dy - radial * radial) / s2
            if square < 40.0:
                near += light[j] * exp(-0.25 * square)
        power += 2.0 * light[i] * own * near
    return power
