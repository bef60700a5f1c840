"""Semantic ids: short tuples of codes, coarse to fine, fitted on vectors of items."""
