"""Images prepared once for fast reading: shrunk, and kept raw or as JPEG in shards."""
