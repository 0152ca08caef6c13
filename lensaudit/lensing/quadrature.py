"""The rule by which light is integrated: half-pixel cells, their divisions, Gauss-Legendre nodes, cubic B-splines."""

import numpy as np

from lensaudit.constants import PIXEL_SCALE

CELL = 0.5 * PIXEL_SCALE  # arcsec
DEPTH = 7  # most divisions of a cell; its panels are then a milliarcsecond wide
SMOOTH = 1.5  # 1/n above which a Sersic profile counts as smooth at its centre
# Two and three nodes per axis: places in panels from the panel's centre, and weights.
NODES = np.array([[-np.sqrt(1 / 12), np.sqrt(1 / 12), 0.0], [-np.sqrt(0.15), 0.0, np.sqrt(0.15)]])
WEIGHTS = np.array([[1 / 2, 1 / 2, 0.0], [5 / 18, 8 / 18, 5 / 18]])
