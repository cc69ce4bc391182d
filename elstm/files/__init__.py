"""Writes files that survive a kill, and reads files of unknown origin within bounds."""
