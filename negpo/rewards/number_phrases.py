"""Numbers up to 99 in languages that build their words in ways of their own: whole phrases and their values."""

from __future__ import annotations

from negpo.rewards.wordlist import words

_FRENCH = words("""
    zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize
""")
_FRENCH_TENS = {20: "vingt", 30: "trente", 40: "quarante", 50: "cinquante", 60: "soixante", 80: "quatre vingt"}
_GERMAN = words("null ein zwei drei vier fünf sechs sieben acht neun")
_GERMAN_TENS = words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_ITALIAN = words("zero uno due tre quattro cinque sei sette otto nove")
_ITALIAN_TENS = words("venti trenta quaranta cinquanta sessanta settanta ottanta novanta")
_PORTUGUESE = words("zero um dois três quatro cinco seis sete oito nove")
_PORTUGUESE_TENS = words("vinte trinta quarenta cinquenta sessenta setenta oitenta noventa")
_VIETNAMESE = words("không một hai ba bốn năm sáu bảy tám chín")
_KOREAN = words("영 일 이 삼 사 오 육 칠 팔 구")
_KOREAN_NATIVE = ["", *words("하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉")]
_KOREAN_TENS = ["", *words("열 스물 서른 마흔 쉰 예순 일흔 여든 아흔")]
_THAI = words("ศูนย์ หนึ่ง สอง สาม สี่ ห้า หก เจ็ด แปด เก้า")
_ARABIC = words("صفر واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة")
_ARABIC_TEENS = words("أحد اثنا ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة")
_ARABIC_TENS = words("عشرون ثلاثون أربعون خمسون ستون سبعون ثمانون تسعون")


def _french(number: int) -> list[str]:
    if number <= 16:
        return [_FRENCH[number]]
    if number < 20:
        return [f"dix {_FRENCH[number - 10]}"]
    tens = number // 10 * 10
    tens = {70: 60, 90: 80}.get(tens, tens)
    rest = number - tens
    if rest == 0:
        return [_FRENCH_TENS[tens], _FRENCH_TENS[tens] + "s"]
    joint = " et " if rest in {1, 11} and tens != 80 else " "
    return [_FRENCH_TENS[tens] + joint + tail for tail in _french(rest)]


def _german(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if tens < 2 or not units:
        return []
    words = [f"{_GERMAN[units]}und{_GERMAN_TENS[tens - 2]}"]
    return words + [word.replace("ß", "ss") for word in words if "ß" in word]


def _italian(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if tens < 2 or not units:
        return []
    stem = _ITALIAN_TENS[tens - 2]
    stem = stem[:-1] if units in {1, 8} else stem
    word = stem + _ITALIAN[units]
    return [word, word[:-1] + "é"] if units == 3 else [word]


def _portuguese(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if tens < 2:
        return []
    return [_PORTUGUESE_TENS[tens - 2] + (f" e {_PORTUGUESE[units]}" if units else "")]


def _vietnamese(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if not tens:
        return [_VIETNAMESE[units]]
    head = "mười" if tens == 1 else _VIETNAMESE[tens] + " mươi"
    if not units:
        return [head]
    tails = {1: ["một"] if tens == 1 else ["mốt", "một"], 4: ["bốn", "tư"], 5: ["lăm", "nhăm"]}
    return [f"{head} {tail}" for tail in tails.get(units, [_VIETNAMESE[units]])]


def _korean(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if not number:
        return ["영", "공"]
    chinese = ("" if tens < 2 else _KOREAN[tens]) + ("십" if tens else "") + (_KOREAN[units] if units else "")
    native = _KOREAN_TENS[tens] + _KOREAN_NATIVE[units]
    return [chinese, native]


def _thai(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if not tens:
        return [_THAI[units]]
    head = {1: "สิบ", 2: "ยี่สิบ"}.get(tens, _THAI[tens] + "สิบ")
    return [head + ("" if not units else "เอ็ด" if units == 1 else _THAI[units])]


def _arabic(number: int) -> list[str]:
    units, tens = number % 10, number // 10
    if tens < 2:
        return [_ARABIC[number]] if number < 10 else ["عشرة"] if number == 10 else [f"{_ARABIC_TEENS[units - 1]} عشر"]
    word = _ARABIC_TENS[tens - 2]
    forms = [word, word.removesuffix("ون") + "ين"]
    return [f"{_ARABIC[units]} و{form}" if units else form for form in forms]


_LANGUAGES = (_french, _german, _italian, _portuguese, _vietnamese, _korean, _thai, _arabic)
PHRASES: dict[str, int] = {}
for _language in _LANGUAGES:
    for _number in range(100):
        for _phrase in _language(_number):
            PHRASES.setdefault(_phrase, _number)
