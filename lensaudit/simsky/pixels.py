"""Pixels on demand: the stamp of any object of the simulated sky, a pure function of the sky and the object's id."""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, read_table
from lensaudit.rng import make_stream
from lensaudit.simsky import scene
from lensaudit.simsky.conditions import WING_MOFFAT, WING_POWER, make_psf
from lensaudit.simsky.physics import BANDS, GAIN, PIXEL, to_flux
from lensaudit.simsky.population import load_population

CENTRE = scene.STAMP // 2
_NUMBERS = ("ra", "dec", "flux_g", "flux_r", "flux_z", "R", "q", "pa", "n_sersic", "mw_g", "mw_r", "mw_z")


class SkyPixels:
    """A pixel source over the tables of the simulated sky.

    Parameters
    ----------
    folder : path
        The folder of stage 00_survey.
    seed : int
        Of the sky.

    Notes
    -----
    Objects of the same brick appear as each other's neighbours. Galaxies too faint for the table are drawn around
    each object from its own stream, so two overlapping stamps share the table's objects but not these.
    """

    def __init__(self, folder, seed):
        self.folder, self.seed, self._tables, self._psf = Path(folder), int(seed), None, {}

    def __getstate__(self):
        return {"folder": self.folder, "seed": self.seed, "_tables": None, "_psf": {}}

    def read(self, galaxies):
        """Draw the stamps of some objects.

        Parameters
        ----------
        galaxies : pandas.DataFrame
            Needs galaxy_id only.

        Returns
        -------
        images : ndarray of shape (N, 3, 101, 101), float32
            nMgy per pixel in g, r, z; north up, east left; the object at pixel (50, 50).
        reasons : list of str
            Empty where a stamp was drawn.
        """
        if "galaxy_id" not in galaxies:
            raise UserError("the table of galaxies has no column galaxy_id")
        if self._tables is None:
            self._tables = _load_tables(self.folder)
        rows = self._tables["ids"].get_indexer(galaxies["galaxy_id"])
        images = np.zeros((len(rows), len(BANDS), scene.STAMP, scene.STAMP), dtype=np.float32)
        reasons = [""] * len(rows)
        for k in np.argsort(rows, kind="stable"):
            if rows[k] < 0:
                reasons[k] = f"{galaxies['galaxy_id'].iloc[k]} is no object of the simulated sky"
            else:
                images[k] = self._draw(rows[k])
        return images, reasons

    def draw_noiseless(self, galaxy_id):
        """Return the noiseless stamp (3, 101, 101) and the noiseless lensed light alone, nMgy; for tests and truth."""
        if self._tables is None:
            self._tables = _load_tables(self.folder)
        row = int(self._tables["ids"].get_loc(galaxy_id))
        rng = make_stream(self.seed, "simsky/stamp", galaxy_id)
        size = _choose_grid(self._tables, row)
        psf = self._transform_psfs(row, size)
        image = scene.convolve(_draw_scene(self._tables, row, size, rng), psf)
        arcs = _draw_lensed(self._tables, row, size, CENTRE, CENTRE)
        return image, None if arcs is None else scene.convolve(arcs, psf)

    def _transform_psfs(self, row, size):
        t = self._tables
        key = (t["quarter_row"][row], size)
        if key not in self._psf:
            if len(self._psf) > 64:
                self._psf.clear()
            c = t["quarters"][key[0]]
            self._psf[key] = np.stack([_transform_band(c, band, size) for band in BANDS])
        return self._psf[key]

    def _draw(self, row):
        t = self._tables
        rng = make_stream(self.seed, "simsky/stamp", t["ids"][row])
        size = _choose_grid(t, row)
        image = scene.convolve(_draw_scene(t, row, size, rng), self._transform_psfs(row, size))
        image += _draw_halos(t, row)
        kind = t["kind"][row]
        if kind in ("star_spike", "ghost"):
            image += _draw_optics(rng, kind)
        c = t["quarters"][t["quarter_row"][row]]
        sigma = [c[f"sigma_pix_{b}"] for b in BANDS]
        image = image + scene.add_noise(rng, image, sigma, [c[f"exposure_{b}"] * GAIN[b] for b in BANDS])
        if kind in ("cosmic_ray", "bad_column"):
            image += _draw_defect(rng, kind, sigma)
        if rng.random() < load_population()["field"]["zero_fill_fraction"]:
            image = _blank_edge(rng, image)
        return image.astype(np.float32)


