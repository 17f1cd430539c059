"""Parameters and training state on disk, and the names of their leaves."""
