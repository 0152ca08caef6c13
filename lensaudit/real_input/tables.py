"""Real catalogues and survey tables: are the files those described, what do the lists share, what does a release lack.

Every file is named by its dataset description in ``data_manifests``; nothing here knows a path of its own.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import UserError, hash_file, load_dataset
from lensaudit.audit.selected import correct_distribution
from lensaudit.catalogs.lenses import count_matches, read_catalog
from lensaudit.catalogs.sweeps import REQUIRED, read_sweep

COMMUNITY = "lenscat"
# Dataset and kind of every lens list.
LISTS = (("candidate_tables", "published"), ("slacs", "slacs"), ("literature_lenses", "literature"))
TABLES = ("dr8_tables", "dr9_tractor")
STAMPS = ("dr10_lens_stamps", "decals_cutouts")
MATCH_RADIUS = 3.0  # arcsec, of the quoted counts
# Bins of the lists' distributions; Huang et al. (2021) write DC for DEV or COMP of an older Tractor.
BINS = {"theta_E": np.arange(0.5, 2.6, 0.25), "z_lens": np.linspace(0, 1.5, 16),
        "host_type": ["DEV", "DC", "SER", "REX", "EXP"]}  # fmt: skip


def find_data_root(config):
    """Return the folder of real data, or one clear error.

    Raises
    ------
    UserError
        When no folder is given, it does not exist, or it holds none of the described files.
    """
    if not config.data_root:
        raise UserError("no folder of real data; give it with make real REAL_DATA=folder or LENSAUDIT_DATA")
    root = Path(config.data_root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of real data; give it with make real REAL_DATA=folder")
    return root


def list_files():
    """Return the described files: dataset, file, sha256, bytes, licence; and rows, matches where quoted."""
    community = load_dataset(COMMUNITY)
    # The package's member lies under the data root without its inner folder.
    member = Path(community["member"])
    rows = [{
        "dataset": COMMUNITY, "file": f"{member.parts[0]}/{member.name}", "sha256": community["member_sha256"],
        "bytes": community["member_bytes"], "licence": community["licence"],
    }]  # fmt: skip
    for name in [n for n, _ in LISTS] + [*TABLES, *STAMPS]:
        dataset = load_dataset(name)
        keep = ("sha256", "bytes", "rows", "matches")
        rows += [
            {"dataset": name, "file": f["path"], "licence": dataset["licence"]} | {k: f[k] for k in keep if k in f}
            for f in dataset["files"]
        ]
    return pd.DataFrame(rows)


def check_files(config):
    """Compare the files under the data root with their descriptions.

    Parameters
    ----------
    config : lensaudit.config.Config

    Returns
    -------
    pandas.DataFrame
        `list_files` with ``state``: ``as described``, ``missing`` or ``differs``.

    Raises
    ------
    UserError
        When no described file is there at all.
    """
    root = find_data_root(config)
    files = list_files()
    files["state"] = [_compare(root / f, s) for f, s in zip(files["file"], files["sha256"], strict=True)]
    if (files["state"] == "missing").all():
        raise UserError(f"{root}: holds none of the described files; give the folder of PROVENANCE.md")
    return files


def _compare(path, digest):
    if not path.is_file():
        return "missing"
    return "as described" if hash_file(path) == digest else "differs"


def read_lists(config):
    """Read every lens list into one table of entries.

    Returns
    -------
    pandas.DataFrame
        `lenses.ENTRY_COLUMNS` and host_type (Tractor's, as the list writes it; empty where it has none), the community
        catalogue first.
    """
    root, files = find_data_root(config), list_files()
    kinds = dict(((COMMUNITY, "lenscat"), *LISTS))
    wanted = files[files["dataset"].isin(kinds)]
    pairs = zip(wanted["dataset"], wanted["file"], strict=True)
    lists = [read_catalog(root / f, kinds[d], name_list(d, f)).assign(host_type=_read_types(root / f))
             for d, f in pairs]  # fmt: skip
    return pd.concat(lists, ignore_index=True)


def _read_types(path):
    """Return the host types of a CSV list, row by row, or an empty text."""
    if path.suffix != ".csv":
        return ""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table["tractor_type"].to_numpy() if "tractor_type" in table else ""


def name_list(dataset, file):
    """Return the short name of a lens list: its dataset, or the file's first word where a dataset holds several."""
    return Path(file).stem.split("_")[0] if dataset == "candidate_tables" else dataset


def observe_lists(systems):
    """Return how the lenses of each list are distributed in what the list says of them, as observed.

    Parameters
    ----------
    systems : pandas.DataFrame
        From `lenses.group_systems` of `read_lists`.

    Returns
    -------
    pandas.DataFrame
        variable (theta_E [arcsec], z_lens, host_type), catalog, left, right or name, n_found, n_known (systems with a
        value, inside the bins or not). A list without the column has no rows.

    Notes
    -----
    Galaxy-scale systems, each once per list, without cluster compilations. Nothing is corrected: C is that of a
    detector and of its operating point, and it scored none of these lists.
    """
    own = systems[(systems["lens_type"] == "galaxy") & ~systems["is_compilation"]]
    parts = []
    for name, bins in BINS.items():
        known = own[own[name].notna() & (own[name] != "")].drop_duplicates(["catalog", "system_id"])
        parts += [correct_distribution(rows, name, bins).assign(variable=name, catalog=catalog, n_known=len(rows))
                  for catalog, rows in known.groupby("catalog")]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def compare_matches(entries):
    """Recount the entries and the matches with the community catalogue that are quoted with the candidate tables.

    Parameters
    ----------
    entries : pandas.DataFrame
        From `read_lists`.

    Returns
    -------
    pandas.DataFrame
        catalog, rows_quoted, rows, matches_quoted, matches (within 3 arcsec of any community entry), agrees.
    """
    files = list_files().dropna(subset="matches")
    community = entries[entries["catalog"] == COMMUNITY]
    rows = []
    for file in files.itertuples():
        name = name_list(file.dataset, file.file)
        own = entries[entries["catalog"] == name]
        found = count_matches(own, community, MATCH_RADIUS)
        rows.append({"catalog": name, "rows_quoted": int(file.rows), "rows": len(own),
                     "matches_quoted": int(file.matches), "matches": found})  # fmt: skip
    table = pd.DataFrame(rows)
    agrees = (table["rows"] == table["rows_quoted"]) & (table["matches"] == table["matches_quoted"])
    return table.assign(agrees=agrees)


def summarise_systems(systems, level="catalog"):
    """Count entries and systems of each list or channel.

    Parameters
    ----------
    systems : pandas.DataFrame
        From `lenses.group_systems`.
    level : str
        ``"catalog"`` or ``"channel"``.

    Returns
    -------
    pandas.DataFrame
        The level, entries, systems, systems_alone (in no other list or channel), tier_a, with_redshift,
        with_theta_E (entries).
    """
    members = systems.groupby("system_id")[level].nunique()
    alone = systems[systems["system_id"].map(members) == 1]
    grouped = systems.groupby(level)
    out = pd.DataFrame({
        "entries": grouped.size(), "systems": grouped["system_id"].nunique(),
        "systems_alone": alone.groupby(level)["system_id"].nunique(),
        "tier_a": grouped["tier"].agg(lambda t: int((t == "A").sum())),
        "with_redshift": grouped["z_lens"].count(), "with_theta_E": grouped["theta_E"].count(),
    })  # fmt: skip
    return out.fillna(0).astype(int).sort_values("entries", ascending=False).reset_index()


def describe_tables(config):
    """Read the real survey tables as the parent sample would, and say what each release lacks.

    Returns
    -------
    pandas.DataFrame
        file, release, rows, refusal (the error of a strict read, empty when the table has all the audit needs),
        missing (columns, upper case), types, n_masked (any MASKBITS set), depth_r_min, depth_r_max [5-sigma AB mag],
        psfsize_r [arcsec, median], n_finite_mag (r).
    """
    root, files = find_data_root(config), list_files()
    rows = []
    for file in files.loc[files["dataset"].isin(TABLES), "file"]:
        try:
            refusal = ""
            table = read_sweep(root / file, REQUIRED)
        except UserError as error:
            refusal = str(error).removeprefix(f"{Path(file).name}: ")
            table = read_sweep(root / file, require=())
        counts = table["type"].value_counts().sort_index()
        rows.append({
            "file": file, "release": int(table["release"].max()), "rows": len(table), "refusal": refusal,
            "missing": " ".join(name.upper() for name in table.attrs["missing"]),
            "types": ", ".join(f"{n} {t}" for t, n in counts.items()), "n_masked": int((table["maskbits"] != 0).sum()),
            "depth_r_min": table["depth_r"].min(), "depth_r_max": table["depth_r"].max(),
            "psfsize_r": float(np.median(table["psfsize_r"])), "n_finite_mag": int(table["mag_r"].notna().sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


