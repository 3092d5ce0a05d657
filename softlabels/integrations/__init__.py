"""Stored labels in other projects' training loops: a module for each, which imports its project."""
