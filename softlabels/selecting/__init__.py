"""Choosing images to learn from: those of a pool that labels are sure of, and those that no held-out set holds."""
