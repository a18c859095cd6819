"""Numbers written in words, in the languages models answer in.

Strict: every word must belong to the number, and the words must be in an order in which people say numbers ("twenty
eleven" and "one two" are none).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from negpo.rewards.number_phrases import PHRASES
from negpo.rewards.wordlist import words

SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip

# Values of single words. Words that mean different numbers in two languages are left out.
_ATOMS: dict[str, int] = {}


def _define(start: int, words: str, step: int = 1) -> None:
    """Words for start, start + step, ...; alternatives are joined by a slash."""
    for index, group in enumerate(words.split()):
        for word in group.split("/"):
            _ATOMS[word] = start + index * step


_define(0, "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen")  # fmt: skip
_define(20, "twenty thirty forty/fourty fifty sixty seventy eighty ninety", 10)
_define(0, "null ein/eins/eine zwei drei vier fünf/fuenf sechs sieben acht neun zehn elf zwölf/zwoelf dreizehn "
           "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn")  # fmt: skip
_define(20, "zwanzig dreißig/dreissig vierzig fünfzig sechzig siebzig achtzig neunzig", 10)
_define(0, "zéro un/une deux trois quatre cinq _ sept huit neuf dix onze douze treize quatorze quinze seize")
_define(20, "vingt/vingts trente quarante cinquante soixante", 10)
_define(0, "cero uno/una dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
           "dieciséis/dieciseis diecisiete dieciocho diecinueve veinte veintiuno/veintiún veintidós/veintidos "
           "veintitrés/veintitres veinticuatro veinticinco veintiséis/veintiseis veintisiete veintiocho "
           "veintinueve")  # fmt: skip
_define(30, "treinta cuarenta cincuenta sesenta setenta ochenta noventa cien/ciento", 10)
_define(200, "doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos", 100)
_define(0, "_ um/uma dois/duas três quatro _ _ sete oito nove dez onze doze treze catorze/quatorze quinze "
           "dezesseis/dezasseis dezessete/dezassete dezoito dezenove/dezanove vinte")  # fmt: skip
_define(30, "trinta _ cinquenta sessenta _ oitenta _ cem/cento", 10)
_define(200, "duzentos trezentos quatrocentos quinhentos seiscentos setecentos oitocentos novecentos", 100)
_define(0, "_ _ due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
           "diciassette diciotto diciannove venti")  # fmt: skip
_define(30, "trenta quaranta cinquanta sessanta settanta ottanta novanta cento", 10)
_define(0, "ноль/нуль один/одна/одно два/две три четыре пять шесть семь восемь девять десять одиннадцать двенадцать "
           "тринадцать четырнадцать пятнадцать шестнадцать семнадцать восемнадцать девятнадцать")  # fmt: skip
_define(20, "двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто сто", 10)
_define(200, "двести триста четыреста пятьсот шестьсот семьсот восемьсот девятьсот", 100)
_ATOMS.pop("_")

_JOINERS = {"and", "et", "y", "e", "und"}
_BIG = {
    **dict.fromkeys(words("hundred hundert cent cents trăm"), 100),
    **dict.fromkeys(words("thousand tausend mille mil mila тысяча тысячи тысяч nghìn ngàn"), 1000),
    **dict.fromkeys(words("million millionen millones millón milhão milhões миллион миллиона миллионов"), 10**6),
    "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_BEFORE_CENT = {"", "deux", "trois", "quatre", "cinq", "sept", "huit", "neuf"}  # "six cents" are also coins

_CHINESE = {
    **dict(zip("零一二三四五六七八九", range(10), strict=True)), "〇": 0, "两": 2, "兩": 2, "壹": 1, "贰": 2, "叁": 3,
    "肆": 4, "伍": 5, "陆": 6, "柒": 7, "捌": 8, "玖": 9,
}  # fmt: skip
_KOREAN = str.maketrans("영일이삼사오육칠팔구십백천만억", "零一二三四五六七八九十百千万亿")
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_CHINESE_GROUPS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}

# Parts: "two thirds", "five tenths", "one half"; "second" is a time.
FRACTION_WORDS: dict[str, Fraction] = {"half": Fraction(1, 2), "halves": Fraction(1, 2), "quarter": Fraction(1, 4)}
for _value, _word in enumerate(words("""
    third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
    sixteenth seventeenth eighteenth nineteenth twentieth
