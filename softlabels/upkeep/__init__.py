"""Verify, repair, convert and merge label stores."""
