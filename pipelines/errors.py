"""The error that a command shows as one line, and the remedy for a missing extra."""


class PipelineError(Exception):
    """Raised for a fault that the user can remedy, such as a full disk or a damaged file.

    The message is one line: it names the value, the rule and the remedy. Commands print it and exit
    with code 1. Programming errors are never wrapped in it.
    """


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of pixmix, by name and in a clone."""
    return f"pip install 'pixmix[{extra}]' (in a clone: pip install '.[{extra}]')"
