"""Stages: files in, library, files out. The only rooms that know paths."""
