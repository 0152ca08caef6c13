"""What a product says of itself: verdicts in words, and the model card."""

from lensaudit.audit.thresholds import name_threshold

CLOSURE_KEYS = ("verdict", "recall", "predicted", "n_lenses", "n_unsupported")
FILES = {
    "cells.parquet": "the cells, one row per operating point and cell, with units in the column metadata",
    "cells.csv": "the same, plain: C_lo, C, C_hi are the 68 % interval",
    "cells.fits": "the same as a FITS table, units and descriptions with the columns",
    "conditions.parquet": "the share of the survey in each seeing and depth, last the share outside the grid",
    "injections.parquet": "the injections that other priors are taken from",
    "selection.json": "axes, units, thresholds, realism, closure, hashes, version",
}  # fmt: skip


def summarise_closure(closure):
    """Return the block ``closure`` of a product: the headline, and each operating point under points.

    Returns
    -------
    dict
        closes (True, False, or None where it cannot be said), verdict, recall, predicted, interval (95 %, of the
        recall as predicted), operating_point, n_lenses, n_unsupported, points.
    """
    if not closure:
        return {"closes": None, "verdict": "not tested", "operating_point": None, "points": {}}
    rows = {name: row for name, row in closure.items() if name.startswith("fpr_") and isinstance(row, dict)}
    head = _take_row(closure)
    points = {name: _take_row(row) | {"operating_point": name} for name, row in rows.items()}
    own = name_threshold(closure["fpr"]) if closure.get("fpr") else None
    head["operating_point"] = own
    return head | {"points": points | ({own: dict(head)} if own else {})}


def _take_row(row):
    closes = {"closes": True, "does not close": False}.get(row.get("verdict"))
    return {"closes": closes, "interval": [row.get("predicted_lower"), row.get("predicted_upper")],
            **{key: row.get(key) for key in CLOSURE_KEYS}}  # fmt: skip


def describe_closure(block):
    """Return the closure block as a sentence."""
    if not block.get("n_lenses") or block.get("recall") is None or block.get("predicted") is None:
        return f"closure: {block['verdict']}; whether the injections predict the recall of real lenses is not known"
    low, high = block["interval"]
    numbers = (f"at {block['operating_point']} the injections predict a recall of {block['predicted']:.3f} "
               f"[{low:.3f}, {high:.3f}], {block['recall']:.3f} of {block['n_lenses']} held-out lenses are found")
    if block["closes"] is False:
        return f"this selection function does NOT close: {numbers}; do not correct counts with it"
    return f"closure: {block['verdict']}; {numbers}"


def describe_realism(realism):
    """Return the realism outcome as a sentence."""
    checks = ", ".join(realism.get("no_go") or realism.get("inconclusive") or [])
    panel = f"panel: {realism.get('panel', 'not graded')}"
    return f"realism: {realism['outcome']}{f' ({checks})' if checks else ''}; {panel}"


def note_realism(realism, prior_band=None):
    """Return what is printed on a map: not validated where a gate says NO-GO, then realism, panel, band over priors."""
    parts = ["not validated"] if list_blocks(realism, prior_band) else []
    parts += [f"realism: {realism['outcome']}", f"panel: {realism.get('panel', 'not graded')}"]
    return "; ".join(parts + ([f"band over priors: {prior_band['outcome']}"] if prior_band else []))


def list_blocks(realism, prior_band=None):
    """Return what forbids the use of a product, as texts: the gates that say NO-GO."""
    texts = [f"realism is NO-GO ({', '.join(realism.get('no_go', []))})"] if realism["outcome"] == "NO-GO" else []
    wide = prior_band and prior_band["outcome"] == "NO-GO"
    return texts + ([f"the band over priors is NO-GO ({prior_band['reason']})"] if wide else [])


