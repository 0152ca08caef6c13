"""The bank of galaxies: units, refusals, flux through resampling; on made-up files, and on real ones if present."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from scipy.integrate import dblquad
from scipy.ndimage import map_coordinates
from scipy.signal import fftconvolve
from scipy.special import gammainc

from lensaudit.artifacts import UserError, hash_file, load_dataset
from lensaudit.constants import PIXEL_SCALE
from lensaudit.injection import bank
from lensaudit.lensing import psf, render, sources

SCALE = 0.03  # arcsec per pixel, of HST stamps


def make_galaxy(size=101, x=0.0, y=0.0, radius=9.0, flux=40.0, noise=0.0, seed=1):
    """An exponential disc with its centre x, y pixels off the middle; radius is its half-light radius in pixels."""
    v, u = np.indices((size, size + 1), dtype=np.float64)
    r = np.hypot(u - size / 2 - x, v - (size - 1) / 2 - y)
    image = np.exp(-1.6783469900166605 * r / radius)
    image *= flux / image.sum()
    return (image + np.random.default_rng(seed).normal(0, noise, image.shape)).astype(np.float32)


def write_catalogue(folder, images, unit=None, drop=(), **columns):
    hdus = [fits.PrimaryHDU(images[0]), *(fits.ImageHDU(image) for image in images[1:])]
    for hdu in hdus if unit else ():
        hdu.header["BUNIT"] = unit
    fits.HDUList(hdus).writeto(folder / "images.fits")
    n = len(images)
    table = Table({"IDENT": np.arange(n) + 700, "GAL_FILENAME": np.array(["images.fits"] * n),
                   "GAL_HDU": np.arange(n), "PIXEL_SCALE": np.full(n, np.float32(SCALE))} | columns)  # fmt: skip
    table.remove_columns(list(drop))
    table.write(folder / "catalogue.fits")
    return folder / "catalogue.fits"


def test_flux_per_pixel_is_not_surface_brightness():
    """The historical factor of a thousand: INTERPOL takes flux / arcsec^2, 1,111 flux / pixel at 0.03 arcsec."""
    stamp = bank.make_bank([make_galaxy()], ["count/s"], [SCALE]).stamps[0].astype(np.float64)
    step = 0.02
    x, y = (a.ravel() for a in np.meshgrid(*(2 * [(np.arange(200) - 99.5) * step])))

    def total(values):
        kwargs = {"image": values, "amp": 1.0, "center_x": 0, "center_y": 0, "phi_G": 0, "scale": SCALE}
        return LightModel(["INTERPOL"]).surface_brightness(x, y, [kwargs]).sum() * step**2

    assert total(bank.to_surface_brightness(stamp, SCALE)) == pytest.approx(1.0, rel=2e-3)
    assert 1.0 / total(stamp) == pytest.approx(1111.0, rel=5e-3)
    assert np.allclose(bank.from_surface_brightness(bank.to_surface_brightness(stamp, SCALE), SCALE), stamp)
    with pytest.raises(UserError, match="pixel scale of 0"):
        bank.to_surface_brightness(stamp, 0.0)


def test_a_source_from_the_bank_has_unit_flux_at_the_asked_size():
    """Through to the lens's source plane: flux, half-light radius, place."""
    made = bank.make_bank([make_galaxy(x=6.3, y=-4.2, radius=14.0)], ["count/s"], [SCALE])
    one = np.ones(1)
    components, _ = sources.make_components(
        0.1 * one, -0.2 * one, 0.25 * one, one, one, 0.8 * one,
        dtype=torch.float64, bank_index=np.array([0]), bank=made.images,
    )  # fmt: skip
    step = 0.01
    x, y = np.meshgrid(*(2 * [(np.arange(400) - 199.5) * step]))
    light = sources.evaluate_image(torch.as_tensor(x), torch.as_tensor(y), components,
                                   torch.as_tensor(made.images.coefficients)).numpy() * step**2  # fmt: skip
    assert light.sum() == pytest.approx(1.0, abs=1e-3)
    assert light[np.hypot(x - 0.1, y + 0.2) < 0.25].sum() == pytest.approx(0.5, abs=0.01)
    assert (light * x).sum() == pytest.approx(0.1, abs=2e-3) and (light * y).sum() == pytest.approx(-0.2, abs=2e-3)


