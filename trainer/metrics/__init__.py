"""Measures of a set of pictures: classifiers that label them, distances to real images, intervals."""
