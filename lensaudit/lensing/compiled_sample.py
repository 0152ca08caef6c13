"""The sampler of `sample.sample_maps` for one processor core, compiled: see there for what it does and why."""

import math

import numpy as np

from lensaudit.lensing.compiled import compile_scalar, deflect_prepared, prepare_lens
from lensaudit.lensing.compiled_sources import evaluate_profile, evaluate_stamp
from lensaudit.lensing.quadrature import CELL, NODES, SMOOTH, WEIGHTS, tabulate_splines

SPLINES = tabulate_splines()


@compile_scalar
def bound_stretch(x, y, p, cos, sin, shear):
    """Return a bound on how much longer a short step at (x, y) becomes in the source plane."""
    u, v = x * cos + y * sin, y * cos - x * sin
    radius = max(math.sqrt(p[1] * u * u + v * v / p[1]), 0.03)
    power = (p[0] / radius) ** (p[5] - 1.0) if p[5] != 2.0 else p[0] / radius
    out = max(1.0, abs(1.0 - power)) + abs(p[5] - 2.0) * power + shear
    if p[6] != 0.0 or p[8] != 0.0:
        out += (8.0 * abs(p[6]) + 15.0 * abs(p[8])) / radius
    if p[10] > 0.0:
        out += p[10] / max(math.hypot(x - p[11], y - p[12]), 0.05)
    return out


@compile_scalar
def measure_panel(bx, by, side, c, panel_width):
    """Return the width of a panel over the widest a component allows there, -1 where it is negligible.

    (bx, by) is the panel's centre and `side` its width in the source plane; c a row of `sample.pack_batch`.
    """
    dx, dy = bx - c[0], by - c[1]
    rho = math.sqrt(max((c[2] * dx + 2.0 * c[3] * dy) * dx + c[4] * dy * dy, 0.0))
    step = side / c[12]
    if c[15] >= 0.0:  # an image: its pixels are the scale
        return side * math.hypot(c[16], c[17]) / panel_width if rho * c[12] - 0.75 * side < c[14] else -1.0
    distance = max(rho - 0.75 * step, 0.0)
    if distance > c[11]:
        return -1.0
    near = max(distance, c[13])
    if c[6] == 1.0:
        fall, scale = c[5] * near, 1.0 / c[5]
    elif c[6] > SMOOTH:
        fall, scale = c[5] * near ** c[6], 0.6
    else:
        fall = c[5] * near ** c[6]
        scale = near / (c[6] * fall)
    wanted = step / (panel_width * scale * math.exp(0.25 * fall))
    return 2.0 * wanted if c[6] <= SMOOTH and distance < 0.3 else wanted


