"""The parts of the flows: the DVC graph, workspaces, a stage's run, dispatch, publishing."""
