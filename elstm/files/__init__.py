"""Files that survive a kill, and bounded reads of files that others may have written."""
