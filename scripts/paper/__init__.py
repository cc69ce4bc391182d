"""The tables of the study: scripts/tables.py prints them."""
