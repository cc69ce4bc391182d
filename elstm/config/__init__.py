"""Defines the config with its schema and its checks, and composes it with Hydra.

- schema lists the groups and options; model_options, data_options and training_options have the
  fields, each with its default, its allowed values and its help.
- overrides parses arguments, compose composes a config, and check and values check it.
- run_config reads the config of a run folder, and run_folder names such folders.
"""
