"""The released selection function: P(detected | theta_E, seeing, depth) per operating point, with its support.

`write_selection` makes the folder of a product, `SelectionFunction.load` reads it, `Factor` is what it is multiplied
with, `make_rate` the number of lenses on the sky that counts are taken from, `measure_prior_band` says how far the
choice of prior moves its average, `note_realism` what a map of it has to say of its injections.

Examples
--------
>>> selection = SelectionFunction.load("artifacts/demo/07_completeness/selection")  # doctest: +SKIP
>>> selection.query(theta_E=[1.0, 1.5], seeing=1.2, depth=24.5)  # doctest: +SKIP
>>> (selection * Factor(0.8, 0.05, "spectroscopy")).average()  # doctest: +SKIP
"""

from lensaudit.selection.card import note_realism
from lensaudit.selection.composition import Factor
from lensaudit.selection.function import SelectionFunction
from lensaudit.selection.product import write_selection
from lensaudit.selection.rates import make_rate
from lensaudit.selection.sensitivity import measure_prior_band

__all__ = ["Factor", "SelectionFunction", "make_rate", "measure_prior_band", "note_realism", "write_selection"]
