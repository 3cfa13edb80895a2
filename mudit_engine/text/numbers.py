"""Numbers as they are sung, in Mandarin or English. Texts come in NFKC form.

Mandarin: 1998年 and 520 digit by digit, 365天 and 100 as quantities, 2个 as 两个, 50% as
百分之五十, 12:30 as 十二点三十, -5°C as 零下五摄氏度. English: 1998 as a year, 99 as ninety-nine,
1st, 90s, 50%, $5, 7:30. Both: fractions (1/2), ranges (3-5天, 1998-2008), scores (3-1), units
(5km), signs; digits that are many, begin with 0 or are grouped by dashes (telephone numbers) one by
one.

    in_mandarin("365", following="天")   '三百六十五'
    in_english("1998")                   'nineteen ninety-eight'
"""

from __future__ import annotations

import re

# unit -> (behind the number in Mandarin, in English)
_UNITS = {
    "°c": ("摄氏度", "degrees celsius"),
    "°f": ("华氏度", "degrees fahrenheit"),
    "°": ("度", "degrees"),
    "km": ("公里", "kilometers"),
    "cm": ("厘米", "centimeters"),
    "mm": ("毫米", "millimeters"),
    "kg": ("公斤", "kilograms"),
    "mph": ("英里每小时", "miles an hour"),
    "bpm": ("拍", "beats a minute"),
    "am": ("", "A M"),
    "pm": ("", "P M"),
}
_HALVES_OF_A_DAY = {"am": "上午", "pm": "下午"}
_ONE = r"\d+(?:[.:]\d+)?"
NUMBER = re.compile(
    r"(?:(?<![\w.])[-\u2212+](?=\d))?[$£€¥]?(?:"
    r"\d{1,2}:[0-5]\d(?![\d\-~\u2013])"  # a time of day
    r"|\d+(?:-\d+){2,}|\d{3}-\d{4}(?!\d)"  # a telephone number
    rf"|{_ONE}[-~\u2013\u301c]{_ONE}(?![-\d])"  # a range or a score
    r"|\d+\u2044\d+|\d{1,2}/\d{1,3}(?![/\d])"  # a fraction; NFKC writes ½ with U+2044
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"  # 1,000  3.14  42
    rf")(?:%|(?:st|nd|rd|th|'?s)(?![a-z])|\s?(?:{'|'.join(_UNITS)})(?![a-z]))?",
    re.IGNORECASE | re.ASCII,
)
_RANGE = re.compile(rf"({_ONE})[-~\u2013\u301c]({_ONE})", re.ASCII)
_TELEPHONE = re.compile(r"\d+(?:-\d+){2,}|\d{3}-\d{4}", re.ASCII)
_UNIT = re.compile(rf"\s?({'|'.join(_UNITS)})$", re.IGNORECASE)
_ALL_DAY = "24/7"
_SUFFIX = re.compile(r"(?:st|nd|rd|th|'?s)$", re.IGNORECASE)
_DIGITS = "零一二三四五六七八九"
_MEASURES = frozenset(
    "个天年月日号次里公米度岁分秒点块元颗朵封页首步遍种句杯夜人万亿千百路楼层小周座条张双只位支场片件多余瓶滴束根盏站道"
)
_LIANG = frozenset(
    "个天年次里度分秒点块元颗朵封页首步遍种句杯夜人万亿千小周座条张双只位支场片件瓶滴束根盏站道"
)
_MONEY = {
    "$": ("dollar", "美元"),
    "£": ("pound", "英镑"),
    "€": ("euro", "欧元"),
    "¥": ("yuan", "元"),
}
_FRACTIONS = {
    ("1", "2"): "one half",
    ("1", "4"): "one quarter",
    ("3", "4"): "three quarters",
    ("1", "3"): "one third",
}
_SIGNS = "-+\u2212"
_PHONE = 7  # so many digits without a comma are read one by one


def in_mandarin(number: str, *, following: str = "") -> str:
    """Han characters for a match of NUMBER. `following`: the character after it (年, 个, ... decide
    the reading).
    """
    if number == _ALL_DAY:
        return "二十四小时"
    if number[0] in _SIGNS:
        rest = in_mandarin(number[1:], following=following)
        return {"+": "加"}.get(
            number[0], "零下" if "°" in number or following == "度" else "负"
        ) + rest
    if unit := _UNIT.search(number):
        name = unit[1].lower()
        value = in_mandarin(number[: unit.start()], following="度")
        if name in _HALVES_OF_A_DAY:
            return _HALVES_OF_A_DAY[name] + value + ("" if ":" in number else "点")
        return value + _UNITS[name][0]
    money, body = _money(number)
    body = _SUFFIX.sub("", body)
    if found := _range(body):
        first, last = (in_mandarin(part, following=following) for part in found.groups())
        joined = f"{first}{'到' if _rises(found) else '比'}{last}" + (money[1] if money else "")
        return "百分之" + joined if body.endswith("%") else joined
    if body.endswith("%"):
        share = body[:-1]
        plain = re.fullmatch(r"\d+(?:\.\d+)?", share, re.ASCII)
        value = _value(share) if plain else in_mandarin(share)
        return "百分之" + ("百" if share == "100" else value)
    if ":" in body:
        hours, minutes = body.split(":")
        spoken = _value(str(int(hours)))
        if int(hours) == 2:
            spoken = "两"
        late = "零" if minutes[0] == "0" else ""
        return spoken + "点" + ("" if minutes == "00" else late + _value(str(int(minutes))))
    if "-" in body:
        return "".join(_DIGITS[int(digit)] for digit in body if digit.isdecimal())
    if "\u2044" in body or "/" in body:
        top, bottom = re.split("[\u2044/]", body)
        return _value(bottom) + "分之" + _value(top)
    if "," in body or "." in body or money:
        return _value(body.replace(",", "")) + (money[1] if money else "")
    if _digit_by_digit(body, following):
        return "".join(_DIGITS[int(digit)] for digit in body)
    if body == "2" and following in _LIANG and following:
        return "两"
    return _value(body)


