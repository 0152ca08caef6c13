"""Sources: elliptical Sersic profiles of given total flux, discs with clumps, images of galaxies, point sources.

A source is a sum of components; each has a shape and belongs to one of two colour groups, disc or clumps, so that one
ray-shooting and two brightness maps serve all bands. A component's shape is a Sersic profile or a stamp of an
`ImageBank`. Point sources are never sampled: they are added to the spectrum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import spline_filter
from scipy.special import gamma, gammaincinv, ndtri

from lensaudit.artifacts import UserError
from lensaudit.photometry import brightness_to_pixel

CLUMP_SIZE = (0.08, 0.25)  # half-light radius of a clump over that of the disc: 0.1-1 kpc clumps in 3-kpc discs
CLUMP_FLOOR = 0.05  # arcsec; smaller ones are alike at ground-based seeing and would need needlessly fine samples
CLUMP_INDEX = 0.5  # Gaussian
# The fields of a Sersic component and the order in which they are packed. x, y: centre [arcsec]; xx, xy, yy: quadratic
# form of the elliptical radius [arcsec^-2]; b: b_n; inverse_n: 1/n; central: I(0) [flux / arcsec^2]; gx, gy: direction
# cosines of the major axis over R [1/arcsec]; g: amplitude of the gradient along it, 0 for a symmetric profile.
FIELDS = ("x", "y", "xx", "xy", "yy", "b", "inverse_n", "central", "gx", "gy", "g")
# The further fields of a component that is an image: which one (-1 for a Sersic profile), its rotation and scale
# [image pixels / arcsec] and the pixel its centre falls on. u = u0 + ux dx + uy dy, v = v0 - uy dx + ux dy; central is
# then 1 / pixel area, so that central x interpolated value is a surface brightness.
IMAGE_FIELDS = ("image", "ux", "uy", "u0", "v0")
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


@dataclass(frozen=True)
class ImageBank:
    """Images of galaxies, ready to be interpolated; see `make_image_bank`.

    Attributes
    ----------
    coefficients : float32 ndarray of shape (K, S, S)
        Cubic B-spline coefficients of flux per pixel, summing to 1.
    centre : ndarray of shape (K, 2)
        Column and row of the galaxy's centre [pixel].
    half_light : ndarray of shape (K,)
        Radius of the circle around the centre that holds half the flux [pixel].
    reach : ndarray of shape (K,)
        Distance from the centre beyond which the image is zero [pixel].
    """

    coefficients: np.ndarray
    centre: np.ndarray
    half_light: np.ndarray
    reach: np.ndarray


def make_image_bank(stamps, centre, half_light, margin=8):
    """Make a bank of stamps.

    Parameters
    ----------
    stamps : ndarray of shape (K, S, S)
        Flux per pixel, total 1, zero towards the edges.
    centre, half_light : ndarray of shape (K, 2), (K,)
        See `ImageBank`, in pixels of `stamps`.
    margin : int
        Zeros added on all sides: coefficients ring and fall by 3.7 per pixel.
    """
    padded = np.pad(np.asarray(stamps, dtype=np.float64), ((0, 0), (margin, margin), (margin, margin)))
    coefficients = np.stack([spline_filter(image, order=3, mode="mirror") for image in padded])
    coefficients /= coefficients.sum((1, 2), keepdims=True)
    centre = np.asarray(centre, dtype=np.float64) + margin
    v, u = np.indices(padded.shape[1:])
    distance = np.hypot(u - centre[:, 0, None, None], v - centre[:, 1, None, None])
    reach = np.where(padded != 0, distance, 0.0).max((1, 2)) + 3.0
    return ImageBank(coefficients.astype(np.float32), centre, np.asarray(half_light, dtype=np.float64), reach)


def evaluate_image(x, y, component, coefficients):
    """Return the surface brightness of images of galaxies.

    Parameters
    ----------
    x, y : Tensor
        Source-plane position [arcsec].
    component : dict of Tensor
        x, y [arcsec], central [arcsec^-2] and `IMAGE_FIELDS`, each broadcasting with `x`; image (int64) not negative.
    coefficients : Tensor of shape (K, S, S)
        Of an `ImageBank`, on the device of `x`.

    Returns
    -------
    Tensor
        Surface brightness [component flux / arcsec^2], zero outside the image.

    Notes
    -----
    Interpolated by cubic B-splines through the pixels (Unser 1999): smooth to the second derivative, and the flux of
    the interpolated image is the sum of its pixels exactly. The compiled twin is `compiled_sources.interpolate_image`.
    """
    dx, dy = x - component["x"], y - component["y"]
    u = component["u0"] + component["ux"] * dx + component["uy"] * dy
    v = component["v0"] - component["uy"] * dx + component["ux"] * dy
    rows, columns = coefficients.shape[-2:]
    left, top = torch.floor(u), torch.floor(v)
    weights_u, weights_v = _spline_weights(u - left), _spline_weights(v - top)
    # Far outside the positions may exceed the integers; every neighbour of a clamped one is outside as well.
    left, top = (t.clamp(-4, n + 4).long() for t, n in ((left, columns), (top, rows)))
    flat, base = coefficients.reshape(-1), component["image"] * (rows * columns)
    value = torch.zeros_like(u)
    for a in range(4):
        i = top + (a - 1)
        line = torch.zeros_like(u)
        for b in range(4):
            j = left + (b - 1)
            inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
            index = base + i.clamp(0, rows - 1) * columns + j.clamp(0, columns - 1)
            line = line + weights_u[b] * torch.where(inside, flat[index].to(u.dtype), 0.0)
        value = value + weights_v[a] * line
    return component["central"] * value


def _spline_weights(f):
    g = 1.0 - f
    return g**3 / 6.0, 2.0 / 3.0 - f**2 + f**3 / 2.0, 2.0 / 3.0 - g**2 + g**3 / 2.0, f**3 / 6.0


def point_terms(x, y, mu, k_rows, k_columns):
    """Return the spectra of lensed point sources of unit unlensed flux.

    Parameters
    ----------
    x, y : Tensor of shape (N, I)
        Image positions, in pixels from where the spectrum has its origin (of `render.fold_spectrum`: the centre of
        pixel (0, 0), so x = x[arcsec] / PIXEL_SCALE + (size - 1) / 2). Ignored where mu is 0.
    mu : Tensor of shape (N, I)
        Magnifications; their sign (the parity) does not matter, 0 where there is no image.
    k_rows, k_columns : Tensor of shape (A,), (B,)
        Angular frequencies [rad / pixel] along y and x.

    Returns
    -------
    complex Tensor of shape (N, A, B)
        sum |mu| exp(-i k.x). Times a band's flux and the transfer function of its PSF it adds to the spectrum of the
        extended light.
    """
    present = mu != 0
    x, y = (torch.where(present, t, 0.0) for t in (x, y))
    phase_rows = -y[..., None] * k_rows
    phase_columns = -x[..., None] * k_columns
    along_y = torch.polar(mu.abs()[..., None].expand_as(phase_rows).contiguous(), phase_rows)
    along_x = torch.polar(torch.ones_like(phase_columns), phase_columns)
    return along_y.transpose(1, 2) @ along_x


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


def make_components(x, y, R, n, q, phi, clumps=None, dtype=torch.float32, device="cpu", gradient=None,
                    bank_index=None, bank=None):  # fmt: skip
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
    bank_index : int ndarray of shape (N,), optional
        Image of `bank` that takes the disc's place, scaled to half-light radius R and turned counter-clockwise by phi
        (n, q and gradient are then without effect); -1 for a Sersic profile.
    bank : ImageBank, optional

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
    whole = {"stamp": stamp, "plane": plane, "sampling": sampling}
    if bank_index is not None and np.any(np.asarray(bank_index) >= 0):
        whole["image"] = _place_images(values, R, phi, bank_index, bank)
    out = {name: torch.as_tensor(value, dtype=dtype, device=device) for name, value in values.items()}
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


def _place_images(values, R, phi, bank_index, bank):
    """Change the discs that are images in place; return the image of every component, -1 where it has none."""
    if bank is None:
        raise UserError("bank_index is given but no bank of galaxy stamps; read one with injection.bank")
    given, n_images = np.asarray(bank_index), len(bank.half_light)
    bad = np.flatnonzero((given < -1) | (given >= n_images) | (given != np.floor(given)))
    if len(bad):
        raise UserError(f"bank_index: row {bad[0]} holds {given[bad[0]]:g}; the bank has images 0 to {n_images - 1}")
    image = np.full(len(R), -1)
    image[: len(given)] = given
    rows = np.flatnonzero(image >= 0)
    k = image[rows]
    pixel = R[rows] / bank.half_light[k]
    for name in IMAGE_FIELDS[1:]:
        values[name] = np.zeros(len(R))
    values["ux"][rows], values["uy"][rows] = np.cos(phi[rows]) / pixel, np.sin(phi[rows]) / pixel
    values["u0"][rows], values["v0"][rows] = bank.centre[k].T
    # The fields of a round exponential disc of this half-light radius stay for samplers to plan by.
    round_disc = {"xx": R[rows] ** -2.0, "xy": 0.0, "yy": R[rows] ** -2.0, "b": sersic_b(1.0), "inverse_n": 1.0,
                  "central": 1.0 / brightness_to_pixel(1.0, pixel), "extent": bank.reach[k] * pixel,
                  "core": 2.5 * R[rows]}  # fmt: skip
    for name, value in round_disc.items():
        values[name][rows] = value
    if "g" in values:
        values["g"][rows] = 0.0
    return image
