"""What the operator wrote, as values: no socket is opened here.

``schema`` and ``loader`` (supervisor and CLI only) turn TOML into ``model``; ``changes`` is the vocabulary of live
modifications of a model; ``control`` is what the admin side may ask of the supervisor.
"""
