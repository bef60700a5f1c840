"""The `prismrec` command: parse, call, print.

`main.py` lists the commands; each topic has a module of functions whose imports stand inside them, so
that `--help` stays quick. `options.py` holds the options that several commands share, `output.py` what
they print with.
"""
