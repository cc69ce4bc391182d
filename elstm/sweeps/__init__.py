"""Many runs: which to train, where they run, and how they ended."""
