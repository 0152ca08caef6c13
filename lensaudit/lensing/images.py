"""Images of point sources behind any packed lens, compiled for the CPU: numbers, positions, magnifications.

`magnify_images` scans angles and is for isothermal lenses, fast; `find_images` and `count_images` search a grid and are
for all. Which images are meant is the same: see `find_images`.
"""

from math import cos, exp, log, sin, sqrt

import numpy as np

from lensaudit.lensing.compiled import (
    A3,
    A4,
    GAMMA1,
    GAMMA2,
    SLOPE,
    SUB_THETA_E,
    SUB_X,
    SUB_Y,
    THETA_E,
    Q,
    compile_scalar,
    count_terms,
    deflect_multipoles,
    deflect_prepared,
    differentiate_prepared,
    prepare_lens,
)

MAX_IMAGES = 8  # of `find_images`; ellipsoid, shear and small multipoles make 4, a subhalo adds at most a few
N_MAGNIFICATIONS = 6  # of `magnify_images`
FAINTEST = 1e-4  # images fainter than this times the source are left out
_MAX_RINGS = 96


@compile_scalar
def magnify_images(source_x, source_y, packed, n_angles=180):
    """Find the magnifications of the images of point sources; the compiled twin of `mass.magnify_images`.

    Parameters
    ----------
    source_x, source_y : ndarray of float64, shape (N,)
        Source position [arcsec].
    packed : ndarray of shape (N, 14)
        From `mass.pack_lens`. A subhalo is left out; `find_images` takes all.
    n_angles : int
        Angles scanned, even; see `mass.magnify_images`.

    Returns
    -------
    ndarray of shape (N, 6)
        Absolute magnifications, in the order of angle, 0 where there are no more images.

    Notes
    -----
    `mass.magnify_images` has the equations. Multipoles are isothermal too and are taken along. Opposite angles share
    their deflection but for its sign (m = 3: and its sign too), which comes from the angular series of the power law.
    """
    half, mu = n_angles // 2, np.zeros((source_x.size, N_MAGNIFICATIONS))
    ex, ey = _place_angles(n_angles)
    work, series, branches = np.zeros((9, n_angles + 1)), np.empty((6, half)), np.empty((4, n_angles))
    cross, ux, uy, ax, ay, mx, my = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    for i in range(source_x.size):
        bx, by, g1, g2 = source_x[i], source_y[i], packed[i, GAMMA1], packed[i, GAMMA2]
        c = prepare_lens(packed[i])
        _scan_ellipsoid(half, ex, ey, packed[i], c, ax, ay, series)
        if c[12] != 0.0 or c[13] != 0.0:
            for j in range(half):
                work[7, j], work[8, j] = deflect_multipoles(ex[j], ey[j], 0.0, 0.0, c[12], c[13])
                if c[7] == 1.0:
                    ax[j], ay[j] = ax[j] + work[7, j], ay[j] + work[8, j]
        else:
            work[7:] = 0.0
        for j in range(half):
            mx[j], my[j] = bx, by
        if c[10] != 0.0 or c[11] != 0.0:
            for j in range(half):
                dx, dy = deflect_multipoles(ex[j], ey[j], c[10], c[11], 0.0, 0.0)
                mx[j], my[j] = bx + dx, by + dy
        for j in range(half):
            ux[j], uy[j] = ex[j] * (1.0 - g1) - g2 * ey[j], ey[j] * (1.0 + g1) - g2 * ex[j]
        if c[7] != 1.0:
            _magnify_power(half, ex, ey, c, work, branches, mu[i])
            continue
        for j in range(half):
            cross[j] = ux[j] * (my[j] + ay[j]) - uy[j] * (mx[j] + ax[j])
            cross[j + half] = uy[j] * (mx[j] - ax[j]) - ux[j] * (my[j] - ay[j])
        cross[n_angles] = cross[0]
        found = 0
        for j in range(n_angles):
            if cross[j] * cross[j + 1] > 0.0 or (cross[j] != 0.0 and cross[j + 1] == 0.0):
                continue
            weight = cross[j] / (cross[j] - cross[j + 1]) if cross[j] != cross[j + 1] else 1.0
            radius, inverse = 0.0, 0.0
            for which in range(2):
                k, share = (j + which) % n_angles, weight if which else 1.0 - weight
                sign, h = (1.0, k) if k < half else (-1.0, k - half)
                along = ux[h] * (sign * mx[h] + ax[h]) + uy[h] * (sign * my[h] + ay[h])
                r = along / (ux[h] ** 2 + uy[h] ** 2)
                radius += share * r
                inverse += share * _invert_isothermal(sign * ex[h], sign * ey[h], r, c)
            if radius > 0.0 and found < N_MAGNIFICATIONS:
                mu[i, found] = 1.0 / max(abs(inverse), 1e-3)
                found += 1
    return mu


