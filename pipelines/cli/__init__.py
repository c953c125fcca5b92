"""The commands: one thin module each, which parses, calls one function and prints."""

from pixmix.commands import exit_if_shadowed

# For `python -m pipelines.cli.gen` in a folder that holds another package named `fractals`.
exit_if_shadowed()
