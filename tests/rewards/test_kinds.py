# ruff: noqa: E501  (tables of cases)
"""Whole kinds of answers, generated: many spellings of one value are right, near misses of every spelling are wrong."""

import random

import pytest

from negpo.errors import ConfigError
from negpo.rewards import GradeOptions, grade
from negpo.rewards.decide import grade_here


def status(answer: str, gold: str) -> str:
    return grade(rf"So it is $\boxed{{{answer}}}$.", gold).status


def bare(response: str, gold: str) -> str:
    verdict = grade_here(response, gold)
    assert verdict is not None, (response, gold)
    return verdict.status


# -- units -------------------------------------------------------------------------------------------------------------

UNITS = {
    "in": [r"\text{ in}", r"\text{ in.}", r"\text{ inches}", r"\mathrm{~in}", " inches", r"\,\text{inch}"],
    "in^2": [r"\text{ in}^2", r"\text{ sq. in.}", r"\text{ square inches}", r"\,\mathrm{in^2}", r"\text{ sq in}",
             r"\mathrm{~in}^{2}", r"\text{ in}^{2}"],
    "m/s": [r"\text{ m/s}", r"\,\mathrm{m/s}", r"\text{ meters per second}", r"\,\mathrm{m\,s^{-1}}",
            r"\mathrm{~m} / \mathrm{s}", r"\text{ m}/\text{s}", r"\frac{\text{m}}{\text{s}}", " meters/second"],
    "m/s^2": [r"\,\mathrm{m/s^2}", r"\text{ m/s}^2", r"\,\mathrm{m\,s^{-2}}", r"\text{ meters per second squared}"],
    "cm^3": [r"\text{ cm}^3", r"\text{ cubic centimeters}", r"\,\mathrm{cm^3}", r"\text{ cu cm}", " cm^3", " cm³"],
    "hours": [r"\text{ hours}", r"\text{ h}", r"\text{ hrs}", " hours", r"\text{ Stunden}", "小时", r"\text{ heures}"],
    "kg": [r"\text{ kg}", r"\mathrm{~kg}", " kg", r"\text{ kilograms}", "千克", r"\,\mathrm{kg}"],
    "cups": [r"\text{ cup}", r"\text{ cups}", " cups"],
    "deg": [r"^\circ", "°", r"\text{ degrees}", "^o", r"^{\text{o}}", r"\text{°}", r"\,^{\circ}"],
    "pct": [r"\%", "%", r"\text{ percent}", " pct", r"\text{ per cent}", r"\text{ percentage points}"],
    "usd": [r"\text{ dollars}", r"\text{ USD}", " dollars"],
}  # fmt: skip
FLAT = [(name, spelling) for name, spellings in UNITS.items() for spelling in spellings]


@pytest.mark.parametrize(("name", "spelling"), FLAT)
def test_a_unit_counts_in_every_spelling_and_with_every_other(name, spelling):
    for other in UNITS[name]:
        assert status(f"7{spelling}", f"7{other}") == "correct", (spelling, other)
        assert status(f"8{spelling}", f"7{other}") == "wrong", (spelling, other)
    assert status("7", f"7{spelling}") == "correct"
    if not spelling.endswith(("cm^3", "cm³")) or "text" in spelling:
        assert status(f"7{spelling}", "7") == "correct"


def test_a_wrong_unit_is_wrong_in_every_spelling():
    generator = random.Random(0)
    for _ in range(300):
        (first, one), (second, other) = generator.sample(FLAT, 2)
        if first != second:
            assert status(f"7{one}", f"7{other}") == "wrong", (one, other)


def test_letters_behind_a_blank_are_units_only_beside_a_unit():
    for letter, name in (("g", "grams"), ("s", "seconds"), ("L", "liters"), ("m", "meters"), ("h", "hours")):
        assert status(f"5 {letter}", rf"5\text{{ {name}}}") == "correct"
        assert status(f"5 {letter}", "5") == "wrong"
        assert status(f"5{letter}", "5") == "wrong"
    assert status("144 m^3", r"144 \mbox{ m}^3") == "correct"
    assert status("144 m^2", r"144 \mbox{ m}^3") == "wrong"


