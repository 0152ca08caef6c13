"""Lens catalogues in one schema, grouped on the sky into systems.

Start with `read_catalog` for every list, concatenate, then `group_systems`. Lists differ in columns, grades and in how
a redshift is written; the schema keeps what the audit needs: where, how confident, found through which channel.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lensaudit.artifacts import UserError, read_table
from lensaudit.catalogs import sphere

ENTRY_COLUMNS = (
    "entry_id", "catalog", "name", "ra", "dec", "z_lens", "grade", "tier", "channel", "reference", "theta_E",
    "lens_type", "is_compilation",
)  # fmt: skip
KINDS = ("lenscat", "published", "slacs", "literature")
# Channels whose selection does not look at survey images; their systems never enter training.
INDEPENDENT_CHANNELS = ("single_fibre", "pairwise")

# Columns each kind must have, lower case, with the units stripped from names such as "RA [deg]".
_REQUIRED = {
    "lenscat": ("name", "ra", "dec", "zlens", "grading", "ref"),
    "published": ("name", "ra", "dec", "grade"),
    "literature": ("ra", "dec", "source"),
}
# The discovery channel a reference stands for; the first pattern that matches wins. Spectroscopic searches come first:
# an object a fibre spectrum also found is an independent-channel object, whoever else lists it.
_CHANNELS = (
    ("pairwise", r"2509\.16033"),
    ("single_fibre", r"2512\.04275|0805\.1931|0911\.2471|1112\.3683|1604\.01842|1803\.03604|2007\.09006|2206\.09902"
                     r"|SLACS|BELLS|[Ss]pectroscopic search"),
    ("supernova", r"1611\.00014|supernova"),
    ("quasar", r"lensedquasars|1911\.02587|quasar"),
    ("citizen", r"1504\.05587|2004\.00634|SuGOHI_VI\b|Space Warps|[Cc]itizen science"),
    ("space", r"relics|CLASH|1206\.3412|0802\.2174|1611\.03922|1801\.07282|0911\.3302"),
    ("imaging", r"1906\.00970|2005\.04730|2206\.02764|2508\.20087|2110\.00023|1812\.03168|2004\.13048|2107\.07829"
                r"|2109\.00014|2110\.11972|2110\.01905|2110\.02418|ab26b6|1811\.03786|aa8667|2210\.10802|1109\.1821"
                r"|0610362|2201\.11135|apj492878|1704\.01585|2002\.01611|huang20|storfer20|inchausti20"
                r"|LinKS|DES|HOLISMOKES|SL2S|LensFlow|SuGOHI|[Ii]maging search"),
)  # fmt: skip
# Cluster compilations inside the community catalogue: positions of clusters, not of lenses.
_COMPILATIONS = r"Lopes et al\. \(2004\)|Gonzalez et al\. \(2001\)|Gioia et al\. \(1990\)|.*cluster compilation"
_NUMBER = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)")


def parse_redshift(text):
    """Read a redshift as catalogues write it.

    Parameters
    ----------
    text : str or float
        ``"0.272?"`` and ``"0.55*"`` are read as the number, ``"0.49 | 0.49"`` and ``"0.406+/-0.021"`` as the first;
        ``"-"``, ``"measured"``, ``"L"``, ``"nan"`` and values outside [0, 15) are not known.

    Returns
    -------
    float
        NaN when not known.
    """
    text = str(text).strip()
    if text.startswith("-"):
        return float("nan")
    found = _NUMBER.search(text)
    value = float(found.group()) if found else float("nan")
    return value if 0 <= value < 15 else float("nan")


def derive_channel(reference):
    """Return the discovery channel a reference or catalogue name stands for.

    Returns
    -------
    str
        ``pairwise``, ``single_fibre``, ``supernova``, ``quasar``, ``citizen``, ``space``, ``imaging``, or ``unstated``
        for compilations and references whose channel is not on record here.
    """
    for channel, pattern in _CHANNELS:
        if re.search(pattern, str(reference)):
            return channel
    return "unstated"


def read_catalog(path, kind, catalog="", channel=""):
    """Read one lens list into the common schema.

    Parameters
    ----------
    path : path
    kind : str
        ``"lenscat"`` (name, RA, DEC, zlens, type, grading, ref), ``"published"`` (name, RA, DEC, grade and more),
        ``"slacs"`` (whitespace table with Einstein radii) or ``"literature"`` (Parquet: RA, DEC, source, Name).
    catalog : str
        Name of the list; the file's stem by default.
    channel : str
        Discovery channel of the whole list; derived from reference and catalogue name by default.

    Returns
    -------
    pandas.DataFrame
        `ENTRY_COLUMNS`: ra, dec in degrees, theta_E in arcsec, tier A (confident), B (probable) or S (spectroscopic).

    Raises
    ------
    UserError
        For an unknown kind, an unreadable file, missing columns or positions that are not on the sky.

    Notes
    -----
    A grade A or "confident" is Tier A, every other grade Tier B. Lists without grades are Tier B.
    """
    path = Path(path)
    if kind not in KINDS:
        raise UserError(f"{path.name}: catalogue kind {kind!r} unknown; use one of {', '.join(KINDS)}")
    table = _read_slacs(path) if kind == "slacs" else _read_named(path, kind)
    entries = pd.DataFrame({"name": table["name"].astype(str), "ra": table["ra"], "dec": table["dec"]})
    entries["catalog"] = catalog or path.stem
    entries["z_lens"] = [parse_redshift(z) for z in table["zlens"]] if "zlens" in table else np.nan
    entries["theta_E"] = table["theta_E"] if "theta_E" in table else np.nan
    entries["grade"] = table["grade"].astype(str) if "grade" in table else ""
    entries["reference"] = table["ref"].astype(str) if "ref" in table else entries["catalog"]
    entries["lens_type"] = table["type"].astype(str) if "type" in table else "galaxy"
    entries["is_compilation"] = entries["reference"].str.match(_COMPILATIONS) & (kind == "lenscat")
    names = {text: derive_channel(text) for text in entries["reference"].unique()}
    entries["channel"] = channel or entries["reference"].map(names)
    spectroscopic = entries["channel"].isin(INDEPENDENT_CHANNELS)
    confident = entries["grade"].str.strip().str.upper().isin(["A", "CONFIDENT"])
    entries["tier"] = np.select([spectroscopic, confident], ["S", "A"], "B")
    entries["entry_id"] = _make_entry_ids(entries)
    return entries[list(ENTRY_COLUMNS)]


def _read_named(path, kind):
    if kind == "literature":
        table = read_table(path)
    else:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError, pd.errors.ParserError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path.name}: not a readable CSV table ({reason}); check the path and the file") from None
    table.columns = [re.sub(r"\s*\[.*\]", "", str(c)).strip().lower() for c in table.columns]
    missing = [c for c in _REQUIRED[kind] if c not in table.columns]
    if missing:
        raise UserError(f"{path.name}: column(s) {', '.join(missing)} missing for kind {kind!r}; "
                        f"it has {', '.join(table.columns[:12])}")
    table = table.rename(columns={"grading": "grade", "spec_z": "zlens"})
    if kind == "literature":
        table = table.rename(columns={"source": "ref"})
        table["name"] = table["name"] if "name" in table else table["ref"]
    elif kind == "published":
        # The reference of a published table is the table itself: its own "ref" column holds footnotes.
        table = table.drop(columns=[c for c in ("ref", "type") if c in table])
        if "photo_z" in table:
            spectroscopic = table["zlens"] if "zlens" in table else ""
            table["zlens"] = np.where(spectroscopic == "", table["photo_z"], spectroscopic)
    for name, low, high in (("ra", -360, 720), ("dec", -90, 90)):
        values = pd.to_numeric(table[name], errors="coerce")
        bad = ~values.between(low, high)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(f"{path.name}: row {row + 1} ({table['name'].iloc[row]}) has {name} = "
                            f"{table[name].iloc[row]!r}; give decimal degrees or remove the row")
        table[name] = values
    table["ra"] %= 360.0
    return table


def _read_slacs(path):
    # Columns by position: name ra dec zd zs Reff["] Reff[kpc] theta_Ein["] ... (Sonnenfeld 2024, data table).
    try:
        table = pd.read_csv(path, sep=r"\s+", comment="#", header=None)
        table = table[[0, 1, 2, 3, 7]].set_axis(["name", "ra", "dec", "zlens", "theta_E"], axis=1)
        return table.astype({"ra": float, "dec": float, "theta_E": float}).assign(ref="SLACS", grade="A")
    except (OSError, KeyError, ValueError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path.name}: not a SLACS table ({reason}); "
                        "it needs whitespace columns name ra dec zd zs Reff Reff_kpc theta_Ein ...") from None


def _make_entry_ids(entries):
    """Return catalogue name and position rounded to 0.1 arcsec; repeats within a list are numbered by name."""
    ra, dec = np.round(entries["ra"] * 36000) / 36000, np.round(entries["dec"] * 36000) / 36000
    place = ["{}:{:010.6f}{:+010.6f}".format(*item) for item in zip(entries["catalog"], ra, dec, strict=True)]
    order = entries.assign(place=place).sort_values(["place", "name"], kind="stable")
    repeat = order.groupby("place").cumcount().reindex(entries.index)
    return [p if n == 0 else f"{p}#{n + 1}" for p, n in zip(place, repeat, strict=True)]


def group_systems(entries, radius):
    """Group entries of all catalogues on the sky into systems.

    Parameters
    ----------
    entries : pandas.DataFrame
        Rows of `read_catalog`, concatenated.
    radius : float
        Arcsec; entries linked by a chain of such steps are one system.

    Returns
    -------
    pandas.DataFrame
        The entries sorted by entry_id, with ``system_id`` (named after the system's first entry_id) and
        ``is_independent``: some entry of the system comes from an independent channel.
    """
    entries = entries.sort_values("entry_id", kind="stable").reset_index(drop=True)
    first, second, _ = sphere.find_pairs(entries["ra"], entries["dec"], entries["ra"], entries["dec"], radius)
    n = len(entries)
    _, group = connected_components(coo_matrix((np.ones(len(first), bool), (first, second)), (n, n)), directed=False)
    place = pd.Series(entries["entry_id"]).groupby(group).transform("first") if n else pd.Series([], dtype=str)
    independent = entries["channel"].isin(INDEPENDENT_CHANNELS).groupby(group).transform("any")
    return entries.assign(system_id="system/" + place.astype(str), is_independent=independent.astype(bool))


def count_overlaps(systems):
    """Count the systems that two channels, or two catalogues, have in common.

    Parameters
    ----------
    systems : pandas.DataFrame
        From `group_systems`.

    Returns
    -------
    pandas.DataFrame
        level (``channel`` or ``catalog``), first, second, n_first, n_second, n_both, jaccard. A list paired with
        itself gives its own number of systems.
    """
    rows = []
    for level in ("channel", "catalog"):
        member = pd.crosstab(systems["system_id"], systems[level]) > 0
        both = member.T.astype(np.int64).to_numpy() @ member.astype(np.int64).to_numpy()
        sizes = np.diag(both)
        i, j = np.triu_indices(len(sizes))
        union = sizes[i] + sizes[j] - both[i, j]
        rows.append(pd.DataFrame({
            "level": level, "first": member.columns[i], "second": member.columns[j], "n_first": sizes[i],
            "n_second": sizes[j], "n_both": both[i, j], "jaccard": both[i, j] / union,
        }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def count_matches(first, second, radius=3.0):
    """Count the entries of one catalogue that lie within a radius (arcsec) of some entry of another."""
    _, separation = sphere.find_nearest(first["ra"], first["dec"], second["ra"], second["dec"])
    return int((separation <= radius).sum())
