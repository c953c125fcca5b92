"""Masking of secrets in command lines and addresses."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
"""Replaces a secret."""

_WORDS = (
    r"(?:\w*pass(?:word|wd|phrase)|pass|pwd|secrets?|tokens?|credentials?|signature|sig|auth|bearer"
    r"|(?:[\w.]*[-_])?key(?:[-_]id)?|apikey|accesskey(?:id)?)"
)
_NAME = rf"(?:[\w.]*[-_.])?{_WORDS}(?:[-_.][\w.-]*)?"

_PIPE = re.compile(r"(?<![\w.-])pipe:(?!\s|\*\*\*).*", re.DOTALL)
"""A shell command up to its end: any of its words may be a secret."""

_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<rest>[^\s'\"]*)")
_ASSIGNED = re.compile(
    rf"(?<![\w-])(?P<name>-{{0,2}}{_NAME})(?P<sign>\s*=\s*|:\s+)(?P<value>\S.*)", re.IGNORECASE
)
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization\s*[:=]\s*)(?P<value>[^'\"]*[^'\"\s])", re.IGNORECASE
)
_SECRET_OPTION = re.compile(rf"--?{_NAME}", re.IGNORECASE)
_USER_OPTION = re.compile(
    r"(?<!\S)(?P<name>-u|--user|--proxy-user)(?P<sign>[ =]|(?<=-u)(?=[^\s:]+:))(?P<value>\S+)"
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|sk-[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|local-[0-9a-f]{40})\b"
)
"""Tokens of well-known services, anywhere in a text."""


def masked(text: str) -> str:
    """Return a text with its passwords, tokens and signatures masked.

    This masks the user, query and fragment of addresses, the values of options and variables with
    names such as --token or AWS_SECRET_ACCESS_KEY, Authorization headers, tokens of well-known
    shapes, and commands after "pipe:".
    """
    text = _PIPE.sub(f"pipe:{MASK}", text)
    text = _URL.sub(lambda match: match["scheme"] + _masked_rest(match["rest"]), text)
    text = _HEADER.sub(rf"\g<name>{MASK}", text)
    text = _ASSIGNED.sub(_masked_value, text)
    text = _USER_OPTION.sub(rf"\g<name>\g<sign>{MASK}", text)
    return _SHAPES.sub(MASK, text)


def bare_address(url: str) -> str:
    """Return an http address without its user, query and fragment."""
    scheme, separator, rest = url.partition("://")
    host, path = _split_host(rest)
    return f"{scheme}{separator}{host.rpartition('@')[2]}{re.split(r'[?#]', path)[0]}"


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with secrets masked, such as that after --token."""
    found = []
    secret = False
    for argument in arguments:
        found.append(MASK if secret and not argument.startswith("--") else masked(argument))
        secret = _SECRET_OPTION.fullmatch(argument) is not None
    return found


def masked_values(document: Any) -> Any:  # noqa: ANN401
    """Return a document of plain JSON values with the secrets in its texts masked."""
    if isinstance(document, str):
        return masked(document)
    if isinstance(document, Mapping):
        return {name: masked_values(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [masked_values(each) for each in document]
    return document


def _split_host(rest: str) -> tuple[str, str]:
    """Split the part after "://" into host and rest, as browsers do."""
    end = min((rest.find(sign) for sign in "/?#" if sign in rest), default=len(rest))
    return rest[:end], rest[end:]


def _masked_rest(rest: str) -> str:
    host, path = _split_host(rest)
    if "@" in host:
        host = f"{MASK}@{host.rpartition('@')[2]}"
    cut = re.search(r"[?#]", path)
    if cut is not None and cut.end() < len(path):
        path = f"{path[: cut.end()]}{MASK}"
    return host + path


def _masked_value(match: re.Match[str]) -> str:
    value: str = match["value"]
    if value.startswith(MASK):
        return match[0]
    # A value ends at a space, and a quoted one at its closing quote.
    quote = value[0] if value[0] in "'\"" else None
    end = value.find(quote, 1) + 1 if quote else len(value.split(maxsplit=1)[0])
    return f"{match['name']}{match['sign']}{MASK}{value[end or len(value) :]}"
