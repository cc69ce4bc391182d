"""Data sets: where they come from, and how they become batches of sequences."""
