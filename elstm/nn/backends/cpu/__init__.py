"""Runs the recurrence on a CPU by a C library that is compiled at first use."""
