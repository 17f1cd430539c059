"""Machinery of a training run that knows pytrees and files, and nothing about 3D."""
