"""Loads data sets and makes batches of sequences from them."""
