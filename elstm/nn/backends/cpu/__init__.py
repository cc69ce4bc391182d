"""The recurrence on a CPU, by a C library that is compiled when it is first needed."""