@compile_scalar
def _place_angles(n_angles):
    ex, ey = np.empty(n_angles), np.empty(n_angles)
    for j in range(n_angles):
        ex[j], ey[j] = cos(j * 2.0 * np.pi / n_angles + 0.01), sin(j * 2.0 * np.pi / n_angles + 0.01)
    return ex, ey


@compile_scalar
def _scan_ellipsoid(half, ex, ey, p, c, ax, ay, work):
    """Fill `ax` and `ay` with the ellipsoid's deflection at unit vectors, by the angular series in Horner's form."""
    q, f, t = p[Q], -(1.0 - p[Q]) / (1.0 + p[Q]), c[7]
    terms, scale = int(count_terms(q)), 2.0 * c[9] / (1.0 + q)
    cosine, sine = c[0], c[1]
    er, ei, wr, wi, s, d = work[0], work[1], work[2], work[3], work[4], work[5]
    for j in range(half):
        u, v = q * (ex[j] * cosine + ey[j] * sine), ey[j] * cosine - ex[j] * sine
        inverse = 1.0 / sqrt(u * u + v * v)
        u, v = u * inverse, v * inverse
        er[j], ei[j], wr[j], wi[j], s[j], d[j] = u, v, f * (u * u - v * v), 2.0 * f * u * v, 1.0, 0.0
        ax[j] = inverse
    for n in range(terms, 0, -1):
        weight = (2.0 * n - 2.0 + t) / (2.0 * n + 2.0 - t)
        for j in range(half):  # innermost, so that it is done for several angles at a time
            real = 1.0 + weight * (s[j] * wr[j] - d[j] * wi[j])
            d[j] = weight * (s[j] * wi[j] + d[j] * wr[j])
            s[j] = real
    if t != 1.0:
        for j in range(half):
            power = exp((t - 1.0) * log(c[9] * ax[j])) if c[9] > 0.0 else 0.0
            er[j], ei[j] = power * er[j], power * ei[j]
    for j in range(half):
        along, across = scale * (s[j] * er[j] - d[j] * ei[j]), scale * (s[j] * ei[j] + d[j] * er[j])
        ax[j], ay[j] = along * cosine - across * sine, along * sine + across * cosine


