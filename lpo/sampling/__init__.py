"""Drawing images: plain sampling, and search guided by a reward."""
