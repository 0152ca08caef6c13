"""Sources: elliptical Sersic profiles of given total flux, and discs with clumps.

A source is a sum of components; each has a shape and belongs to one of two colour groups, disc or clumps, so that one
ray-shooting and two brightness maps serve all bands.
"""

import numpy as np
import torch
from scipy.special import gamma, gammaincinv, ndtri

from lensaudit.artifacts import UserError

CLUMP_SIZE = (0.08, 0.25)  # half-light radius of a clump over that of the disc: 0.1-1 kpc clumps in 3-kpc discs
CLUMP_FLOOR = 0.05  # arcsec; smaller ones are alike at ground-based seeing and would need needlessly fine samples
CLUMP_INDEX = 0.5  # Gaussian
# The fields of a Sersic component and the order in which they are packed. x, y: centre [arcsec]; xx, xy, yy: quadratic
# form of the elliptical radius [arcsec^-2]; b: b_n; inverse_n: 1/n; central: I(0) [flux / arcsec^2]; gx, gy: direction
# cosines of the major axis over R [1/arcsec]; g: amplitude of the gradient along it, 0 for a symmetric profile.
FIELDS = ("x", "y", "xx", "xy", "yy", "b", "inverse_n", "central", "gx", "gy", "g")
TAIL = 2e-4  # fraction of a component's flux outside the radius within which it is evaluated


def sersic_b(n):
    """Return b_n, exact: half the flux lies inside the half-light radius."""
    return gammaincinv(2.0 * np.asarray(n, dtype=np.float64), 0.5)


def sersic_central(flux, R, n):
    """Return the central surface brightness [flux / arcsec^2] of a Sersic profile of total `flux`.

    Notes
    -----
    flux = 2 pi n R^2 Gamma(2 n) b^(-2 n) I(0); R on the intermediate axis, so the axis ratio does not enter.
    """
    b, n = sersic_b(n), np.asarray(n, dtype=np.float64)
    return np.asarray(flux) * b ** (2.0 * n) / (2.0 * np.pi * n * np.asarray(R) ** 2 * gamma(2.0 * n))


def sersic_extent(n, tail=TAIL):
    """Return the elliptical radius, in half-light radii, outside which a fraction `tail` of the flux lies."""
    n = np.asarray(n, dtype=np.float64)
    return (gammaincinv(2.0 * n, 1.0 - tail) / sersic_b(n)) ** n


def evaluate_sersic(x, y, component):
    """Return the surface brightness of an elliptical Sersic profile.

    Parameters
    ----------
    x, y : Tensor
        Source-plane position [arcsec].
    component : dict of Tensor
        x, y [arcsec], xx, xy, yy (quadratic form of the elliptical radius in half-light radii [arcsec^-2]), b,
        inverse_n, central [flux / arcsec^2]; each broadcasting with `x`. An optional float ``index`` says that all have
        this Sersic index, for which a shorter formula exists (0.5 and 1). gx, gy [1/arcsec], g are optional: the
        profile is multiplied with 1 + g tanh(gx dx + gy dy), which is odd and so keeps the flux.

    Returns
    -------
    Tensor
        Surface brightness [flux / arcsec^2].

    Notes
    -----
    I = I(0) exp(-b (r/R)^(1/n)) with r^2 = q x'^2 + y'^2 / q (intermediate axis, as lenstronomy).
    """
    dx, dy = x - component["x"], y - component["y"]
    r2 = (component["xx"] * dx + 2.0 * component["xy"] * dy) * dx + component["yy"] * dy * dy
    if component.get("index") == 0.5:
        power = r2
    elif component.get("index") == 1.0:
        power = torch.sqrt(r2.clamp_min(0.0))
    else:
        power = torch.exp(0.5 * torch.log(r2.clamp_min(1e-30)) * component["inverse_n"])
    value = component["central"] * torch.exp(-component["b"] * power)
    if component.get("g") is None:
        return value
    return value * (1.0 + component["g"] * torch.tanh(component["gx"] * dx + component["gy"] * dy))


def quadratic_form(R, q, phi):
    """Return xx, xy, yy [arcsec^-2] with r^2 / R^2 = xx dx^2 + 2 xy dx dy + yy dy^2."""
    cos, sin = np.cos(phi), np.sin(phi)
    xx = (q * cos**2 + sin**2 / q) / R**2
    yy = (q * sin**2 + cos**2 / q) / R**2
    return xx, (q - 1.0 / q) * cos * sin / R**2, yy


