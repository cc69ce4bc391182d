"""One run: it builds a model, trains it, evaluates it, and resumes."""
