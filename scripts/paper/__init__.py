"""Makes the tables of the study, which scripts/tables.py prints."""
