"""Catalogues: lens lists, survey tables, their crossmatch, the negatives, the splits and the training manifest."""
