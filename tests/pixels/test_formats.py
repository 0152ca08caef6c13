"""Stamp files: every dialect read alike, every defect one clear line, flux kept in resampling."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.special import erf

from lensaudit.artifacts import UserError, find_root
from lensaudit.constants import BANDS, PIXEL_SCALE
from lensaudit.pixels import formats
from lensaudit.pixels.resampling import measure_aperture, resample_stamp

DATA = Path(os.environ.get("LENSAUDIT_DATA") or find_root().parent / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "PROVENANCE.md").is_file(), reason="no folder of real data")
LEVELS = {"g": 1.0, "r": 2.0, "z": 3.0, "i": 4.0}


def make_planes(order="grz", size=61):
    """Planes whose level tells their band, whatever the order."""
    pattern = 1 + 0.1 * np.sin(np.arange(size * size)).reshape(size, size)
    return np.stack([LEVELS[b] * pattern for b in order]).astype(np.float32)


def make_header(size, scale=PIXEL_SCALE, ra=150.0, dec=2.0, **cards):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"], header["CRVAL1"], header["CRVAL2"] = "RA---TAN", "DEC--TAN", ra, dec
    header["CRPIX1"] = header["CRPIX2"] = (size + 1) / 2
    header["CD1_1"], header["CD2_2"], header["CD1_2"], header["CD2_1"] = -scale / 3600, scale / 3600, 0.0, 0.0
    for key, value in cards.items():
        header[key] = value
    return header


def write_cutout(path, order="grz", size=61, scale=PIXEL_SCALE, planes=None, extra=(), **cards):
    planes = make_planes(order, size) if planes is None else planes
    named = {"BANDS": order} | {f"BAND{i}": b for i, b in enumerate(order)} | cards
    header = make_header(planes.shape[-1], scale, **{k: v for k, v in named.items() if v is not None})
    fits.HDUList([fits.PrimaryHDU(planes, header), *extra]).writeto(path)
    return path


def assert_levels(stamp, bands=BANDS):
    got = np.median(formats.select_bands(stamp, bands), axis=(1, 2))
    np.testing.assert_allclose(got, [LEVELS[b] for b in bands], rtol=0.05)


# Dialects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["grz", "zrg", "rgiz"])
def test_npz_cutout_follows_stated_order(tmp_path, order):
    path = tmp_path / "a.npz"
    planes = np.moveaxis(make_planes(order), 0, -1)
    np.savez(path, cutout=planes, meta_bands_requested=order, meta_ra=10.5, meta_dec=-3.0)
    stamp = formats.read_stamp_npz(path)
    assert stamp.bands == tuple(order) and (stamp.ra, stamp.dec) == (10.5, -3.0)
    assert_levels(stamp)
    assert stamp.images.dtype == np.float32 and not stamp.resampled


def test_npz_planes_by_name(tmp_path):
    path = tmp_path / "b.npz"
    np.savez(path, **{f"image_{b}": p for b, p in zip("zgr", make_planes("zgr"), strict=True)})
    assert_levels(formats.read_stamp_npz(path))


@pytest.mark.parametrize("axis", [0, -1])
def test_npz_legacy_img(tmp_path, axis):
    path = tmp_path / "c.npz"
    np.savez(path, img=np.moveaxis(make_planes("rzg"), 0, axis))
    with pytest.raises(UserError, match="does not say its band order"):
        formats.read_stamp_npz(path)
    assert_levels(formats.read_stamp_npz(path, bands="rzg"))


def test_missing_band_never_shifts_channels(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, image_g=make_planes("g")[0], image_z=make_planes("z")[0])
    stamp = formats.read_stamp_npz(path)
    assert stamp.bands == ("g", "z")
    assert_levels(stamp, ("z", "g"))
    with pytest.raises(UserError, match="d.npz: band r missing"):
        formats.select_bands(stamp)
    assert "band r missing" in formats.find_refusal(stamp)
    planes = make_planes("grz")
    planes[0] = 0
    np.savez(path, cutout=np.moveaxis(planes, 0, -1), meta_bands_requested="grz", meta_has_g=False)
    stamp = formats.read_stamp_npz(path)
    assert stamp.bands == ("r", "z")
    assert_levels(stamp, ("r", "z"))


@pytest.mark.parametrize("order", ["grz", "zrg", "griz"])
def test_fits_follows_header(tmp_path, order):
    stamp = formats.read_fits_cutout(write_cutout(tmp_path / "e.fits", order))
    assert stamp.bands == tuple(order)
    assert_levels(stamp)


def test_fits_single_band_and_extra_hdus(tmp_path):
    path = write_cutout(tmp_path / "f.fits", "r", planes=make_planes("r")[0], BAND0=None)
    assert formats.read_fits_cutout(path).bands == ("r",)
    invvar = fits.ImageHDU(np.full((3, 61, 61), 4e4, np.float32), make_header(61, IMAGETYP="invvar"))
    mask = fits.ImageHDU(np.full((61, 61), 2, np.int16), make_header(61, IMAGETYP="maskbits"))
    stamp = formats.read_fits_cutout(write_cutout(tmp_path / "g.fits", extra=(mask, invvar), IMAGETYP="image"))
    assert stamp.invvar.shape == stamp.images.shape and stamp.maskbits.shape == (61, 61)
    assert np.all(stamp.maskbits == 2) and np.all(stamp.invvar == np.float32(4e4))
    cropped = resample_stamp(stamp, size=31)
    assert cropped.invvar.shape == (3, 31, 31) and cropped.maskbits.shape == (31, 31)


def test_export_and_import_agree(tmp_path):
    stamp = formats.read_fits_cutout(write_cutout(tmp_path / "h.fits", "zrg", scale=0.13))
    formats.write_stamp_npz(tmp_path / "h.npz", stamp, tier="B")
    again = formats.read_stamp_npz(tmp_path / "h.npz")
    assert again.bands == stamp.bands and again.meta["tier"] == "B" and again.pixel_scale == stamp.pixel_scale
    np.testing.assert_array_equal(again.images, stamp.images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.fits", "h.npz"]


# WCS ----------------------------------------------------------------------------------------------------------------


def test_wcs_against_tangent_projection(tmp_path):
    """An off-centre CRPIX: the image centre by the gnomonic formulae, the scale as the separation of two pixels."""
    size, scale = 40, 0.2
    cards = {"CRPIX1": 5.0, "CRPIX2": 33.0, "CRVAL1": 350.0, "CRVAL2": -61.0}
    path = write_cutout(tmp_path / "w.fits", size=size, scale=scale, **cards)
    stamp = formats.read_fits_cutout(path)
    x = np.deg2rad(-(scale / 3600) * ((size + 1) / 2 - 5.0))
    y = np.deg2rad((scale / 3600) * ((size + 1) / 2 - 33.0))
    dec0 = np.deg2rad(-61.0)
    ra = 350.0 + np.rad2deg(np.arctan2(x, np.cos(dec0) - y * np.sin(dec0)))
    dec = np.rad2deg(np.arctan2(np.sin(dec0) + y * np.cos(dec0), np.hypot(x, np.cos(dec0) - y * np.sin(dec0))))
    assert stamp.ra == pytest.approx(ra, abs=1e-9) and stamp.dec == pytest.approx(dec, abs=1e-9)
    wcs = WCS(fits.getheader(path), naxis=2)
    assert wcs.pixel_to_world(19, 19).separation(wcs.pixel_to_world(19, 20)).arcsec == pytest.approx(stamp.pixel_scale)


@pytest.mark.parametrize("cards, message", [
    ({"CD1_1": 0.262 / 3600}, "rotated or mirrored"),
    ({"CD1_2": 2e-5, "CD2_1": 2e-5}, "rotated or mirrored"),
    ({"CD2_2": 0.3 / 3600}, "not square"),
    ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no celestial WCS"),
])  # fmt: skip
def test_wcs_refusals(tmp_path, cards, message):
    with pytest.raises(UserError, match=message):
        formats.read_fits_cutout(write_cutout(tmp_path / "x.fits", **cards))


# Defects: one clear line each -----------------------------------------------------------------------------------------


def damage_npz(path, kind):
    planes = np.moveaxis(make_planes(), 0, -1)
    match kind:
        case "pickled":
            np.savez(path, cutout=np.array([{"a": 1}], dtype=object))
        case "text":
            path.write_text("<html>404 not found</html>")
        case "truncated":
            np.savez_compressed(path, cutout=planes, meta_bands_requested="grz")
            path.write_bytes(path.read_bytes()[:2000])
        case "flipped":
            np.savez_compressed(path, cutout=np.random.default_rng(1).random((61, 61, 3)), meta_bands_requested="grz")
            content = bytearray(path.read_bytes())
            content[3000:3100] = bytes(100)
            path.write_bytes(bytes(content))
        case "single array":
            with open(path, "wb") as handle:
                np.save(handle, planes)
        case "empty":
            path.write_bytes(b"")
        case "no array":
            np.savez(path, stamp=planes)
        case "contradiction":
            np.savez(path, cutout=planes, meta_bands_requested="grz",
                     meta_cutout_url="https://host/fits-cutout?ra=1&dec=2&bands=zrg")  # fmt: skip
        case "planes":
            np.savez(path, cutout=planes[..., :2], meta_bands_requested="grz")
        case "shape":
            np.savez(path, cutout=planes[..., 0], meta_bands_requested="grz")
        case "ambiguous":
            np.savez(path, img=np.ones((3, 3, 3)), meta_bands_requested="grz")
        case "unlike":
            np.savez(path, image_g=np.ones((5, 5)), image_r=np.ones((5, 6)))
        case "scale":
            np.savez(path, cutout=planes, meta_bands_requested="grz", meta_pixel_scale=-1.0)
        case "twice":
            np.savez(path, cutout=planes, meta_bands_requested="grg")


@pytest.mark.parametrize("kind, message", [
    ("pickled", "pickle"), ("text", "no NPZ file"), ("truncated", "damaged"), ("flipped", "damaged"),
    ("single array", "single array"), ("empty", "damaged|no NPZ"), ("no array", "no array cutout"),
    ("contradiction", "contradicts itself"), ("planes", "2 planes for 3"), ("shape", "three axes"),
    ("ambiguous", "cannot tell which axis"), ("unlike", "unlike or wrong shape"), ("scale", "meta_pixel_scale"),
    ("twice", "names a band twice"), ("absent", "no such file"),
])  # fmt: skip
def test_bad_npz_gives_one_line(tmp_path, kind, message):
    path = tmp_path / "bad.npz"
    damage_npz(path, kind)
    with pytest.raises(UserError, match=message) as caught:
        formats.read_stamp_npz(path)
    text = str(caught.value)
    assert text.startswith("bad.npz: ") and "\n" not in text and len(text) < 250


def damage_fits(path, kind):
    match kind:
        case "text":
            path.write_text("<html>502 bad gateway</html>")
        case "truncated":
            write_cutout(path)
            path.write_bytes(path.read_bytes()[:20000])
        case "cut header":
            write_cutout(path)
            path.write_bytes(path.read_bytes()[:1000])
        case "no bands":
            write_cutout(path, BANDS=None, BAND0=None, BAND1=None, BAND2=None)
        case "wrong order":
            write_cutout(path, BAND0="r", BAND1="g")
        case "count":
            write_cutout(path, planes=make_planes("gr"), BAND2=None)
        case "pieces":
            write_cutout(path, BRICK_X0=100)
        case "table":
            fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))]).writeto(path)
        case "invvar shape":
            extra = fits.ImageHDU(np.ones((3, 5, 5), np.float32), make_header(5, IMAGETYP="invvar"))
            write_cutout(path, extra=(extra,))
        case "one axis":
            fits.PrimaryHDU(np.ones(10, np.float32), make_header(10, BANDS="r")).writeto(path)


@pytest.mark.parametrize("kind, message", [
    ("text", "not a readable FITS"), ("truncated", "truncated, 20,000 of"), ("cut header", "FITS|truncated"),
    ("no bands", "band order cannot be proven"), ("wrong order", "BANDS = grz but BAND0.. = rgz"),
    ("count", "bands grz for 2 plane"), ("pieces", "pieces of bricks"), ("table", "holds no image"),
    ("invvar shape", "invvar has shape"), ("one axis", "1 axes"), ("absent", "no such file"),
])  # fmt: skip
def test_bad_fits_gives_one_line(tmp_path, kind, message):
    path = tmp_path / "bad.fits"
    damage_fits(path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=message) as caught:
            formats.read_fits_cutout(path)
    text = str(caught.value)
    assert text.startswith("bad.fits: ") and "\n" not in text and len(text) < 250


# Gaps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole, refused", [
    ((slice(0, 20), slice(None)), False),  # rim only
    ((slice(48, 50), slice(48, 50)), True),  # inside the core
    ((slice(28, 33), slice(28, 33)), False),  # 1 % of the centre, outside the core
    ((slice(26, 36), slice(26, 36)), True),  # 4 % of the centre
])  # fmt: skip
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_gaps_by_region(hole, refused, value):
    planes = make_planes(size=101)
    planes[1][hole] = value
    reason = formats.find_refusal(formats.Stamp("s", tuple("grz"), planes))
    assert bool(reason) == refused
    if refused:
        assert "no data (exact zeros): r " in reason and "g " not in reason.split(":")[1]


def test_small_image_is_refused():
    assert "smaller than" in formats.find_refusal(formats.Stamp("s", tuple("grz"), make_planes(size=41)))


# Resampling ---------------------------------------------------------------------------------------------------------


def make_gaussian(n, scale, fwhm, flux, dx=0.0, dy=0.0):
    """Pixel-integrated circular Gaussian, in closed form; (n, n), flux per pixel. Offsets in arcsec."""
    sigma = fwhm / 2.354820045
    edges = (np.arange(n + 1) - n / 2) * scale
    shares = [np.diff(erf((edges - d) / (np.sqrt(2) * sigma))) / 2 for d in (dx, dy)]
    return flux * shares[1][:, None] * shares[0][None, :]


@pytest.mark.parametrize("n, scale", [(424, 0.1), (424, 0.14321), (301, 0.13), (161, 0.3), (101, PIXEL_SCALE)])
def test_resampled_gaussian_matches_closed_form(n, scale):
    """Summing sub-pixels over whole pixels is exact; where pixels are split the flux inside one is taken as even."""
    fwhm, offset = 1.2, 0.31
    planes = np.stack([make_gaussian(n, scale, fwhm, f, offset, -offset) for f in (10.0, 20.0, 40.0)])
    stamp = formats.Stamp("g", tuple("grz"), planes.astype(np.float32), pixel_scale=scale)
    new = resample_stamp(stamp)
    truth = make_gaussian(101, PIXEL_SCALE, fwhm, 10.0, offset, -offset)
    assert new.images.shape == (3, 101, 101) and new.pixel_scale == PIXEL_SCALE
    np.testing.assert_allclose(new.images.sum(axis=(1, 2), dtype=float), [10.0, 20.0, 40.0], rtol=1e-4)
    np.testing.assert_allclose(measure_aperture(new, 6.0), [10.0, 20.0, 40.0], rtol=1e-3)
    tolerance = 0.08 if scale > PIXEL_SCALE else 0.03
    assert np.abs(new.images[0] - truth).max() < tolerance * truth.max()
    y, x = (np.arange(101) - 50)[:, None] * PIXEL_SCALE, (np.arange(101) - 50)[None, :] * PIXEL_SCALE
    assert (new.images[0] * x).sum() / 10 == pytest.approx(offset, abs=3e-3)
    assert (new.images[0] * y).sum() / 10 == pytest.approx(-offset, abs=3e-3)
    assert new.resampled == (scale != PIXEL_SCALE)


def test_whole_pixel_rebinning_is_exact():
    planes = np.random.default_rng(2).normal(size=(3, 303, 303)).astype(np.float32)
    new = resample_stamp(formats.Stamp("n", tuple("grz"), planes, pixel_scale=PIXEL_SCALE / 3))
    truth = planes.reshape(3, 101, 3, 101, 3).sum(axis=(2, 4), dtype=float)
    np.testing.assert_allclose(new.images, truth, atol=1e-5)


def test_gaps_stay_gaps():
    """Missing pixels lower no flux: a flat field stays flat, and what is mostly missing is exactly zero."""
    planes = np.full((3, 404, 404), 2.0, np.float32)
    planes[0, :, :202] = np.nan
    planes[1, 10, 10] = 0
    new = resample_stamp(formats.Stamp("m", tuple("grz"), planes, pixel_scale=PIXEL_SCALE / 4))
    assert np.all(new.images[0][:, :50] == 0) and np.allclose(new.images[0][:, 51:], 32.0)
    assert np.allclose(new.images[1], 32.0)
    small = resample_stamp(formats.Stamp("s", tuple("grz"), planes[:, :200, :200], pixel_scale=PIXEL_SCALE / 4))
    assert np.all(small.images[2][:20] == 0) and np.allclose(small.images[2][40:60, 40:60], 32.0)


def test_service_units_at_other_scale(tmp_path):
    """The service samples surface brightness: one sky served at two scales must give one flux."""
    surface = make_gaussian(901, 0.05, 1.5, 1.0).astype(np.float32) / 0.05**2 * PIXEL_SCALE**2
    path = write_cutout(tmp_path / "k.fits", planes=np.stack([surface] * 3), scale=0.05)
    assert measure_aperture(formats.read_fits_cutout(path), 6.0, n_sub=2) == pytest.approx([1.0] * 3, rel=2e-3)


# Real files ---------------------------------------------------------------------------------------------------------


@needs_data
def test_real_stamps_are_read():
    stamps = [formats.read_stamp_npz(p) for p in sorted((DATA / "ls-dr10-lens-cutouts").glob("*.npz"))]
    assert len(stamps) == 4
    for stamp in stamps:
        assert stamp.bands == BANDS and stamp.images.shape == (3, 101, 101) and not formats.find_refusal(stamp)
        assert f"ra={stamp.ra}"[:8] in stamp.meta["cutout_url"]


@needs_data
def test_real_cutouts_are_read_or_refused():
    folder = DATA / "decals-service-fits-cutouts"
    with pytest.raises(UserError, match="truncated, 1,389,044 of 2,162,880 bytes"):
        formats.read_fits_cutout(folder / "example_incomplete.fits")
    half = formats.read_fits_cutout(folder / "example_bad_pix.fits")
    assert np.mean([g["all"] for g in formats.measure_gaps(half).values()]) == pytest.approx(0.49, abs=0.01)
    assert "no data (exact zeros): g 76% of the image" in formats.find_refusal(half)
    native = formats.read_fits_cutout(folder / "temp_small.fits")
    zoomed = formats.read_fits_cutout(folder / "example_a.fits")
    assert native.pixel_scale == pytest.approx(0.262) and zoomed.pixel_scale == pytest.approx(0.100)
    kept = measure_aperture(resample_stamp(zoomed), 10.0) / measure_aperture(zoomed, 10.0)
    np.testing.assert_allclose(kept, 1.0, atol=1e-3)
    # The same galaxy from two releases and two scales.
    both = [measure_aperture(s, 10.0) for s in (resample_stamp(zoomed), native)]
    np.testing.assert_allclose(*both, rtol=0.02)
