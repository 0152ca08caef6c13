"""What the project must not claim, and no result typed into the paper."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "independent validation": r"independent(ly)? (validat|verif|confirm)\w*",
    "spectroscopic validation": r"spectroscopic(ally)? (validat|confirm)\w* (of|sample|set|recall|lenses)",
    "a complete sample": r"\b(a|the|statistically) complete (sample|list|census|catalogue)",
    "better than others": r"\b(outperform\w*|superior to|surpass\w*)|better than (paper|inchausti|balaji)",
    "purity of a survey": r"\bsurvey('s)? (precision|purity)|(precision|purity) of the survey",
    "calibrated probabilities": r"(are|gives?|provides?|yields?) (well[- ])?calibrated (lens )?probabilit",
    "cosmology": r"\b(constrain\w*|measure\w*) (cosmolog|the hubble|h_?0\b|dark energy)",
    "universality": r"\buniversal(ly|ity)?\b|holds for (any|every|all) (detector|finder|network)",
    "first completeness": r"first (ever )?(measure\w*|map|estimate) of (the )?(completeness|selection function)",
    "a complete search": r"\b(100 ?(%|per cent)|fully) complete\b",
}  # fmt: skip
NEGATION = re.compile(r"\b(not?|never|none|nor|neither|nothing|cannot|without|instead of|un\w+ed)\b", re.I)


def split_sentences(text):
    return re.split(r"(?<=[.!?;:])\s+|\n\s*\n|\n\s*[-*#|]", re.sub(r"[ \t]+", " ", text))


def find_claims(text):
    """Return the forbidden claims a text makes; a sentence that denies one is no claim."""
    found = []
    for sentence in split_sentences(text):
        plain = " ".join(sentence.split())
        for name, pattern in FORBIDDEN.items():
            if re.search(pattern, plain, re.I) and not NEGATION.search(plain):
                found.append(f"{name}: {plain[:120]}")
    return found


def readable_files():
    paths = [ROOT / "README.md", ROOT / "paper" / "paper.tex", *sorted((ROOT / "figures").glob("*.json"))]
    paths += sorted((ROOT / "paper" / "generated").glob("*.tex"))
    paths += [*sorted((ROOT / "lensaudit" / "figures").glob("*.py")), *sorted((ROOT / "lensaudit").glob("*.py"))]
    return [p for p in paths if p.is_file()]


def read_notebook(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells)


@pytest.mark.parametrize("path", readable_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_forbidden_claim(path):
    assert find_claims(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_no_forbidden_claim_in_notebooks(path):
    assert find_claims(read_notebook(path)) == []


@pytest.mark.parametrize("text", [
    "This is an independent validation of the detector.", "We present a complete sample of lenses.",
    "Our network outperforms Paper IV.", "The survey precision is 0.9.", "The score gives calibrated probabilities.",
    "The selection function holds for every detector.", "Lenses confirmed by a spectroscopic validation of recall.",
])  # fmt: skip
def test_the_search_finds_claims(text):
    assert find_claims(text)


def test_a_denial_is_no_claim():
    assert find_claims("We do not claim a complete sample. No survey purity is quoted without its prevalence.") == []


# Fixed facts and conventions that may stand as digits: the pixel scale and magnitude limit of the survey, releases,
# the annuli and targets of the definitions, prior work (with its citation), and rates that name operating points.
ALLOWED = {
    "0.262", "0.25", "20", "32", "4", "16", "5", "30", "68", "95", "18", "10", "2", "3", "1", "150", "4.7", "9", "8",
    "7", "64", "101", "50", "17",
}  # fmt: skip
RESULTS = ("evaluation", "realism", "completeness", "gates", "closure", "failures")
PRIOR_WORK = {"14,000", "0.01", "811", "92", "50", "385", "5.18", "89.3", "100", "112", "0.23", "0.48", "20"}


def strip_latex(text):
    """Drop comments, citations, references, figure and input commands: what is left is what a reader reads."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    text = re.sub(r"\\(cite[a-z]*|ref|label|input|includegraphics|bibliography\w*|usepackage|documentclass)"
                  r"(\[[^\]]*\])*\{[^}]*\}", " ", text)  # fmt: skip
    text = re.sub(r"10\^\{-\d\}|10\^4|deg\$\^2\$|\\sigma", " ", text)
    return re.sub(r"\\val[A-Za-z]+|DR\d+|ResNet-18|N[12]b?\b|FPR|[a-z]-band", " ", text)


def find_numbers(text):
    return set(re.findall(r"(?<![A-Za-z\\{])\d+(?:[.,]\d+)*", strip_latex(text)))


def read_sections():
    text = (ROOT / "paper" / "paper.tex").read_text(encoding="utf-8")
    sections = {"abstract": re.search(r"\\begin\{abstract\}(.*?)\\end\{abstract\}", text, re.S)[1]}
    for part in re.split(r"\\section\*?\{", text)[1:]:
        label = re.search(r"\\label\{sec:(\w+)\}", part)
        sections[label[1] if label else part[:20]] = part
    return sections


def test_no_result_is_typed():
    sections = read_sections()
    assert set(RESULTS) <= set(sections)
    assert find_numbers(sections["abstract"]) == set()
    for name in RESULTS:
        typed = find_numbers(sections[name]) - ALLOWED - {"0.23", "0.48"}  # forecast densities, cited there
        assert not typed, f"section {name} types {sorted(typed)}; use a generated macro"


def test_other_sections_hold_only_constants_and_cited_numbers():
    for name, text in read_sections().items():
        typed = find_numbers(text) - ALLOWED - PRIOR_WORK - {"2026"}
        assert not typed, f"section {name} types {sorted(typed)}"


def test_the_search_finds_typed_results():
    text = r"recall is 0.44 at $10^{-2}$ \citep{x2020}, AUC \valAuc and 12,345 stamps"
    assert find_numbers(text) == {"0.44", "12,345"}


def test_paper_prints_the_verdict_and_the_sky():
    sections = read_sections()
    assert r"\closureverdict" in sections["abstract"] and r"\closureverdict" in sections["closure"]
    assert "simulated sky" in sections["abstract"]


def test_every_cited_work_is_in_the_bibliography():
    text = (ROOT / "paper" / "paper.tex").read_text(encoding="utf-8")
    groups = re.findall(r"\\cite[a-z]*(?:\[[^\]]*\])*\{([^}]*)\}", text)
    cited = {key.strip() for group in groups for key in group.split(",")}
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "paper" / "references.bib").read_text(encoding="utf-8"), re.M))
    assert cited <= known and known <= cited, f"missing {sorted(cited - known)}, unused {sorted(known - cited)}"
