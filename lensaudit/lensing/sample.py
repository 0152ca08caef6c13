"""Sampling lensed surface brightness where the source is: panels as small as it asks, gridded so that nothing is lost.

Half-pixel cells in which the source is not negligible are divided until its brightness varies little across a panel,
and each panel is integrated with two or three Gauss-Legendre nodes per axis. The nodes' light is spread onto a map of
two samples per pixel with cubic B-splines, whose transfer function is divided out after the Fourier transform. So light
keeps its place inside a cell, which plain sampling at any fixed number of samples per pixel loses.
"""

import numpy as np
import torch

from lensaudit.lensing.compiled_sources import pack_components, pack_placements
from lensaudit.lensing.mass import DEFAULTS, PACK, pack_lens, shoot_rays
from lensaudit.lensing.quadrature import CELL, DEPTH, NODES, SMOOTH, WEIGHTS
from lensaudit.lensing.sources import FIELDS, IMAGE_FIELDS, evaluate_image, evaluate_sersic

try:
    from lensaudit.lensing import compiled_sample
except ImportError:  # numba is optional: the same nodes are then evaluated by torch
    compiled_sample = None

PANELS = 2**18  # looked at together where torch does the work
PANEL_WIDTH = 2.5  # panel width in units of the brightness's scale length where the source is brightest


def sample_maps(lens, components, size, period, panel_width=PANEL_WIDTH, dtype=torch.float32, device="cpu",
                inner=None, bank=None):  # fmt: skip
    """Sample the lensed surface brightness of a batch.

    Parameters
    ----------
    lens : dict of ndarray or Tensor of shape (N,)
        See `mass.PACK`.
    components : dict of Tensor of shape (M,)
        From `sources.make_components`: plane n < N holds the first colour group of stamp n, later planes the second
        group of one stamp each.
    size : int
        Pixels of the stamp along an axis, odd.
    period : int
        Pixels of the periodic map along an axis, more than `size`.
    panel_width : float
        Panels are this many scale lengths wide where the source is brightest; smaller is finer.
    dtype, device
        Of the result. With numba and on the CPU the work is done in double precision by one thread.
    inner : ndarray of bool, shape (N,), optional
        Where False, nothing is added inside the ellipse that is the critical curve without shear: the inner images
        are suppressed. All True by default.
    bank : sources.ImageBank, optional
        Needed when components are images.

    Returns
    -------
    Tensor of shape (planes, 2 period, 2 period)
        Spread light [flux / arcsec^2]; sample (i, j) stands at pixel (i / 2 - 1/4, j / 2 - 1/4), wrapped around.

    Notes
    -----
    With L = n r^(1 - 1/n) R^(1/n) / b the scale length of a Sersic profile at r, panels are at most
    panel_width L exp(b (r/R)^(1/n) / 4) wide in the source plane (the error of a panel is of high order in its width
    over L and weighs as the brightness), half as wide where they may hold the cusp
    of n > 2/3, and panel_width pixels
    for images. The width in the source plane follows from a bound on the stretch of the lens mapping. Panels of less
    than half the allowed width take two nodes.
    """
    packed, fields, start, order = pack_batch(lens, components)
    n_stamps = len(packed)
    n_planes = max(int(components["plane"].max()) + 1, n_stamps) if len(components["plane"]) else n_stamps
    plane = components["plane"].cpu().numpy()[order]
    stamp = components["stamp"].cpu().numpy()[order]
    second = np.full(n_stamps, -1)
    second[stamp[plane >= n_stamps]] = plane[plane >= n_stamps]
    group = (plane >= n_stamps).astype(np.int64)
    inner = np.ones(n_stamps, dtype=bool) if inner is None else np.asarray(inner, dtype=bool)
    coefficients = np.zeros((1, 1, 1), dtype=np.float32) if bank is None else bank.coefficients
    if compiled_sample is not None and torch.device(device).type == "cpu":
        kind = np.float32 if dtype == torch.float32 else np.float64
        out = np.zeros((n_planes, 2 * period, 2 * period), dtype=kind)
        compiled_sample.sample_stamps(packed, fields, start, group, second, inner, coefficients, size, DEPTH,
                                      float(panel_width), out)  # fmt: skip
        return torch.from_numpy(out)
    out = torch.zeros((n_planes, 2 * period, 2 * period), dtype=dtype, device=device)
    return _sample_with_torch(packed, fields, start, group, second, inner, coefficients, out, size, panel_width)


