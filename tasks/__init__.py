"""What the flows are made of: the DVC graph, workspaces, one stage's run, what people see. Prefect and light code."""