def _range(body: str) -> re.Match[str] | None:
    """3-5, 10~20%, 7:30-9:00; not a telephone number."""
    plain = body.removesuffix("%")
    return None if _TELEPHONE.fullmatch(plain) else _RANGE.fullmatch(plain)


def _rises(found: re.Match[str]) -> bool:
    """True for 3-5 and 7:30-9:00, false for 3-1, which is a score."""
    first, last = (float(part.replace(":", ".")) for part in found.groups())
    return first < last


def _digit_by_digit(body: str, following: str) -> bool:
    if len(body) >= _PHONE or (len(body) > 1 and body[0] == "0"):
        return True
    if following == "年":
        return len(body) == 4 and 1000 < int(body) < 2100 and not body.endswith("000")
    if following == "后" and len(body) == 2:  # 90后, a generation
        return body[1] in "05"
    return len(body) >= 3 and following not in _MEASURES and not body.endswith("00")


def _value(body: str) -> str:
    import cn2an

    whole, _, decimals = body.partition(".")
    spoken = (
        cn2an.an2cn(str(int(whole)), "low")
        if len(whole) <= 16
        else "".join(_DIGITS[int(digit)] for digit in whole)
    )
    spoken = re.sub(r"^二(?=[千万亿])", "两", re.sub(r"^一十", "十", spoken))
    return spoken + ("点" + "".join(_DIGITS[int(digit)] for digit in decimals) if decimals else "")


def chinese_value(text: str) -> float | None:
    """九十二 -> 92.0; None for what is no number."""
    import cn2an

    try:
        return float(cn2an.cn2an(text, "smart"))
    except ValueError:
        return None


def in_english(number: str) -> str:
    """English words, separated by spaces or hyphens, for a match of NUMBER."""
    if number == _ALL_DAY:
        return "twenty-four seven"
    if number[0] in _SIGNS:
        return ("plus " if number[0] == "+" else "minus ") + in_english(number[1:])
    if unit := _UNIT.search(number):
        said, value = _UNITS[unit[1].lower()][1], number[: unit.start()]
        said = (
            re.sub(r"^(degree|kilometer|centimeter|millimeter|kilogram)s", r"\1", said)
            if (value == "1")
            else said
        )
        return f"{in_english(value)} {said}"
    money, body = _money(number)
    if found := _range(_SUFFIX.sub("", body)):
        words = " to ".join(map(in_english, found.groups()))
        return words + (" percent" if body.endswith("%") else f" {money[0]}s" if money else "")
    if body.endswith("%"):
        return in_english(body[:-1]) + " percent"
    if ordinal := re.fullmatch(r"(\d+)(?:st|nd|rd|th)", body, re.IGNORECASE):
        return (
            _spell(int(ordinal[1]), "ordinal") if len(ordinal[1]) < _PHONE else _digits(ordinal[1])
        )
    if decade := re.fullmatch(r"(\d+)'?s", body, re.IGNORECASE):
        words = in_english(decade[1])
        return re.sub("y$", "ie", words) + "s"
    body = _SUFFIX.sub("", body)  # nobody says the plural of 12:30 or the ordinal of 1/4
    if ":" in body:
        hours, minutes = body.split(":")
        late = (
            "" if minutes == "00" else (" oh " if minutes[0] == "0" else " ") + _spell(int(minutes))
        )
        return _spell(int(hours)) + (late or " o'clock")
    if "-" in body:
        return _digits(body)
    if "\u2044" in body or "/" in body:
        top, bottom = re.split("[\u2044/]", body)
        return (
            _FRACTIONS.get((top, bottom))
            or f"{_english_value(top, plain=True)} over {_english_value(bottom, plain=True)}"
        )
    words = _english_value(body, plain=bool(money))
    return words + (
        f" {money[0]}" + ("s" if body != "1" and money[0] != "yuan" else "") if money else ""
    )


def _english_value(body: str, *, plain: bool) -> str:
    whole, _, decimals = body.partition(".")
    if decimals:
        return f"{_english_value(whole, plain=True)} point {_digits(decimals)}"
    if "," in whole:
        return (
            _spell(int(whole.replace(",", ""))).replace(",", "")
            if len(whole) < 20
            else _digits(whole)
        )
    if len(whole) >= _PHONE or (len(whole) > 1 and whole[0] == "0"):
        return _digits(whole)
    if len(whole) == 4 and 1100 <= int(whole) < 2100 and not plain:
        return _spell(int(whole), "year")
    return _spell(int(whole)).replace(",", "")


def _digits(text: str) -> str:
    return " ".join(_spell(int(digit)) for digit in text if digit.isdecimal())


def _spell(number: int, form: str = "cardinal") -> str:
    from num2words import num2words

    return str(num2words(number, to=form))


def _money(number: str) -> tuple[tuple[str, str] | None, str]:
    return (_MONEY[number[0]], number[1:]) if number[0] in _MONEY else (None, number)