def pack_batch(lens, components):
    """Return packed lenses, component rows ordered by stamp, the first row of each stamp, and that order.

    A row holds `sources.FIELDS`, the extent [half-light radii], the half-light radius of the minor axis [arcsec], the
    least distance that counts near a cusp [half-light radii], the extent [arcsec] and `sources.IMAGE_FIELDS`.
    """
    packed = pack_lens(lens)
    order = np.argsort(components["stamp"].cpu().numpy(), kind="stable")
    rows = pack_components(components)[order]
    middle, split = 0.5 * (rows[:, 2] + rows[:, 4]), np.hypot(0.5 * (rows[:, 2] - rows[:, 4]), rows[:, 3])
    major, minor = 1.0 / np.sqrt(middle - split), 1.0 / np.sqrt(middle + split)
    extent = components["extent"].cpu().numpy().astype(np.float64)[order]
    nearest = np.clip(0.05 * rows[:, 6] ** 2, 1e-3, 0.05)  # half-light radii; closer to a cusp panels shrink no more
    start = np.searchsorted(components["stamp"].cpu().numpy()[order], np.arange(len(packed) + 1))
    images = pack_placements(components)[order]
    return packed, np.column_stack([rows, extent / major, minor, nearest, extent, images]), start, order


def _bound_stretch(x, y, p):
    # As compiled.bound_stretches, which says what for.
    cos, sin = torch.cos(p[2]), torch.sin(p[2])
    u, v = x * cos + y * sin, y * cos - x * sin
    radius = torch.sqrt(p[1] * u * u + v * v / p[1]).clamp_min(0.03)
    power = (p[0] / radius) ** (p[5] - 1.0)
    out = (1.0 - power).abs().clamp_min(1.0) + (p[5] - 2.0).abs() * power + torch.sqrt(p[3] ** 2 + p[4] ** 2)
    out = out + (8.0 * p[6].abs() + 15.0 * p[8].abs()) / radius
    return out + p[10] / torch.hypot(x - p[11], y - p[12]).clamp_min(0.05)


def _measure_panels(bx, by, side, c, panel_width):
    # As compiled_sample.judge_component, whose logarithm it is the exponential of.
    dx, dy = bx - c[0], by - c[1]
    rho = torch.sqrt(((c[2] * dx + 2.0 * c[3] * dy) * dx + c[4] * dy * dy).clamp_min(0.0))
    step = side / c[12]
    distance = (rho - 0.75 * step).clamp_min(0.0)
    near = torch.maximum(distance, c[13])
    fall = c[5] * near ** c[6]
    scale = torch.where(c[6] > SMOOTH, torch.full_like(fall, 0.6), near / (c[6] * fall))
    wanted = step / (panel_width * scale * torch.exp(0.25 * fall))
    wanted = torch.where((c[6] <= SMOOTH) & (distance < 0.3), 2.0 * wanted, wanted)
    image = c[15] >= 0
    wanted = torch.where(image, side * torch.hypot(c[16], c[17]) / panel_width, wanted)
    beyond = torch.where(image, rho * c[12] - 0.75 * side >= c[14], distance > c[11])
    return torch.where(beyond, torch.full_like(wanted, -1.0), wanted)


