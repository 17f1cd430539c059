"""Is a data set fit to train on: checks, their likely causes, reports."""
