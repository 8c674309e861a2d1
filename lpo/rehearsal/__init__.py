"""A preset on this machine before it costs anything: full-size models of random weights, a few pairs, a few steps.

`sources.py` plans the folders of the models in the hub's layout, `weights.py` fills them, `pairs.py` draws the pairs,
`settings.py` shortens the parameters, `measure.py` runs one stage and records what it took. `lpo/commands/rehearse.py`
leads through them.
"""
