"""The sampler of `sample.sample_maps` for one processor core, compiled: see there for what it does and why.

Everything is done for many pixels, panels or rays at once, so that inner loops become vector instructions. What is done
together belongs to one stamp, so that no stamp's bits depend on its neighbours.
"""

import math

import numpy as np

from lensaudit.lensing.compiled import bound_stretches, compile_loops, prepare_lens, trace_rays
from lensaudit.lensing.compiled_leaves import LEAVES, MARGIN, integrate_leaves, make_work
from lensaudit.lensing.compiled_math import take_exp, take_log
from lensaudit.lensing.quadrature import CELL, SMOOTH

LOG2 = math.log(2.0)


@compile_loops
def list_pixels(p, components, size):
    """Return centres x, y [arcsec] of the pixels in which an image may lie."""
    half, farthest = 0.5 * (size - 1), 0.0
    for k in range(len(components)):
        farthest = max(farthest, math.hypot(components[k, 0], components[k, 1]) + components[k, 14])
    edge = 1e9  # no image lies farther out
    if p[5] == 2.0:
        reach = 1.7 * p[0] * (1.0 + 10.0 * (abs(p[6]) + abs(p[8]))) + p[10]
        edge = (farthest + reach) / (1.0 - math.hypot(p[3], p[4])) + 2.0 * CELL
    first = max(0, int(math.floor(half - 0.5 * edge / CELL)))
    last = min(size - 1, int(math.ceil(half + 0.5 * edge / CELL)))
    x, y = np.empty((last - first + 1) ** 2), np.empty((last - first + 1) ** 2)
    n = 0
    for i in range(first, last + 1):
        for j in range(first, last + 1):
            x[n], y[n] = (j - half) * 2.0 * CELL, (i - half) * 2.0 * CELL
            n += x[n] * x[n] + y[n] * y[n] <= edge * edge
    return x[:n], y[:n]


@compile_loops
def list_cells(p, lens, components, size):
    """Return rows, columns and bits of the components that may be seen, of the half-pixel cells that see any."""
    x, y = list_pixels(p, components, size)
    n = len(x)
    bx, by, reach, seen = np.empty(n), np.empty(n), np.empty(n), np.zeros(n, dtype=np.int64)
    trace_rays(x, y, n, lens, bx, by)
    bound_stretches(x, y, n, p, reach)
    for k in range(len(components)):
        x0, y0, extent, bit = components[k, 0], components[k, 1], components[k, 14], 1 << k
        for m in range(n):
            dx, dy, near = bx[m] - x0, by[m] - y0, extent + 1.5 * CELL * reach[m]
            # At the singular centre neighbouring rays part; its pixel is always looked into.
            is_near = dx * dx + dy * dy < near * near or x[m] * x[m] + y[m] * y[m] < 9.0 * CELL * CELL
            seen[m] |= bit if is_near else 0
    rows, columns, bits = np.empty(4 * n, np.int64), np.empty(4 * n, np.int64), np.empty(4 * n, np.int64)
    count = 0
    for m in range(n):
        if seen[m] != 0:
            i, j = int(round(0.5 * (y[m] / CELL + size - 1))), int(round(0.5 * (x[m] / CELL + size - 1)))
            for quarter in range(4):
                rows[count], columns[count], bits[count] = 2 * i + quarter // 2, 2 * j + quarter % 2, seen[m]
                count += 1
    return rows[:count], columns[:count], bits[:count]


