"""The blinded panel of 50 stamps, half lenses and half injections, which only people can grade (SPEC 7.2).

`make_panel` chooses and shuffles, `describe_key` is the key that nobody sees before grading, `save_grade` and
`read_grades` keep one CSV file per grader in ``grades/<profile>/``, `score_panel` scores them. Without a complete
sheet of grades the panel reads "not graded".
"""

import re
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import optimize, stats
from sklearn.metrics import cohen_kappa_score

from lensaudit import rng as streams
from lensaudit.artifacts import UserError, find_root, hash_object, write_atomic
from lensaudit.audit.calibration import TARGET_COLUMNS, refuse_test_lenses
from lensaudit.audit.realism import CHECK_COLUMNS
from lensaudit.audit.two_sample import measure_auc
from lensaudit.constants import RENDER_SIZE
from lensaudit.injection.inject import inject
from lensaudit.stats import jeffreys_interval, summarise_draws

N_EACH = 25
ANSWERS = ("lens", "injection")
CLEANLINESS = (1, 2, 3, 4, 5)  # 5: no trace of a neighbour, an artefact or noise that a survey image would have
GRADE_COLUMNS = ("panel", "grader", "number", "answer", "cleanliness")


def make_panel(lenses, injections, seed, n=N_EACH, columns=TARGET_COLUMNS):
    """Choose lenses and, for each, an injection alike in size, seeing, depth and host brightness; shuffle them.

    Parameters
    ----------
    lenses : pandas.DataFrame
        Measured lenses of training and validation, with galaxy_id, cutout_path, split and `columns`.
    injections : pandas.DataFrame
        With injection_id, host_index and `columns`, past the same gate.
    seed : int
    n : int
        Of each kind; fewer where there are not as many lenses, or hosts of injections.
    columns : sequence of str
        Matched in units of the lenses' robust scatter; the sum of squared differences is as small as an assignment
        without repeated hosts can make it.

    Returns
    -------
    pandas.DataFrame
        One row per stamp: number (1, 2, ... in the order of the sheet), answer ("lens" or "injection"), pair, id,
        cutout_path (lenses), injection_id (injections; -1 for lenses), columns.

        Without a row when either side has none.

    Raises
    ------
    UserError
        When a test lens is among the lenses.
    """
    refuse_test_lenses(lenses)
    lenses, injections = (t.dropna(subset=list(columns)).reset_index(drop=True) for t in (lenses, injections))
    keep = ["number", "answer", "pair", "id", "cutout_path", "injection_id", *columns]
    if lenses.empty or injections.empty:
        return pd.DataFrame(columns=keep)
    n = min(n, len(lenses), injections["host_index"].nunique())
    order = np.argsort(streams.hash_order(seed, "audit/panel/lenses", lenses["galaxy_id"].astype(str)))
    chosen = lenses.iloc[order[:n]]
    low, high = np.percentile(lenses[list(columns)].to_numpy(float), [16, 84], axis=0)
    scale = np.maximum(0.5 * (high - low), 1e-6)
    gap = ((chosen[list(columns)].to_numpy(float)[:, None] - injections[list(columns)].to_numpy(float)) / scale) ** 2
    cost, code = gap.sum(axis=2), np.unique(injections["host_index"], return_inverse=True)[1]
    rows = np.lexsort((np.arange(len(code)), code))
    starts = np.flatnonzero(np.append(True, np.diff(code[rows]) > 0))
    _, hosts = optimize.linear_sum_assignment(np.minimum.reduceat(cost[:, rows], starts, axis=1))
    mates = [np.flatnonzero(code == host)[np.argmin(cost[k, code == host])] for k, host in enumerate(hosts)]
    own, other = chosen.reset_index(drop=True), injections.iloc[mates].reset_index(drop=True)
    first = own.assign(answer="lens", pair=np.arange(n), id=own["galaxy_id"].astype(str), injection_id=-1)
    second = other.assign(answer="injection", pair=np.arange(n), id=other["injection_id"].astype(str), cutout_path="")
    out = pd.concat([first, second], ignore_index=True)
    out = out.iloc[np.argsort(streams.hash_order(seed, "audit/panel/order", out["answer"] + out["id"]))]
    return out.assign(number=np.arange(1, len(out) + 1))[keep].reset_index(drop=True)


def describe_key(panel, columns=TARGET_COLUMNS):
    """Return the key: panel (its name, which every grade repeats), n, answers and ids by number, match by column.

    `match` is the mean difference of injections and lenses over the lenses' standard deviation.
    """
    first, second = (panel[panel["answer"] == kind] for kind in ANSWERS)
    match = {c: float((second[c].mean() - first[c].mean()) / max(first[c].std(ddof=0), 1e-9)) for c in columns}
    numbers = panel["number"].astype(str)
    content = {"n": len(panel), "answers": dict(zip(numbers, panel["answer"], strict=True)),
               "ids": dict(zip(numbers, panel["id"], strict=True)), "match": match}  # fmt: skip
    return content | {"panel": hash_object(content)[:12]}


