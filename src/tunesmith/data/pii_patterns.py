"""The patterns of personal data and secrets, over a text that may be many texts joined by NUL; knows nothing about rows.

A pattern alone is not believed: cards must pass Luhn (ISO/IEC 7812), IBANs mod 97 (ISO 13616), addresses of machines must parse, dates
count only beside words of birth, bare numbers as phones only beside a word of calling.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

_SUREST = ("private_key", "jwt", "api_key", "email", "iban", "ip", "card", "ssn", "date_of_birth", "password", "phone")


class PersonalSpan(NamedTuple):
    """One thing found: its kind, and `text[start:end]`."""

    kind: str
    start: int
    end: int


def search(text: str) -> list[PersonalSpan]:
    """Everything in the joined text by place; of what overlaps at one place the kinds that are surest come first."""
    folded = text.replace("İ", "I").lower()  # the one letter that grows when lowered; places must stay
    spans = [*_anchored(text), *_emails(text), *_ibans(text), *_ip6(text)]
    spans += [*_numbers(text, folded), *_births(text, folded), *_passwords(text, folded)]
    spans.sort(key=lambda span: (span.start, _SUREST.index(span.kind), -span.end))
    return spans


# --- things that begin with a fixed text -----------------------------------------------------------------------------------------

_ANCHORS: list[tuple[str, str, str]] = [
    (
        "private_key",
        "-----BEGIN ",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^\x00]{0,8000}?-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----",
    ),
    ("jwt", "eyJ", r"eyJ[\w-]{8,}\.eyJ[\w-]{4,}\.[\w-]{10,}"),
    ("api_key", "sk-", r"sk-(?:proj-|ant-|svcacct-|or-v1-|admin-)?[A-Za-z0-9_-]{20,200}"),
    ("api_key", "AKIA", r"AKIA[0-9A-Z]{16}(?![0-9A-Z])"),
    ("api_key", "ASIA", r"ASIA[0-9A-Z]{16}(?![0-9A-Z])"),
    ("api_key", "AIza", r"AIza[\w-]{35}(?![\w-])"),
    *(("api_key", f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9]{{36,255}}") for kind in "pousr"),
    ("api_key", "github_pat_", r"github_pat_\w{40,255}"),
    ("api_key", "glpat-", r"glpat-[\w-]{20,}"),
    ("api_key", "hf_", r"hf_[A-Za-z0-9]{30,40}"),
    ("api_key", "xox", r"xox[abprse]-[A-Za-z0-9-]{10,250}"),
    ("api_key", "_live_", r"_live_[A-Za-z0-9]{16,}"),
    ("api_key", "_test_", r"_test_[A-Za-z0-9]{20,}"),
    ("api_key", "SG.", r"SG\.[\w-]{16,32}\.[\w-]{30,64}"),
    ("api_key", "npm_", r"npm_[A-Za-z0-9]{36}"),
    ("api_key", "pypi-", r"pypi-[\w-]{50,}"),
    ("api_key", "AccountKey=", r"AccountKey=[A-Za-z0-9+/=]{40,}"),
    ("api_key", "gsk_", r"gsk_[A-Za-z0-9]{40,}"),
    ("api_key", "r8_", r"r8_[A-Za-z0-9]{36,}"),
]
_COMPILED = [(kind, literal, re.compile(pattern)) for kind, literal, pattern in _ANCHORS]
_BEFORE = {"_live_": 2, "_test_": 2}  # Stripe's keys carry two letters before: sk, pk, rk


def _places(text: str, literal: str) -> Iterator[int]:
    at = text.find(literal)
    while at >= 0:
        yield at
        at = text.find(literal, at + 1)


def _word(c: str) -> bool:
    return c.isalnum() or c == "_"


def _anchored(text: str) -> Iterator[PersonalSpan]:
    for kind, literal, pattern in _COMPILED:
        back = _BEFORE.get(literal, 0)
        for at in _places(text, literal):
            begin = at - back
            if begin >= 0 and (begin == 0 or not _word(text[begin - 1])) and (match := pattern.match(text, at)):
                yield PersonalSpan(kind, begin, match.end())


_LOCAL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])")


def _emails(text: str) -> Iterator[PersonalSpan]:
    end = 0  # of the address before: the next one begins behind it
    for at in _places(text, "@"):
        local = _LOCAL.search(text[max(end, at - 64) : at])
        domain = _DOMAIN.match(text, at + 1)
        if local and domain:
            begin = at - len(local[0].lstrip(".'/=`|{}"))
            if begin < at and text[at - 1] != ".":
                end = domain.end()
                yield PersonalSpan("email", begin, end)


# --- things that are numbers -------------------------------------------------------------------------------------------------------

_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AT20 BE16 BG22 CH21 CY28 CZ24 DE22 DK18 EE20 ES24 FI18 FR27 GB22 GR27 HR21 HU28 IE22 IL23 IS26 IT27 LI21 LT20 LU20 LV21 "
        "MC27 MT31 NL18 NO15 PL28 PT25 RO24 SA24 SE24 SI19 SK24 SM27 TR26 AE23 UA29 BR29 QA29 KW30",
    )
}


def iban_valid(value: str) -> bool:
    """Whether the text is an IBAN of the right length for its country whose check digits are right (ISO 13616, mod 97 = 1)."""
    compact = value.replace(" ", "")
    if len(compact) != _IBAN_LENGTHS.get(compact[:2], len(compact)) or not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def luhn_valid(digits: str) -> bool:
    """Whether a number passes the Luhn check (ISO/IEC 7812-1)."""
    total = sum(int(d) for d in digits[-1::-2]) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0


def _ibans(text: str) -> Iterator[PersonalSpan]:
    end = 0
    for at in _country_codes(text):
        match = _IBAN.match(text, at) if at >= end else None
        if match is None or (at and _word(text[at - 1])):
            continue
        end = match.end()
        words = match[0].split(" ")
        for number in range(len(words), 0, -1):  # words after the number can look like a part of it
            value = " ".join(words[:number])
            if iban_valid(value):
                yield PersonalSpan("iban", match.start(), match.start() + len(value))
                break


def _country_codes(text: str) -> list[int]:
    """Where two capitals and two digits stand together. Found over the whole array: to a pattern every capital is a beginning."""
    points = np.frombuffer(text.encode("ascii"), np.uint8) if text.isascii() else _points(text)
    digit, capital = (points - ord("0")) < 10, (points - ord("A")) < 26  # unsigned, so that what is below wraps to far above
    places: list[int] = np.flatnonzero(capital[:-3] & capital[1:-2] & digit[2:-1] & digit[3:]).tolist()
    return places


def _points(text: str) -> np.ndarray[Any, np.dtype[Any]]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


_RUN = re.compile(r"[0-9](?:[ \-./()]{0,3}[0-9]){5,}")
_IP4 = re.compile(r"(?<![\w.])(?!0)(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?![0-9]|\.[0-9])")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])")
_CARD = re.compile(
    r"(?<![\w.-])(?:3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5}|(?:1800|2131)[0-9]{11}|(?:50|5[6-9]|6[0-9])[0-9]{10}"
    r"|[2-6][0-9]{3}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,7})(?![\w-])"
)
_PHONE = re.compile(
    r"(?<![\w.])(?:"
    r"(?:\(?\+|(?<![0-9] )00[ -]?)[1-9][0-9]{0,2}\)?[ \-./]?(?:\(0\)[ ]?)?(?:[ \-./]?\(?[0-9]{1,6}\)?){2,6}"  # international
    r"|(?:1[-. ])?(?:\([2-9][0-9]{2}\)[-. ]?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}"  # North American
    r"|(?<![0-9] )\(?0[1-9][0-9]{0,4}\)?(?:[ \-/.][0-9]{2,8}){1,5}"  # national with a trunk zero
    r"|\(0[1-9][0-9]{0,4}\)[0-9]{3,8}"
    r"|\(?0[1-9][0-9]{8,10}"
    r")(?:[ ]?(?:x|ext\.?)[ ]?[0-9]{1,5})?(?![\w]|[-/.][0-9])"
)
_BARE = re.compile(r"(?<![\w.])[0-9][0-9 \-./()]{5,16}[0-9](?![\w])")
_CALLING = re.compile(r"(?:phone|tel|call|mobil|cell|fax|whatsapp|handy|ring|telefon|contact|sms|text|reach)\w{0,10}[^0-9\x00]{0,16}\Z")
_DATE = re.compile(
    r"(?:[0-9]{1,2}([-/. ])[0-9]{1,2}\1[0-9]{2}(?:[0-9]{2})?|[0-9]{4}([-/. ])[0-9]{1,2}\2[0-9]{1,2})\Z|[0-9]{1,2}/[0-9]{4}\b"
)


def _numbers(text: str, lower: str) -> Iterator[PersonalSpan]:
    """Cards, machine addresses, social security numbers and phones, within runs of digits only."""
    end = 0
    for run in _RUN.finditer(text):
        begin, end = max(run.start() - 3, end), min(run.end() + 9, len(text))
        while begin < run.start() and text[begin] not in "+(":
            begin += 1
        for kind, pattern, good in _NUMERIC:
            for match in pattern.finditer(text, begin, end):
                if match.start() < run.end() and good(match[0]):
                    yield PersonalSpan(kind, match.start(), match.end())
        for match in _BARE.finditer(text, run.start(), run.end()):
            before = lower[max(0, run.start() - 34) : run.start()]
            if _is_phone(match[0]) and _CALLING.search(before):
                opened = match.start() == run.start() and text[run.start() - 1 : run.start()] == "(" and ")" in match[0]
                yield PersonalSpan("phone", match.start() - opened, match.end())
        end = run.end()


def _digits(value: str) -> int:
    return sum(c.isdigit() for c in value)


def _is_card(value: str) -> bool:
    digits = value.replace(" ", "").replace("-", "")
    return 12 <= len(digits) <= 19 and luhn_valid(digits) and len(set(digits)) > 1


def _is_phone(value: str) -> bool:
    number = value.partition("x")[0]
    return 7 <= _digits(number) <= 15 and not _DATE.match(value) and len(set(number) & set("0123456789")) > 2


def _always(value: str) -> bool:
    return True


_NUMERIC: list[tuple[str, re.Pattern[str], Callable[[str], bool]]] = [
    ("ip", _IP4, _always),
    ("ssn", _SSN, _always),
    ("card", _CARD, _is_card),
    ("phone", _PHONE, _is_phone),
]

_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEXES = "0123456789abcdefABCDEF:"


def _ip6(text: str) -> Iterator[PersonalSpan]:
    end = 0
    for match in _COLONS.finditer(text):
        begin = match.start()
        if begin < end:
            continue
        while begin > 0 and text[begin - 1] in _HEXES:
            begin -= 1
        end = match.end()
        while end < len(text) and text[end] in _HEXES:
            end += 1
        value = text[begin:end].rstrip(":") if not text[begin:end].endswith("::") else text[begin:end]
        if value.count(":") >= 2 and len(value) >= 6 and not _word(text[end : end + 1] or " ") and _parses(value):
            yield PersonalSpan("ip", begin, begin + len(value))


def _parses(value: str) -> bool:
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return True


# --- things that a word announces ----------------------------------------------------------------------------------------------------

_MONTH = (
    r"(?:jan|feb|mar|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez|mär|gen"
    r"|mag|giu|lug|ott|dic|ene|abr|ago|set|fév|avr|aoû|déc)[^\W\d_]{0,8}\.?"
)
_BIRTH_DATE = (
    r"(?P<date>[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4}"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th|\.)?(?: de| of)? {_MONTH},?(?: de)? [0-9]{{4}}|{_MONTH} [0-9]{{1,2}}(?:st|nd|rd|th)?,? [0-9]{{4}})"
)
_BIRTH = re.compile(
    r"(?:\bborn\b|birth\w*|\bd\.?o\.?b\b\.?|geboren|geburts\w*|\bgeb\.|\bnée?\b|naissance|nacid[oa]|nacimiento|"
    rf"nat[oa] il|nascita)[^0-9\x00]{{0,30}}?{_BIRTH_DATE}"
)
_BIRTHDAY = re.compile(rf"(?<![0-9./-]){_BIRTH_DATE}[^0-9\x00]{{1,20}}\Z")  # "12 May 1980 is her birthday"
_BIRTH_ANCHORS = (
    "born",
    "birth",
    "dob",
    "d.o.b",
    "geb",
    "né",
    "naissance",
    "naci",
    "nato il",
    "nata il",
    "nascita",
)


def _births(text: str, lower: str) -> Iterator[PersonalSpan]:
    seen = set()
    for anchor in _BIRTH_ANCHORS:
        for at in _places(lower, anchor):
            match = _BIRTH.search(lower, max(0, at - 1), at + 70)
            if anchor == "birth" and (earlier := _BIRTHDAY.search(lower[max(0, at - 48) : at])) and lower.startswith("birthday", at):
                begin = max(0, at - 48)
                yield PersonalSpan("date_of_birth", begin + earlier.start("date"), begin + earlier.end("date"))
            if match and match.start("date") not in seen and match.start() <= at:
                seen.add(match.start("date"))
                yield PersonalSpan("date_of_birth", match.start("date"), match.end("date"))


_PASSWORD = re.compile(
    r"(?:api[_ -]?key|secret[_ -]?key|secret|access[_ -]?token|auth[_ -]?token|password|passwd|passwort)"
    r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<value>[^\s\"'\x00,;<]{8,200})"
)


def _passwords(text: str, lower: str) -> Iterator[PersonalSpan]:
    for anchor, back in (("key", 12), ("secret", 0), ("token", 12), ("passw", 0)):
        for at in _places(lower, anchor):
            near = lower[at : at + 24]
            if ":" not in near and "=" not in near:
                continue  # 'key' and 'token' are common words
            match = _PASSWORD.search(lower, max(0, at - back), at + 220)
            if match and match.start() <= at < match.start("value"):
                value = text[match.start("value") : match.end("value")]
                if any(c.isdigit() for c in value) and any(c.isalpha() for c in value):
                    yield PersonalSpan("password", match.start("value"), match.end("value"))
