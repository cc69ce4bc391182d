"""Readers of own data, a file format each; every one returns labelled sequences by split."""
