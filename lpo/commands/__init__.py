"""Commands that are not stages: they read what the stages made, or bring something in."""
