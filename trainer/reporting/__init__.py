"""What a run writes and says: its folder, events, HTML and plots."""
