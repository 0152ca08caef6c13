"""The graph of the audit, read from the code: what a notebook declares as inputs and which modules it imports.

Standard library only, so that make can ask before the environment stands. ``python -m lensaudit.graph`` prints the
module lists that the Makefile includes.
"""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SURVEY = "00_survey"


def read_code(notebook):
    """Return the code of a notebook as one text, without IPython magics."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))


def find_stage(notebook):
    """Return the stage name and the declared inputs of a notebook.

    Returns
    -------
    (str, list of str)

    Raises
    ------
    ValueError
        When the notebook does not open exactly one ``Stage("NN_name", config, inputs=[...])`` with literal inputs.
    """
    calls = [
        node for node in ast.walk(ast.parse(read_code(notebook)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Stage"
    ]  # fmt: skip
    if len(calls) != 1:
        raise ValueError(f"{notebook}: opens {len(calls)} stages, must be 1")
    keywords = {k.arg: k.value for k in calls[0].keywords}
    return ast.literal_eval(calls[0].args[0]), list(ast.literal_eval(keywords["inputs"]))


def find_imports(code, package=None):
    """Return the modules of this package that a piece of code imports, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module.split(".")[0] == "lensaudit":
                names.add(node.module)
                names.update(f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            names.update(a.name for a in node.names if a.name.split(".")[0] == "lensaudit")
    return {n for n in names if module_file(n)}


def module_file(name):
    """Return the path of a dotted module name of this package relative to the root, or None."""
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path.relative_to(ROOT)
    return None


def find_closure(modules):
    """Return the files of `modules` and of all that they import, sorted."""
    seen, waiting = set(), sorted(modules)
    while waiting:
        path = module_file(waiting.pop())
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting.extend(sorted(find_imports((ROOT / path).read_text(encoding="utf-8"))))
    return sorted(str(p) for p in seen)


def print_modules():
    """Print one make variable per stage, `modules_NN_name`, with the files its result depends on."""
    print(f"modules_{SURVEY} := {' '.join(find_closure({'lensaudit.survey'}))}")
    for notebook in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        files = find_closure(find_imports(read_code(notebook)))
        print(f"modules_{notebook.stem} := {' '.join(files)}")


if __name__ == "__main__":
    sys.exit(print_modules())
