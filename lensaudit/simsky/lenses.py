"""Gravitational lenses of the simulated sky: parents, their discovery, and their arcs rendered by lenstronomy.

Parents come from the velocity-dispersion function and a source population; each enters a catalogue by chance, with a
probability per channel that is logistic in the arcs' S/N and in theta_E over seeing. Arcs are EPL + shear with
structured sources given to lenstronomy as images.
"""

import functools

import numpy as np
import pandas as pd
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.LightModel.light_model import LightModel
from scipy import ndimage

from lensaudit.rng import make_stream
from lensaudit.simsky import physics, scene
from lensaudit.simsky.population import draw_early_types, load_population, make_early_grid

CHANNELS = ("imaging", "citizen", "spectroscopic")
KNOT_SHARE = {"g": 0.6, "r": 0.5, "z": 0.4}  # share of a source's light in its clumpy, bluer component
SOURCE_PIXELS, SOURCE_REACH = 65, 3.5  # the source image and its half-width in half-light radii
ROUND = 60  # parents sent to one position at a time
_LENS = LensModel(["EPL", "SHEAR"])


@functools.cache
def make_library(seed, n=4000000):
    """Draw the library of lens-source pairs from which parents are taken.

    It is large, so that hardly any pair is taken twice: a lens of the test sample must not share its deflector and its
    source with one of the training sample.

    Returns
    -------
    columns : dict of ndarray
        Deflector columns of `draw_early_types` (z mag < 20) and the source's z_source, mag_source_*, source_R [arcsec,
        intermediate axis], source_q, theta_E > 0.5 arcsec.
    cumulative : ndarray
        Cumulative cross-section, proportional to theta_E^2.
    density : float
        Parents per square degree with an impact parameter below 0.9 theta_E, whatever their magnification.
    """
    p = load_population()["lenses"]
    rng = make_stream(seed, "simsky/library")
    deflectors = draw_early_types(rng, n, 20.0)
    table = pd.concat([deflectors, draw_sources(rng, len(deflectors))], axis=1)
    table["theta_E"] = physics.einstein_radius(table["sigma_v"], table["z_true"], table["z_source"])
    area = np.pi * (p["impact_max"] * table["theta_E"]) ** 2 * (table["theta_E"] > p["theta_E_min"])
    per_draw = make_early_grid(20.0).density / n
    density = float(area.sum()) * per_draw * load_population()["sources"]["density"]
    keep = area > 0
    columns = {name: table[name].to_numpy()[keep] for name in table}
    return columns, np.cumsum(area[keep].to_numpy()), density


def draw_sources(rng, n):
    """Draw `n` unlensed sources: z_source, mag_source_{g,r,z} (before extinction), source_R [arcsec], source_q."""
    p = load_population()["sources"]
    slope = p["count_slope"] * np.log(10)
    span = 1.0 - np.exp(-slope * (p["mag_max"] - p["mag_min"]))
    mag = p["mag_max"] + np.log1p(-span * rng.random(n)) / slope
    scale = np.maximum(p["z0"][0] + p["z0"][1] * (mag - 22.0), 0.3)
    z = np.clip(scale * rng.gamma(3.0 / 1.5, 1.0, n) ** (1.0 / 1.5), 0.05, p["z_max"])
    mv = mag - physics.distance_modulus(z) + 2.5 * np.log10(1.0 + z)  # a flat spectrum in f_nu
    size = (
        -(mv + 18.0) / 4.0 - 1.2 * np.log10((1.0 + z) / 1.6) + p["size_shift"] + p["size_scatter"] * rng.normal(size=n)
    )
    radius = 10.0**size / (physics.angular_distance(z) * 1000.0) * 206264.8
    blue = rng.random(n) < p["blue_fraction"]
    gr = np.where(blue, rng.normal(*p["gr_blue"], n), rng.normal(*p["gr_red"], n)) + p["colour_shift"]
    rz = rng.normal(*p["rz"], n) + 0.4 * (gr - p["colour_shift"]) + p["colour_shift"]
    q = np.clip(1.0 - rng.rayleigh(p["axis_ratio"], n), 0.2, 1.0)
    return pd.DataFrame(
        {
            "z_source": z,
            "mag_source_g": mag + gr,
            "mag_source_r": mag,
            "mag_source_z": mag - rz,
            "source_R": np.clip(radius, 0.01, 1.5),
            "source_q": q,
        }
    )


