"""Writes the records in a run folder, and archives of finished studies.

- tracking writes metrics.csv, norms.csv, over_time.csv and TensorBoard's event file.
  record_files keeps these files safe.
- status writes status.json, and feeds sends records to Weights & Biases and MLflow.
- stored and archive let reports read run folders and archives alike.
"""
