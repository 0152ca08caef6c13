"""The one-page table of the real input: one row per file, what it is, whether it was read, why not, what it gave."""

from pathlib import Path

import numpy as np
import pandas as pd

from lensaudit.artifacts import load_dataset, write_atomic
from lensaudit.real_input.tables import LISTS, TABLES, list_files, name_list

COLUMNS = ("file", "what", "outcome", "reason", "numbers")
WHAT = {
    "lenscat": "community lens catalogue", "candidate_tables": "published candidate table",
    "slacs": "lenses with Einstein radii", "literature_lenses": "harvested literature list",
    "dr8_tables": "DR8 survey table", "dr9_tractor": "DR9 survey table",
    "dr10_lens_stamps": "DR10 stamp of a lens candidate", "decals_cutouts": "cutout of a nearby galaxy",
}  # fmt: skip


def make_overview(lists, matches, tables, stamps, measured, scores, injected):
    """Put everything that was done with the real input on one page.

    Parameters
    ----------
    lists : pandas.DataFrame
        From `tables.summarise_systems` by catalogue.
    matches : pandas.DataFrame
        From `tables.compare_matches`.
    tables : pandas.DataFrame
        From `tables.describe_tables`.
    stamps, measured, scores : pandas.DataFrame
        From `stamps.read_stamps`, `stamps.measure_stamps`, `stamps.score_stamps`.
    injected : pandas.DataFrame
        From `injections.inject_real`.

    Returns
    -------
    pandas.DataFrame
        file, what, outcome (read, read in part, refused), reason, numbers (text with units).
    """
    files = list_files()
    by_list, by_match = lists.set_index("catalog"), matches.set_index("catalog")
    kinds = ("lenscat", *(name for name, _ in LISTS))
    rows = [_describe_list(f, by_list, by_match) for f in files[files["dataset"].isin(kinds)].itertuples()]
    datasets = files.set_index("file")["dataset"]
    rows += [_describe_table(row, datasets[row.file]) for row in tables.itertuples()]
    details = measured.merge(scores[["file", "logit", "score"]], on="file", validate="1:1").set_index("file")
    rows += [_describe_stamp(row, details) for row in stamps.itertuples()]
    changed = injected["logit"] - injected["logit_before"]
    what = f"{injected['host'].nunique()} galaxies, {injected['arc'].nunique()} arcs"
    rows.append({
        "file": "arcs in real pixels", "what": what,
        "outcome": "injected", "reason": "PSF, visits and extinction assumed",
        "numbers": f"lensed r {injected['mag_lensed_r'].min():.1f} to {injected['mag_lensed_r'].max():.1f} mag; "
                   f"logit changes by {changed.min():+.2f} to {changed.max():+.2f} (median {changed.median():+.2f})",
    })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _describe_list(file, lists, matches):
    name = name_list(file.dataset, file.file)
    own = lists.loc[name]
    numbers = f"{own['entries']} entries, {own['systems']} systems, {own['systems_alone']} in no other list"
    if name in matches.index:
        match = matches.loc[name]
        numbers += f"; {match['matches']} within 3 arcsec of lenscat (quoted {match['matches_quoted']})"
    if own["with_theta_E"]:
        numbers += f"; {own['with_theta_E']} with theta_E"
    what = WHAT[file.dataset]
    return {"file": Path(file.file).name, "what": what, "outcome": "read", "reason": "", "numbers": numbers}


def _describe_table(row, dataset):
    depth = f"depth r {row.depth_r_min:.2f}" + (f" to {row.depth_r_max:.2f}" if row.rows > 1 else "")
    numbers = f"{row.rows} row(s): {row.types}; {depth} mag"
    if np.isfinite(row.psfsize_r):
        numbers += f"; psfsize r {row.psfsize_r:.2f} arcsec"
    return {
        "file": Path(row.file).name, "what": WHAT[dataset], "outcome": "read in part" if row.refusal else "read",
        "reason": f"lacks {row.missing.replace(' ', ', ')}" if row.missing else "", "numbers": numbers,
    }  # fmt: skip


def _describe_stamp(row, details):
    out = {"file": Path(row.file).name, "what": WHAT[row.dataset]}
    if not row.accepted:
        return out | {"outcome": "refused", "reason": row.reason, "numbers": ""}
    own = details.loc[row.file]
    notes = []
    if row.resampled:
        notes.append(f"resampled from {row.pixel_scale:.3f} arcsec, {row.flux_kept:.2%} of the flux kept")
    if own["noise_note"]:
        notes.append(own["noise_note"].removeprefix("resampled: "))
    numbers = (f"sky r {row.sky_r:.5f} nMgy/px, arc S/N {own['arc_snr']:.1f}, "
               f"logit {own['logit']:.2f}, score {own['score']:.3f}")  # fmt: skip
    return out | {"outcome": "read", "reason": "; ".join(notes), "numbers": numbers}


def write_overview(stage, overview):
    """Write the table as Parquet and CSV outputs of the stage; returns it."""
    with write_atomic(stage.output("overview.csv")) as temporary:
        overview.to_csv(temporary, index=False)
    return stage.write_table("overview.parquet", overview)


def list_sources():
    """Return where every dataset comes from: title, repository or package, licence, citation."""
    rows = []
    for name in ("lenscat", *(n for n, _ in LISTS), *TABLES, "dr10_lens_stamps", "decals_cutouts"):
        dataset = load_dataset(name)
        origin = dataset.get("origin")
        package = f"package {dataset.get('package')} {dataset.get('version')}"
        source = f"{origin['repository']} @ {origin['commit']}" if origin else package
        rows.append({"dataset": name, "title": dataset["title"], "source": source, "licence": dataset["licence"]})
    return pd.DataFrame(rows)