def draw_parents(rng, seed, n):
    """Draw `n` parents (theta_E > 0.5 arcsec) with mass, light angles and source position; a dict of arrays."""
    p = load_population()["lenses"]
    columns, cumulative, _ = make_library(seed)
    chosen = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
    rows = {name: values[chosen] for name, values in columns.items()}
    impact = p["impact_max"] * rows["theta_E"] * np.sqrt(rng.random(n))
    angle = rng.uniform(0, 2 * np.pi, n)
    rows["source_x"], rows["source_y"] = impact * np.cos(angle), impact * np.sin(angle)
    rows["source_phi"], rows["source_n"] = rng.uniform(0, np.pi, n), np.ones(n)
    rows["light_q"], rows["light_R"] = rows["q"], rows["R"]
    rows["q"] = np.clip(rows["q"] + p["flattening_scatter"] * rng.normal(size=n), 0.3, 0.99)
    rows["phi"] = rows["pa"] + np.radians(p["misalignment"]) * rng.normal(size=n)
    rows["gamma1"], rows["gamma2"] = p["shear"] * rng.normal(size=(2, n))
    rows["slope"] = np.clip(rng.normal(*p["slope"], n), 1.6, 2.6)
    rows["source_key"] = rng.integers(0, 2**62, n)
    return rows


def take_row(rows, k):
    """Row `k` of a dict of arrays, as a dict of Python scalars."""
    return {name: values[k].item() if hasattr(values[k], "item") else values[k] for name, values in rows.items()}


def bound_snr(rows, sky):
    """Upper bound on the S/N of the arcs of many parents, from surface brightness and size.

    Notes
    -----
    No pixel outshines the source's peak I_0, so sum f^2 <= I_0 a mu F with pixel area a; a point source of that flux
    gives the other bound. mu is taken as 3.5 theta_E/R + 2 and 10 theta_E/max(beta, R), whichever is less, at most 60.
    The largest S/N among 3,000 parents is 0.54 of the bound so made, hence the factor 0.75; a test checks the bound.
    """
    flux = physics.to_flux(rows["mag_source_r"]) * sky["mw_r"]
    impact = np.hypot(rows["source_x"], rows["source_y"])
    mu = np.minimum(3.5 * rows["theta_E"] / rows["source_R"] + 2.0, 60.0)
    mu = np.minimum(mu, 10.0 * rows["theta_E"] / np.maximum(impact, rows["source_R"]))
    peak = flux * 1.67834699**2 / (2.0 * np.pi * rows["source_R"] ** 2) * physics.PIXEL**2
    limit = np.minimum(mu * flux * np.sqrt(sky["psfdepth_r"]), np.sqrt(peak * mu * flux) / sky["sigma_pix_r"])
    return 0.75 * limit


def lens_arguments(row):
    """Keyword arguments of lenstronomy's EPL + SHEAR for a parent (a mapping)."""
    e = (1.0 - row["q"]) / (1.0 + row["q"])
    mass = {
        "theta_E": row["theta_E"],
        "gamma": row["slope"],
        "e1": e * np.cos(2 * row["phi"]),
        "e2": e * np.sin(2 * row["phi"]),
        "center_x": 0.0,
        "center_y": 0.0,
    }
    return [mass, {"gamma1": row["gamma1"], "gamma2": row["gamma2"], "ra_0": 0.0, "dec_0": 0.0}]


