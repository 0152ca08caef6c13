"""Lenses are new in every split, and have companions as other galaxies do."""

import numpy as np

from lensaudit.simsky import lenses


def test_hardly_any_deflector_and_source_are_used_twice():
    """Found lenses are the bright and wide ones; a pair shared by two of them could sit in two splits."""
    rows = lenses.draw_parents(np.random.default_rng(0), 3, 75000)
    found = np.flatnonzero((rows["mag_source_r"] < 24.5) & (rows["theta_E"] > 0.8))[:2700]
    assert len(found) == 2700
    assert len(np.unique(rows["mag_source_r"][found])) / 2700 > 0.97
