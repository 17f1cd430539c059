"""Files that appear whole or not at all, progress, and what every command shares."""
