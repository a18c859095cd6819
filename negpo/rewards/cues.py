"""Phrases that announce an answer, and words that take it back, in the languages models answer in."""

from __future__ import annotations

import re

from negpo.rewards.wordlist import words

# What may stand between a cue and its colon or verb: markdown and the brackets of headings.
_WRAP = r"[*_`#】\])）\s]{0,6}"
_ENGLISH = (
    r"\b(?:final|correct|right)\s+(?:answer|result|option|choice|solution)\b[^\n.:=]{0,40}?(?:\bis\b|\bare\b|[:=：])\s*:?"
    rf"|\b(?:answers?|ans)\b\.?(?:\s+(?:to|of|for|in)\b[^\n.:=]{{0,60}}?)?{_WRAP}(?:\bis\b|\bare\b|[:=：])\s*:?"
    r"|\bfinal\s+answer\**\s*\n"
    r"|(?:^|\n)[#*\s]*(?:the\s+)?(?:final\s+)?answer[*:\s]*\n"
    r"|【\s*(?:final\s+)?answer\s*】"
)
# Per language: what may stand before the noun, the nouns, what may stand behind, what links them to the answer.
_LANGUAGES: list[tuple[str, str, str, str]] = [
    ("最终 最后 正确 标准 所求 本题 因此 所以 故 的", "答案 结果 正确选项 答", "", "应该是 应是 就是 应为 是 为 等于"),
    ("最終的な 最終 正しい 正", "答え 解答 回答 正解 解 答", "", "は"),
    ("최종 정확한", "정답 답 해답", "", "은 는"),
    (r"la\s+ bonne\s+", "réponse solution résultat", r"\s+finale? \s+correcte?", "est"),
    (r"la\s+ el\s+", "respuesta solución resultado", r"\s+final \s+correct[oa]", "es"),
    (r"a\s+ o\s+", "resposta solução resultado", r"\s+final \s+corret[oa]", "é"),
    (r"la\s+ il\s+", "risposta soluzione risultato", r"\s+finale \s+corrett[oa]", "è"),
    (r"die\s+ das\s+ endgültige\s+ richtige\s+", "antwort lösung ergebnis endergebnis", "", "lautet ist"),
    (r"окончательный\s+ правильный\s+", "ответ результат", "", "— – - равен это"),
    ("", r"đáp\s+án đáp\s+số câu\s+trả\s+lời kết\s+quả", r"\s+cuối\s+cùng \s+đúng", "là"),
    ("", "คำตอบ", "สุดท้าย ที่ถูกต้อง", "คือ"),
    ("", "الإجابة الاجابة الجواب الناتج", r"\s+النهائية \s+النهائي \s+الصحيحة \s+الصحيح", "هي هو"),
    ("", "jawaban jawabannya", r"\s+akhir \s+yang\s+benar", "adalah ialah"),
    ("", "antwoord", "", "is"),
    ("", "odpowiedź wynik", "", "to"),
    ("", "cevap yanıt sonuç", "", ""),
    (r"अंतिम\s+", "उत्तर", "", "है"),
]
_SPACED = re.compile(r"[A-Za-zÀ-ɏЀ-ӿ]")  # scripts that put blanks between words


def _cue(before: str, nouns: str, behind: str, links: str) -> str:
    """One language's cue as a pattern."""
    edge = r"\b" if _SPACED.match(nouns.removeprefix("\\")) else ""
    link = "|".join([*map(re.escape, links.split()), "[:=：＝]"])
    return (
        rf"{edge}(?:{'|'.join(before.split())})*(?:{'|'.join(nouns.split())}){edge}"
        rf"(?:{'|'.join(behind.split())})?{_WRAP}\s*(?:{link}){edge if links.isalpha() else ''}\s*:?{_WRAP}"
    )


# "故选 B": chooses an option.
_CHOOSE = r"(?:故选|应选|因此选|所以选|答案选|选择?)(?:\s*[:：])?(?=\s*[(（]?\s*[A-J](?![A-Za-z]))"
CUE = re.compile("|".join([r"####[ \t]*", _ENGLISH, _CHOOSE, *(_cue(*row) for row in _LANGUAGES)]), re.IGNORECASE)

# "Option C is correct.", "(B) is the right answer"
CHOSEN = re.compile(
    r"(?:\b(?:option|choice|answer)\s+\(?|\()(?P<letter>[A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b",
    re.IGNORECASE,
)

# Copulas behind the answer in languages whose verb stands at the end.
TRAILING_COPULA = re.compile(
    r"\s*(?:です|となります|になります|である|でした|だ|입니다|이다|이에요|예요|है|’?d[ıiuü]r)\s*[。.!！]?\s*$"
)

# A sentence with one of these does not state its last value as the answer.
_ENGLISH_DOUBTS = words("""
    not no none never neither nor cannot could might may maybe perhaps possibly probably either or unless if suppose
    assume assuming let try trying guess approximately about almost nearly roughly around least most more less fewer
    greater larger smaller between except excluding other instead rather wrong incorrect false impossible contradiction
    unlikely unsure wait hmm but however although though ≠ when whenever such divides
""")
_LATIN_DOUBTS = words("""
    nicht kein keine oder wenn vielleicht mindestens höchstens etwa ungefähr aber pas non ou si peut-être environ mais
    moins plus sinon quizás quizá tal vez acaso pero não se talvez cerca mas forse ma però circa nie lub
""")
_OTHER_DOUBTS = words("""
    不 没 非 可能 或 也许 至少 至多 最多 大于 小于 超过 如果 假设 设 约 但 若 ない ません かも または 以上 以下 もし 約
    けど 아니 않 또는 이상 이하 만약 하지만 не нет или если может примерно около но không hoặc nếu khoảng
    ไม่ หรือ ถ้า ليس لا أو إذا ربما
""")
_WHOLE_WORDS = "|".join(re.escape(word) for word in sorted(_ENGLISH_DOUBTS + _LATIN_DOUBTS, key=len, reverse=True))
_DOUBT = re.compile(
    rf"(?<![^\W\d_])(?:{_WHOLE_WORDS})(?![^\W\d_])|{'|'.join(map(re.escape, _OTHER_DOUBTS))}|n't\b", re.IGNORECASE
)


def doubts(sentence: str) -> bool:
    """Whether a sentence denies, hedges, supposes or compares."""
    return bool(_DOUBT.search(re.sub(r"[’‘]", "'", sentence)))
