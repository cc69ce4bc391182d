"""What scripts/benchmark.py measures: layers, training runs, start-up; and how it shows it."""