@compile_loops
def judge_component(bx, by, side, log_side, c, panel_width, bit, inherited, seen, most):
    """Raise `most` to the logarithm of a panel's width over the widest that a component allows; set its bit in `seen`.

    Parameters
    ----------
    bx, by, side, log_side : ndarray of shape (n,)
        Panels' centres and width [arcsec] in the source plane, and the width's logarithm.
    c : ndarray
        A row of `sample.pack_batch`.
    panel_width : float
    bit : int
        The component's.
    inherited, seen : int64 ndarray of shape (n,)
        Bits of the components that matter in the panel that was divided, and in this one. A component that is
        negligible in a panel leaves `most` as it is.
    most : ndarray of shape (n,)
    """
    x0, y0, xx, xy, yy, b, power = c[0], c[1], c[2], 2.0 * c[3], c[4], c[5], c[6]
    minor, extent, nearest = c[12], c[11], c[13]
    is_image, is_smooth = c[15] >= 0.0, power > SMOOTH
    level = -math.log(minor * panel_width)
    if is_image:  # its pixels are the scale
        level, extent = math.log(math.hypot(c[16], c[17]) / panel_width), c[14] / minor
    elif is_smooth:
        level -= math.log(0.6)
    else:
        level += math.log(power * b)
    for k in range(len(bx)):
        dx, dy = bx[k] - x0, by[k] - y0
        rho = math.sqrt(max((xx * dx + xy * dy) * dx + yy * dy * dy, 0.0))
        distance = max(rho - 0.75 * side[k] / minor, 0.0)
        near = max(distance, nearest)
        wanted = log_side[k] + level
        if not is_image:
            if power == 2.0:
                wanted -= 0.25 * b * near * near
            elif power == 1.0:
                wanted -= 0.25 * b * near
            else:
                log_near = take_log(near)
                wanted -= 0.25 * b * take_exp(power * log_near)
                if not is_smooth:
                    wanted += (power - 1.0) * log_near
            if not is_smooth:
                wanted += LOG2 if distance < 0.3 else 0.0
        use = distance <= extent and (inherited[k] & bit) != 0
        most[k] = max(most[k], wanted) if use else most[k]
        seen[k] |= bit if use else 0


@compile_loops
def judge_panels(rows, columns, bits, level, p, lens, components, size, panel_width):
    """Return centres x, y [arcsec], bits of the components seen and logarithm of width over allowed width of panels.

    Parameters
    ----------
    rows, columns : int64 ndarray of shape (n,)
        Places on the grid of panels 2^level times as fine as the cells.
    bits : int64 ndarray of shape (n,)
        Of the components that matter in the panel each was cut from.
    level : int
    p, lens, components, size, panel_width
        As `sample_stamps`.
    """
    n, width = len(rows), 0.5**level
    x, y, bx, by = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    side, log_side, most, seen = np.empty(n), np.empty(n), np.empty(n), np.zeros(n, dtype=np.int64)
    for k in range(n):
        x[k] = ((columns[k] + 0.5) * width - size) * CELL
        y[k] = ((rows[k] + 0.5) * width - size) * CELL
    trace_rays(x, y, n, lens, bx, by)
    bound_stretches(x, y, n, p, side)
    for k in range(n):
        side[k] *= width * CELL
        log_side[k], most[k] = take_log(side[k]), -1e9
    for k in range(len(components)):
        judge_component(bx, by, side, log_side, components[k], panel_width, 1 << k, bits, seen, most)
    return x, y, seen, most


@compile_loops
def make_room(places, cells, count, more):
    """Return the arrays of `list_leaves`, longer if `more` panels do not fit behind the first `count`."""
    if count + more <= places.shape[2]:
        return places, cells
    new_places, new_cells = np.empty((2, 5, 2 * (count + more))), np.empty((2, 3, 2 * (count + more)), dtype=np.int64)
    for order in range(2):
        for k in range(count):
            for m in range(5):
                new_places[order, m, k] = places[order, m, k]
            for m in range(3):
                new_cells[order, m, k] = cells[order, m, k]
    return new_places, new_cells


