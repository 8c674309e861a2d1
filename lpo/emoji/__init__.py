"""The embedded world: captioned emoji scenes whose truth is known exactly."""
