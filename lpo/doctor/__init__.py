"""What a run needs, counted before it starts: memory, downloads, disk."""
