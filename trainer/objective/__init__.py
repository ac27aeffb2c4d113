"""The mathematics of positive-unlabeled learning. Knows no model, no file and no setting."""