def test_quantities_in_two_units_are_one_quantity():
    for answer in (r"2\text{ hours and }42\text{ minutes}", "2 hours 42 minutes", r"2\text{ h }42\text{ min}"):
        assert status(answer, r"162\text{ minutes}") == "correct"
        assert status(answer, r"2.7\text{ hours}") == "correct"
        assert status(answer, "2") == "wrong"
        assert status(answer, "42") == "wrong"
    assert status(r"5\text{ ft }3\text{ in}", r"63\text{ inches}") == "correct"


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["in", "cup", "cap", "le", "ge", "ne", "pm", "mod", "row", "deg", "to", "frac", "or not"]
)
def test_words_of_text_mode_are_never_operators(word):
    for left, right in ((1, 5), (2, 5), (2, 7)):
        verdict = status(rf"\text{{{left} {word} {right}}}", rf"\text{{1 {word} 5}}")
        assert verdict == ("correct" if (left, right) == (1, 5) else "wrong")
    assert status("5", rf"1\text{{ {word} }}5") == "wrong"
    assert status("1", rf"1\text{{ {word} }}5") == "wrong"


MODIFIERS = ["tenths", "hundredths", "thirds", "halves", "sevenths", "squared", "cubed", "below zero", "or more", "or so",
             "and a half", "hundred", "thousand", "million", "dozen", "times 3", "plus 3", "less than 12", "over 7",
             "out of 7", "or 6", "factorial", "degrees below zero", "to 1", "and counting"]  # fmt: skip


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_number_that_words_change_is_not_the_number(modifier):
    assert status(rf"5\text{{ {modifier}}}", "5") == "wrong"
    for response in (f"The answer is 5 {modifier}.", f"The answer is $5$ {modifier}.", f"So it is 5 {modifier}."):
        assert bare(response, "5") == "wrong", response


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(r"5\text{ tenths}", "0.5"), (r"\text{five thirds}", r"\frac53"), (r"5\text{ and a half}", "5.5"),
     (r"\text{negative five}", "-5"), (r"5\text{ squared}", "25"), (r"\text{one and three quarters}", "1.75")],
)  # fmt: skip
def test_numbers_in_words_have_their_value(answer, gold):
    assert status(answer, gold) == "correct"


@pytest.mark.parametrize(
    "word",
    ["twenty-one", "einundzwanzig", "vingt et un", "veintiuno", "vinte e um", "ventuno", "двадцать один", "二十一",
     "이십일", "스물하나", "hai mươi mốt", "ยี่สิบเอ็ด", "واحد وعشرون"],
)  # fmt: skip
def test_number_words_of_many_languages(word):
    assert status(rf"\text{{{word}}}", "21") == "correct"
    for near in ("20", "1", "22", "12", "201"):
        assert status(rf"\text{{{word}}}", near) == "wrong"


# -- phrases -----------------------------------------------------------------------------------------------------------

CUES = ["Answer: {}", "Ans: {}", "ANSWER: {}", "**Answer:** {}", "### Answer\n{}", "The answer is {}.", "【Answer】{}",
        "答案是{}。", "答案：{}", "所以答案是：{}", "最终答案为 {}。", "答え：{}", "答えは{}です。", "정답은 {}입니다.", "답: {}",
        "La réponse est {}.", "Réponse : {}", "La respuesta es {}.", "Respuesta: {}", "A resposta é {}.",
        "La risposta è {}.", "Die Antwort ist {}.", "Antwort: {}", "Ответ: {}", "Ответ — {}", "Đáp án là {}.",
        "คำตอบคือ {}", "الجواب هو {}", "Jawaban: {}"]  # fmt: skip


@pytest.mark.parametrize("cue", CUES)
@pytest.mark.parametrize("value", ["17", "$17$", "-17", r"$\frac{3}{4}$"])
def test_a_phrase_announces_an_answer_in_many_languages(cue, value):
    gold = value.strip("$")
    assert bare(cue.format(value), gold) == "correct"
    assert bare("First we compute 99.\n\n" + cue.format(value), gold) == "correct"
    assert bare(cue.format(value), "16") == "wrong"
    if value == "-17":
        assert bare(cue.format(value), "17") == "wrong"