"""), start=3
):  # fmt: skip
    FRACTION_WORDS[_word] = Fraction(1, _value)
FRACTION_WORDS |= {
    "thirtieth": Fraction(1, 30), "fortieth": Fraction(1, 40), "fiftieth": Fraction(1, 50),
    "sixtieth": Fraction(1, 60), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6), "billionth": Fraction(1, 10**9),
}  # fmt: skip
FRACTION_WORDS |= {word + "s": value for word, value in FRACTION_WORDS.items() if not word.startswith("hal")}


_GERMAN_JOINTS = re.compile(r"((?<=[a-zß])hundert|(?<=[a-zß])tausend|hundert(?=[a-zß])|tausend(?=[a-zß]))")


def words_to_number(words: Sequence[str]) -> Fraction | None:
    """The value of "twenty-one", "three hundred and five", "minus two", "two thirds" or "four and a half"; None
    unless every word belongs to one number.
    """
    parts = [part for word in words for part in word.lower().replace("-", " ").split()]
    if not parts:
        return None
    if parts[0] in {"minus", "negative", "负", "moins", "menos", "meno"} and len(parts) > 1:
        value = words_to_number(parts[1:])
        return None if value is None or value < 0 else -value
    if parts[-1] in FRACTION_WORDS:
        return _with_fraction(parts)
    whole = _whole(parts)
    return None if whole is None else Fraction(whole)


_ENGLISH = frozenset(_ATOMS) & frozenset(
    words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    """)
)


def english_integer(text: str) -> int | None:
    """The value of a whole number in English words alone ("twenty-one"), as word2number reads it."""
    parts = text.lower().replace("-", " ").split()
    known = all(part in _ENGLISH or part in {"and", "hundred", "thousand", "million", "billion"} for part in parts)
    return _whole(parts) if known else None


def _with_fraction(parts: list[str]) -> Fraction | None:
    """ "two thirds", "a half", "one and three quarters"."""
    unit = FRACTION_WORDS[parts[-1]]
    before = parts[:-1]
    for cut in range(len(before), -1, -1):
        if cut < len(before) and before[cut] != "and":
            continue
        whole, top = before[:cut], before[cut + 1 :] if cut < len(before) else before
        if cut == len(before):
            whole = []
        alone = not top and parts[-1] == "half"
        count = 1 if alone or top in (["a"], ["an"]) else _whole(top) if top else None
        base = _whole(whole) if whole else 0
        if count is not None and base is not None and (not whole or count * unit < 1):
            return base + count * unit
    return None


def _whole(parts: Sequence[str]) -> int | None:
    phrase = PHRASES.get(" ".join(parts).replace(" و ", " و"))
    if phrase is not None:
        return phrase
    parts = [piece for part in parts for piece in _GERMAN_JOINTS.sub(r" \1 ", part).split()]
    if len(parts) == 1 and not parts[0].isascii():
        chinese = _chinese(parts[0].translate(_KOREAN))
        if chinese is not None:
            return chinese
    total = current = 0
    seen, last = False, ""
    for word in parts:
        if word in _JOINERS and seen:
            continue
        value = _ATOMS.get(word, PHRASES.get(word))
        if value is not None:
            if not _may_follow(current, value):
                return None
            current += value
        elif word in _BIG and (seen or (_BIG[word] >= 100 and word in {"mille", "mil", "cent", "тысяча"})):
            size = _BIG[word]
            if size == 100:
                if current >= 10 or (word in {"cent", "cents"} and last not in _BEFORE_CENT):
                    return None
                current = max(current, 1) * 100
            else:
                total, current = total + max(current, 1) * size, 0
        else:
            return None
        seen, last = True, word
    return total + current if seen else None


def _may_follow(current: int, value: int) -> bool:
    """ "twenty" may be followed by "one", "two hundred" by "twenty"; "one two" and "twenty eleven" are none."""
    if current == 0:
        return True
    if value == 0:
        return False
    if value < 10:
        return current % 10 == 0 and current % 100 != 10
    if value < 100:
        return current % 100 == 0
    return False


def _chinese(text: str) -> int | None:
    """二十一, 一百零五, 三千万, 二〇二五; None for anything else."""
    known = _CHINESE.keys() | _CHINESE_SCALES.keys() | _CHINESE_GROUPS.keys()
    if not text or len(text) > 20 or set(text) - known:
        return None
    if len(text) > 1 and all(character in _CHINESE for character in text):
        return int("".join(str(_CHINESE[character]) for character in text))
    total = group = 0
    digit: int | None = None
    last = 10**9
    for character in text:
        if character in _CHINESE:
            if digit:
                return None
            digit = _CHINESE[character]
        elif character in _CHINESE_SCALES:
            scale = _CHINESE_SCALES[character]
            if scale >= last or digit == 0:
                return None
            group, digit, last = group + (1 if digit is None else digit) * scale, None, scale
        else:
            total = (total + group + (digit or 0)) * _CHINESE_GROUPS[character]
            if not total:
                return None
            group, digit, last = 0, None, 10**9
    return total + group + (digit or 0)
