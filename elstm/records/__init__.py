"""Writes the records in a run folder, and archives of finished studies."""