def _sample_with_torch(packed, fields, start, group, second, inner, coefficients, out, size, panel_width):
    # The same panels level by level: those too wide are divided into four and looked at again.
    dtype, device = out.dtype, out.device
    p, c = (torch.as_tensor(v, device=device, dtype=dtype) for v in (packed, fields))
    batch = tuple(torch.as_tensor(v, device=device) for v in (start, group, second, inner, coefficients))
    slots = torch.arange(int(np.diff(start).max()), device=device)
    groups = (("slope",), ("a3", "phi3"), ("a4", "phi4"), PACK[10:])
    used = [group for group in groups if (packed[:, PACK.index(group[0])] != DEFAULTS[group[0]]).any()]
    names = [*PACK[:5], *(name for group in used for name in group)]
    stamp, i, j = _list_cells(p, names, c, batch[0], slots, size)
    u = v = torch.zeros(len(stamp), device=device, dtype=dtype)
    for level in range(DEPTH + 1):
        kept = []
        if not len(stamp):
            break
        for part in torch.split(torch.arange(len(stamp), device=device), PANELS):
            kept.append(_place_panels(p, names, c, batch, slots, out, size, panel_width, level,
                                      (stamp[part], i[part], j[part], u[part], v[part])))  # fmt: skip
        stamp, i, j, u, v = (torch.cat(values) for values in zip(*kept, strict=True))
    return out