@compile_scalar
def _magnify_power(half, ex, ey, c, work, branches, mu):
    """Scan the angles for a power law: at each the radial equation gives r, the tangential one changes sign at images.

    `work` holds per angle B e, the power law's deflection at e, source plus even and odd multipole, two rows each.

    With s = 2 - slope the deflection is r^s a(t) + m(t): r W = P + r^s A along B e and N + r^s M = 0 across. There is
    one r for s <= 0; for s > 0 two, an outer and an inner one, or none, and the inner one leads to the central maximum.
    """
    n, power, theta, found = 2 * half, 1.0 - c[7], max(c[9], 1e-6), 0
    for j in range(n):
        sign, h = (1.0, j) if j < half else (-1.0, j - half)
        ux, uy, sx, sy = sign * work[1, h], sign * work[2, h], sign * work[3, h], sign * work[4, h]
        mx, my = work[5, h] + sign * work[7, h], work[6, h] + sign * work[8, h]
        along, across = ux * mx + uy * my, ux * my - uy * mx
        pull, turn, w = ux * sx + uy * sy, ux * sy - uy * sx, ux * ux + uy * uy
        for i in range(4):
            branches[i, j] = np.nan
        start, deepest = max(theta, along / w), 0.0
        if power > 0.0 and along < 0.0:
            # Where w r - pull r^s is least; that value is `deepest`, and what lies below it no ray along B e reaches.
            bottom = exp(log(power * pull / w) / (1.0 - power))
            start, deepest = max(start, 2.0 * bottom), w * bottom * (1.0 - 1.0 / power)
            if deepest > along:
                continue
        if j > 0 and branches[0, j - 1] > 0.0:
            start = branches[0, j - 1]
        elif power < 0.0 and along < 0.0:
            start = min(exp(log(-along / pull) / power), start)  # the root is below
            if start < 1e-5 * theta:
                continue
        branches[0, j], term = _solve_radius(start, 1e-5 * theta, w, pull, along, power)
        branches[1, j] = across + turn * term
        if deepest < 0.0 and along < 0.4 * deepest:  # nearer to the centre it carries only the maximum
            branches[2, j], term = _solve_radius(exp(log(-along / pull) / power), 0.0, w, pull, along, power)
            branches[3, j] = across + turn * term
    for j in range(n):
        k = (j + 1) % n
        x, y = _point(j, half, ex, ey)
        x1, y1 = _point(k, half, ex, ey)
        for kind in range(3):
            if kind < 2:  # along a branch
                r0, r1 = branches[2 * kind, j], branches[2 * kind, k]
                g0, g1 = branches[2 * kind + 1, j], branches[2 * kind + 1, k]
                px, py, qx, qy = x * r0, y * r0, x1 * r1, y1 * r1
            else:  # around the end of both branches, where the angles that have them end
                i = j if np.isnan(branches[0, k]) else k
                if np.isnan(branches[0, j]) == np.isnan(branches[0, k]):
                    continue
                g0, g1, r0, r1 = branches[1, i], branches[3, i], branches[0, i], branches[2, i]
                ox, oy = _point(i, half, ex, ey)
                px, py, qx, qy = ox * r0, oy * r0, ox * r1, oy * r1
            if not g0 * g1 <= 0.0 or (g0 != 0.0 and g1 == 0.0):
                continue
            share = g0 / (g0 - g1) if g0 != g1 else 1.0
            fxx, fyy, fxy = differentiate_prepared(px + share * (qx - px), py + share * (qy - py), c)
            det = (1.0 - fxx) * (1.0 - fyy) - fxy * fxy
            if found < N_MAGNIFICATIONS and abs(det) * FAINTEST < 1.0 and not (det > 0.0 and fxx + fyy > 2.0):
                mu[found] = 1.0 / max(abs(det), 1e-3)
                found += 1


@compile_scalar
def _point(j, half, ex, ey):
    return (ex[j], ey[j]) if j < half else (-ex[j - half], -ey[j - half])


@compile_scalar
def _solve_radius(r, least, w, pull, along, power):
    """Return the root r of w r = along + pull r^power that Newton's method finds from `r`, and r^power.

    NaN where it comes below `least`: images there are too faint.
    """
    for _ in range(40):
        term = exp(power * log(r))
        step = (along + pull * term - w * r) / (w - power * pull * term / r)
        share = step / r
        if abs(share) < 0.01:  # the next step would be the square of this one
            return r + step, term * (1.0 + power * share * (1.0 + 0.5 * (power - 1.0) * share))
        r = r + step if share > -0.9 else 0.1 * r
        if r < least:
            break
    return np.nan, np.nan


@compile_scalar
def _invert_isothermal(x, y, radius, c):
    """Return the inverse magnification that the angular scan's equation gives at a unit vector and radius."""
    u, v = x * c[0] + y * c[1], y * c[0] - x * c[1]
    c2, s2 = x * x - y * y, 2.0 * x * y
    two_kappa = c[9] / sqrt(c[2] * c[2] * u * u + v * v)
    two_kappa += c[10] * x * (4.0 * x * x - 3.0) + c[11] * y * (3.0 - 4.0 * y * y)
    two_kappa += c[12] * (c2 * c2 - s2 * s2) + c[13] * 2.0 * c2 * s2
    det = 1.0 - c[5] * c[5] - c[6] * c[6]
    stretch = ((1.0 + c[5]) * y * y + (1.0 - c[5]) * x * x - 2.0 * c[6] * x * y) / det
    return det * (1.0 - two_kappa / radius * stretch)