@compile_loops
def list_leaves(p, lens, components, size, depth, panel_width, places, cells):
    """Return the panels of a stamp that are fine enough, as `integrate_leaves` takes them, and how many.

    Returns
    -------
    (ndarray of shape (2, 5, capacity), int64 ndarray of shape (2, 3, capacity), int64 ndarray of shape (2,))
        Panels with two and with three nodes per axis. The arrays given, or longer ones where those are too short.
    """
    rows, columns, bits = list_cells(p, lens, components, size)
    count = np.zeros(2, dtype=np.int64)
    for level in range(depth + 1):
        x, y, seen, most = judge_panels(rows, columns, bits, level, p, lens, components, size, panel_width)
        places, cells = make_room(places, cells, max(count[0], count[1]), len(x))
        new_rows, new_columns = np.empty(4 * len(x), dtype=np.int64), np.empty(4 * len(x), dtype=np.int64)
        new_bits, n, width = np.empty(4 * len(x), dtype=np.int64), 0, 0.5**level
        for k in range(len(x)):
            if seen[k] == 0:
                continue
            central = level < 2 and x[k] * x[k] + y[k] * y[k] < 4.0 * CELL * CELL  # about the lens's singular centre
            if (most[k] > 0.0 or central) and level < depth:
                for child in range(4):
                    new_rows[n], new_columns[n] = 2 * rows[k] + child // 2, 2 * columns[k] + child % 2
                    new_bits[n] = seen[k]
                    n += 1
                continue
            order = 0 if most[k] < -LOG2 else 1
            m, i, j = count[order], rows[k] >> level, columns[k] >> level
            places[order, 0, m], places[order, 1, m], places[order, 2, m] = x[k], y[k], width
            places[order, 3, m] = (columns[k] - (j << level) + 0.5) * width - 0.5
            places[order, 4, m] = (rows[k] - (i << level) + 0.5) * width - 0.5
            cells[order, 0, m], cells[order, 1, m], cells[order, 2, m] = i, j, seen[k]
            count[order] = m + 1
        if n == 0:
            break
        rows, columns, bits = new_rows[:n], new_columns[:n], new_bits[:n]
    return places, cells, count


@compile_loops
def move_light(light, low, high, out):
    """Add rows and columns `low` to `high` of a map with margins to a periodic one, and empty them."""
    grid = len(out)
    for i in range(low, high):
        source, target = light[i], out[(i - MARGIN) % grid]
        for j in range(low, MARGIN):
            target[j - MARGIN + grid] += source[j]
            source[j] = 0.0
        for j in range(max(low, MARGIN), high):
            target[j - MARGIN] += source[j]
            source[j] = 0.0


@compile_loops
def sample_stamps(lenses, components, start, planes, second, inner, coefficients, size, depth, panel_width, out):
    """Fill the maps of a batch; see `sample.sample_maps`.

    Parameters
    ----------
    lenses : ndarray of shape (N, 14)
        Packed lens parameters.
    components : ndarray of shape (M, 20)
        Of `sample.pack_batch`, ordered by stamp; at most 60 of one stamp.
    start : ndarray of shape (N + 1,), int64
        First row of `components` of each stamp.
    planes : ndarray of shape (M,), int64
        0 or 1: colour group of each component.
    second : ndarray of shape (N,), int64
        Map of each stamp's second colour group, -1 where there is none.
    inner : ndarray of shape (N,), bool
        Where False, nothing is added inside the ellipse that is the critical curve without shear.
    coefficients : ndarray of shape (K, S, S)
        Of the images of galaxies among the components.
    size, depth : int
        Pixels of the stamp; most divisions of a cell.
    panel_width : float
    out : ndarray of shape (planes, grid, grid)
        Zeros; filled.
    """
    side = 2 * size + 2 * MARGIN
    scratch, work = np.zeros((2, side, side)), make_work(2)
    places, cells = np.empty((2, 5, 4096)), np.empty((2, 3, 4096), dtype=np.int64)
    for k in range(len(lenses)):
        rows, n_planes, lens = slice(start[k], start[k + 1]), 2 if second[k] >= 0 else 1, prepare_lens(lenses[k])
        part, group, light = components[rows], planes[rows], scratch[:n_planes]
        places, cells, count = list_leaves(lenses[k], lens, part, size, depth, panel_width, places, cells)
        low, high = side, -1 - 2 * MARGIN
        for order in range(2):
            for m in range(2 * count[order]):
                cell = cells[order, m % 2, m // 2]
                low, high = min(low, cell), max(high, cell)
            for first in range(0, count[order], LEAVES):
                integrate_leaves(places[order], cells[order], first, min(LEAVES, count[order] - first), order,
                                 lenses[k], lens, part, group, inner[k], coefficients, work, light)  # fmt: skip
        for plane in range(n_planes):
            move_light(scratch[plane], low, high + 2 * MARGIN + 1, out[k] if plane == 0 else out[second[k]])
