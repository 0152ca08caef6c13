"""What the command line does: run a notebook, build the paper, print the numbers that matter.

Notebooks run headlessly through papermill under a temporary name and are renamed on success; a failed run leaves
``failed.ipynb`` to read, and a user's mistake inside a notebook comes back as its one line.
"""

import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from lensaudit.artifacts import Stage, UserError, find_root, read_json, read_table, write_atomic
from lensaudit.config import load_config

TEX_PACKAGES = ("latexmk", "texlive-latex-base", "texlive-latex-recommended", "texlive-publishers",
                "texlive-fonts-recommended", "lmodern")  # fmt: skip
CHAPTERS = ("00_survey", "01_crossmatch", "02_sampling", "03_cutouts", "04_training", "05_evaluation",
            "06_injection_realism", "07_completeness", "08_failure_modes", "09_summary")  # fmt: skip
# Share of a `demo` run each chapter takes, for the estimate of the time left (measured; only the display uses it).
SHARES = dict(zip(CHAPTERS, (0.07, 0.01, 0.01, 0.06, 0.32, 0.05, 0.09, 0.36, 0.02, 0.01), strict=True))


def folder_of(profile):
    """Return the artifact folder of a profile name or TOML path."""
    return find_root() / "artifacts" / Path(profile).stem if str(profile).endswith(".toml") else (
        find_root() / "artifacts" / profile)  # fmt: skip


def command_survey(profile, data_root=""):
    """Make the simulated sky, or index the data root."""
    from lensaudit.survey import make_survey

    started = _announce("00_survey", profile)
    make_survey(load_config(profile, data_root=data_root))
    _finish("00_survey", started)


def command_run(notebook, profile, device="auto", data_root=""):
    """Execute one notebook of the audit and keep the executed copy beside its outputs."""
    import papermill
    from jupyter_client.manager import KernelManager
    from papermill.exceptions import PapermillExecutionError

    source = find_root() / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in source.parent.glob("[0-9]*.ipynb")))
        raise UserError(f"no notebook {notebook!r}; known are {known}")
    load_config(profile, device, data_root)
    folder = folder_of(profile) / notebook
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"profile": profile, "device": device, "data_root": data_root}
    KernelManager.transport.default_value = "ipc"  # no TCP port is opened, and no warning about one printed
    started = _announce(notebook, profile)
    failed = folder / "failed.ipynb"
    running = folder / ".running.ipynb"
    try:
        papermill.execute_notebook(
            source, running, parameters=parameters, cwd=find_root(), progress_bar=sys.stderr.isatty(),
            stderr_file=sys.stderr, kernel_name="python3",
        )  # fmt: skip
    except PapermillExecutionError as error:
        os.replace(running, failed)
        if error.ename == "UserError":
            raise UserError(error.evalue) from None
        raise UserError(f"{notebook} failed: {error.ename}: {error.evalue}; read {_relative(failed)}") from None
    _clean_executed(running)
    os.replace(running, folder / "executed.ipynb")
    failed.unlink(missing_ok=True)
    _finish(notebook, started)


