"""What hides in the unlabeled folder: its share of sensitive images, and which they are."""
