"""Atomic files, progress, source revision, and what all commands share."""