def _transform_band(c, band, size):
    shape = (c[f"{name}_{band}"] for name in ("fwhm", "beta", "psf_e1", "psf_e2"))
    return scene.transform_psf(make_psf(*shape, band, size))


def _load_tables(folder):
    truth = read_table(folder / "truth" / "galaxies.parquet")
    quarters = read_table(folder / "truth" / "conditions.parquet")
    lenses = read_table(folder / "truth" / "lenses.parquet")
    stars = read_table(folder / "stars.parquet")
    brick = truth["brickid"].to_numpy()
    edges = np.flatnonzero(np.r_[True, brick[1:] != brick[:-1], True])
    position = {int(b): i for i, b in enumerate(quarters["brickid"].to_numpy()[::4])}
    tables = {name: truth[name].to_numpy() for name in (*_NUMBERS, "type", "kind", "brickid")}
    tables["quarter_row"] = np.array([position[int(b)] * 4 for b in brick]) + truth["quarter"].to_numpy()
    tables |= {"ids": pd.Index(truth["galaxy_id"]), "quarters": quarters.to_dict("records"),
               "lenses": {r["galaxy_id"]: r for r in lenses.to_dict("records")},
               "span": {int(brick[a]): (a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)},
               "stars": {int(b): g for b, g in stars.groupby("brickid")}}  # fmt: skip
    return tables


def _offsets(tables, row, ra, dec):
    # Pixels from the object: x to the west, y to the north.
    dx = -(np.asarray(ra) - tables["ra"][row]) * np.cos(np.radians(tables["dec"][row])) * 3600.0 / PIXEL
    return dx, (np.asarray(dec) - tables["dec"][row]) * 3600.0 / PIXEL


def _choose_grid(tables, row):
    return 2 * scene.GRID if tables["R"][row] > 4.0 else scene.GRID


def _find_neighbours(tables, row):
    a, b = tables["span"][int(tables["brickid"][row])]
    dx, dy = _offsets(tables, row, tables["ra"][a:b], tables["dec"][a:b])
    near = np.flatnonzero((np.abs(dx) < 66) & (np.abs(dy) < 66))
    near = near[near + a != row]
    return near + a, CENTRE + dx[near], CENTRE + dy[near]


def _fluxes(tables, row):
    return np.array([tables[f"flux_{b}"][row] for b in BANDS], dtype=np.float32)


def _draw_scene(tables, row, size, rng):
    x, y = CENTRE + rng.normal(0.0, 0.02 / PIXEL, 2)
    image = _draw_galaxy(tables, row, size, x, y, tables["kind"][row], rng)
    arcs = _draw_lensed(tables, row, size, x, y)
    if arcs is not None:
        image += arcs
    rows, nx, ny = _find_neighbours(tables, row)
    points = [_draw_background(rng)]
    for other, ox, oy in zip(rows, nx, ny, strict=True):
        if tables["type"][other] == "PSF":
            points.append((np.array([ox]), np.array([oy]), np.zeros(1), _fluxes(tables, other)[:, None]))
        else:
            image += _draw_galaxy(tables, other, size, ox, oy, "galaxy", rng)
    px, py, width, flux = (np.concatenate([p[i] for p in points], axis=-1) for i in range(4))
    if len(px):
        image += scene.draw_gaussians(size, px, py, width, flux)
    return image


def _draw_lensed(tables, row, size, x, y):
    truth = tables["lenses"].get(tables["ids"][row])
    if truth is None:
        return None
    from lensaudit.simsky.lenses import draw_arcs, mix_bands  # lenstronomy is slow to import

    weights = mix_bands(truth, [tables[f"mw_{b}"][row] for b in BANDS])
    return np.tensordot(weights, draw_arcs(truth, size, x, y), axes=1)


def _draw_background(rng):
    p = load_population()["field"]
    side = scene.STAMP + 12
    n = rng.poisson(p["background_density"] * (side * PIXEL / 60.0) ** 2)
    x, y = rng.uniform(-6, scene.STAMP + 6, (2, n))
    mag = 25.5 + np.log1p(-(1 - 10 ** (-0.35 * 3.5)) * rng.random(n)) / (0.35 * np.log(10))
    gr, rz = rng.normal(0.6, 0.35, n), rng.normal(0.5, 0.35, n)
    width = np.abs(rng.normal(0.30, 0.12, n)) / PIXEL
    return x, y, width, np.stack([to_flux(mag + gr), to_flux(mag), to_flux(mag - rz)])


