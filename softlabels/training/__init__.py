"""Stage 2: train students from stored labels."""
