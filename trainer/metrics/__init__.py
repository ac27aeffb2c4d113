"""How good a set of pictures is: classifiers that label them, distances, intervals."""
