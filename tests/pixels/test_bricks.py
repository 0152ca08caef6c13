"""Stamps cut from coadd bricks: position, orientation, no data, edges, missing bands; and one real brick."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lensaudit.artifacts import UserError
from lensaudit.pixels.bricks import BrickSource, cut_box

SCALE = 0.262 / 3600


def make_wcs(size=300, ra=150.0, dec=2.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [(size + 1) / 2] * 2
    wcs.wcs.cd = [[-SCALE, 0], [0, SCALE]]
    return wcs


def write_brick(folder, bands="grz", brick="1500p020", size=300):
    wcs, y, x = make_wcs(size), *np.indices((size, size))
    folder.mkdir(parents=True, exist_ok=True)
    for number, band in enumerate(bands, start=1):
        image = (number * 1e6 + 1e3 * y + x).astype(np.float32)
        weight = np.where(x == 155, 0.0, 4.0).astype(np.float32)
        for kind, data in (("image", image), ("invvar", weight)):
            fits.writeto(folder / f"legacysurvey-{brick}-{kind}-{band}.fits", data, wcs.to_header())
    return wcs


def make_rows(wcs, pixels, brick="1500p020"):
    ra, dec = wcs.all_pix2world(*np.transpose(pixels), 0)
    ids = [f"9-1-{i}" for i in range(len(pixels))]
    return pd.DataFrame({"galaxy_id": ids, "brickname": brick, "ra": ra, "dec": dec})


@pytest.mark.parametrize("where", ["", "1500p020", "coadd/150/1500p020"])
def test_centre_orientation_bands_and_no_data(tmp_path, where):
    wcs = write_brick(tmp_path / where)
    images, reasons = BrickSource(tmp_path).read(make_rows(wcs, [(150, 120), (90.4, 200.4)]))
    assert reasons == ["", ""]
    assert images[0, :, 50, 50].tolist() == [1e6 + 120150, 2e6 + 120150, 3e6 + 120150]
    assert images[0, 0, 51, 50] - images[0, 0, 50, 50] == 1000  # north is up
    assert images[1, 0, 50, 50] == 1e6 + 200090
    assert (images[0, :, :, 55] == 0).all() and (images[0, :, :, 54] > 0).all()  # invvar 0 is no data
    weight = BrickSource(tmp_path).read_planes(make_rows(wcs, [(150, 120)]), "invvar", "r")
    assert weight.shape == (1, 101, 101) and weight[0, 3, 55] == 0 and weight[0, 3, 54] == 4


def test_edges_are_zero_filled_and_outside_is_a_reason(tmp_path):
    wcs = write_brick(tmp_path)
    images, reasons = BrickSource(tmp_path).read(make_rows(wcs, [(10, 290), (-30, 100)]))
    assert reasons == ["", "position outside brick 1500p020"]
    assert (images[0, :, :, :40] == 0).all() and (images[0, :, 60:] == 0).all()
    assert images[0, 0, 50, 50] == 1e6 + 290010
    assert np.isnan(images[1]).all()
    assert cut_box(np.ones((5, 5)), 0, 4, 3).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0]]


def test_missing_band_and_broken_file_are_user_errors(tmp_path):
    rows = make_rows(write_brick(tmp_path, bands="gz"), [(150, 150)])
    with pytest.raises(UserError, match="1500p020 has no legacysurvey-1500p020-image-r.fits"):
        BrickSource(tmp_path).read(rows)
    assert BrickSource(tmp_path, bands="gz").read(rows)[0].shape == (1, 2, 101, 101)
    (tmp_path / "legacysurvey-1500p020-image-g.fits").write_bytes(b"SIMPLE  = nothing")
    with pytest.raises(UserError, match="image-g.fits: not a readable coadd"):
        BrickSource(tmp_path).read(rows)


def test_real_brick(real_data):
    """DR6 brick at the survey's edge: g has data in 12 per cent of its pixels, r is absent."""
    folder, brick = real_data / "ls-dr6-brick-0959p805", "0959p805"
    source = BrickSource(folder, bands="g", size=65)
    plane, wcs = source.load_plane(brick, "image", "g")
    weight, _ = source.load_plane(brick, "invvar", "g")
    full = np.lib.stride_tricks.sliding_window_view(weight > 0, (65, 65))[::50, ::50].all((2, 3))
    line, column = (int(v[0]) * 50 + 32 for v in np.nonzero(full))
    rows = make_rows(wcs, [(column, line)], brick)
    images, reasons = source.read(rows)
    assert reasons == [""]
    assert np.array_equal(images[0, 0], plane[line - 32 : line + 33, column - 32 : column + 33])
    ivar = source.read_planes(rows, "invvar", "g")[0]
    pull = images[0, 0] * np.sqrt(ivar)
    assert 0.4 < np.subtract(*np.percentile(pull, [84, 16])) / 2 < 2  # invvar is that of the pixels, within sources
    with pytest.raises(UserError, match="has no legacysurvey-0959p805-image-r"):
        BrickSource(folder).read(rows)