def _list_cells(p, names, c, start, slots, size):
    """Return stamp, row and column of the cells of all pixels that may see a component, as the compiled sampler."""
    pixels = (torch.arange(size, device=p.device, dtype=p.dtype) - 0.5 * (size - 1)) * (2.0 * CELL)
    row = (start[:-1, None] + slots).clamp_max(len(c) - 1)
    farthest = torch.hypot(c[row, 0], c[row, 1]) + c[row, 14]
    farthest = torch.where(start[:-1, None] + slots < start[1:, None], farthest, 0.0).amax(1)
    edge = farthest + 1.7 * p[:, 0] * (1.0 + 10.0 * (p[:, 6].abs() + p[:, 8].abs())) + p[:, 10]
    edge = edge / (1.0 - torch.hypot(p[:, 3], p[:, 4])) + 2.0 * CELL
    edge = torch.where(p[:, 5] == 2.0, edge, torch.full_like(edge, 1e9))
    radius2 = pixels[:, None] ** 2 + pixels[None, :] ** 2
    stamp, i, j = (radius2 <= edge[:, None, None] ** 2).nonzero(as_tuple=True)
    kept = []
    for part in torch.split(torch.arange(len(stamp), device=p.device), PANELS):
        owner, x, y = stamp[part], pixels[j[part]], pixels[i[part]]
        bx, by = shoot_rays(x, y, {k: p[owner, PACK.index(k)] for k in names})
        reach = 1.5 * CELL * _bound_stretch(x, y, p[owner].T)
        row = (start[owner][:, None] + slots).clamp_max(len(c) - 1)
        own = start[owner][:, None] + slots < start[owner + 1][:, None]
        distance = torch.hypot(bx[:, None] - c[row, 0], by[:, None] - c[row, 1]) - reach[:, None]
        seen = (own & (distance < c[row, 14])).any(1) | (x * x + y * y < 9.0 * CELL * CELL)
        kept.append(part[seen])
    kept = torch.cat(kept).repeat_interleave(4)
    quarter = torch.arange(4, device=p.device).repeat(len(kept) // 4)
    return stamp[kept], 2 * i[kept] + torch.div(quarter, 2, rounding_mode="floor"), 2 * j[kept] + quarter % 2


def _place_panels(p, names, c, batch, slots, out, size, panel_width, level, panels):
    """Add the light of panels that are fine enough to `out`, return the quarters of the others."""
    (stamp, i, j, u, v), width = panels, 0.5**level
    start, group, second, inner, coefficients = batch
    x, y = (j - (size - 0.5) + u) * CELL, (i - (size - 0.5) + v) * CELL
    lens = {k: p[stamp, PACK.index(k)] for k in names}
    bx, by = shoot_rays(x, y, lens)
    side = width * CELL * _bound_stretch(x, y, p[stamp].T)
    row = (start[stamp][:, None] + slots).clamp_max(len(c) - 1)
    own = start[stamp][:, None] + slots < start[stamp + 1][:, None]
    wanted = _measure_panels(bx[:, None], by[:, None], side[:, None], c[row].permute(2, 0, 1), panel_width)
    wanted = torch.where(own, wanted, -1.0)
    most = wanted.amax(1)
    central = (x * x + y * y < 4.0 * CELL * CELL) & (level < 2)
    divide = ((most > 1.0) | central) & (most >= 0.0) & (level < DEPTH)
    for order in (0, 1):
        chosen = ((most >= 0.0) & ~divide & ((most < 0.5) == (order == 0))).nonzero().flatten()
        if not len(chosen):
            continue
        t = torch.as_tensor(NODES[order][: order + 2], device=x.device, dtype=x.dtype) * width
        weight = torch.as_tensor(WEIGHTS[order][: order + 2], device=x.device, dtype=x.dtype) * width
        tx, ty = u[chosen, None] + t, v[chosen, None] + t
        local = {k: value[chosen, None, None] for k, value in lens.items()}
        rx, ry = x[chosen, None, None] + (t * CELL)[None, None, :], y[chosen, None, None] + (t * CELL)[None, :, None]
        sx, sy = shoot_rays(rx, ry, local)
        light = torch.zeros((2, *sx.shape), dtype=x.dtype, device=x.device)
        for slot in range(len(slots)):
            use = (wanted[chosen, slot] >= 0.0).nonzero().flatten()
            if len(use):
                k = row[chosen[use], slot]
                part = {name: c[k, m][:, None, None] for m, name in enumerate(FIELDS)}
                value = evaluate_sersic(sx[use], sy[use], part)
                image = (c[k, 15] >= 0).nonzero().flatten()
                if len(image):
                    part = {name: value[image] for name, value in part.items()}
                    part |= {name: c[k[image], 15 + m][:, None, None] for m, name in enumerate(IMAGE_FIELDS)}
                    part["image"] = part["image"].long()
                    value[image] = evaluate_image(sx[use[image]], sy[use[image]], part, coefficients)
                light.index_put_((group[k], use), value, accumulate=True)
        if not bool(inner.all()):
            cos, sin = torch.cos(local["phi"]), torch.sin(local["phi"])
            along, across = rx * cos + ry * sin, ry * cos - rx * sin
            inside = local["q"] * along**2 + across**2 / local["q"] < local["theta_E"] ** 2
            light = torch.where(inside & ~inner[stamp[chosen]][:, None, None], torch.zeros_like(light), light)
        rows, columns = _spline_weights(ty), _spline_weights(tx)
        light = torch.einsum("gnyx,y,x,nys,nxt->gnst", light, weight, weight, rows, columns)
        steps = torch.arange(-2, 3, device=x.device)
        across = ((j[chosen, None] + steps) % out.shape[-1])[:, None, :]
        down = ((i[chosen, None] + steps) % out.shape[-1])[:, :, None]
        out.index_put_((stamp[chosen][:, None, None], down, across), light[0], accumulate=True)
        two = (second[stamp[chosen]] >= 0).nonzero().flatten()
        out.index_put_((second[stamp[chosen[two]]][:, None, None], down[two], across[two]), light[1, two],
                       accumulate=True)  # fmt: skip
    stamp, i, j, u, v = (value[divide].repeat_interleave(4) for value in panels)
    quarter = torch.arange(4, device=x.device).repeat(int(divide.sum()))
    return (stamp, i, j, u + (quarter % 2 - 0.5) * 0.5 * width,
            v + (torch.div(quarter, 2, rounding_mode="floor") - 0.5) * 0.5 * width)  # fmt: skip


def _spline_weights(t):
    # As compiled_leaves.weigh_splines, shape (..., 5).
    distance = (t[..., None] - torch.arange(-2, 3, device=t.device)).abs()
    inner = 2.0 / 3.0 - distance**2 * (1.0 - 0.5 * distance)
    return torch.where(distance < 1.0, inner, (2.0 - distance).clamp_min(0.0) ** 3 / 6.0)
