"""Lens lists: text redshifts, channels, tiers, systems on the sphere, and the real catalogues when present."""

import numpy as np
import pandas as pd
import pytest

from lensaudit.artifacts import UserError
from lensaudit.catalogs import lenses


@pytest.mark.parametrize(("text", "value"), [
    ("0.272?", 0.272), ("0.55*", 0.55), ("0.49 | 0.52", 0.49), ("0.406+/-0.021", 0.406), ("0.905? measured", 0.905),
    ("0.23 | - | nan", 0.23), (" .5 ", 0.5), (0.3, 0.3), ("-", None), ("measured", None), ("not measured", None),
    ("L", None), ("nan", None), ("", None), ("-99", None), ("-0.4", None), ("99.0", None), (float("nan"), None),
])  # fmt: skip
def test_redshift_text(text, value):
    found = lenses.parse_redshift(text)
    assert np.isnan(found) if value is None else found == value


@pytest.mark.parametrize(("reference", "channel"), [
    ("Storfer et al. (2022) - arXiv:2206.02764", "imaging"),
    ("Talbot et al. (2020) - arXiv:2007.09006 | Storfer et al. (2022) - arXiv:2206.02764", "single_fibre"),
    ("https://research.ast.cam.ac.uk/lensedquasars/index.html", "quasar"),
    ("https://arxiv.org/abs/2004.00634", "citizen"),
    ("Moustakas et al. (2012) - adsabs:2012hst..prop12833M", "unstated"),
])  # fmt: skip
def test_channel_of_reference(reference, channel):
    assert lenses.derive_channel(reference) == channel


def write_lenscat(path, rows):
    table = pd.DataFrame(rows, columns=["name", "RA [deg]", "DEC [deg]", "zlens", "type", "grading", "ref"])
    table.to_csv(path, index=False)
    return path


def test_lenscat_schema(tmp_path):
    path = write_lenscat(tmp_path / "lenscat.csv", [
        ("a", "359.99999", "1.0", "0.272?", "galaxy", "confident", "Huang et al. (2021) - arXiv:2005.04730"),
        ("b", "-10.0", "2.0", "measured", "galaxy", "probable", "Lopes et al. (2004) - doi:10.1086/423038"),
        ("c", "10.0", "2.0", "-", "galaxy", "probable", "Talbot et al. (2020) - arXiv:2007.09006"),
        ("c2", "10.0", "2.0", "-", "galaxy", "probable", "unknown"),
    ])  # fmt: skip
    table = lenses.read_catalog(path, "lenscat")
    assert tuple(table.columns) == lenses.ENTRY_COLUMNS
    assert list(table["tier"]) == ["A", "B", "S", "B"]
    assert list(table["is_compilation"]) == [False, True, False, False]
    assert table["ra"].iloc[1] == 350.0
    assert table["entry_id"].is_unique
    again = lenses.read_catalog(path, "lenscat")
    assert table["entry_id"].equals(again["entry_id"])


@pytest.mark.parametrize(("text", "words"), [
    ("name,RA,DEC\nx,1,2\n", "grade missing"),
    ("name,RA,DEC,grade\nx,1,2,A\ny,12h,2,A\n", "row 2 (y) has ra = '12h'"),
    ("name,RA,DEC,grade\nx,1,95,A\n", "dec = '95'"),
])  # fmt: skip
def test_bad_table_gets_one_line(tmp_path, text, words):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        lenses.read_catalog(path, "published")
    assert words in str(error.value) and "list.csv" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_inputs(tmp_path):
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\x00\xff\xfe\x89PNG" * 50)
    with pytest.raises(UserError, match="binary.csv"):
        lenses.read_catalog(binary, "lenscat")
    with pytest.raises(UserError, match="absent.csv"):
        lenses.read_catalog(tmp_path / "absent.csv", "published")
    with pytest.raises(UserError, match="kind"):
        lenses.read_catalog(binary, "hsc")
    binary.write_text("SDSSJ0029-0055 7.28 -0.93 0.227\n")
    with pytest.raises(UserError, match="SLACS"):
        lenses.read_catalog(binary, "slacs")


def make_entries(ra, dec, channel="imaging", catalog="c"):
    n = len(ra)
    return pd.DataFrame({
        "entry_id": [f"{catalog}:{k:04d}" for k in range(n)], "catalog": catalog, "ra": ra, "dec": dec,
        "channel": channel, "tier": "A", "z_lens": 0.5,
    })  # fmt: skip


def test_systems_across_the_wrap_and_at_the_pole():
    arcsec = 1 / 3600
    first = make_entries([359.9999, 0.0, 180.0, 10.0], [0.0, 89.9999, 89.9999, -45.0])
    second = make_entries([0.0001, 10.0, 10.0], [0.0, -45.0 + 2.9 * arcsec, -45.0 + 6.2 * arcsec], "single_fibre", "d")
    systems = lenses.group_systems(pd.concat([first, second]), 3.0).set_index("entry_id")
    name = systems["system_id"]
    assert name["c:0000"] == name["d:0000"]  # 0.72 arcsec apart across RA = 0
    assert name["c:0001"] == name["c:0002"]  # 0.72 arcsec apart over the pole
    assert name["c:0003"] == name["d:0001"] != name["d:0002"]  # 2.9 and 3.3 arcsec apart
    assert systems["is_independent"].to_dict() == {
        "c:0000": True, "c:0001": False, "c:0002": False, "c:0003": True, "d:0000": True, "d:0001": True,
        "d:0002": True}  # fmt: skip


def test_systems_ignore_row_order():
    rng = np.random.default_rng(3)
    entries = make_entries(rng.uniform(0, 0.05, 200), rng.uniform(0, 0.05, 200))
    shuffled = entries.sample(frac=1.0, random_state=1)
    pd.testing.assert_frame_equal(lenses.group_systems(entries, 10.0), lenses.group_systems(shuffled, 10.0))


def test_overlaps():
    both = pd.concat([make_entries([1.0, 2.0, 3.0], [0, 0, 0]), make_entries([3.0, 4.0], [0, 0], "quasar", "d")])
    table = lenses.count_overlaps(lenses.group_systems(both, 3.0)).set_index(["level", "first", "second"])
    row = table.loc[("channel", "imaging", "quasar")]
    assert (row["n_first"], row["n_second"], row["n_both"], row["jaccard"]) == (3, 2, 1, 0.25)


def test_match_counts_of_the_real_tables(real_data):
    """PROVENANCE quotes how many entries of each published table lie within 3 arcsec of the community catalogue."""
    community = lenses.read_catalog(real_data / "lenscat" / "catalog.csv", "lenscat")
    assert len(community) == 32838
    expected = {"huang2020": (342, 338), "huang2021": (1312, 1300), "storfer2024": (1895, 1878),
                "inchausti2025": (811, 122)}  # fmt: skip
    for name, (rows, matched) in expected.items():
        path = real_data / "lens-catalogs" / f"{name}_published_catalog.csv"
        table = lenses.read_catalog(path, "published")
        assert (len(table), lenses.count_matches(table, community, 3.0)) == (rows, matched)


def test_real_slacs_and_literature(real_data):
    slacs = lenses.read_catalog(real_data / "slacs" / "SLACS_table.cat", "slacs")
    assert len(slacs) == 59 and set(slacs["tier"]) == {"S"}
    assert (slacs["theta_E"].min(), slacs["theta_E"].max()) == (0.80, 1.78)
    literature = lenses.read_catalog(real_data / "lens-catalogs" / "positives_literature.parquet", "literature")
    assert len(literature) == 6302 and set(literature["channel"]) == {"imaging", "citizen"}