@compile_scalar
def count_images(source_x, source_y, packed, n_angles=48):
    """Count the images of point sources and sum their magnifications, for any packed lens; see `find_images`.

    Returns
    -------
    (ndarray of int64, shape (N,), ndarray of float64, shape (N,))
        Number of images and total magnification.
    """
    images = find_images(source_x, source_y, packed, n_angles)
    count, total = np.zeros(source_x.size, dtype=np.int64), np.zeros(source_x.size)
    for i in range(source_x.size):
        for k in range(MAX_IMAGES):
            if not np.isnan(images[i, k, 2]):
                count[i] += 1
                total[i] += abs(images[i, k, 2])
    return count, total


@compile_scalar
def find_images(source_x, source_y, packed, n_angles=48):
    """Find the images of point sources behind any packed lens.

    Parameters
    ----------
    source_x, source_y : ndarray of float64, shape (N,)
        Source position [arcsec].
    packed : ndarray of shape (N, 14)
        From `mass.pack_lens`.
    n_angles : int
        Angles of the polar grid; with 48, pairs of images are missed only within about 1 % of theta_E of a caustic.

    Returns
    -------
    ndarray of shape (N, 8, 3)
        x, y [arcsec] and signed magnification, brightest first, NaN where there are no more.

    Notes
    -----
    A polar grid about the lens, and a second one about the subhalo, is mapped to the source plane; each triangle that
    covers the source and each local minimum of the distance to it starts a Newton iteration. Left out are maxima of the
    arrival time, which is the demagnified central image of lenses flatter than isothermal, and images fainter than
    `FAINTEST`.
    """
    images = np.full((source_x.size, MAX_IMAGES, 3), np.nan)
    ex, ey = _place_angles(n_angles)
    grid = np.empty((_MAX_RINGS, n_angles, 3))
    rings = np.empty(_MAX_RINGS)
    for i in range(source_x.size):
        p, bx, by = packed[i], source_x[i], source_y[i]
        c, beta, theta = prepare_lens(p), sqrt(bx * bx + by * by), max(p[THETA_E], 1e-3)
        n_rings = _place_rings(rings, p, beta, theta, 4.3 / n_angles)
        found = _search_grid(bx, by, c, theta, 0.0, 0.0, rings[:n_rings], ex, ey, grid, images[i], 0)
        if p[SUB_THETA_E] > 0.0:
            for k in range(22):
                rings[k] = p[SUB_THETA_E] * 2e-3 * 1.5**k
            found = _search_grid(bx, by, c, theta, p[SUB_X], p[SUB_Y], rings[:22], ex, ey, grid, images[i], found)
    return images


@compile_scalar
def _place_rings(rings, p, beta, theta, step):
    """Fill `rings` with radii, even in the logarithm near the centre and in radius outside; return their number."""
    gamma, power = min(sqrt(p[GAMMA1] ** 2 + p[GAMMA2] ** 2), 0.8), 3.0 - p[SLOPE]
    rest = beta + 0.5 * (abs(p[A3]) + abs(p[A4])) + p[SUB_THETA_E]
    outermost = beta + theta
    for _ in range(30):  # the largest deflection, at q = 0.2, is 1.06 theta_E on the ellipse of radius theta_E
        outermost = (rest + 1.1 * theta * (max(outermost, theta) / theta) ** max(power - 1.0, 0.0)) / (1.0 - gamma)
    outermost = max(1.05 * outermost, 0.3 * theta)
    inner = 16
    for k in range(inner):
        rings[k] = theta * 1e-4 * 10.0 ** (3.0 * k / (inner - 1))
    n = min(_MAX_RINGS, inner + int((outermost - rings[inner - 1]) / (step * theta)) + 1)
    for k in range(inner, n):
        rings[k] = rings[inner - 1] + (outermost - rings[inner - 1]) * (k - inner + 1) / (n - inner)
    return n


