"""Builds, trains, evaluates and resumes the model of one run.

- run sets up and tears down a run; build makes its parts, loop trains, and step takes one step.
- evaluation measures a model, and state, snapshot and checkpoint hold what a resume needs.
- trained loads a finished model for other commands.
"""
