"""Fixed facts of the survey: bands, pixel scale, zero point, mask bits, extinction, gain.

All numbers are those of the Legacy Surveys' own documentation or source unless a comment says otherwise. The simulated
sky does not read this file: it keeps its own constants, so that a wrong number here shows in closure.
"""

BANDS = ("g", "r", "z")
PIXEL_SCALE = 0.262  # arcsec per pixel
ZERO_POINT = 22.5  # AB magnitude of 1 nMgy
STAMP_SIZE = 101  # pixels; the centre is pixel 50
RENDER_SIZE = 65  # pixels; odd, so that arcs share the stamp's centre pixel, and wide enough for the 32-px annulus

# MASKBITS of DR9/DR10.
MASKBITS = {
    "NPRIMARY": 0, "BRIGHT": 1, "SATUR_G": 2, "SATUR_R": 3, "SATUR_Z": 4, "ALLMASK_G": 5, "ALLMASK_R": 6,
    "ALLMASK_Z": 7, "WISEM1": 8, "WISEM2": 9, "BAILOUT": 10, "MEDIUM": 11, "GALAXY": 12, "CLUSTER": 13,
    "SATUR_I": 14, "ALLMASK_I": 15, "SUB_BLOB": 16,
}  # fmt: skip

# A / E(B-V) on the SFD98 scale.
EXTINCTION = {"g": 3.214, "r": 2.165, "i": 1.592, "z": 1.211}

# Electrons per nMgy and second of exposure: zero points 26.61 / 26.82 / 26.48 mag for 1 e-/s.
GAIN_RATE = {"g": 44.0, "r": 53.0, "z": 39.0}

# Typical exposure time of one DECaLS visit in seconds, for coadds whose exposure times are not given.
VISIT_SECONDS = {"g": 70.0, "r": 60.0, "z": 100.0}  # design values; the survey scales them with conditions

# Lanczos-3 resampling turns white noise of sigma 1 into correlated noise of this standard deviation.
LANCZOS_RMS = 0.894
