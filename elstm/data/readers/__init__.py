"""Reads user data, with a module for each file format that returns labelled sequences by split."""
