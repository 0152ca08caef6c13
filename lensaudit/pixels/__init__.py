"""Stamps: sources, storage, quality and preprocessing."""