@compile_scalar
def _search_grid(bx, by, c, theta, x0, y0, rings, ex, ey, grid, images, found):
    """Refine every start on one polar grid and add the new images; return how many there are."""
    n_rings, n = rings.size, ex.size
    for k in range(n_rings):
        for j in range(n):
            x, y = x0 + rings[k] * ex[j], y0 + rings[k] * ey[j]
            ax, ay = deflect_prepared(x, y, c)
            dx, dy = x - ax - bx, y - ay - by
            grid[k, j, 0], grid[k, j, 1], grid[k, j, 2] = dx, dy, dx * dx + dy * dy
    for k in range(n_rings):
        for j in range(n):
            right, left, here = (j + 1) % n, (j - 1) % n, grid[k, j, 2]
            lower, upper = max(k - 1, 0), min(k + 1, n_rings - 1)
            x, y = x0 + rings[k] * ex[j], y0 + rings[k] * ey[j]
            if here <= min(grid[lower, j, 2], grid[upper, j, 2], grid[k, left, 2], grid[k, right, 2]):
                found = _add_image(x, y, bx, by, c, theta, images, found)
            if k + 1 == n_rings:
                continue
            for corner in range(2):
                m, i = (k, j) if corner == 0 else (upper, right)
                one, two, three = _weigh_corners(grid[m, i], grid[k, right], grid[upper, j])
                if one >= 0.0 and two >= 0.0 and three >= 0.0:
                    x = x0 + one * rings[m] * ex[i] + two * rings[k] * ex[right] + three * rings[upper] * ex[j]
                    y = y0 + one * rings[m] * ey[i] + two * rings[k] * ey[right] + three * rings[upper] * ey[j]
                    found = _add_image(x, y, bx, by, c, theta, images, found)
    return found


@compile_scalar
def _weigh_corners(a, b, c):
    """Return the origin's barycentric coordinates in a triangle: none is negative if it covers the origin."""
    one, two, three = b[0] * c[1] - b[1] * c[0], c[0] * a[1] - c[1] * a[0], a[0] * b[1] - a[1] * b[0]
    total = one + two + three
    if total == 0.0:
        return -1.0, -1.0, -1.0
    return one / total, two / total, three / total


@compile_scalar
def _add_image(x, y, bx, by, c, theta, images, found):
    """Refine one start by damped Newton steps and add it, sorted by brightness, unless it is there or left out."""
    ax, ay = deflect_prepared(x, y, c)
    ex, ey = bx - x + ax, by - y + ay
    error, det, trace = sqrt(ex * ex + ey * ey), 0.0, 0.0
    for _ in range(60):
        fxx, fyy, fxy = differentiate_prepared(x, y, c)
        xx, yy, xy = 1.0 - fxx, 1.0 - fyy, -fxy
        det, trace = xx * yy - xy * xy, xx + yy
        if error < 1e-13 * theta or not error < 1e9:
            break
        safe = det if abs(det) > 1e-9 else 1e-9
        sx, sy = (yy * ex - xy * ey) / safe, (xx * ey - xy * ex) / safe
        length = sqrt(sx * sx + sy * sy)
        factor, moved = min(1.0, 0.3 * theta / length) if length > 0.0 else 0.0, False
        for _ in range(30):
            ax, ay = deflect_prepared(x + factor * sx, y + factor * sy, c)
            dx, dy = bx - x - factor * sx + ax, by - y - factor * sy + ay
            new = sqrt(dx * dx + dy * dy)
            if new < error:
                x, y, ex, ey, error, moved = x + factor * sx, y + factor * sy, dx, dy, new, True
                break
            factor *= 0.5
        if not moved:
            break
    mu = 1.0 / det if abs(det) > 1e-6 else 1e6
    if not error < 1e-9 * theta or abs(mu) < FAINTEST or (det > 0.0 and trace < 0.0):
        return found
    for k in range(found):
        if abs(images[k, 0] - x) + abs(images[k, 1] - y) < 1e-6 * theta:
            return found
    place = min(found, MAX_IMAGES - 1)
    if found == MAX_IMAGES and abs(images[place, 2]) >= abs(mu):
        return found
    while place > 0 and abs(images[place - 1, 2]) < abs(mu):
        for k in range(3):
            images[place, k] = images[place - 1, k]
        place -= 1
    images[place, 0], images[place, 1], images[place, 2] = x, y, mu
    return min(found + 1, MAX_IMAGES)