def place_clumps(uniforms, R, q, phi, n_clumps, max_clumps=6):
    """Place the clumps of clumpy discs.

    Parameters
    ----------
    uniforms : ndarray of shape (N, 4 * max_clumps)
        In (0, 1), from the source's own stream.
    R, q, phi, n_clumps : ndarray of shape (N,)
        Half-light radius [arcsec], axis ratio, angle [rad] of the disc and number of clumps; 0 for a smooth source.

    Returns
    -------
    dict of ndarray of shape (N, max_clumps)
        dx, dy [arcsec] from the disc's centre, R [arcsec], share (of the clumps' flux, summing to 1; 0 where absent).

    Notes
    -----
    Distances are |N(R, 0.6 R)| (SPEC 6.2) in the plane of the disc, angles uniform, sizes log-uniform in `CLUMP_SIZE`
    but not below `CLUMP_FLOOR`.
    """
    u = np.clip(uniforms, 1e-12, 1 - 1e-12).reshape(len(uniforms), 4, max_clumps)
    R, q, phi = (np.asarray(v, dtype=np.float64)[:, None] for v in (R, q, phi))
    radius = np.abs(R * (1.0 + 0.6 * ndtri(u[:, 0])))
    angle = 2.0 * np.pi * u[:, 1]
    major, minor = radius * np.cos(angle) / np.sqrt(q), radius * np.sin(angle) * np.sqrt(q)
    present = np.arange(max_clumps)[None] < np.asarray(n_clumps)[:, None]
    share = np.where(present, 0.3 + u[:, 3], 0.0)
    low, high = np.log(CLUMP_SIZE[0]), np.log(CLUMP_SIZE[1])
    return {
        "dx": major * np.cos(phi) - minor * np.sin(phi), "dy": major * np.sin(phi) + minor * np.cos(phi),
        "R": np.maximum(R * np.exp(low + (high - low) * u[:, 2]), CLUMP_FLOOR),
        "share": share / np.maximum(share.sum(1, keepdims=True), 1e-12),
    }  # fmt: skip


def make_components(x, y, R, n, q, phi, clumps=None, dtype=torch.float32, device="cpu", gradient=None):
    """Build the component list of a batch: one disc per stamp, then the clumps of the clumpy ones.

    Parameters
    ----------
    x, y, R, n, q, phi : ndarray of shape (N,)
        Centre [arcsec], half-light radius on the intermediate axis [arcsec], Sersic index, axis ratio, angle [rad].
    clumps : dict, optional
        From `place_clumps`.
    dtype, device
    gradient : ndarray of shape (N,), optional
        Amplitude in (-1, 1) of the disc's lopsidedness, brightness x (1 + gradient tanh(x'/R)) with x' along the major
        axis. The fields gx, gy, g are made only where one is not zero, so that symmetric sources cost nothing more.

    Returns
    -------
    (dict of Tensor of shape (M,), ndarray of shape (L,))
        Components for `render.render_maps` (planes 0..N-1 hold the discs, each of unit flux; plane N + l the clumps of
        the l-th clumpy stamp, together of unit flux), and the stamps of the L clumpy planes.
    """
    x, y, R, n, q, phi = (np.asarray(v, dtype=np.float64) for v in (x, y, R, n, q, phi))
    stamp = np.arange(len(x))
    parts = [(stamp, stamp, x, y, R, n, q, phi, np.ones(len(x)))]
    owner = np.zeros(0, dtype=np.int64)
    if clumps is not None:
        owner = np.flatnonzero(clumps["share"].sum(1) > 0)
        plane = np.full(len(x), -1)
        plane[owner] = len(x) + np.arange(len(owner))
        k, c = np.nonzero(clumps["share"])
        ones = np.ones(len(k))
        parts.append((k, plane[k], x[k] + clumps["dx"][k, c], y[k] + clumps["dy"][k, c], clumps["R"][k, c],
                      CLUMP_INDEX * ones, ones, 0.0 * ones, clumps["share"][k, c]))  # fmt: skip
    stamp, plane, x, y, R, n, q, phi, flux = (np.concatenate(column) for column in zip(*parts, strict=True))
    xx, xy, yy = quadratic_form(R, q, phi)
    # A cusp needs three samples per half-light radius of the minor axis; a Gaussian half as many.
    compact = R * np.sqrt(q) * np.where(n <= 0.5, 2.0, 1.0 / np.maximum(n, 1.0))
    sampling = np.select([compact >= 0.2, compact >= 0.1, compact >= 0.05], [4, 8, 16], 32)
    values = {
        "x": x, "y": y, "xx": xx, "xy": xy, "yy": yy, "b": sersic_b(n), "inverse_n": 1.0 / n,
        "central": sersic_central(flux, R, n), "extent": sersic_extent(n) * R / np.sqrt(q),
        "core": 2.5 * R / np.sqrt(q),
    }  # fmt: skip
    if gradient is not None and np.any(gradient):
        values |= _tilt_discs(gradient, R, phi)
    out = {name: torch.as_tensor(value, dtype=dtype, device=device) for name, value in values.items()}
    whole = {"stamp": stamp, "plane": plane, "sampling": sampling}
    out |= {name: torch.as_tensor(value, dtype=torch.int64, device=device) for name, value in whole.items()}
    return out, owner


def _tilt_discs(gradient, R, phi):
    """Return gx, gy, g of the components; the discs come first and clumps have none."""
    gradient = np.asarray(gradient, dtype=np.float64)
    bad = np.flatnonzero(~(np.abs(gradient) < 1.0))
    if len(bad):
        raise UserError(f"gradient: row {bad[0]} holds {gradient[bad[0]]:g}; it must lie between -1 and 1")
    g = np.concatenate([gradient, np.zeros(len(R) - len(gradient))])
    return {"gx": np.cos(phi) / R, "gy": np.sin(phi) / R, "g": g}