def _draw_galaxy(tables, row, size, x, y, kind, rng):
    if tables["type"][row] == "PSF":
        return scene.draw_gaussians(size, [x], [y], [0.0], _fluxes(tables, row)[:, None])
    radius, q = tables["R"][row] / PIXEL, tables["q"][row]
    pa, n, flux = tables["pa"][row], tables["n_sersic"][row], _fluxes(tables, row)
    arguments = (size, x, y, radius * np.sqrt(q), q, pa)
    if kind in ("spiral", "ring", "blue_clumpy", "edge_on", "merger", "agn"):
        return _draw_confuser(arguments, n, kind, flux, rng)
    return flux[:, None, None] * scene.draw_sersic(*arguments, n)[None]


def _mix(*parts):
    # Sum of unit images weighted per band: pairs of (flux per band, image).
    return sum(flux[:, None, None] * image[None] for flux, image in parts)


def _draw_confuser(arguments, n, kind, flux, rng):
    size, x, y, radius, q, pa = arguments
    share = np.array([1.25, 1.0, 0.7], dtype=np.float32)  # the second component is bluer
    if kind == "ring":
        part = flux * np.minimum(rng.uniform(0.10, 0.35) * share * 1.2, 0.8)
        ring = scene.draw_ring(size, x, y, rng.uniform(1.2, 3.0) / PIXEL, rng.uniform(0.2, 0.4) / PIXEL,
                               rng.uniform(0.6, 1.0), pa)  # fmt: skip
        return _mix((flux - part, scene.draw_sersic(*arguments, n)), (part, ring))
    if kind == "edge_on":
        bulge = scene.draw_sersic(size, x, y, 0.3 * radius, 0.7, pa, 2.0)
        return _mix((0.8 * flux, scene.draw_sersic(*arguments, 1.0)), (0.2 * flux, bulge))
    if kind == "agn":
        part = flux * rng.uniform(0.2, 0.5) * share
        return _mix(
            (flux - part, scene.draw_sersic(*arguments, n)),
            (part, scene.draw_gaussians(size, [x], [y], [0.0], [[1.0]])[0]),
        )
    if kind == "merger":
        gap, angle = rng.uniform(0.9, 2.8) / PIXEL, rng.uniform(0, 2 * np.pi)
        place = (x + gap * np.cos(angle), y + gap * np.sin(angle))
        second = scene.draw_sersic(size, *place, 0.5 * radius, rng.uniform(0.5, 1.0), rng.uniform(0, np.pi), 2.0)
        turn = angle + np.linspace(0.3, 2.2, 16)
        reach = gap * np.linspace(1.0, 2.2, 16)
        tail = scene.draw_gaussians(size, x + reach * np.cos(turn), y + reach * np.sin(turn), np.full(16, 0.35 / PIXEL),
                                    np.full((1, 16), 1 / 16))[0]  # fmt: skip
        part, arm = flux * rng.uniform(0.2, 0.45), flux * rng.uniform(0.05, 0.15) * share
        return _mix((flux - part - arm, scene.draw_sersic(*arguments, n)), (part, second), (arm, tail))
    return _draw_arms(arguments, n, kind, flux, share, rng)