@pytest.mark.parametrize(
    "response",
    ["The answer cannot be $5$.", "The answer isn't 5", "I don't think the answer is 5.", "Suppose the answer is 5.",
     "It is not true that the answer is 5.", "The answer is 5. Wait, that is wrong.", "答案不是5。", "答えは5ではない。",
     "정답은 5가 아니다.", "La réponse n'est pas 5.", "Die Antwort ist nicht 5.", "Ответ не 5.", "It could be 4 or 5",
     "If x is 5, we fail.", "So we want m + n = 25 + 5 -", "Next, step 5", "We have $x \\ne 5$.", "The value is about 5."],
)  # fmt: skip
def test_what_is_denied_supposed_or_unfinished_is_no_answer(response):
    assert bare(response, "5") == "wrong"


PARTS = [("15 cm^2", "2"), ("(8, -2)", "-2"), ("6.72 x 10^-5", "-5"), ("3^4", "4"), ("[2, 7]", "7"), ("sqrt(17)", "17"),
         ("10:30", "30"), ("3x+7", "7"), ("204_5", "5"), (r"\frac{3}{4}", "4"), ("2/5", "5"), ("1,234", "234"),
         ("$7$ or $8$", "8"), ("x > 5", "5"), ("5!", "5"), ("-5", "5"), ("2 x 5", "5")]  # fmt: skip


@pytest.mark.parametrize(("whole", "part"), PARTS)
def test_the_last_number_of_an_expression_is_not_the_answer(whole, part):
    for sentence in ("The result equals {}.", "Therefore it is {}", "So the value that we need is {} by the above."):
        assert bare(sentence.format(whole), part) == "wrong", sentence


# -- structure ---------------------------------------------------------------------------------------------------------


def test_a_matrix_counts_in_every_bracket_and_only_with_its_entries():
    generator = random.Random(1)
    wraps = [r"\begin{{pmatrix}}{}\end{{pmatrix}}", r"\begin{{bmatrix}}{}\end{{bmatrix}}",
             r"\left[\begin{{array}}{{cc}}{}\end{{array}}\right]", r"\left(\begin{{matrix}}{}\end{{matrix}}\right)"]  # fmt: skip
    for _ in range(40):
        a, b, c, d = (generator.randint(-9, 9) for _ in range(4))
        one, other = generator.choice(wraps), generator.choice(wraps)
        entries = rf"{a}&{b}\\{c}&{d}"
        gold = one.format(entries)
        assert status(other.format(entries), gold) == "correct"
        assert status(other.format(rf"{a}&{b}\\{c}&{d + 1}"), gold) == "wrong"
        assert status(other.format(rf"{b}&{a}\\{c}&{d + 10}"), gold) == "wrong"
        doubled = rf"\begin{{pmatrix}}{2 * a}&{2 * b}\\{2 * c}&{2 * d}\end{{pmatrix}}"
        assert status(rf"\tfrac12{doubled}", gold) == "correct"
        assert status("-" + other.format(rf"{-a}&{-b}\\{-c}&{-d}"), gold) == "correct"
        assert status(other.format(rf"{a}&{c}\\{b}&{d}") + "^T", gold) == "correct"
        assert status(rf"3{doubled}", gold) == ("correct" if not any((a, b, c, d)) else "wrong")


