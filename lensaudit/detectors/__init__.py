"""Detectors: architectures, training, scoring, and detectors brought from elsewhere."""
