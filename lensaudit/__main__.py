"""The command line: ``python -m lensaudit COMMAND``, listed by ``--help``; make calls it."""

import argparse
import sys


def parse_arguments(arguments=None):
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m lensaudit", description="An audit of strong-lens finders.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "survey": "make the simulated sky, or index the data root",
        "run": "execute one notebook",
        "query": "ask a selection function for the probability of detection",
        "card": "print the benchmark card: what the literature quotes, measured here beside the published numbers",
        "curves": "print selection along each lens and source parameter, before and after, from stored injections",
        "corrected": "print how found lenses are distributed, as found and divided by their completeness",
        "promote": "copy figures, macros and tables to figures/ and paper/generated/",
        "verify": "compare key numbers with stored reference values",
        "paper": "build paper/paper.pdf",
        "report": "print where the results are and the numbers that matter",
        "publish": "write executed notebooks and HTML to publish/",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "run":
            command.add_argument("notebook", help="name without suffix, such as 05_evaluation")
            command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        if name in ("run", "survey"):
            command.add_argument("--data-root", default="", help="folder of external data")
        if name == "query":
            add_query(command)
        if name == "corrected":
            command.add_argument("--threshold", help="operating point, such as fpr_1e-3; the default otherwise")
        if name in ("curves", "corrected"):
            command.add_argument("--figure", default="", help="also draw it into this file, such as curves.pdf")
        if name in ("card", "curves", "corrected"):
            command.add_argument("--csv", action="store_true", help="print comma-separated values")
        if name == "report":
            command.add_argument("--since", type=float, default=0.0, help="start of this make, seconds since the epoch")
        if name == "verify":
            command.add_argument("--skies", action="store_true", help="also fail on the rule over many simulated skies")
        if name not in ("paper", "query"):
            command.add_argument("--profile", default="demo", help="shipped profile or path of a TOML file")
    return parser.parse_args(arguments)


def add_query(command):
    """Add the arguments of ``query``; numbers are read as text, so that a wrong one is named in one line."""
    command.add_argument("folder", help="of a product, such as artifacts/demo/07_completeness/selection")
    command.add_argument("--theta-E", required=True, nargs="+", dest="theta_E", help="Einstein radius, arcsec")
    command.add_argument("--seeing", required=True, nargs="+", help="psfsize_r, arcsec")
    command.add_argument("--depth", required=True, nargs="+", help="5-sigma point-source depth in r, AB mag")
    command.add_argument("--threshold", help="operating point, such as fpr_1e-3; the product's default otherwise")
    command.add_argument("--prior", help="name of a frozen prior or path of a TOML file; the map's own otherwise")
    command.add_argument("--level", type=float, default=0.95, help="of the interval: 0.68 or 0.95")
    command.add_argument("--threshold-error", action="store_true", help="let the interval hold the threshold's error")
    command.add_argument("--csv", action="store_true", help="print comma-separated values, verdicts as comments")
    command.add_argument("--override-no-go", action="store_true", help="read a product that a gate said NO-GO to")


def main(arguments=None):
    """Run one command; a user's mistake prints one line and returns 2."""
    options = parse_arguments(arguments)
    try:
        from lensaudit import build
        from lensaudit.artifacts import UserError
    except ModuleNotFoundError as error:
        print(f"lensaudit: this interpreter lacks {error.name}; install what pyproject.toml lists, or drop PY= so that "
              "make sets up .venv", file=sys.stderr)  # fmt: skip
        return 2
    try:
        keywords = {k: v for k, v in vars(options).items() if k != "command"}
        return getattr(build, f"command_{options.command}")(**keywords) or 0
    except UserError as error:
        print(f"lensaudit {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
