"""What every package may use: errors, files, signals, random streams, processes, optional libraries."""
