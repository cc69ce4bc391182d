"""Builds, trains, evaluates and resumes the model of one run."""
