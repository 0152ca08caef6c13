"""Gravitational lensing of parametric sources, in batches: mass, sources, PSF and the rendering that joins them."""
