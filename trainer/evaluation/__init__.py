"""Does it work? Pictures with and without the LoRA, rates, attacks, runs side by side."""
