"""From run folders to curves, tables and tests; knows files only, and no torch."""
