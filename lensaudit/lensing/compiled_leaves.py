"""Integration of panels that are fine enough: rays, light and its spreading onto the map, for many panels at once."""

import numpy as np

from lensaudit.lensing.compiled import compile_loops, trace_rays
from lensaudit.lensing.compiled_math import take_exp, take_log
from lensaudit.lensing.compiled_sources import evaluate_stamp
from lensaudit.lensing.quadrature import CELL, NODES, WEIGHTS

LEAVES = 256  # panels integrated together: their work fits a core's cache
MARGIN = 2  # samples of the map on each side of a cell that its light reaches


@compile_loops
def make_work(n_planes):
    """Return the arrays in which `integrate_leaves` works."""
    nodes = 9 * LEAVES
    return (np.empty(nodes), np.empty(nodes), np.empty(nodes), np.empty(nodes), np.empty((3, nodes)),
            np.empty((n_planes, nodes)), np.empty(LEAVES, dtype=np.int64), np.empty((3, 5, LEAVES)),
            np.empty((3, 5, LEAVES)), np.empty((3, 5, LEAVES)), np.empty((25, LEAVES + 8)))  # fmt: skip


@compile_loops
def evaluate_profiles(x, y, n, c, value):
    """Fill `value` with the brightness of one Sersic component at many positions of the source plane.

    Parameters
    ----------
    x, y, value : ndarray of shape (>= n,)
        Positions [arcsec] and brightness [flux / arcsec^2].
    n : int
    c : ndarray
        One row of `sample.pack_batch`; see `compiled_sources.evaluate_profile`.
    """
    x0, y0, xx, xy, yy, fall, inverse_n, central = c[0], c[1], c[2], 2.0 * c[3], c[4], -c[5], c[6], c[7]
    if inverse_n == 2.0:
        for i in range(n):
            dx, dy = x[i] - x0, y[i] - y0
            value[i] = central * take_exp(fall * ((xx * dx + xy * dy) * dx + yy * dy * dy))
    elif inverse_n == 1.0:
        for i in range(n):
            dx, dy = x[i] - x0, y[i] - y0
            value[i] = central * take_exp(fall * np.sqrt(max((xx * dx + xy * dy) * dx + yy * dy * dy, 0.0)))
    else:
        for i in range(n):
            dx, dy = x[i] - x0, y[i] - y0
            square = max((xx * dx + xy * dy) * dx + yy * dy * dy, 0.0)
            value[i] = central * take_exp(fall * take_exp(0.5 * inverse_n * take_log(square)))
    if c[10] != 0.0:
        gx, gy, g = 2.0 * c[8], 2.0 * c[9], c[10]
        for i in range(n):  # tanh z = 1 - 2 / (e^2z + 1)
            tilt = take_exp(gx * (x[i] - x0) + gy * (y[i] - y0))
            value[i] *= 1.0 + g * (1.0 - 2.0 / (tilt + 1.0))


@compile_loops
def add_component(bx, by, count, n_nodes, mask, bit, c, coefficients, chosen, gathered, light):
    """Add one component's brightness to the nodes of those panels that see it; node m of panel l is m count + l."""
    n = 0
    for k in range(count):
        chosen[n] = k
        n += mask[k] >> bit & 1
    if n == 0:
        return
    x, y, value = gathered[0], gathered[1], gathered[2]
    for m in range(n_nodes):
        for k in range(n):
            x[m * n + k] = bx[m * count + chosen[k]]
            y[m * n + k] = by[m * count + chosen[k]]
    if c[15] >= 0.0:
        for k in range(n_nodes * n):
            value[k] = evaluate_stamp(x[k] - c[0], y[k] - c[1], c[7], c[15:20], coefficients)
    else:
        evaluate_profiles(x, y, n_nodes * n, c, value)
    for m in range(n_nodes):
        for k in range(n):
            light[m * count + chosen[k]] += value[m * n + k]


@compile_loops
def weigh_splines(t, width, first, count, order, out):
    """Fill out[a, s] with the weight of node a in sample s (of 5 about the cell) for panels at places `t` [cells]."""
    for a in range(order + 2):
        for k in range(count):
            place = t[first + k] + NODES[order, a] * width[first + k]
            share = width[first + k] * WEIGHTS[order, a]
            low, high, near = max(-place, 0.0), max(place, 0.0), abs(place)
            out[a, 0, k] = share * low * low * low / 6.0
            out[a, 1, k] = share * weigh_neighbour(1.0 + place)
            out[a, 2, k] = share * (2.0 / 3.0 - near * near * (1.0 - 0.5 * near))
            out[a, 3, k] = share * weigh_neighbour(1.0 - place)
            out[a, 4, k] = share * high * high * high / 6.0


