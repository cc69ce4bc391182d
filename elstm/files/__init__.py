"""Writes files that survive a kill, and reads files of unknown origin within bounds.

- atomic writes and locks files; claims lets one of several processes claim a name.
- bounded reads files within limits of size; streams makes output outlast its reader.
"""