def _draw_arms(arguments, n, kind, flux, share, rng):
    # Spiral arms or random clumps as Gaussians in the plane of the disc.
    size, x, y, radius, q, pa = arguments
    major = radius / np.sqrt(q)
    if kind == "spiral":
        k = 48
        t = np.tile(np.linspace(0.25, 2.4, k // 2), 2)
        angle = np.log(t) / np.tan(rng.uniform(0.25, 0.5)) + np.repeat([0.0, np.pi], k // 2) + rng.uniform(0, 2 * np.pi)
        reach, level, part = major * t, np.exp(-t) * rng.lognormal(0.0, 0.5, k), flux * rng.uniform(0.2, 0.4) * share
    else:
        k = int(rng.integers(5, 11))
        angle, reach = rng.uniform(0, 2 * np.pi, k), major * np.abs(rng.normal(0.9, 0.5, k))
        level, part = rng.lognormal(0.0, 0.7, k), flux * np.minimum(rng.uniform(0.4, 0.65) * share, 0.8)
    u, v = reach * np.cos(angle), reach * np.sin(angle) * q
    px, py = x + u * np.cos(pa) - v * np.sin(pa), y + u * np.sin(pa) + v * np.cos(pa)
    width = rng.uniform(0.15, 0.35, k) / PIXEL
    arms = scene.draw_gaussians(size, px, py, width, (level / level.sum())[None])[0]
    return _mix((flux - part, scene.draw_sersic(*arguments, n)), (part, arms))


def _draw_halos(tables, row):
    # Outer wings of bright stars of the brick whose core lies outside the grid, and whole stars inside it.
    image = np.zeros((len(BANDS), scene.STAMP, scene.STAMP), dtype=np.float32)
    stars = tables["stars"].get(int(tables["brickid"][row]))
    if stars is None:
        return image
    dx, dy = _offsets(tables, row, stars["ra"].to_numpy(), stars["dec"].to_numpy())
    axis = np.arange(scene.STAMP) - CENTRE
    for k in np.flatnonzero(np.hypot(dx, dy) * PIXEL < 120.0):
        r2 = ((axis[None, :] - dx[k]) ** 2 + (axis[:, None] - dy[k]) ** 2) * PIXEL**2
        mag = float(stars["mag"].iloc[k])
        for i, band in enumerate(BANDS):
            flux = to_flux(mag + (0.4, 0.0, -0.3)[i])
            if band in WING_POWER:
                image[i] += flux * WING_POWER[band] / (r2 + 1.0) * PIXEL**2
            else:
                alpha, beta, weight = WING_MOFFAT[band]
                image[i] += flux * weight * (beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta * PIXEL**2
            image[i] += np.minimum(flux * 0.2 * np.exp(-r2 / 0.6), 60.0)  # the core saturates
    return image


def _draw_optics(rng, kind):
    y, x = np.mgrid[: scene.STAMP, : scene.STAMP].astype(np.float32)
    colour = np.array([0.8, 1.0, 1.2], dtype=np.float32)[:, None, None]
    if kind == "star_spike":
        angle, passing = rng.uniform(0, np.pi), rng.uniform(-25, 25)
        across = (x - CENTRE) * np.sin(angle) - (y - CENTRE) * np.cos(angle) - passing
        along = (x - CENTRE) * np.cos(angle) + (y - CENTRE) * np.sin(angle)
        level = rng.uniform(0.02, 0.15) * np.exp(-0.5 * (across / rng.uniform(0.9, 1.6)) ** 2)
        return (level * 10 ** (-0.006 * along))[None] * colour
    centre, radius = CENTRE + rng.uniform(-45, 45, 2), rng.uniform(20, 50)
    r = np.hypot(x - centre[0], y - centre[1])
    disc = rng.uniform(0.01, 0.05) / (1 + np.exp((r - radius) / 2.0)) * (r > 0.3 * radius)
    return disc[None].astype(np.float32) * colour


def _draw_defect(rng, kind, sigma):
    image = np.zeros((len(BANDS), scene.STAMP, scene.STAMP), dtype=np.float32)
    band = int(rng.integers(0, len(BANDS)))
    if kind == "bad_column":
        column = int(rng.integers(20, 81))
        image[band, :, column : column + int(rng.integers(1, 3))] = (
            rng.choice([-1, 1]) * rng.uniform(4, 12) * sigma[band]
        )
        return image
    start, angle, length = CENTRE + rng.uniform(-20, 20, 2), rng.uniform(0, np.pi), rng.uniform(4, 22)
    t = np.linspace(0, length, int(3 * length))
    ix = np.clip(np.round(start[0] + t * np.cos(angle)), 0, scene.STAMP - 1).astype(int)
    iy = np.clip(np.round(start[1] + t * np.sin(angle)), 0, scene.STAMP - 1).astype(int)
    image[band, iy, ix] = rng.uniform(8, 30) * sigma[band]
    return image


def _blank_edge(rng, image):
    # No data beyond a brick's edge: exact zeros, as the survey serves them.
    cut, side = int(rng.integers(8, 60)), int(rng.integers(0, 4))
    image = np.rot90(image, side, axes=(1, 2)).copy()
    image[:, :cut] = 0.0
    return np.rot90(image, -side, axes=(1, 2))
