"""What stores and runs hold, and what a sweep of runs gave."""
