"""Units of measurement with their exact factors, and the words that look like units and are none.

A known unit carries a dimension and a factor to that dimension's base. Spellings are looked up as written first (``mW``
is not ``MW``), then in lower case and in the singular.
"""

from __future__ import annotations

from fractions import Fraction

from negpo.rewards.wordlist import words

Powers = tuple[tuple[str, int], ...]

UNITS: dict[str, tuple[Powers, Fraction]] = {}  # spelling -> powers of base dimensions, factor
_PREFIXES = {
    "n": Fraction(1, 10**9), "μ": Fraction(1, 10**6), "u": Fraction(1, 10**6), "m": Fraction(1, 1000),
    "k": Fraction(1000), "M": Fraction(10**6), "G": Fraction(10**9),
}  # fmt: skip
_PREFIX_WORDS = {
    "nano": Fraction(1, 10**9), "micro": Fraction(1, 10**6), "milli": Fraction(1, 1000), "kilo": Fraction(1000),
    "mega": Fraction(10**6), "giga": Fraction(10**9),
}  # fmt: skip


def _define(dimension: str, entries: dict[str, str]) -> None:
    """``dimension``: "length" or "mass length2 time-2"; ``entries``: spellings separated by blanks to their factor."""
    powers = []
    for part in dimension.split():
        name = part.rstrip("-0123456789")
        powers.append((name, int(part[len(name) :] or 1)))
    for names, factor in entries.items():
        for name in names.split():
            UNITS[name] = (tuple(sorted(powers)), Fraction(factor))


def _with_prefixes(dimension: str, symbol: str, word: str, factor: str = "1") -> None:
    _define(dimension, {f"{symbol} {word}": factor})
    powers, base = UNITS[symbol]
    for prefixes, name in ((_PREFIXES, symbol), (_PREFIX_WORDS, word)):
        for prefix, scale in prefixes.items():
            UNITS.setdefault(prefix + name, (powers, base * scale))


_with_prefixes("length", "m", "meter")
_with_prefixes("mass", "g", "gram")
_with_prefixes("time", "s", "second")
_with_prefixes("length3", "L", "liter", "1/1000")
_with_prefixes("mass length2 time-2", "J", "joule", "1000")
_with_prefixes("mass length2 time-3", "W", "watt", "1000")
_with_prefixes("mass length time-2", "N", "newton", "1000")
_with_prefixes("mass length-1 time-2", "Pa", "pascal", "1000")
_with_prefixes("time-1", "Hz", "hertz")
_with_prefixes("current", "A", "ampere")
_with_prefixes("mass length2 time-3 current-1", "V", "volt", "1000")
_with_prefixes("mass length2 time-3 current-2", "Ω", "ohm", "1000")
_with_prefixes("current time", "C", "coulomb")
_with_prefixes("mass time-2 current-1", "T", "tesla", "1000")
_with_prefixes("amount", "mol", "mole")
_with_prefixes("mass length2 time-2", "eV", "electronvolt", "1.602176634e-16")
_with_prefixes("temperature", "K", "kelvin")
_define("length", {
    "cm centimeter centimetre": "1/100", "dm decimeter decimetre": "1/10", "metre": "1", "millimetre": "1/1000",
    "micrometre micron": "1/1000000", "nanometre": "1/1000000000", "kilometre": "1000",
    "in inch inches": "127/5000", "ft foot feet": "381/1250", "yd yard": "1143/1250", "mi mile": "201168/125",
    "米 公尺 メートル 미터 метр м metro mètre": "1",
    "厘米 公分 センチメートル センチ 센티미터 сантиметр см centímetro": "1/100",
    "毫米 ミリメートル 밀리미터 мм": "1/1000", "分米": "1/10",
    "千米 公里 キロメートル キロ 킬로미터 километр км kilómetro quilômetro chilometro kilomètre": "1000",
})  # fmt: skip
_define("mass", {
    "gm gr gramme": "1", "kilogramme kilo": "1000", "ton tonne": "1000000",
    "lb pound": "45359237/100000", "oz ounce": "45359237/1600000",
    "克 グラム 그램 грамм": "1", "千克 公斤 キログラム 킬로그램 кг килограмм": "1000", "吨 トン 톤 тонна": "1000000",
    "斤": "500", "gramo grama grammo": "1", "kilogramo quilograma": "1000",
})  # fmt: skip
_define("time", {
    "sec": "1", "min minute": "60", "h hr hour": "3600", "day d": "86400", "week wk": "604800",
    "year yr": "31556952", "month": "2629746", "decade": "315569520", "century centuries": "3155695200",
    "秒 秒钟 초 секунда секунды секунд segundo seconde sekunde sekunden secondo secondi giây": "1",
    "分钟 分 分間 분 минута минуты минут minuto minuti minuten phút": "60",
    "小时 時間 时 小時 시간 час часа часов hora heure stunde stunden ora ore giờ": "3600",
    "天 日 일 день дня дней día dia jour tag tage giorno giorni ngày": "86400",
    "周 星期 週間 週 주 неделя недель недели semana semaine woche wochen settimana settimane tuần": "604800",
    "年 년 год года лет año ano jahr jahre anno anni năm": "31556952",
    "月 个月 か月 ヶ月 개월 месяц месяца месяцев mes mois monat monate mese mesi tháng": "2629746",
})  # fmt: skip
_define("length3", {
    "l litre": "1/1000", "ml mL milliliter millilitre cc": "1/1000000", "cl": "1/100000", "dl": "1/10000",
    "gal gallon": "473176473/125000000000", "quart qt": "473176473/500000000000",
    "pint pt": "473176473/1000000000000", "cup": "473176473/2000000000000",
    "tablespoon tbsp": "473176473/32000000000000", "teaspoon tsp": "157725491/32000000000000",
    "升 リットル 리터 литр литра литров litro": "1/1000", "毫升 ミリリットル 밀리리터": "1/1000000",
})  # fmt: skip
_define("mass length2 time-2", {"Wh": "3600000", "kWh kwh": "3600000000"})
_define("length2", {"acre": "316160658/78125", "hectare ha": "10000", "公顷": "10000", "亩": "2000/3"})
_define(
    "length2",
    {"平方米 ㎡ 平方メートル 제곱미터": "1", "平方厘米 평방센티미터": "1/10000", "平方千米 平方公里": "1000000"},
)
_define("length3", {"立方米": "1", "立方厘米": "1/1000000"})
_define("length time-1", {"mph": "1397/3125", "kmph kph kmh": "5/18", "knot": "463/900"})
_define("angle", {"deg degree": "1", "度 도 градус grado grau grad độ": "1", "arcminute arcmin": "1/60"})
_define("radian", {"rad radian": "1", "弧度 ラジアン": "1"})
_define("celsius", {"°C celsius centigrade 摄氏度": "1"})
_define("fahrenheit", {"°F fahrenheit 华氏度": "1"})
_define("dollar", {"¢ cent": "1/100", "dollar usd USD": "1", "nickel": "1/20", "dime": "1/10",
                   "美元 ドル 달러 доллар доллара долларов dólar dólares": "1"})  # fmt: skip
