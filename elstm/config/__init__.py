"""The config: its schema, its checks, and how Hydra composes it."""