@compile_loops
def weigh_neighbour(distance):
    """Return the cubic B-spline at a distance between 1/2 and 3/2."""
    outer = 2.0 - distance
    near = 2.0 / 3.0 - distance * distance * (1.0 - 0.5 * distance)
    return outer * outer * outer / 6.0 if distance >= 1.0 else near


@compile_loops
def spread_light(light, rows, columns, count, order, line, patch):
    """Fill `patch` (25 samples about each panel's cell) with the light of the panels' nodes."""
    n = order + 2
    for a in range(n):
        for s in range(5):
            target, first, second, third = line[a, s], columns[0, s], columns[1, s], columns[2, s]
            left = light[a * n * count : (a * n + n) * count]
            for k in range(count):
                target[k] = left[k] * first[k] + left[count + k] * second[k]
            if n == 3:
                for k in range(count):
                    target[k] += left[2 * count + k] * third[k]
    for r in range(5):
        for s in range(5):
            target, first, second, third = patch[5 * r + s], line[0, s], line[1, s], line[2, s]
            for k in range(count):
                target[k] = rows[0, r, k] * first[k] + rows[1, r, k] * second[k]
            if n == 3:
                for k in range(count):
                    target[k] += rows[2, r, k] * third[k]


@compile_loops
def place_nodes(places, first, count, order, x, y):
    """Fill x, y with the nodes' positions [arcsec]."""
    n = order + 2
    for m in range(n * n):
        along, across = NODES[order, m % n] * CELL, NODES[order, m // n] * CELL
        for k in range(count):
            x[m * count + k] = places[0, first + k] + along * places[2, first + k]
            y[m * count + k] = places[1, first + k] + across * places[2, first + k]


@compile_loops
def hide_inside(x, y, n, p, light):
    """Take the light away that lies inside the ellipse which is the critical curve without shear."""
    cosine, sine, q = np.cos(p[2]), np.sin(p[2]), p[1]
    for k in range(n):
        along, across = x[k] * cosine + y[k] * sine, y[k] * cosine - x[k] * sine
        if q * along * along + across * across / q < p[0] * p[0]:
            light[k] = 0.0


@compile_loops
def integrate_leaves(places, cells, first, count, order, p, lens, components, planes, inner, coefficients, work, out):
    """Add the light of up to `LEAVES` panels to a stamp's maps.

    Parameters
    ----------
    places : ndarray of shape (5, capacity)
        Centre x, y [arcsec], width [cells], and the centre's place in its cell along x and y [cells].
    cells : int64 ndarray of shape (3, capacity)
        Row and column of the panel's cell, and the bits of the components it sees.
    first, count, order : int
        First panel and how many; 0 for two nodes per axis, 1 for three.
    p, lens : ndarray of shape (14,), tuple
        The packed lens and what `prepare_lens` makes of it.
    components, planes, inner, coefficients
        As `compiled_sample.sample_stamps`, of one stamp.
    work : tuple of ndarray
        Of `make_work`.
    out : ndarray of shape (planes, grid + 2 MARGIN, grid + 2 MARGIN)
        Added to.
    """
    x, y, bx, by, gathered, light, chosen, rows, columns, line, patch = work
    n_nodes = (order + 2) ** 2
    n, mask = n_nodes * count, cells[2, first : first + count]
    place_nodes(places, first, count, order, x, y)
    trace_rays(x, y, n, lens, bx, by)
    weigh_splines(places[4], places[2], first, count, order, rows)
    weigh_splines(places[3], places[2], first, count, order, columns)
    for plane in range(len(out)):
        value, target = light[plane], out[plane]
        value[:n] = 0.0
        for k in range(len(components)):
            if planes[k] == plane:
                add_component(bx, by, count, n_nodes, mask, k, components[k], coefficients, chosen, gathered, value)
        if not inner:
            hide_inside(x, y, n, p, value)
        spread_light(value, rows, columns, count, order, line, patch)
        for k in range(count):
            i, j = cells[0, first + k], cells[1, first + k]
            for r in range(5):
                for s in range(5):
                    target[i + r, j + s] += patch[5 * r + s, k]