def test_lensed_galaxies_are_lenstronomys_rays_and_scipys_spline():
    """The whole way to pixels: rays by lenstronomy, the stamp by scipy, 21 samples per pixel, a Moffat."""
    size, s, R, turn, fwhm = 65, 21, 0.2, 0.7, 1.0
    made = bank.make_bank([make_galaxy(x=4, y=2, radius=12.0, noise=0.002)], ["count/s"], [SCALE])
    one = np.ones(1)
    components, owner = sources.make_components(
        0.15 * one, 0.1 * one, R * one, one, one, turn * one,
        dtype=torch.float64, bank_index=np.array([0]), bank=made.images,
    )  # fmt: skip
    lens = {"theta_E": 1.2, "q": 0.75, "phi": 0.5, "gamma1": 0.03, "gamma2": -0.02}
    alpha = float(psf.moffat_alpha(fwhm, 3.5)) / PIXEL_SCALE
    radii = torch.full((1, 1), alpha, dtype=torch.float64)
    transfer = render.make_transfer(radii, np.array([3.5]), render.choose_period(size), torch.float64)
    weights = (torch.ones((1, 1)).double(), torch.zeros((0, 1)).double(), torch.as_tensor(owner))
    rows = {name: torch.full((1,), value, dtype=torch.float64) for name, value in lens.items()}
    arcs, total = render.render_arcs(rows, components, weights, transfer, size, bank=made.images)

    grid = (np.arange(size * s) - (size * s - 1) / 2) * PIXEL_SCALE / s
    x, y = np.meshgrid(grid, grid)
    near = np.hypot(x, y) < 3.0
    e1, e2 = phi_q2_ellipticity(lens["phi"], lens["q"])
    kwargs = [{"theta_E": 1.2, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0}, {"gamma1": 0.03, "gamma2": -0.02}]
    bx, by = LensModel(["SIE", "SHEAR"]).ray_shooting(x[near], y[near], kwargs)
    pixel = R / made.images.half_light[0]
    dx, dy = (bx - 0.15) / pixel, (by - 0.1) / pixel
    u, v = made.images.centre[0] - 8 + 20
    where = [v - np.sin(turn) * dx + np.cos(turn) * dy, u + np.cos(turn) * dx + np.sin(turn) * dy]
    fine = np.zeros(x.shape)
    fine[near] = map_coordinates(np.pad(made.stamps[0].astype(np.float64), 20), where, order=3)
    fine *= (PIXEL_SCALE / s / pixel) ** 2
    offset = (np.arange(2 * size * s - 1) - (size * s - 1)) / s
    kernel = (1 + (offset[:, None] ** 2 + offset[None] ** 2) / alpha**2) ** -3.5 * 2.5 / (np.pi * alpha**2)
    theirs = fftconvolve(fine, kernel, mode="same")[s // 2 :: s, s // 2 :: s]
    assert np.abs(arcs[0, 0].numpy() - theirs).max() < 1e-3 * theirs.max()
    assert float(total) == pytest.approx(fine.sum(), rel=5e-4)


@pytest.mark.parametrize("step", [0.37, 0.8, 1.0, 1.7, 3.3, 5.0])
def test_resampling_keeps_flux_place_and_size(step):
    image = make_galaxy(size=90, x=3.2, y=-1.7, radius=11.0).astype(np.float64)
    image[make_radius(image) > 35] = 0.0  # outermost new pixels reach over the old edge, which moves the light in them
    other = bank.resample_image(image, step)
    assert all(side % 2 == 1 for side in other.shape)
    assert other.sum() == pytest.approx(image.sum(), rel=1e-10)  # the goal is 2 per cent
    middle = lambda a: (np.array(a.shape[::-1]) - 1) / 2  # noqa: E731
    before, after = (bank.measure_centre(a) - middle(a) for a in (image, other))
    # Not exact, because light stands at the middle of its new pixel: a thousandth of the larger pixel.
    assert np.allclose(after * step, before, atol=1e-3 * max(step, 1.0))
    radii = [bank.measure_half_light(a, bank.measure_centre(a)) for a in (image, other)]
    # A pixel adds its own width: step^2 / 12 along each axis.
    assert radii[1] * step == pytest.approx(radii[0], rel=0.01 + step**2 / 12 / radii[0] ** 2)


def test_half_light_radius_of_an_exponential_disc():
    """Against the closed form, and scipy's integral of the same profile."""
    image = make_galaxy(size=201, radius=12.0).astype(np.float64)
    assert gammainc(2.0, 1.6783469900166605) == pytest.approx(0.5)
    flux, _ = dblquad(lambda r, t: r * np.exp(-1.6783469900166605 * r / 12.0), 0, 2 * np.pi, 0, 12.0)
    assert image[make_radius(image) < 12.0].sum() / 40.0 == pytest.approx(
        flux / (2 * np.pi * (12 / 1.6783469900166605) ** 2), abs=5e-3
    )
    assert bank.measure_half_light(image, bank.measure_centre(image)) == pytest.approx(12.0, rel=5e-3)


def make_radius(image):
    v, u = np.indices(image.shape)
    return np.hypot(u - (image.shape[1] - 1) / 2, v - (image.shape[0] - 1) / 2)


def test_sky_is_cut_and_the_galaxy_kept():
    """Noise of the COSMOS stamps: the flux within 3 per cent, exact zeros outside, unit flux and centre."""
    images = [make_galaxy(x=5, y=3, radius=r, flux=f, noise=0.0027) for r, f in ((7.0, 20.0), (14.0, 60.0))]
    made = bank.make_bank(images, ["count/s"] * 2, [SCALE] * 2, names=["small", "large"])
    assert made.stamps.dtype == np.float32 and made.stamps.shape[1] % 2 == 1
    assert np.allclose(made.stamps.sum((1, 2), dtype=np.float64), 1.0, atol=1e-6)
    assert np.allclose(made.table["flux"], [20.0, 60.0], rtol=0.03)
    assert np.allclose(made.table["half_light"], np.array([7.0, 14.0]) * SCALE, rtol=0.03)
    assert (made.stamps[:, 0] == 0).all() and (made.stamps == 0).mean() > 0.3
    middle = made.stamps.shape[1] // 2
    centres = np.array([bank.measure_centre(s.astype(np.float64)) for s in made.stamps])
    assert np.abs(centres - middle).max() <= 0.5 + 1e-6
    assert np.allclose(centres + 8, made.images.centre, atol=1e-4)
    assert made.images.half_light.max() == pytest.approx(bank.RESOLUTION, rel=0.05)


def test_units_are_read_in_their_spellings():
    image = make_galaxy()
    for unit in ("count/s", "counts / s", "CPS", "ELECTRONS", "electron/s/pixel", "nMgy", "nanomaggy/pix"):
        assert bank.prepare_stamp(image, unit, SCALE)["flux"] == pytest.approx(40.0, rel=1e-3)
    bright = bank.to_surface_brightness(image, SCALE)
    for unit in ("nMgy/arcsec2", "count/s/arcsec^2", "nmgy arcsec-2"):
        assert bank.prepare_stamp(bright, unit, SCALE)["flux"] == pytest.approx(40.0, rel=1e-3)
    for unit in ("mag/arcsec2", "MJy/sr", "furlong", "arcsec2"):
        with pytest.raises(UserError, match="unit '.*' is not known"):
            bank.prepare_stamp(image, unit, SCALE)


def spoil(image, value, at=(50, 50)):
    image = image.copy()
    image[at] = value
    return image


@pytest.mark.parametrize("image, unit, scale, message", [
    (make_galaxy(), None, SCALE, "x: no unit"),
    (make_galaxy(), "", SCALE, "x: no unit"),
    (make_galaxy(), "count/s", None, "x: no pixel scale"),
    (make_galaxy(), "count/s", 0.0, "x: pixel scale of 0"),
    (make_galaxy(), "count/s", np.nan, "x: pixel scale of nan"),
    (make_galaxy(), "count/s", "wide", "x: pixel scale of wide"),
    (spoil(make_galaxy(), np.nan), "count/s", SCALE, "x: 1 pixels are not finite"),
    (spoil(make_galaxy(), np.inf), "count/s", SCALE, "x: 1 pixels are not finite"),
    (np.zeros((50, 50)), "count/s", SCALE, "x: every pixel is zero"),
    (-make_galaxy(), "count/s", SCALE, "x: no galaxy above"),
    (make_galaxy()[None], "count/s", SCALE, "x: shape"),
    (np.ones((5, 50)), "count/s", SCALE, "x: shape"),
    (np.full((50, 50), "a"), "count/s", SCALE, "x: pixels of type"),
    (spoil(np.full((51, 51), 1e-9), 1.0, (25, 25)), "count/s", SCALE, "x: half-light radius of"),
    (np.ma.masked_greater(make_galaxy(), 0.1), "count/s", SCALE, "x: .* pixels are not finite"),
    (make_galaxy() > 0.1, "count/s", SCALE, "x: pixels of type bool"),
    (make_galaxy(), "count/s", np.array([0.03, 0.03]), "x: pixel scale of"),
])  # fmt: skip
def test_bad_stamps_are_refused(image, unit, scale, message):
    with pytest.raises(UserError, match=message) as error:
        bank.prepare_stamp(image, unit, scale, name="x")
    assert "\n" not in str(error.value)


def test_an_empty_bank_is_refused():
    with pytest.raises(UserError, match="empty"):
        bank.make_bank([], [], [])
    for resolution in (0.0, -1.0, np.nan):
        with pytest.raises(UserError, match="stamp 0: resolution"):
            bank.make_bank([make_galaxy()], ["nMgy"], [SCALE], resolution=resolution)


def test_catalogue_of_the_cosmos_kind(tmp_path):
    images = [make_galaxy(radius=8.0, noise=0.002), make_galaxy(size=71, radius=5.0, flux=20, noise=0.002, seed=2)]
    path = write_catalogue(tmp_path, images)
    made = bank.read_catalogue(path, unit="count/s")
    assert made.table["name"].tolist() == ["700", "701"] and made.table["unit"].tolist() == ["count/s"] * 2
    assert np.allclose(made.table["flux"], [40, 20], rtol=0.03) and made.table["pixel_scale"].tolist() == [SCALE] * 2
    assert len(bank.read_catalogue(path, unit="count/s", limit=1).stamps) == 1
    again = bank.read_catalogue(path, unit="count/s")
    assert np.array_equal(made.stamps, again.stamps)
    with pytest.raises(UserError, match="catalogue.fits: 700: no unit"):
        bank.read_catalogue(path)


def test_catalogue_takes_the_unit_of_the_header(tmp_path):
    made = bank.read_catalogue(write_catalogue(tmp_path, [make_galaxy()], unit="ELECTRONS/S"))
    assert made.table["unit"].tolist() == ["electrons/s"]


@pytest.mark.parametrize("change, message", [
    (dict(drop=["PIXEL_SCALE"]), "column.* PIXEL_SCALE missing"),
    (dict(drop=["GAL_HDU", "IDENT"]), "column.* IDENT, GAL_HDU missing"),
    (dict(GAL_HDU=np.array([1, 1])), "700 and 701 both name HDU 1 of images.fits"),
    (dict(GAL_HDU=np.array([0, 7])), "701 is to be in HDU 7 of images.fits, which holds no image"),
    (dict(GAL_FILENAME=np.array(["images.fits", "absent.fits"])), "absent.fits: no such file"),
    (dict(PIXEL_SCALE=np.array([0.03, -0.03])), "701: pixel scale of -0.03"),
    (dict(PIXEL_SCALE=np.array(["0.03", "wide"])), "701: pixel scale of wide"),
    (dict(GAL_HDU=np.array([0.0, np.nan])), "701 is to be in HDU -1 of images.fits, which holds no image"),
])  # fmt: skip
def test_bad_catalogues_are_refused(tmp_path, change, message):
    path = write_catalogue(tmp_path, [make_galaxy(), make_galaxy()], **change)
    with pytest.raises(UserError, match=message) as error:
        bank.read_catalogue(path, unit="count/s")
    assert "\n" not in str(error.value)


def test_broken_files_are_refused(tmp_path):
    path = write_catalogue(tmp_path, [make_galaxy()])
    images = (tmp_path / "images.fits").read_bytes()
    (tmp_path / "images.fits").write_bytes(images[: len(images) // 3])
    with pytest.raises(UserError, match="images.fits: unreadable FITS"):
        bank.read_catalogue(path, unit="count/s")
    path.write_bytes(b"SIMPLE  = no")
    with pytest.raises(UserError, match="catalogue.fits: unreadable FITS"):
        bank.read_catalogue(path, unit="count/s")
    (tmp_path / "stamps.npz").write_bytes(b"PK not an archive")
    with pytest.raises(UserError, match="stamps.npz: unreadable NPZ"):
        bank.read_stamps(tmp_path / "stamps.npz")
    with pytest.raises(UserError, match="other.npz: no such file"):
        bank.read_stamps(tmp_path / "other.npz")


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "stamps.npz", stamps=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="unreadable NPZ"):
        bank.read_stamps(tmp_path / "stamps.npz", unit="count/s", pixel_scale=SCALE)


def test_npz_stamps_say_their_unit_and_scale(tmp_path):
    stamps = np.stack([make_galaxy(radius=6.0), make_galaxy(radius=9.0)])
    np.savez(tmp_path / "a.npz", stamps=stamps, unit="nMgy", pixel_scale=[0.05, 0.03])
    made = bank.read_stamps(tmp_path / "a.npz")
    assert np.allclose(made.table["half_light"], [0.30, 0.27], rtol=0.02)
    np.savez(tmp_path / "b.npz", stamps=stamps[0])
    with pytest.raises(UserError, match="no unit"):
        bank.read_stamps(tmp_path / "b.npz", pixel_scale=SCALE)
    with pytest.raises(UserError, match="no pixel scale"):
        bank.read_stamps(tmp_path / "b.npz", unit="nMgy")
    assert len(bank.read_stamps(tmp_path / "b.npz", unit="nMgy", pixel_scale=SCALE).stamps) == 1
    np.savez(tmp_path / "d.npz", stamps=stamps, unit="nMgy", pixel_scale=[0.03] * 3)
    with pytest.raises(UserError, match="3 pixel scales for 2 stamps"):
        bank.read_stamps(tmp_path / "d.npz")
    np.savez(tmp_path / "c.npz", images=stamps)
    with pytest.raises(UserError, match="array stamps missing; it has images"):
        bank.read_stamps(tmp_path / "c.npz")


def test_fits_stamps_say_their_unit_and_scale(tmp_path):
    header = fits.Header()
    header["BUNIT"], header["CTYPE1"], header["CTYPE2"] = "nanomaggy", "RA---TAN", "DEC--TAN"
    header["CD1_1"], header["CD2_2"] = -0.05 / 3600, 0.05 / 3600
    fits.PrimaryHDU(make_galaxy(radius=6.0), header).writeto(tmp_path / "a.fits")
    assert bank.read_stamps(tmp_path / "a.fits").table["half_light"][0] == pytest.approx(0.30, rel=0.02)
    fits.PrimaryHDU(make_galaxy(), fits.Header({"BUNIT": "nanomaggy"})).writeto(tmp_path / "b.fits")
    with pytest.raises(UserError, match="no pixel scale"):
        bank.read_stamps(tmp_path / "b.fits")
    fits.PrimaryHDU(np.zeros((3, 40, 40))).writeto(tmp_path / "c.fits")
    with pytest.raises(UserError, match="c.fits: no image"):
        bank.read_stamps(tmp_path / "c.fits", unit="nMgy", pixel_scale=SCALE)


def test_real_files_are_the_described_ones(real_data):
    for entry in load_dataset("hst_cosmos_stamps")["files"]:
        assert hash_file(real_data / entry["path"]) == entry["sha256"], entry["path"]


def test_real_cosmos_galaxies(real_data):
    """Flux and half-light radius against the survey's own measurements (mag_auto, zero point 25.94; flux_radius)."""
    folder = real_data / "hst-cosmos-stamps" / "paltas"
    made = bank.read_catalogue(folder / "real_galaxy_catalog_23.5.fits", unit="count/s")
    theirs = Table.read(folder / "real_galaxy_catalog_23.5_fits.fits")
    assert made.table["name"].tolist() == [str(i) for i in theirs["IDENT"]]
    flux = made.table["flux"] / 10 ** (-0.4 * (np.array(theirs["mag_auto"]) - 25.94))
    size = made.table["half_light"] / (np.array(theirs["flux_radius"]) * SCALE)
    for ratio in (flux, size):
        assert np.median(ratio) == pytest.approx(1.0, abs=0.04)
        assert ratio.between(0.95, 1.06).sum() == 9 and ratio.min() > 0.75  # 178249 is faint and diffuse
    assert np.allclose(made.stamps.sum((1, 2), dtype=np.float64), 1.0, atol=1e-6)
    assert (made.images.half_light > bank.MIN_RESOLUTION).all()


def test_real_aegis_galaxies_in_two_bands(real_data):
    folder = real_data / "hst-cosmos-stamps" / "galsim-aegis"
    blue, red = (bank.read_catalogue(folder / f"AEGIS_{b}_catalog.fits", unit="count/s") for b in ("F606w", "F814w"))
    assert blue.table["name"].tolist() == red.table["name"].tolist() and len(blue.table) == 5
    ratio = blue.table["half_light"] / red.table["half_light"]
    assert ratio.between(0.5, 2.0).all()


def test_real_defects_are_refused(real_data):
    folder = real_data / "hst-cosmos-stamps"
    with pytest.raises(UserError, match="97475 and 169753 both name HDU 2"):
        bank.read_catalogue(folder / "slsim" / "real_galaxy_catalog_23.5.fits", unit="count/s")
    with pytest.raises(UserError, match=r"real_galaxy_images.fits: no such file"):
        bank.read_catalogue(folder / "galsim-catalog" / "real_galaxy_catalog_23.5_example.fits", unit="count/s")
    with pytest.raises(UserError, match="no unit"):
        bank.read_stamps(folder / "slsim" / "COSMOSWeb_galaxy_6701_image.fits")