def render_panel(panel, injections, store, hosts, boxes, config):
    """Return the stamps of a panel in its order, ndarray of shape (N, 3, 65, 65), float32 [nMgy].

    Lenses are read from the store; injections are rendered again into their hosts, the same bits as were measured.
    """
    out = np.zeros((len(panel), 3, RENDER_SIZE, RENDER_SIZE), dtype=np.float32)
    if len(panel):
        real = (panel["answer"] == "lens").to_numpy()
        out[real] = store.read_box(list(panel.loc[real, "cutout_path"]), RENDER_SIZE)
        rows = injections.set_index("injection_id", drop=False).loc[panel.loc[~real, "injection_id"]]
        place = pd.Series(np.arange(len(hosts)), hosts["host_index"].to_numpy()).loc[rows["host_index"]].to_numpy()
        own = hosts.iloc[place].reset_index(drop=True)
        out[~real], _ = inject(rows.reset_index(drop=True), own, boxes[place], config, config.seed)
    return out


def write_pictures(path, pictures):
    """Write colour pictures of shape (N, S, S, 3), float in [0, 1], as an array of bytes, atomically."""
    with write_atomic(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.round(255 * np.clip(pictures, 0, 1)).astype(np.uint8))


def read_pictures(path):
    """Return the pictures of `write_pictures`, float in [0, 1]."""
    return np.load(path, allow_pickle=False) / 255.0


def find_grades(config):
    """Return the folder of a profile's grades, ``grades/<profile>``; it need not exist."""
    return find_root() / "grades" / config.profile


