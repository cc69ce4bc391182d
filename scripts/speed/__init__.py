"""Contains the measurements of scripts/benchmark.py, of layers, training runs and start-up."""