_define("euro", {"euro eur EUR 欧元 ユーロ 유로 евро": "1"})
_define("sterling", {"gbp GBP 英镑": "1", "pence": "1/100"})
_define("yuan", {"yuan rmb RMB cny CNY 元 块 人民币": "1", "角": "1/10", "分钱": "1/100"})
_define("yen", {"yen jpy JPY 円 日元": "1"})
_define("rupee", {"rupee rs Rs inr INR ₹": "1"})
_define("won", {"won 원": "1"})
_define("ruble", {"ruble rouble рубль рубля рублей": "1"})
_define("byte", {"byte": "1", "bit": "1/8", "kilobyte kb KB": "1000", "megabyte mb MB": "1000000"})
_define("calorie", {"cal calorie": "1", "kcal kilocalorie": "1000"})

# Symbols of one letter are units only where they are set upright or follow a blank; e, i and R never are.
LETTER_SYMBOLS = frozenset(words("m g s h d L l N J W K V A C T"))
COUNTERS = frozenset(
    words("个 個 人 只 名 本 张 枚 件 条 头 匹 棵 台 辆 次 种 位 道 岁 つ 匹 冊 枚 回 개 명 마리 번 권")
)
DEGREES = {"c": "°C", "f": "°F", "celsius": "°C", "fahrenheit": "°F", "centigrade": "°C"}

# Words that only say "this is a unit" or "this is all of it".
FILLERS = frozenset(words("the of a an total altogether overall exactly each"))
FILLER_PHRASES = (("in", "total"), ("in", "all"), ("in", "length"), ("in", "area"), ("in", "volume"), ("on", "average"))
SQUARED = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
AFTER = {"squared": 2, "cubed": 3}

# Behind a number these turn it into a statement, a hedge, a condition or another number, never into a quantity.
NOT_UNITS = frozenset(
    words("""
    or and nor but not no never none nothing neither either both maybe perhaps possibly probably about around
    roughly more less fewer greater smaller larger bigger higher lower than at least most up to over under above
    below beyond between within before after until till since ago past from by out into onto through times plus
    minus add subtract divided multiplied multiply divide double twice triple half negative positive zero
    infinity infinite if when where whenever unless while because so then therefore hence thus given for with
    without except besides is are was were be been being has have had does do did can cannot could may might
    must shall should will would isn aren wasn doesn don wrong incorrect false invalid impossible undefined true
    correct right any some every all many only else other another same different mod modulo base choose
    factorial root roots sqrt squareroot power exponent log ln sin cos tan pi point decimal dot comma slash
    dozen dozens score gross hundred hundreds thousand thousands million millions billion billions trillion
    change ish remainder etc that this these those it its they their there here which who whose what how as like
    such on in against versus vs via oder und nicht kein mehr weniger mindestens höchstens als bis ou et pas non
    moins plus moins que sinon y más menos mas ni o ó sino mais meno più ma però của hoặc không hơn kém và
""")
)