def save_grade(folder, panel, grader, number, answer, cleanliness):
    """Write one grade into the file of its grader, in place of an earlier one of the same stamp.

    Parameters
    ----------
    folder : path
        From `find_grades`.
    panel : str
        Name of the panel, from its key.
    grader : str
        Letters, digits and hyphens.
    number : int
    answer : str
        "lens" or "injection".
    cleanliness : int
        1 to 5.

    Returns
    -------
    int
        Stamps this grader has graded.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", grader):
        raise UserError(f"grader {grader!r}: give a name of letters, digits and hyphens")
    path = folder / f"{grader}.csv"
    row = pd.DataFrame([(panel, grader, int(number), answer, int(cleanliness))], columns=GRADE_COLUMNS)
    table = pd.read_csv(path) if path.is_file() else row.head(0)
    table = pd.concat([table[(table["number"] != number) & (table["panel"] == panel)], row]).sort_values("number")
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    return len(table)


def read_grades(folder, key):
    """Read and check the grades of all graders.

    Returns
    -------
    pandas.DataFrame
        Columns `GRADE_COLUMNS`; empty when nobody has graded.

    Raises
    ------
    UserError
        When a file is not a table of grades, belongs to another panel, or holds a number, answer or cleanliness that
        does not exist, or a number twice.
    """
    parts = []
    for path in sorted(folder.glob("*.csv")):
        try:
            table = pd.read_csv(path, dtype={"panel": str, "grader": str, "answer": str})
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise UserError(f"{path.name}: not a readable table of grades ({error})") from None
        absent = [name for name in GRADE_COLUMNS if name not in table]
        if absent:
            raise UserError(f"{path.name}: column {absent[0]} is missing; it needs {', '.join(GRADE_COLUMNS)}")
        rules = (("panel", [key["panel"]], "grade this panel anew"), ("grader", [path.stem], "one file per grader"),
                 ("number", range(1, key["n"] + 1), f"stamps are 1 to {key['n']}"),
                 ("answer", ANSWERS, "lens or injection"), ("cleanliness", CLEANLINESS, "1 to 5"))  # fmt: skip
        for name, known, mend in rules:
            bad = table.loc[~table[name].isin(known), name]
            if len(bad):
                raise UserError(f"{path.name}: {name} {bad.iloc[0]!r} is not one of this panel; {mend}")
        if table["number"].duplicated().any():
            number = table.loc[table["number"].duplicated(), "number"].iloc[0]
            raise UserError(f"{path.name}: stamp {number} is graded twice; keep one row")
        parts.append(table[list(GRADE_COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=GRADE_COLUMNS)


def score_panel(grades, key, config):
    """Score the graders' answers against the key.

    Parameters
    ----------
    grades : pandas.DataFrame
        From `read_grades`; a grader who has not graded every stamp is left out and named.
    key : dict
        From `describe_key`.
    config : lensaudit.config.Config

    Returns
    -------
    dict
        panel, outcome, n_graders, unfinished (names), confusion (true kind -> answer -> count), graders (accuracy with
        its 95 % Jeffreys interval, binomial p against chance), accuracy, kappa (Cohen's, of each pair), fleiss and
        cleaner, each {value, lower, upper} with 95 % from resampled stamps.

    Notes
    -----
    `cleaner` is the chance that an injection is graded cleaner than a lens, ties counted half, averaged over graders;
    one half means alike. The panel is NO-GO when its interval lies above one half (injections look systematically
    cleaner), GO when it does not and its upper bound is below the limit of the classifier test, else inconclusive.
    Telling the two apart by anything else is reported, not judged.
    """
    count = grades.groupby("grader").size() if len(grades) else pd.Series(dtype=int)
    full = sorted(count.index[count == key["n"]])
    out = {"panel": key["panel"], "n_graders": len(full), "unfinished": sorted(set(count.index) - set(full))}
    if not full:
        return out | {"outcome": "not graded"}
    wide = grades[grades["grader"].isin(full)].pivot(index="number", columns="grader")
    truth = np.array([key["answers"][str(i)] for i in wide.index]) == "injection"
    said, clean = (wide["answer"] == "injection").to_numpy(), wide["cleanliness"].to_numpy(float)
    right, generator = said == truth[:, None], streams.make_stream(config.seed, "audit/panel/bootstrap")
    kinds = [np.flatnonzero(truth == kind) for kind in (True, False)]
    draws = [np.concatenate([generator.choice(rows, len(rows)) for rows in kinds])
             for _ in range(config.realism.n_bootstrap)]  # fmt: skip

    def measure(function):
        lower, upper = summarise_draws([function(rows) for rows in draws])
        return {"value": float(function(np.arange(len(truth)))), "lower": float(lower), "upper": float(upper)}

    cleaner = measure(lambda i: np.mean([measure_auc(truth[i], clean[i, k]) for k in range(len(full))]))
    alike = "GO" if cleaner["upper"] < config.realism.c2st_limit else "inconclusive"
    pairs = [{"graders": [full[a], full[b]]} | measure(lambda i, a=a, b=b: find_kappa(said[i, a], said[i, b]))
             for a, b in combinations(range(len(full)), 2)]  # fmt: skip
    fleiss = measure(lambda i: find_fleiss(np.column_stack([said[i].sum(1), (~said[i]).sum(1)]))) if pairs else None
    return out | {
        "outcome": "NO-GO" if cleaner["lower"] > 0.5 else alike, "cleaner": cleaner,
        "accuracy": measure(lambda i: right[i].mean()), "kappa": pairs, "fleiss": fleiss,
        "graders": [_describe_grader(name, right[:, k]) for k, name in enumerate(full)],
        "confusion": {kind: {answer: int(np.sum(said[truth == injected] == (answer == "injection")))
                             for answer in ANSWERS} for kind, injected in zip(ANSWERS, (False, True), strict=True)},
    }  # fmt: skip


def _describe_grader(name, right):
    k, n = int(right.sum()), len(right)
    lower, upper = jeffreys_interval(k, n)
    return {"grader": name, "n": n, "accuracy": k / n, "lower": float(lower), "upper": float(upper),
            "p": float(stats.binomtest(k, n, 0.5).pvalue)}  # fmt: skip


def find_kappa(a, b):
    """Return Cohen's kappa of two graders' answers (float); NaN when both gave one and the same answer throughout."""
    return cohen_kappa_score(a, b) if len(np.unique(np.append(a, b))) > 1 else np.nan


def find_fleiss(counts):
    """Return Fleiss' kappa (float), NaN when all gave one answer throughout.

    Parameters
    ----------
    counts : ndarray of shape (n_stamps, n_answers)
        Graders that gave each answer; the same number of graders for every stamp.

    Notes
    -----
    Fleiss 1971, Psychological Bulletin 76, 378.
    """
    n = counts[0].sum()
    share = counts.sum(axis=0) / counts.sum()
    agreement, chance = np.mean((np.sum(counts**2, axis=1) - n) / (n * (n - 1))), np.sum(share**2)
    return float((agreement - chance) / (1.0 - chance)) if chance < 1.0 else np.nan


def panel_rows(scored, config):
    """Return the panel's rows of the GO / NO-GO table; one row "not graded" until people have graded it."""
    if scored["outcome"] == "not graded":
        rows = [("panel", "blinded panel of 50", np.nan, np.nan, np.nan, "graded by people", "not graded")]
        return pd.DataFrame(rows, columns=CHECK_COLUMNS)
    n, limit = scored["n_graders"], f"< {config.realism.c2st_limit:g}, lower bound < 0.5"
    named = {f"blinded panel, injections look cleaner ({n} graders)": ("cleaner", limit, scored["outcome"]),
             "blinded panel, share of right answers": ("accuracy", "", "reported"),
             "blinded panel, agreement of graders (Fleiss)": ("fleiss", "", "reported")}  # fmt: skip
    rows = [("panel", name, *(scored[k][part] for part in ("value", "lower", "upper")), rule, outcome)
            for name, (k, rule, outcome) in named.items() if scored[k] is not None]  # fmt: skip
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)
