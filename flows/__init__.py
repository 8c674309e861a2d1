"""Prefect flows: `lpo` (the whole pipeline), `stage` (one stage on a worker), and the service that runs them."""
