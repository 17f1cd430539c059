"""Training recipes as plain data; README.md says how to read and write one."""