def _clean_executed(path):
    """Drop progress lines and clock times from an executed notebook; results and figures stay."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    book.metadata.pop("papermill", None)
    nbformat.write(book, path)


def _announce(name, profile):
    if name in CHAPTERS:
        position = CHAPTERS.index(name)
        left = _estimate_left(profile, position)
        print(f"[{position}/{len(CHAPTERS) - 1}] {name} ({profile}){left}", file=sys.stderr, flush=True)
    else:
        print(f"{name} ({profile})", file=sys.stderr, flush=True)
    return time.monotonic()


def _estimate_left(profile, position):
    """Time left from the pace of the chapters already run, by their usual shares of the whole."""
    spent = share = 0.0
    for name in CHAPTERS[:position]:
        path = folder_of(profile) / name / "run_info.json"
        if path.is_file():
            spent += read_json(path).get("seconds") or 0.0
            share += SHARES[name]
    if not share:
        return ""
    left = spent / share * sum(SHARES[n] for n in CHAPTERS[position:])
    return f", about {max(1, round(left / 60))} min left to the end"


def _finish(name, started):
    print(f"      {name} done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def command_promote(profile):
    """Copy figures, macros and tables of a profile to figures/ and paper/generated/."""
    from lensaudit.report import promote

    promote(profile)


def command_verify(profile, skies=False):
    """Compare key numbers with stored reference values and, where asked, fail on the rule over many skies."""
    from lensaudit.audit.skies import check_skies
    from lensaudit.report import verify

    verify(profile)
    if skies:
        print(check_skies(), file=sys.stderr)


def command_paper():
    """Build paper/paper.pdf; on Debian as root the TeX packages are installed, elsewhere named."""
    if not _find_tex():
        print("paper: latexmk or mnras.cls is missing; all but paper.pdf is built. Install "
              f"{' '.join(TEX_PACKAGES)} (Debian names) and run make paper again", file=sys.stderr)  # fmt: skip
        return 0
    folder = find_root() / "paper"
    log = folder / "paper.log"
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-quiet", "paper.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if result.returncode:
        (folder / "paper.pdf").unlink(missing_ok=True)
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else result.stdout
        reasons = [line for line in text.splitlines() if line.startswith("!")]
        raise UserError(f"paper.tex does not build: {' '.join(reasons[:2]) or 'see paper/paper.log'}")
    os.utime(folder / "paper.pdf")
    return 0


def _find_tex():
    def present():
        if not shutil.which("latexmk") or not shutil.which("kpsewhich"):
            return False
        return bool(subprocess.run(["kpsewhich", "mnras.cls"], capture_output=True, text=True).stdout.strip())

    if present():
        return True
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        print("paper: installing TeX (half a minute)", file=sys.stderr, flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *TEX_PACKAGES]):
            subprocess.run(["apt-get", *arguments], env=environment, capture_output=True)
    return present()


def command_report(profile, since=0.0):
    """Print where the paper, the figures and the executed notebooks are, and the numbers that matter."""
    root, folder = find_root(), folder_of(profile)
    closure = folder / "07_completeness" / "closure.json"
    paper = root / "paper" / "paper.pdf"
    newest = max((p.stat().st_mtime for p in [*folder.glob("*/executed.ipynb"), paper] if p.is_file()), default=0.0)
    if since and newest < since:
        print(f"nothing to do: every result of {profile} is up to date")
    if closure.is_file() and profile != "real":
        print(describe_closure(read_json(closure)))
        print(describe_gates(folder))
        print(f"paper       {_relative(paper) if paper.is_file() else 'not built (no TeX)'}\nfigures     figures/")
    print(f"notebooks   {_relative(folder)}/*/executed.ipynb")


def describe_closure(closure):
    """Return the closure verdict as text for a terminal, red when it fails."""
    lines = []
    for name, row in (("1e-2", closure), ("1e-3", closure.get("fpr_1e-3") or {})):
        if row.get("recall") is None or row.get("predicted") is None:
            lines.append(f"FPR {name}: {row.get('verdict', 'cannot be computed')}")
            continue
        text = (
            f"FPR {name}: recall of held-out lenses {row['recall']:.3f} [{row['recall_lower']:.3f}, "
            f"{row['recall_upper']:.3f}] (n = {row['n_lenses']}, {row['n_unsupported']} unsupported); "
            f"injections predict {row['predicted']:.3f} "
            f"[{row['predicted_lower']:.3f}, {row['predicted_upper']:.3f}]: {row['verdict']}"
        )
        lines.append(f"\033[31m{text}\033[0m" if row["verdict"] == "does not close" else text)
    return "\n".join(lines)


def describe_gates(folder):
    """Return what the realism gate and the checks of the detector say, as one line, red when one failed."""
    realism = read_json(folder / "06_injection_realism" / "realism.json")
    gates = read_table(folder / "05_evaluation" / "gates.parquet", ["gate", "outcome"])
    failed = list(gates.loc[gates["outcome"] == "fail", "gate"])
    text = f"gates       realism {realism['outcome']}; {len(failed)} of {len(gates)} checks of the detector failed"
    text += f": {', '.join(failed)}" if failed else ""
    return f"\033[31m{text}\033[0m" if failed or realism["outcome"] == "NO-GO" else text


def command_query(folder, theta_E, seeing, depth, threshold=None, prior=None, level=0.95, threshold_error=False,
                  csv=False, override_no_go=False):  # fmt: skip
    """Print the probability of detection at every combination of the values given, and what the product is worth."""
    from lensaudit.selection import SelectionFunction

    axes = {"--theta-E": theta_E, "--seeing": seeing, "--depth": depth}
    points = np.meshgrid(*(_read_numbers(name, values) for name, values in axes.items()), indexing="ij")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the verdict is printed below
        selection = SelectionFunction.load(folder, override_no_go=override_no_go)
    points = [p.ravel() for p in points]
    found = selection.query(*points, threshold=threshold, prior=prior, level=level, threshold_error=threshold_error)
    own = found.attrs
    verdicts = {own["closure"]: own["closes"] is not True, own["realism"]: False}  # and whether each is red
    verdicts |= {f"NOT VALIDATED, {text}": True for text in own["blocked_by"]}
    head = f"threshold {own['threshold']}, prior {own['prior']}, interval {level:.0%}, errors of {own['errors']}"
    if csv:
        print("\n".join(f"# {text}" for text in (head, *verdicts)))
        print(found.to_csv(index=False, float_format="%.6g"), end="")
        return
    print(f"{head}\n{found.astype({'reason': str}).to_string(index=False, float_format='{:.4g}'.format)}")
    print("\n".join(f"\033[31m{text}\033[0m" if bad else text for text, bad in verdicts.items()))


def command_card(profile, csv=False):
    """Print the benchmark card of a profile; see `audit.card.collect_card`."""
    from lensaudit.audit.card import STAGES, collect_card, write_card

    stage = _open_stored(profile, STAGES)
    card = collect_card(stage)
    head = "indented: published, of other samples and surveys; no row is a contest"
    _print_stored(stage, "benchmark card", card, csv, f"{head}\n{write_card(card)}")


def command_curves(profile, csv=False, figure=""):
    """Print the share found along each parameter and how parents and selected are distributed along it."""
    from lensaudit.audit.selected import SOURCES, collect_curves
    from lensaudit.figures.selected import plot_curves

    stage = _open_stored(profile, SOURCES)
    curves, medians = collect_curves(stage)
    columns = ["variable", "threshold_name", "x", "n", "completeness", "lower", "upper", "parents", "selected"]
    text = [_write_rows(curves[columns]), "the given share of parents or selected lies at or above the value",
            _write_rows(medians.drop(columns=["shift", "shift_lower", "shift_upper"]))]  # fmt: skip
    _print_stored(stage, "curves of selection", curves, csv, "\n".join(text))
    if figure:
        _draw(plot_curves(curves, medians, stage.config.survey.simulated), figure)


def command_corrected(profile, threshold=None, csv=False, figure=""):
    """Print how found held-out lenses are distributed, observed and corrected, the truth of a simulated sky beside."""
    from lensaudit.audit.selected import correct_catalogue
    from lensaudit.figures.selected import plot_corrected
    from lensaudit.selection import SelectionFunction

    stage = _open_stored(profile, ["07_completeness"])
    catalogue = stage.read_table("07_completeness", "catalogue.parquet")
    folder = stage.inputs_of("07_completeness", "selection/")[0].parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the verdict is printed below
        product = SelectionFunction.load(folder, override_no_go=True)
    table = correct_catalogue(catalogue, product, stage.config.seed, threshold)
    columns = ["variable", "left", "right", "name", "n_found", "n_used", "corrected", "lower", "upper", "n_true",
               "guard_ok"]  # fmt: skip
    text = f"{product.describe(threshold)['closure']}\n{_write_rows(table[columns])}"
    _print_stored(stage, "found, and found divided by completeness", table, csv, text)
    if figure:
        _draw(plot_corrected(table, stage.config.survey.simulated), figure)


def _open_stored(profile, inputs):
    """Return a stage through which finished artifacts of a profile are read, hashes checked."""
    return Stage("09_summary", load_config(profile), inputs=inputs)


def _print_stored(stage, title, table, csv, text):
    sky = "simulated sky" if stage.config.survey.simulated else "survey data"
    if csv:
        print(f"# {sky}\n{table.to_csv(index=False, float_format='%.6g')}", end="")
    else:
        print(f"{title} of {stage.config.profile}, measured on {sky}\n{text}")


def _draw(figure, path):
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path}: {error}") from None


def _write_rows(table):
    return table.to_string(index=False, na_rep="", float_format="{:.4g}".format)


def _read_numbers(name, values):
    for value in values:
        try:
            float(value)
        except ValueError:
            raise UserError(f"{name}: {value!r} is not a number") from None
    return np.array(values, dtype=float)


def _relative(path):
    return Path(path).relative_to(find_root())


def command_publish(profile):
    """Write executed notebooks, a readable HTML site and the explorer of the selection function to publish/."""
    import nbformat
    from nbconvert import HTMLExporter

    from lensaudit.explorer import publish_explorer

    target = find_root() / "publish"
    rows = []
    for source in sorted(folder_of(profile).glob("*/executed.ipynb")):
        name = source.parent.name
        book = nbformat.read(source, as_version=4)
        body, _ = HTMLExporter(template_name="lab").from_notebook_node(book, resources={"metadata": {"name": name}})
        for suffix, text in ((".ipynb", nbformat.writes(book)), (".html", body)):
            with write_atomic(target / f"{name}{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8")
        rows.append(f'<li><a href="{name}.html">{name.replace("_", " ")}</a></li>')
    if not rows:
        raise UserError(f"no executed notebooks of {profile}; run make summary PROFILE={profile} first")
    product = folder_of(profile) / "07_completeness" / "selection"
    if (product / "selection.json").is_file():
        publish_explorer(product, target / "explorer.html")
        rows.append('<li><a href="explorer.html">explorer of the selection function</a></li>')
    page = ("<!doctype html><html lang='en'><meta charset='utf-8'><title>lensaudit</title>"
            f"<body style='font-family:serif;max-width:40em;margin:2em auto'><h1>lensaudit: {profile}</h1>"
            f"<ol>{''.join(rows)}</ol></body></html>\n")  # fmt: skip
    with write_atomic(target / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"publish: {_relative(target)}/index.html")
