"""Estimates for the unlabeled folder: the share of sensitive images, and which images they probably are."""
