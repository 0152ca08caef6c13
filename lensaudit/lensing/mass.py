"""Mass models in lenstronomy's conventions: elliptical power law, external shear, multipoles, one subhalo.

Deflections are pure functions of torch tensors of any floating type. `lensing.compiled` holds the same in scalar code
for the CPU, and finds images with it.
"""

import math

import numpy as np
import torch

PACK = ("theta_E", "q", "phi", "gamma1", "gamma2", "slope", "a3", "phi3", "a4", "phi4", "subhalo_theta_E", "subhalo_x",
        "subhalo_y", "subhalo_r_cut")  # fmt: skip
# An absent column means this; theta_E, q and phi have no default.
DEFAULTS = {"gamma1": 0.0, "gamma2": 0.0, "slope": 2.0, "a3": 0.0, "phi3": 0.0, "a4": 0.0, "phi4": 0.0,
            "subhalo_theta_E": 0.0, "subhalo_x": 0.0, "subhalo_y": 0.0, "subhalo_r_cut": 1.0}  # fmt: skip
# Below this distance from q = 1 the elliptical formula is 0/0; the sphere is reached to better than 1e-6 theta_E.
_ROUND = {torch.float32: 1e-5, torch.float64: 1e-8}
_CENTRE = 1e-12  # radii [arcsec] below this count as the centre, where deflections are zero


def pack_lens(lens):
    """Pack lens parameters into one array, in the order of `PACK`, for the compiled engine.

    Parameters
    ----------
    lens : dict of Tensor or ndarray of shape (N,), or pandas.DataFrame
        theta_E, q, phi and any of the optional names; absent ones take `DEFAULTS`.

    Returns
    -------
    ndarray of float64, shape (N, 14)
    """
    first = np.asarray(lens["theta_E"], dtype=np.float64)
    packed = np.empty((first.size, len(PACK)))
    for i, name in enumerate(PACK):
        packed[:, i] = np.asarray(lens[name] if name in lens or name not in DEFAULTS else DEFAULTS[name])
    return packed


def deflect_sie(x, y, theta_E, q, phi):
    """Return the deflection of a singular isothermal ellipsoid at the origin.

    Parameters
    ----------
    x, y : Tensor
        Image-plane position [arcsec].
    theta_E : Tensor
        Einstein radius on the intermediate axis [arcsec]: the area inside the critical curve is pi theta_E^2.
    q : Tensor
        Axis ratio of the surface density, in (0, 1].
    phi : Tensor
        Angle of the major axis, counter-clockwise from +x [rad].

    Returns
    -------
    (Tensor, Tensor)
        Deflection [arcsec], along x and y.

    Notes
    -----
    kappa = theta_E / (2 sqrt(q x'^2 + y'^2 / q)), x' along the major axis. With f = sqrt(1 - q^2) and
    psi = sqrt(q^2 x'^2 + y'^2): alpha = theta_E sqrt(q)/f (atan(f x'/psi), atanh(f y'/psi))
    (Kormann, Schneider & Bartelmann 1994, whose b is theta_E sqrt(q)). At the very centre the deflection is zero.
    """
    q = torch.clamp(q, max=1.0 - _ROUND[q.dtype])
    cos, sin = torch.cos(phi), torch.sin(phi)
    u, v = x * cos + y * sin, y * cos - x * sin
    f = torch.sqrt((1.0 - q) * (1.0 + q))
    psi = torch.sqrt((q * u) ** 2 + v**2).clamp_min(_CENTRE)
    scale = theta_E * torch.sqrt(q) / f
    a, b = scale * torch.atan(f * u / psi), scale * torch.atanh(f * v / psi)
    return a * cos - b * sin, a * sin + b * cos


