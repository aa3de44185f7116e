"""What must not be seen: passwords in addresses and tokens of the environment, out of any text.

An address is known by its form, a token by its own form or by standing in the environment under a
name that says so. What a password is beyond its address is known where it is long enough that no
word of a text is it by chance.
"""

import functools
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from sae_mlflow.environment import environment

HIDDEN = "***"

_WORDS = "password|passwd|pwd|token|secret|api_?key|access_?key|credential|signature"
_END = r"\s'\"<>`"  # of an address within a text
_USER_INFO = re.compile(
    # a path takes one of the slashes away, and MLflow's own addresses have but one, and no user
    rf"(?P<slashes>:/{{1,2}}(?<!models:/)(?<!runs:/)(?<!artifacts:/))"
    rf"(?P<user>[^:/?#@{_END}]{{0,400}})"
    # a port is no password, though an @ may come after it
    rf"(?:(?P<colon>:)(?!\d{{1,5}}(?:/|\Z))(?P<password>[^{_END}]{{0,400}}))?@"
)
_IN_QUERY = re.compile(
    rf"(?P<key>(?:[?&;]|%3F|%26|%3B)[\w.-]{{0,40}}(?:{_WORDS})[\w.-]{{0,40}}(?:=|%3D))"
    rf"(?:(?!%26|%3B)[^&;{_END}])+",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    rf"(?P<key>\b(?:password|passwd|pwd)=|authorization['\"]?[:=]\s*['\"]?(?:bearer |basic )?)"
    rf"[^&;,{_END}]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(  # as a word of its own: `Llama-2-7b-hf_layer10` is none
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|sk-(?:proj-)?[A-Za-z0-9]{20,}|dapi[0-9a-f]{32}|AKIA[0-9A-Z]{16})(?![\w-])"
)
_SECRET_NAME = re.compile(  # HF_TOKEN, but neither TRAIN_TOKENS nor TOKENIZER_NAME
    rf"(?:(?:{_WORDS}|private_?key)|(?:password|secret|key|credential)s|_auth$)(?![a-z])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?[\d.,_]+(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_LONG_USER = 20  # characters: no name has as many, a token has
_STRONG, _VERY_LONG = 8, 16

_remembered: set[str] = set()


def remember(address: str) -> None:
    """Know an address that isn't in the environment: its password is hidden in all texts then."""
    _remembered.add(address)


def without_secrets(text: str) -> str:
    """A text as it may be shown or stored: `postgresql://me:***@host/db`."""
    known = tuple(environment().items()), tuple(sorted(_remembered))
    for secret, instead in _hidden(*known):
        text = text.replace(secret, instead)
    text = _USER_INFO.sub(_hidden_user, text)
    for pattern in (_IN_QUERY, _GIVEN):
        text = pattern.sub(rf"\g<key>{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def _hidden_user(match: re.Match[str]) -> str:
    user, start = match["user"], match.start()
    scheme = match.string[max(start - 5, 0) : start].lower()
    if len(user) >= _LONG_USER or (_is_bare(match) and scheme.endswith(("http", "https"))):
        user = HIDDEN
    return f"{match['slashes']}{user}" + (f":{HIDDEN}@" if match["colon"] else "@")


def _is_bare(match: re.Match[str]) -> bool:
    """Whether an address has a user and no password; GitHub takes a word in its place."""
    return match["password"] in (None, "", "x-oauth-basic")


def _is_token(match: re.Match[str]) -> bool:
    """Whether an address's user is one; a name may stand in a path as well."""
    return _is_bare(match) and len(match["user"]) >= _LONG_USER


@functools.lru_cache(maxsize=4)
def _hidden(
    environment: tuple[tuple[str, str], ...], addresses: tuple[str, ...]
) -> list[tuple[str, str]]:
    """What is known to be secret, and what stands in its place; the longest first."""
    secrets: set[str] = set()
    passwords: set[str] = set()
    for name, value in environment:
        if _SECRET_NAME.search(name) and not value.startswith(("/", "~", ".")):
            secrets.add(value)
    for address in [*addresses, *(value for _, value in environment if "://" in value)]:
        passwords |= set(_passwords(address))
        secrets |= {m[0].removeprefix(m["key"]) for m in _IN_QUERY.finditer(address)}
        secrets |= {m["user"] for m in _USER_INFO.finditer(address) if _is_token(m)}
    found = {form: HIDDEN for s in secrets | passwords for form in _forms(s) if _is_strong(form)}
    # of a weak one, which any text may have as a word, only what is in its place
    found |= {f":{form}@": f":{HIDDEN}@" for password in passwords for form in _forms(password)}
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def _passwords(address: str) -> Iterator[str]:
    """That an address may be meant to have: in one that isn't well formed, an @ is ambiguous."""
    for length in (".*", ".*?"):
        match = re.match(rf"[\w.+-]+://[^:/@]*:({length})@", address, re.DOTALL)
        if match and match[1]:
            yield match[1]


def _is_strong(secret: str) -> bool:
    """Whether it's no word or number that a text may have by chance."""
    if len(secret) < _STRONG or _NUMBER.fullmatch(secret):
        return False
    return len(secret) >= _VERY_LONG or not (secret.isalpha() and secret.islower())


def _forms(secret: str) -> set[str]:
    """As it is, and as addresses, JSON, Python and HTML write it."""
    forms: set[str] = {secret}
    for plain in (secret, unquote(secret), unquote_plus(secret)):
        forms |= {plain, quote(plain), quote(plain, safe=""), quote(plain, safe=" +")}
        forms |= {quote_plus(plain), html.escape(plain), json.dumps(plain)[1:-1], repr(plain)[1:-1]}
    return forms
