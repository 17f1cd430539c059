"""The training loop and its parts: step, optimizer, run directory, collapse monitor."""
