"""Defines the config with its schema and its checks, and composes it with Hydra."""
