"""Training recipes as plain data; README.md explains how to read and write one."""
