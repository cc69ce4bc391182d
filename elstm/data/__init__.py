"""Loads data sets and makes batches of sequences from them.

- catalog lists the published sets and the readers, and load loads what a config names.
- readers has a module for each format of user data; preparing splits and scales them.
- sequences and series make batches; augment and augment_images change training batches.

elstm/data/README.md explains formats and options.
"""
