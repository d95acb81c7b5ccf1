"""Active checks: asking servers how they are, and host names what they mean. Supervisor only; workers never import this.

`checker.Checker` runs the loops; each kind of check is a pure `dialogue.Dialogue` (what to say,
how to read the answer) in a file of its own.
"""
