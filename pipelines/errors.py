"""The error that a command shows as one line, and the remedy for a missing extra."""


class PipelineError(Exception):
    """Raised where disk, folder or earlier settings do not allow what was asked.

    The message is one line for the person at the keyboard: it names the value, the rule and the
    remedy. Commands print it and exit with 1; programming errors are never wrapped in it.
    """


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of pixmix, by name and in a clone."""
    return f"pip install 'pixmix[{extra}]' (in a clone: pip install '.[{extra}]')"
