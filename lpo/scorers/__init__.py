"""Images and prompts in, numbers out: the embedded scorers, published scorers, and judges."""