@compile_scalar
def sample_stamp(p, components, planes, inner, coefficients, size, depth, panel_width, out):
    """Add the light of one stamp to its maps; arguments as `sample_stamps`, one stamp's rows."""
    lens = prepare_lens(p)
    n_components, grid, half = len(components), out.shape[1], size - 0.5
    cos, sin, shear = math.cos(p[2]), math.sin(p[2]), math.hypot(p[3], p[4])
    stack_x, stack_y = np.empty(4 * depth + 8), np.empty(4 * depth + 8)
    stack_level, stack_mask = np.empty(4 * depth + 8, dtype=np.int64), np.empty(4 * depth + 8, dtype=np.int64)
    local, light = np.empty((2, 5, 5)), np.empty((2, 3, 3))
    line = np.empty(5)
    farthest = 0.0
    for k in range(n_components):
        farthest = max(farthest, math.hypot(components[k, 0], components[k, 1]) + components[k, 14])
    edge = 1e9  # no image lies farther out
    if p[5] == 2.0:
        edge = (farthest + 1.7 * p[0] * (1.0 + 10.0 * (abs(p[6]) + abs(p[8]))) + p[10]) / (1.0 - shear) + 2.0 * CELL
    first = max(0, int(math.floor(half - edge / CELL)) // 2)
    last = min(size - 1, int(math.ceil(half + edge / CELL)) // 2)
    for pixel in range((last - first + 1) ** 2):
        i_pixel, j_pixel = first + pixel // (last - first + 1), first + pixel % (last - first + 1)
        x, y = (2 * j_pixel + 0.5 - half) * CELL, (2 * i_pixel + 0.5 - half) * CELL
        if x * x + y * y > edge * edge:
            continue
        ax, ay = deflect_prepared(x, y, lens)
        reach = 1.5 * CELL * bound_stretch(x, y, p, cos, sin, shear)
        near = 0
        for k in range(n_components):
            # At the singular centre neighbouring rays part; its pixel is always looked into.
            distance = math.hypot(x - ax - components[k, 0], y - ay - components[k, 1]) - reach
            if distance < components[k, 14] or x * x + y * y < 9.0 * CELL * CELL:
                near |= 1 << k
        if near == 0:
            continue
        for quadrant in range(4):
            i, j = 2 * i_pixel + quadrant // 2, 2 * j_pixel + quadrant % 2
            x_cell, y_cell = (j - half) * CELL, (i - half) * CELL
            stack_x[0], stack_y[0], stack_level[0], stack_mask[0] = 0.0, 0.0, 0, near
            height, touched = 1, 0
            while height > 0:
                height -= 1
                u, v, level, inherited = stack_x[height], stack_y[height], stack_level[height], stack_mask[height]
                width = 0.5**level  # of the panel, in cells
                x, y = x_cell + u * CELL, y_cell + v * CELL
                ax, ay = deflect_prepared(x, y, lens)
                side = width * CELL * bound_stretch(x, y, p, cos, sin, shear)
                mask, most = 0, 0.0
                for k in range(n_components):
                    if inherited >> k & 1:
                        wanted = measure_panel(x - ax, y - ay, side, components[k], panel_width)
                        if wanted >= 0.0:
                            mask |= 1 << k
                            most = max(most, wanted)
                if mask == 0:
                    continue
                central = level < 2 and x * x + y * y < 4.0 * CELL * CELL  # about the lens's singular centre
                if (most > 1.0 or central) and level < depth:
                    for child in range(4):
                        stack_x[height] = u + (child % 2 - 0.5) * 0.5 * width
                        stack_y[height] = v + (child // 2 - 0.5) * 0.5 * width
                        stack_level[height], stack_mask[height] = level + 1, mask
                        height += 1
                    continue
                if touched == 0:
                    local[:] = 0.0
                order = 0 if most < 0.5 else 1
                n_nodes, share, present = order + 2, width * width, 0
                for a in range(n_nodes):
                    y = y_cell + (v + NODES[order, a] * width) * CELL
                    for b in range(n_nodes):
                        x = x_cell + (u + NODES[order, b] * width) * CELL
                        ax, ay = deflect_prepared(x, y, lens)
                        light[0, a, b], light[1, a, b] = 0.0, 0.0
                        if not inner:
                            along, across = x * cos + y * sin, y * cos - x * sin
                            if p[1] * along * along + across * across / p[1] < p[0] * p[0]:
                                continue
                        for k in range(n_components):
                            if mask >> k & 1:
                                c = components[k]
                                dx, dy = x - ax - c[0], y - ay - c[1]
                                if c[15] >= 0.0:
                                    value = evaluate_stamp(dx, dy, c[7], c[15:20], coefficients)
                                else:
                                    value = evaluate_profile(dx, dy, c)
                                light[planes[k], a, b] += value * share * WEIGHTS[order, a] * WEIGHTS[order, b]
                                present |= 1 << planes[k]
                touched |= present
                panels = 2**level  # of this width along the cell's axes
                first_row, first_column = panels - 1 + int((v + 0.5) * panels), panels - 1 + int((u + 0.5) * panels)
                for plane in range(2):
                    if present >> plane & 1:
                        for a in range(n_nodes):
                            for b in range(5):
                                total = 0.0
                                for m in range(n_nodes):
                                    total += light[plane, a, m] * SPLINES[first_column, order, m, b]
                                line[b] = total
                            for m in range(5):
                                weight = SPLINES[first_row, order, a, m]
                                for b in range(5):
                                    local[plane, m, b] += weight * line[b]
            if 2 <= i < grid - 2 and 2 <= j < grid - 2:
                for plane in range(out.shape[0]):
                    if touched >> plane & 1:
                        for a in range(5):
                            for b in range(5):
                                out[plane, i + a - 2, j + b - 2] += local[plane, a, b]
                continue
            for plane in range(out.shape[0]):
                if touched >> plane & 1:
                    for a in range(5):
                        for b in range(5):
                            out[plane, (i + a - 2) % grid, (j + b - 2) % grid] += local[plane, a, b]


@compile_scalar
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
    scratch = np.zeros((2, out.shape[1], out.shape[2]))
    for k in range(len(lenses)):
        rows = slice(start[k], start[k + 1])
        n_planes = 2 if second[k] >= 0 else 1
        scratch[:n_planes] = 0.0
        sample_stamp(lenses[k], components[rows], planes[rows], inner[k], coefficients, size, depth, panel_width,
                     scratch[:n_planes])  # fmt: skip
        out[k] = scratch[0]
        if n_planes == 2:
            out[second[k]] = scratch[1]
