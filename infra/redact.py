"""Redacts users, passwords and keys from errors, addresses, flags and records.

A secret is known by its place in a URL (user and password before the host) or by its key (`password=`, `"api_key":`,
`--x-secret-key`). Where an unescaped character leaves open how far a secret goes, more is taken out, not less.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

HIDDEN = "***"
"""What stands in place of a value that was taken out."""
_SECRET_KEY = re.compile(
    r"passw(or)?d|passphrase|passwd|secret|token|credential|signature|odbc_connect"
    r"|(^|[^a-z])(pwd|sig|pat)([^a-z]|$)|(api|access|private|account|shared|encryption)[-_ ]?key",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"(path|file|_url|_uri|_mode)$|^tokens$", re.IGNORECASE)
"""Ends of keys whose values only say where a secret is kept."""

_URL = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?P<rest>\S*)")
_QUOTED_KEY = re.compile(
    r"(?P<before>(?P<mark>['\"])(?P<key>[\w. -]+)(?P=mark)\s*[:=]\s*)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,\[\]{}()'\"]+)"
)
_END = r"(?=&[\w.-]+=|[\"'][\])},:;.]*(?:\s|$)|[\])},;]*(?:\s|$))"
_KEY_IS = re.compile(
    r"(?P<before>(?<![\w-])(?P<key>-{0,2}[\w.-]+)=)(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'(?=\s|$)|\S+?" + _END + ")"
)
_FLAG = re.compile(r"(?P<before>(?<!\S)--(?P<key>[\w.-]+)\s+)(?P<value>'[^']*'|\"[^\"]*\"|[^\s-]\S*)")
_LINE = re.compile(r"^(?P<before>\s*(?P<key>[\w.-]+):[ \t]+)(?P<value>\S+)(?=[ \t]*$)", re.MULTILINE)
_HEADER = re.compile(r"(?P<before>authorization['\"]?\s*[:=]\s*['\"]?)(?P<value>(?:\w+ +)?\S+)", re.IGNORECASE)


def one_line(error: Exception) -> str:
    """Return an error's text, shortened to one line, without secrets."""
    return redacted(" ".join(str(error).split()))[:200]


def redacted(text: str) -> str:
    """Return a text without the users and passwords of its URLs, and with `***` in place of its keys' secret values."""
    text = _URL.sub(lambda match: match["scheme"] + _without_user(match["rest"]), text)
    text = _HEADER.sub(rf"\g<before>{HIDDEN}", text)
    return _by_key(text)


def redacted_values(value: Any, key: str = "") -> Any:
    """Return nested JSON values without secrets: texts as `redacted`, and what stands under a secret's key hidden."""
    if isinstance(value, Mapping):
        return {name: redacted_values(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(one, key) for one in value]
    if not isinstance(value, str) or not value:
        return value
    return HIDDEN if is_secret(key) else redacted_address(value)


def redacted_address(text: str) -> str:
    """Return one value without secrets. If it is a URL, all of it is: blanks don't end it, as they do in a text."""
    scheme, mark, rest = text.partition("://")
    if mark and re.fullmatch(r"[\w+.-]+", scheme) and any(blank in rest for blank in " \t\n"):
        text = f"{scheme}://{_without_user(rest)}"
    return redacted(text)


def redacted_command(arguments: Sequence[str]) -> str:
    """Return a command line for a shell, without secrets."""
    shown, hide = [], False
    for argument in arguments:
        flag, mark, value = argument.partition("=") if re.match(r"[\w.-]+=", argument) else (argument, "", "")
        if hide:
            shown.append(HIDDEN)
        elif mark and is_secret(flag):
            shown.append(f"{flag}={HIDDEN}")
        else:
            shown.append(f"{flag}={redacted_address(value)}" if mark else redacted_address(argument))
        hide = not hide and not mark and argument.startswith("--") and is_secret(argument)
    return shlex.join(shown)


def is_secret(key: str) -> bool:
    """Say whether a name is one of values that are not to be shown."""
    return _SECRET_KEY.search(key) is not None and _NO_SECRET.search(key) is None


def check_uri(field: str, uri: str) -> None:
    """Refuse a URI whose parts are not certain: then neither is where its password ends.

    Raises:
        ValueError: it holds what must be percent-encoded. The message says neither user nor password.
    """
    try:
        parts = urlsplit(uri)
        certain = parts.port is None or parts.port >= 0
    except ValueError:  # a port that is no number, a bracket
        certain = False
    else:
        behind = parts.path + parts.query + parts.fragment
        certain = certain and parts.netloc.count("@") <= 1 and not (":" in parts.netloc and "@" in behind)
    if not certain or re.search(r"\s", uri):
        raise ValueError(
            f"{field} ({uri.partition(':')[0]}://...) can't be read as a URI: percent-encode what is special in its "
            "user, password and path, as / is %2F, @ is %40, ? is %3F and # is %23"
        )


def last_line(error: BaseException) -> str:
    """Return the innermost message of an error that came through Ray: its last line, after the tracebacks."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return redacted(lines[-1].strip() if lines else repr(cause))


def _without_user(rest: str) -> str:
    """Return what follows a URL's `://` without user and password.

    An @ behind the authority belongs to the path, unless the authority has a colon: then it may be a password with an
    unescaped slash, question mark or hash.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    where = rest if ":" in authority else authority
    shown = rest[where.rfind("@") + 1 :]
    return _URL.sub(lambda match: match["scheme"] + _without_user(match["rest"]), shown)  # others behind `::`, `=`, `,`


def _by_key(text: str) -> str:
    for pattern in (_QUOTED_KEY, _KEY_IS, _FLAG, _LINE):
        text = pattern.sub(_hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    if not is_secret(match["key"]):
        return match["before"] + _by_key(match["value"])  # such as a URL with a query
    mark = match["value"][0]
    return match["before"] + (f"{mark}{HIDDEN}{mark}" if mark in "\"'" else HIDDEN)