def describe_band(band):
    """Return the band over priors as a sentence."""
    if not band:
        return "band over priors: not measured"
    each = ", ".join(f"{row['completeness']:.3f} under {name}" for name, row in band["priors"].items())
    text = f"band over priors at {band['operating_point']}: {band['outcome']}; survey average {each or 'not known'}"
    if band["width"] is not None:
        text += (f"; width {band['width']:.3f} (limit {band['max_width']:g}), ratio {band['ratio']:.2f} "
                 f"[{band['ratio_lower']:.2f}, {band['ratio_upper']:.2f}] (limit {band['max_ratio']:g})")
    text += f"; {band['reason']}" if band["reason"] else ""
    refused = ", ".join(f"{name} ({why})" for name, why in band["refused"].items())
    return text + (f"; refused: {refused}" if refused else "")


def write_card(description, cells):
    """Return the model card as Markdown.

    Parameters
    ----------
    description : dict
        The content of ``selection.json``.
    cells : pandas.DataFrame
    """
    d = description
    sky = "the simulated sky" if d["simulated"] else "the data root named in the run"
    parts = [f"# Selection function {d['version']}",
             f"P(detected | Einstein radius, seeing, depth) of one frozen lens finder, measured on {sky} by injection.",
             "## May it be used?", *_list_verdicts(d),
             "## What the number is",
             f"The share of injected arcs that the finder finds, among arcs with magnification above "
             f"{d['cuts']['min_mu']:g} and true S/N above {d['cuts']['min_arc_snr_true']:g} drawn from the prior "
             f"`{d['prior_name']}` and put into real galaxies of that seeing and depth. It is that of this finder, "
             "this prior and these galaxies, and carries over to no other finder. A query returns the value of its "
             "cell; outside the cells it returns no number and the reason.",
             _table(("axis", "centres", "unit"), [(axis, f"{c[0]:g} to {c[-1]:g}, {len(c)} bins", d["units"][axis])
                                                  for axis, c in d["axes"].items()]),
             "## Operating points", _list_points(d, cells),
             f"Intervals: {d['interval']}. `query` gives those of counting (injections, galaxies and bricks); with "
             + ("`threshold_error=True` those with the error of the threshold, which all cells share"
                if "lower_total" in cells else "the error of the threshold they are not in this product")
             + ". None holds the error of the prior or of another training of the finder.",
             "## Files", _table(("file", "holds"), [(f, t) for f, t in FILES.items()
                                                     if f in d["files"] or not f.endswith(".parquet")]),
             "## Made from", _table(("part", "sha256"), sorted({**d["hashes"], **d["files"]}.items()))]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _list_verdicts(d):
    realism, closure = d["realism"], d["closure"]
    blocks = list_blocks(realism, d.get("prior_band"))
    validated = {"GO": "The injected arcs look like arcs of held-out lenses in every check of the realism gate.",
                 "NO-GO": f"**Not validated.** The realism gate failed: {', '.join(realism.get('no_go', []))}."}
    unclear = ", ".join(realism.get("inconclusive", []))
    text = f"**Whether the injected arcs look real is open.** Checks that cannot tell: {unclear}."
    panel = realism.get("panel", "not graded")
    lines = ["- **Blocked:** " + "; ".join(blocks) + "."] if blocks else []
    lines += [f"- {validated.get(realism['outcome'], text)}"]
    lines += [f"- The blinded panel of people: **{panel}**."]
    text = describe_band(d.get("prior_band"))
    lines += [f"- {text[0].upper()}{text[1:]}."]
    bold = {True: "**It closes.**", False: "**It does not close.**"}.get(closure["closes"], "**Closure is open.**")
    text = describe_closure(closure)
    lines += [f"- {bold} {text[0].upper()}{text[1:]}."]
    if d["simulated"]:
        lines += ["- **Nothing here is a measurement of real lenses:** sky, lenses and galaxies are simulated."]
    return ["\n".join(lines)]


def _list_points(d, cells):
    rows = []
    for name, value in d["thresholds"].items():
        own = cells[cells["threshold_name"] == name]
        low, high = d["threshold_intervals"].get(name) or (None, None)
        interval = "not given" if low is None else f"{low:.4g} to {high:.4g}"
        closes = d["closure"].get("points", {}).get(name, {}).get("verdict", "not tested")
        rows.append((name, f"{value:.4g}", interval, f"{int(own['sufficient'].sum())} of {len(own)}", closes))
    return _table(("name", "threshold (logit)", "95 %", "cells with support", "closure"), rows)


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