def shoot_rays(row, x, y):
    """Source-plane positions of image-plane positions [arcsec] by lenstronomy, which warns at a lens's centre."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _LENS.ray_shooting(x, y, lens_arguments(row))


def estimate_arcs(row, sky):
    """Estimate magnification and ideal-observer S/N in r on a coarse grid, with a smooth source.

    Parameters
    ----------
    row : mapping
        A parent.
    sky : mapping
        Conditions: psfsize_r [arcsec], sigma_pix_r [nMgy], mw_r.

    Returns
    -------
    mu, snr : float
    """
    reach = row["theta_E"] * 1.9 + 2.0 * row["source_R"] + 0.3
    step = 2 * reach / 26
    axis = (np.arange(26) - 12.5) * step
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    bx, by = shoot_rays(row, x, y)
    bx, by = bx - row["source_x"], by - row["source_y"]
    c, s = np.cos(row["source_phi"]), np.sin(row["source_phi"])
    u, v, q = c * bx + s * by, c * by - s * bx, row["source_q"]
    scale2 = (row["source_R"] ** 2 + (0.4 * step) ** 2) / 1.67834699**2
    light = np.exp(-np.sqrt((q * u**2 + v**2 / q) / scale2)) / (2 * np.pi * scale2)
    mu = float(light.sum() * step**2)
    width = sky["psfsize_r"] / 2.3548 / step
    blurred = ndimage.gaussian_filter(np.pad(light.reshape(26, 26), 10), width, truncate=3.0)
    flux = physics.to_flux(row["mag_source_r"]) * sky["mw_r"]
    return mu, float(flux * np.sqrt(np.sum(blurred**2)) * step * physics.PIXEL / sky["sigma_pix_r"])


def discovery_probability(channel, theta_E, snr, fwhm):
    """Probability that a channel finds a lens: logistic in ln(S/N) and in theta_E over the true seeing FWHM (r)."""
    p = load_population()["lenses"][channel]

    def logistic(x):
        return 1.0 / (1.0 + np.exp(-np.clip(x, -500, 500)))

    by_snr = logistic((np.log(np.maximum(snr, 1e-9)) - np.log(p["snr"][0])) / p["snr"][1])
    return p["amplitude"] * by_snr * logistic((np.asarray(theta_E) / fwhm - p["ratio"][0]) / p["ratio"][1])


def count_images(row):
    """Number of images of the source's centre, by lenstronomy's solver for EPL + shear."""
    solver = LensEquationSolver(_LENS)
    position = (row["source_x"], row["source_y"])
    with np.errstate(invalid="ignore", divide="ignore"):
        x, _ = solver.image_position_from_source(*position, lens_arguments(row), solver="analytical")
    return len(x)


def search_position(task):
    """Send parents at one sky position until one is catalogued; a pure function of (seed, position).

    Parameters
    ----------
    task : tuple
        seed, position id, conditions (mapping with fwhm_r, psfsize_r, sigma_pix_r, psfdepth_r, mw_r), number of the
        round; each round tries ROUND parents.

    Returns
    -------
    dict
        position, and for the first lens found by imaging or citizens ``found`` (parent as a dict, or None) with
        ``tries``; for the first found by spectroscopy alone ``found_spectroscopic``; n_rendered.

    Notes
    -----
    Thinning is exact: a channel's uniform is drawn first, and a parent whose upper bound on the probability (its
    theta_E and `bound_snr`) lies below it cannot be found and is not rendered.
    """
    seed, position, sky, number = task
    rng = make_stream(seed, f"simsky/parents/{number}", int(position))
    out = {"position": position, "found": None, "tries": ROUND, "found_spectroscopic": None, "n_rendered": 0}
    p = load_population()["lenses"]
    parents, draws = draw_parents(rng, seed, ROUND), rng.random((ROUND, len(CHANNELS)))
    limit = bound_snr(parents, sky)
    bound = np.stack([discovery_probability(c, parents["theta_E"], limit, sky["fwhm_r"]) for c in CHANNELS], axis=1)
    for k in np.flatnonzero((draws < bound).any(axis=1)):
        row = take_row(parents, k)
        mu, snr = estimate_arcs(row, sky)
        out["n_rendered"] += 1
        chance = [float(discovery_probability(c, row["theta_E"], snr, sky["fwhm_r"])) for c in CHANNELS]
        hits = [c for c, u, x in zip(CHANNELS, draws[k], chance, strict=True) if u < x]
        if not hits or mu < p["mu_min"] or (n_images := count_images(row)) < 2:
            continue
        row |= {
            "snr_discovery": snr,
            "mu": mu,
            "n_images": n_images,
            "channel": "+".join(hits),
            "discovery_probability": float(1.0 - np.prod(1.0 - np.array(chance))),
        }
        if hits == ["spectroscopic"]:
            out["found_spectroscopic"] = out["found_spectroscopic"] or row
            continue
        return out | {"found": row, "tries": int(k) + 1}
    return out


def measure_fraction(seed, n=600):
    """Fraction of parents magnified more than mu_min, from `n` of them on a stream of their own."""
    p, rows = load_population()["lenses"], draw_parents(make_stream(seed, "simsky/fraction"), seed, n)
    sky = {"psfsize_r": 1.2, "sigma_pix_r": 1.0, "mw_r": 1.0}
    return float(np.mean([estimate_arcs(r, sky)[0] > p["mu_min"] for r in (take_row(rows, k) for k in range(n))]))


def make_source(key, radius, q, phi):
    """Surface brightness of a source of unit flux: a smooth disc and its clumpy, spiral counterpart.

    Parameters
    ----------
    key : int
        Of the source; the structure depends on nothing else.
    radius : float
        Half-light radius of the smooth disc on the intermediate axis, arcsec.
    q, phi : float
        Axis ratio; angle of the major axis, radians.

    Returns
    -------
    smooth, clumpy : ndarray of shape (65, 65)
        Flux per square arcsec; each sums to 1 times its pixel area.
    scale : float
        arcsec per pixel.
    """
    rng = make_stream(0, "simsky/source", int(key))
    half = SOURCE_REACH * radius / np.sqrt(q)
    scale = 2 * half / (SOURCE_PIXELS - 1)
    axis = np.linspace(-half, half, SOURCE_PIXELS) / radius
    x, y = axis[None, :], axis[:, None]
    c, s = np.cos(phi), np.sin(phi)
    u, v = np.sqrt(q) * (c * x + s * y), (c * y - s * x) / np.sqrt(q)
    r = np.hypot(u, v)
    smooth = np.exp(-1.67834699 * r) * (r < SOURCE_REACH)
    f = np.fft.fftfreq(SOURCE_PIXELS)[:, None] ** 2 + np.fft.rfftfreq(SOURCE_PIXELS)[None, :] ** 2
    band = np.exp(-((np.sqrt(f) - rng.uniform(0.03, 0.08)) ** 2) / (2 * 0.03**2))  # knots of 0.3-1 half-light radii
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(smooth.shape)) * band, s=smooth.shape)
    strength = rng.uniform(0.5, 1.6)
    structure = np.exp(strength * field / field.std())
    if rng.random() < 0.4:  # two arms
        winding = np.log(np.maximum(r, 0.05)) / np.tan(rng.uniform(0.25, 0.5))
        structure *= 1.0 + 0.9 * np.cos(2.0 * (np.arctan2(v, u) - winding) + rng.uniform(0, 2 * np.pi))
    clumpy = smooth * structure
    return smooth / (smooth.sum() * scale**2), clumpy / (clumpy.sum() * scale**2), scale


def trace_pixels(row, scale, shape, x, y, image):
    """Surface brightness of a lensed source image at image-plane positions, by lenstronomy.

    Notes
    -----
    INTERPOL takes flux per square arcsec and keeps its first image for life: each call makes a model of its own.
    """
    bx, by = shoot_rays(row, x, y)
    out = []
    for one in image:
        model = LightModel(["INTERPOL"])
        keywords = {
            "image": one,
            "amp": 1.0,
            "center_x": row["source_x"],
            "center_y": row["source_y"],
            "phi_G": 0.0,
            "scale": scale,
        }
        out.append(model.surface_brightness(bx, by, [keywords]).reshape(shape))
    return out


def draw_arcs(row, size, x0, y0):
    """Fourier images of the lensed smooth and clumpy components of a unit-flux source.

    Parameters
    ----------
    row : mapping
        Truth of the lens.
    size : int
        Grid of `scene`.
    x0, y0 : float
        Lens centre in pixels of the stamp.

    Returns
    -------
    transforms : ndarray of shape (2, size, size//2+1), complex64
        Flux per pixel for unit unlensed flux, so the zero frequency is mu.
    """
    smooth, clumpy, scale = make_source(row["source_key"], row["source_R"], row["source_q"], row["source_phi"])
    extent = SOURCE_REACH * row["source_R"] / np.sqrt(row["source_q"])
    impact = np.hypot(row["source_x"], row["source_y"])
    n = int(np.clip(np.ceil((1.35 * row["theta_E"] + impact + extent) / physics.PIXEL), 8, 46))
    axis = np.arange(-n, n + 1) * physics.PIXEL
    gx, gy = np.meshgrid(axis, axis)
    bx, by = shoot_rays(row, gx.ravel(), gy.ravel())
    near = np.hypot(bx - row["source_x"], by - row["source_y"]) < extent + 0.15
    near = ndimage.binary_dilation(near.reshape(gx.shape), np.ones((3, 3)))
    fine = 3 if row["source_R"] > 0.4 else 4 if row["source_R"] > 0.15 else 6
    sub = (np.arange(fine) - (fine - 1) / 2) / fine * physics.PIXEL
    iy, ix = np.nonzero(near)
    x = (gx[iy, ix][:, None, None] + sub[None, None, :]) + np.zeros((1, fine, 1))
    y = (gy[iy, ix][:, None, None] + sub[None, :, None]) + np.zeros((1, 1, fine))
    values = trace_pixels(row, scale, x.shape, x.ravel(), y.ravel(), (smooth, clumpy))
    transforms = []
    for value in values:
        canvas = np.zeros((2 * n + 1, fine, 2 * n + 1, fine), np.float32)
        canvas[iy, :, ix, :] = value * (physics.PIXEL / fine) ** 2
        canvas = canvas.reshape((2 * n + 1) * fine, -1)
        offset = -n - (fine - 1) / (2 * fine)
        transforms.append(scene.draw_samples(size, canvas, x0 + offset, y0 + offset, 1.0 / fine))
    return np.stack(transforms)


def mix_bands(row, transmissions):
    """Weights of the smooth and clumpy components per band: extincted unlensed flux in nMgy, shape (3, 2)."""
    weights = []
    for band, mw in zip(physics.BANDS, transmissions, strict=True):
        flux = physics.to_flux(row[f"mag_source_{band}"]) * mw
        weights.append([flux * (1 - KNOT_SHARE[band]), flux * KNOT_SHARE[band]])
    return np.array(weights, dtype=np.float32)