def deflect_shear(x, y, gamma1, gamma2):
    """Return the deflection [arcsec] of an external shear with its origin at (0, 0)."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def count_terms(q):
    """Return how many terms the power law's angular series needs.

    Parameters
    ----------
    q : Tensor
        Axis ratio.

    Returns
    -------
    Tensor
        Whole number n with what is left out below f^(n+1) / sqrt(q) = 1e-9, in units of theta_E (b/R)^(t-1), where
        f = (1 - q)/(1 + q): 53 at q = 0.2, 19 at 0.5, 12 at 0.7, 0 for a sphere.
    """
    ratio = (1.0 - q.double()) / (1.0 + q.double())
    terms = torch.ceil((math.log(1e-9) + 0.5 * torch.log(q.double())) / torch.log(ratio)) - 1.0
    return torch.where(ratio < 1e-9, 0.0, terms.clamp(1.0, 2000.0))


def deflect_epl(x, y, theta_E, q, phi, slope):
    """Return the deflection of an elliptical power law at the origin; arguments as in `deflect_sie`.

    Parameters
    ----------
    slope : Tensor
        Three-dimensional logarithmic slope, in (1, 3); 2 is isothermal.

    Notes
    -----
    kappa = (3 - slope)/2 (theta_E / sqrt(q x'^2 + y'^2 / q))^(slope - 1). With t = slope - 1, b = theta_E sqrt(q) and
    R e^(i varphi) = q x' + i y': alpha = 2 b/(1 + q) (b/R)^(t-1) sum_n Omega_n, Omega_0 = e^(i varphi),
    Omega_n = -f (2n - (2 - t))/(2n + (2 - t)) e^(2 i varphi) Omega_(n-1) (Tessore & Metcalf 2015, eqs. 22-29). Each
    lens has the terms `count_terms` gives it, whatever it is batched with.
    """
    t, f, terms = slope - 1.0, (1.0 - q) / (1.0 + q), count_terms(q)
    cos, sin = torch.cos(phi), torch.sin(phi)
    u, v = q * (x * cos + y * sin), y * cos - x * sin
    radius = torch.sqrt(u**2 + v**2).clamp_min(_CENTRE)
    er, ei = u / radius, v / radius
    wr, wi = er**2 - ei**2, 2.0 * er * ei
    a, b = er, ei
    for n in range(1, int(terms.max()) + 1):
        weight = torch.where(terms >= n, -f * (2.0 * n - 2.0 + t) / (2.0 * n + 2.0 - t), 0.0)
        er, ei = weight * (er * wr - ei * wi), weight * (er * wi + ei * wr)
        a, b = a + er, b + ei
    scale = theta_E * torch.sqrt(q)
    power = 2.0 * scale / (1.0 + q) * (scale / radius) ** (t - 1.0)
    a, b = torch.where(scale > 0.0, power * a, 0.0), torch.where(scale > 0.0, power * b, 0.0)
    return a * cos - b * sin, a * sin + b * cos


def deflect_multipole(x, y, m, a_m, phi_m):
    """Return the deflection of an isothermal multipole at the origin.

    Parameters
    ----------
    x, y : Tensor
        Image-plane position [arcsec].
    m : int
        Order, at least 2.
    a_m : Tensor
        Strength [arcsec], that is not a share of theta_E.
    phi_m : Tensor
        Angle [rad].

    Notes
    -----
    psi = r a_m cos(m (theta - phi_m)) / (1 - m^2), kappa = a_m cos(m (theta - phi_m)) / (2 r): lenstronomy's
    ``MULTIPOLE``, after Xu et al. (2015), eq. B12.
    """
    r = torch.sqrt(x**2 + y**2).clamp_min(_CENTRE)
    c, s, angle = x / r, y / r, m * (torch.atan2(y, x) - phi_m)
    along, across = a_m / (1 - m**2) * torch.cos(angle), m * a_m / (m**2 - 1) * torch.sin(angle)
    return c * along - s * across, s * along + c * across


def deflect_subhalo(x, y, theta_E, r_cut):
    """Return the deflection of a truncated isothermal sphere at the origin.

    Parameters
    ----------
    x, y : Tensor
        Image-plane position from the subhalo's centre [arcsec].
    theta_E : Tensor
        Einstein radius it would have without the truncation [arcsec].
    r_cut : Tensor
        Truncation radius [arcsec].

    Notes
    -----
    kappa = theta_E/2 (1/r - 1/sqrt(r^2 + r_cut^2)): a pseudo-Jaffe profile without a core, of finite mass
    pi theta_E r_cut. alpha = 2 theta_E r_cut / (r + r_cut + sqrt(r^2 + r_cut^2)) (Eliasdottir et al. 2007, appendix A).
    lenstronomy's ``PJAFFE`` with Ra -> 0, Rs = r_cut, sigma0 = theta_E (Rs - Ra) / (2 Ra Rs). Its ``SIS_TRUNCATE`` is
    not used: beyond r_cut its density is negative.
    """
    r = torch.sqrt(x**2 + y**2).clamp_min(_CENTRE)
    alpha = 2.0 * theta_E * r_cut / (r + r_cut + torch.sqrt(r**2 + r_cut**2)) / r
    return alpha * x, alpha * y


def shoot_rays(x, y, lens):
    """Map image-plane positions to the source plane.

    Parameters
    ----------
    x, y : Tensor
        Image-plane position [arcsec].
    lens : dict of Tensor
        theta_E, q, phi, gamma1, gamma2, each broadcasting with `x`, and any of slope; a3, phi3; a4, phi4;
        subhalo_theta_E, subhalo_x, subhalo_y, subhalo_r_cut. What is absent costs nothing.

    Returns
    -------
    (Tensor, Tensor)
        Source-plane position [arcsec].
    """
    shape = (lens["theta_E"], lens["q"], lens["phi"])
    ax, ay = deflect_sie(x, y, *shape)
    if "slope" in lens:
        # An isothermal row gives the same number whether or not a power law is in its batch.
        isothermal = lens["slope"] == 2.0
        px, py = deflect_epl(x, y, *shape, lens["slope"])
        ax, ay = torch.where(isothermal, ax, px), torch.where(isothermal, ay, py)
    parts = [deflect_shear(x, y, lens["gamma1"], lens["gamma2"])]
    parts += [deflect_multipole(x, y, m, lens[f"a{m}"], lens[f"phi{m}"]) for m in (3, 4) if f"a{m}" in lens]
    if "subhalo_theta_E" in lens:
        dx, dy = x - lens["subhalo_x"], y - lens["subhalo_y"]
        parts.append(deflect_subhalo(dx, dy, lens["subhalo_theta_E"], lens["subhalo_r_cut"]))
    for sx, sy in parts:
        ax, ay = ax + sx, ay + sy
    return x - ax, y - ay


def magnify_positions(x, y, lens):
    """Return the signed point magnification 1 / det(d beta / d theta) at image-plane positions, by differentiation.

    Parameters
    ----------
    x, y : Tensor
        Image-plane position [arcsec].
    lens : dict of Tensor
        As in `shoot_rays`.

    Returns
    -------
    Tensor
        Negative for saddle points.
    """
    x, y = torch.broadcast_tensors(x, y)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    _, (xx, xy) = torch.func.jvp(lambda a, b: shoot_rays(a, b, lens), (x, y), (one, zero))
    _, (yx, yy) = torch.func.jvp(lambda a, b: shoot_rays(a, b, lens), (x, y), (zero, one))
    return 1.0 / (xx * yy - xy * yx)


def magnify_images(source_x, source_y, lens, n_angles=180):
    """Find the images of point sources and their magnifications.

    Parameters
    ----------
    source_x, source_y : Tensor of shape (N,)
        Source position [arcsec].
    lens : dict of Tensor of shape (N,)
        theta_E, q, phi, gamma1, gamma2.
    n_angles : int
        Angles scanned; pairs of images closer than 360/n_angles degrees are missed, which happens only within about
        (pi/n_angles)^2 theta_E of a caustic.

    Returns
    -------
    Tensor of shape (N, n_angles)
        Absolute magnification of the image in each sector of angle, 0 where there is none. The infinitely faint central
        image is left out.

    Notes
    -----
    The deflection of an isothermal lens depends on the angle only, so with B = 1 - shear the lens equation
    r B e(t) = beta + alpha(t) asks that B e(t) and beta + alpha(t) be parallel: one root per image with r > 0.
    There det A = det B (1 - 2 kappa t^T B^-1 t), with t the tangential unit vector.
    """
    dtype, step = source_x.dtype, 2.0 * torch.pi / n_angles
    lens = {k: v[:, None] for k, v in lens.items()}
    bx, by = source_x[:, None], source_y[:, None]
    angle = torch.arange(n_angles + 1, dtype=dtype, device=source_x.device)[None] * step + 0.01
    cross, radius, inverse_mu = _scan(angle, bx, by, lens)
    left, right = cross[:, :-1], cross[:, 1:]
    root = (left * right) <= 0
    weight = torch.where(root, left / torch.where(left == right, torch.ones_like(left), left - right), 0.0)
    radius = radius[:, :-1] + weight * (radius[:, 1:] - radius[:, :-1])
    inverse_mu = inverse_mu[:, :-1] + weight * (inverse_mu[:, 1:] - inverse_mu[:, :-1])
    valid = root & (radius > 0)
    return torch.where(valid, 1.0 / inverse_mu.abs().clamp_min(1e-3), 0.0)


def find_images(source_x, source_y, lens, n_angles=180):
    """Count the images of point sources and sum their magnifications; see `magnify_images`.

    Returns
    -------
    (Tensor of shape (N,), Tensor of shape (N,))
        Number of images (int64) and total magnification.
    """
    mu = magnify_images(source_x, source_y, lens, n_angles)
    return (mu > 0).sum(1), mu.sum(1)


def _scan(angle, bx, by, lens):
    ex, ey = torch.cos(angle), torch.sin(angle)
    ax, ay = deflect_sie(ex, ey, lens["theta_E"], lens["q"], lens["phi"])
    sx, sy = deflect_shear(ex, ey, lens["gamma1"], lens["gamma2"])
    ux, uy = ex - sx, ey - sy
    vx, vy = bx + ax, by + ay
    radius = (ux * vx + uy * vy) / (ux**2 + uy**2)
    gx = ex * torch.cos(lens["phi"]) + ey * torch.sin(lens["phi"])
    gy = ey * torch.cos(lens["phi"]) - ex * torch.sin(lens["phi"])
    two_kappa = lens["theta_E"] / (radius * torch.sqrt(lens["q"] * gx**2 + gy**2 / lens["q"]))
    g1, g2 = lens["gamma1"], lens["gamma2"]
    det = 1.0 - g1**2 - g2**2
    stretch = ((1.0 + g1) * ey**2 + (1.0 - g1) * ex**2 - 2.0 * g2 * ex * ey) / det
    return ux * vy - uy * vx, radius, det * (1.0 - two_kappa * stretch)
