"""Writes what a run keeps in its folder, and archives of finished studies."""
