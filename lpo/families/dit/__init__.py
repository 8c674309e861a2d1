"""Families with a diffusion transformer of diffusers, one short file each."""
