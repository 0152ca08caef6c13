"""Figures: one function per figure; each takes tidy tables and returns a Figure, computes and reads nothing."""
