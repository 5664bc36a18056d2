"""The command line, one file a subcommand; ``align_gen.cli`` puts them together.

Each file holds a function with typer's annotations and an ``EXAMPLE``. What a command needs beyond
typer is imported inside its function, after the mistakes that can be seen without it.
``arguments`` has the options that commands share, ``tables`` prints aligned text, and ``options``
describes recipe keys and the options of methods and rewards.
"""
