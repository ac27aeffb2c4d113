"""The comparisons that the README reports, as commands that anyone can run again."""