@pytest.mark.parametrize(
    ("answer", "gold", "wanted"),
    [
        (r"x=\frac{10}{2}=5", "x=5", "correct"), (r"x=\frac{10}{2}=6", "x=5", "wrong"), ("y=10/2=5", "x=5", "wrong"),
        (r"A=\pi r^2=9\pi", r"A=9\pi", "correct"), ("]3,4]", "(3,4]", "correct"), ("]3,4[", "[3,4]", "wrong"),
        ("]3,4[", "(3,4)", "correct"), (r"\nicefrac{2}{3}", r"\frac23", "correct"), (r"\sfrac23", r"\frac23", "correct"),
        (r"\color{red}{5}", "5", "correct"), (r"{\color{blue}5}", "5", "correct"), (r"\textcolor{red}{5}", "6", "wrong"),
        ("2516 (base 8)", "2516_8", "correct"), (r"2516_{\text{eight}}", "2516_8", "correct"),
        (r"\text{2516 base eight}", "2516_8", "correct"), (r"\text{2516 base seven}", "2516_8", "wrong"),
        (r"\text{Option C}", r"\text{(C)}", "correct"), (r"\text{Choice (C)}", "C", "correct"),
        (r"\text{Option B}", "C", "wrong"), (r"\mathbf{i}+2\mathbf{j}", r"\langle 1,2\rangle", "correct"),
        (r"\hat{i}-2\hat{j}", r"\langle 1,2\rangle", "wrong"), ("P(8,-2)", "(8,-2)", "correct"),
        (r"|x|<\sqrt3", r"(-\sqrt3,\sqrt3)", "correct"), (r"|x|\le\sqrt3", r"(-\sqrt3,\sqrt3)", "wrong"),
        (r"0<x<36, x\neq 9", r"(0,9)\cup(9,36)", "correct"), ("(0,9) U (9,36)", r"(0,9)\cup(9,36)", "correct"),
        (r"x \text{ in } [0,1]", "[0,1]", "correct"), (r"-x \in [-2,7]", r"x\in[-2,7]", "wrong"),
        (r"[-\infty,3)", r"(-\infty,3)", "wrong"), (r"2\operatorname{cis}60^\circ", r"1+\sqrt3 i", "correct"),
        (r"\operatorname{foo}(3)", r"\operatorname{bar}(3)", "wrong"), (r"45\text{ units}^9", r"45\text{ units}^2", "wrong"),
        (r"\text{June 20th}", r"\text{June 20}", "correct"), ("5!=120", "120", "correct"),
        (r"\begin{aligned}x&=1\\y&=2\end{aligned}", "(1,2)", "correct"), ("⅝", r"\frac58", "correct"),
        ("5\\%", r"5\text{ cm}", "wrong"), (r"\text{\$}32,348", "32348", "correct"), ('"5"', "5", "correct"),
    ],
)  # fmt: skip
def test_structures_are_read_as_they_are_meant(answer, gold, wanted):
    assert status(answer, gold) == wanted


def test_option_c_in_words():
    for response in (
        "Option C is correct.",
        "Hence, the correct option is (C).",
        "故选 C。",
        "So (C) is the right answer.",
    ):
        assert bare(response, r"\text{(C)}") == "correct"
        assert bare(response, "B") == "wrong"


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "answer", "gold", "wanted"),
    [
        ({"relative": 1e-4}, "1.00005", "1", True), ({"relative": 1e-4}, "1.001", "1", False),
        ({"relative": 1e-4}, "-1", "1", False), ({"relative": 1e-4}, "(1.00001,2)", "(1,2)", True),
        ({"absolute": 0.1}, "4.2", "4.25", True), ({"absolute": 0.1}, "4.0", "4.25", False),
        ({"significant_digits": True}, "0.0321", "0.032", True), ({"significant_digits": True}, "0.0326", "0.032", False),
        ({"significant_digits": True}, "4.54e33", "4.5e33", True), ({"significant_digits": True}, "3.4", "3", False),
        ({"relative": 1e-4}, "x+1.0000001", "x+1", False),
    ],
)  # fmt: skip
def test_tolerances_are_options_and_off_by_default(options, answer, gold, wanted):
    assert grade(rf"\boxed{{{answer}}}", gold, options=GradeOptions(**options)).correct is wanted
    assert status(answer, gold) == "wrong"


def test_a_value_stands_for_the_only_option_that_it_equals():
    options = GradeOptions(choices=("A)4", "B)6", "C)5", "D) 5.5", "E)None of these"))
    for answer, gold, wanted in (
        ("5", "C", True),
        ("6", "C", False),
        ("C", "C", True),
        ("B", "C", False),
        ("7", "C", False),
    ):
        assert grade(rf"\boxed{{{answer}}}", gold, options=options).correct is wanted
        assert status(answer, gold) == ("correct" if answer == gold else "wrong")
    twice = GradeOptions(choices=("A)5", "B)6", "C)5"))
    assert grade(r"\boxed{5}", "C", options=twice).status == "wrong"


@pytest.mark.parametrize("bad", [{"relative": -1}, {"relative": 1}, {"absolute": float("nan")}, {"choices": ["A)5"]}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(ConfigError):
        GradeOptions(**bad)


def test_a_reference_mode_has_no_options():
    with pytest.raises(ConfigError, match="repeats another grader"):
        grade("5", "5", mode="hendrycks", options=GradeOptions(relative=0.1))
