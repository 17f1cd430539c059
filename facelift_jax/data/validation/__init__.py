"""Checks whether a data set is fit for training: checks, diagnosis, reports."""
