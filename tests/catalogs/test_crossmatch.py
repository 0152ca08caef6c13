"""Matches on the sphere against astropy, reasons for losses, tiers."""

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

from lensaudit.catalogs import crossmatch, lenses, sphere
from lensaudit.config import CrossmatchConfig

ARCSEC = 1 / 3600


def test_pairs_agree_with_astropy_at_wrap_and_pole():
    rng = np.random.default_rng(0)
    ra = np.concatenate([rng.uniform(-0.02, 0.02, 300) % 360, rng.uniform(0, 360, 300)])
    dec = np.concatenate([rng.uniform(-0.02, 0.02, 300), 90 - rng.uniform(0, 0.01, 300)])
    first, second = (ra[::2], dec[::2]), (ra[1::2], dec[1::2])
    i, j, separation = sphere.find_pairs(*first, *second, 11.0)
    a, b = SkyCoord(*first, unit="deg"), SkyCoord(*second, unit="deg")
    other, mine, expected, _ = b.search_around_sky(a, 11 * units.arcsec)
    assert len(i) > 20
    assert set(zip(i, j, strict=True)) == set(zip(other, mine, strict=True))
    order = np.lexsort((mine, other))
    np.testing.assert_allclose(separation[np.lexsort((j, i))], expected.arcsec[order], atol=1e-6)


def make_survey(rows):
    table = pd.DataFrame(rows, columns=["ra", "dec", "type", "maskbits"])
    return table.assign(galaxy_id=[f"g{k}" for k in range(len(table))])


def make_system(ra, dec, tier="A", channel="imaging", name="c", z=np.nan, theta_E=np.nan):
    return {"entry_id": f"{name}:{ra:.5f}{dec:+.5f}", "catalog": name, "name": name, "ra": ra, "dec": dec,
            "z_lens": z, "grade": "", "tier": tier, "channel": channel, "reference": "", "theta_E": theta_E,
            "lens_type": "galaxy", "is_compilation": name == "lopes"}  # fmt: skip


def match(systems, galaxies):
    table = lenses.group_systems(pd.DataFrame(systems), 3.0)
    return crossmatch.match_lenses(table, galaxies, CrossmatchConfig())


def test_reasons():
    galaxies = make_survey([
        (10.0, 0.0, "DEV", 0), (10.0, 1.5 * ARCSEC, "SER", 0),  # two extended sources: ambiguous
        (20.0, 0.0, "PSF", 0), (30.0, 5 * ARCSEC, "REX", 0), (40.0, 30 * ARCSEC, "REX", 0),
        (50.0, 6 * ARCSEC, "REX", 1 << 1),
    ])  # fmt: skip
    systems = [make_system(ra, 0.0) for ra in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)]
    positives, unmatched, report = match([*systems, make_system(70.0, 0.0, name="lopes")], galaxies)
    assert list(positives["galaxy_id"]) == ["g0"] and list(positives["match_type"]) == ["ambiguous"]
    assert dict(zip(unmatched["ra"], unmatched["reason"], strict=True)) == {
        20.0: "point source only", 30.0: "beyond accept radius", 40.0: "no source", 50.0: "masked",
        60.0: "outside footprint"}  # fmt: skip
    assert report["n_systems"] == 6 == report["n_matched"] + report["n_unmatched"]
    assert sum(report["unmatched_by_reason"].values()) == report["n_unmatched"]
    assert report["n_entries_of_clusters"] == 1


def test_one_galaxy_serves_one_system():
    galaxies = make_survey([(10.0, 0.0, "DEV", 0)])
    positives, unmatched, _ = match(
        [make_system(10.0, 1.9 * ARCSEC), make_system(10.0, -1.8 * ARCSEC, name="d")], galaxies)
    assert list(positives["name"]) == ["d"] and list(unmatched["reason"]) == ["source already taken"]


def test_tier_of_a_system_comes_from_its_best_entry():
    galaxies = make_survey([(10.0, 0.0, "DEV", 0), (20.0, 0.0, "DEV", 0)])
    entries = [make_system(10.0, 0.0, "B", z=0.3), make_system(10.0, 0.2 * ARCSEC, "A", name="d"),
               make_system(10.0, 0.4 * ARCSEC, "S", "single_fibre", "f", theta_E=1.1),
               make_system(20.0, 0.1 * ARCSEC, "S", "single_fibre", "f")]  # fmt: skip
    positives, _, report = match(entries, galaxies)
    first, second = positives.to_dict("records")
    assert (first["tier"], first["channels"]) == ("A", "imaging+single_fibre")
    assert (first["z_lens"], first["n_entries"]) == (0.3, 3)
    assert first["is_independent"] and first["is_confirmed"] and first["separation"] == pytest.approx(0.2, abs=1e-5)
    assert second["tier"] == "S" and not second["is_confirmed"]
    assert report["n_independent"] == 2


def test_row_order_does_not_matter(systems, galaxies, config):
    first = crossmatch.match_lenses(systems, galaxies, config.crossmatch)
    shuffled = galaxies.sample(frac=1.0, random_state=2).reset_index(drop=True)
    second = crossmatch.match_lenses(systems.sample(frac=1.0, random_state=3), shuffled, config.crossmatch)
    pd.testing.assert_frame_equal(first[0], second[0])
    pd.testing.assert_frame_equal(first[1], second[1])


def test_empty_survey_is_all_outside():
    galaxies = make_survey([(10.0, 0.0, "DEV", 0)])
    positives, unmatched, report = match([make_system(99.0, 0.0)], galaxies)
    assert len(positives) == 0 and list(unmatched["reason"]) == ["outside footprint"]
    assert np.isnan(report["separation_arcsec"]["p50"])
