"""The sections of params.yaml as frozen dataclasses, in the order of the pipeline."""
