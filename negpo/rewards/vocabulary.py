"""Names of LaTeX commands and words that the tokenizer treats in a way of their own."""

from __future__ import annotations

from negpo.rewards.wordlist import words

# Commands that are other spellings of a command, a sign or a word.
RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac", "xfrac": "frac",
    "flatfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le", "lt": "<", "geq": "ge",
    "geqslant": "ge", "gt": ">", "neq": "ne", "cdot": "*", "times": "*", "ast": "*", "div": "/", "lbrace": r"\{",
    "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "lvert": "|", "rvert": "|",
    "vert": "|", "mid": "|", "ldots": "dots", "cdots": "dots", "dotsc": "dots", "dotsb": "dots",
    "varnothing": "emptyset", "degree": "deg", "colon": ":", "backslash": "setminus", "smallsetminus": "setminus",
    "lor": "or", "vee": "or", "land": "and", "wedge": "and", "infin": "infty", "textdollar": "dollar",
    "simeq": "approx", "sim": "approx", "cong": "approx", "varphi": "phi", "varepsilon": "epsilon",
    "vartheta": "theta", "varrho": "rho", "varsigma": "sigma", "arcctg": "arccot", "arctg": "arctan", "tg": "tan",
    "ctg": "cot", "mod": "bmod", "intercal": "top", "uplus": "cup", "texteuro": "euro", "textsterling": "pounds",
    "textyen": "yen", "cents": "cent", "textcent": "cent",
}  # fmt: skip
INVISIBLE = frozenset(
    words("""
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle
    scriptstyle scriptscriptstyle limits nolimits quad qquad enspace thinspace medspace thickspace hfill
    noindent bf rm it sf tt mathstrut strut nonumber notag hline centering large Large LARGE huge Huge small
    normalsize boldmath bfseries itshape newline protect relax
""")
)
TEXT_MODE = frozenset(
    words("""
    text textbf textit textrm textnormal textsf texttt textmd textup mbox hbox emph underline uline
""")
)
TRANSPARENT = frozenset(
    words("""
    mathrm mathbf mathit mathsf mathtt mathcal mathnormal boldsymbol bm pmb operatorname boxed fbox framebox
    bold mathop mathord mathbin ensuremath smash cancel
""")
)
# Around i, j or k these make a unit vector.
VECTOR_STYLES = frozenset(words("mathbf boldsymbol bm pmb bold textbf hat vec widehat overrightarrow"))

FUNCTIONS = frozenset(
    words("""
    sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth ln log lg exp gcd lcm
    max min cis
""")
)
FUNCTION_WORDS = frozenset(
    words("""
    sin cos tan cot csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt gcd lcm pi or and infty theta cis
""")
)
# Runs of two or three letters that are words even outside of text mode; longer runs always are.
SHORT_WORDS = frozenset(
    words("""
    yes no odd all one two six ten the not cm mm km kg mg ml ft lb lbs oz mph mi yd hr hrs min sec sq in am pm
    is to of if nan but for are an deg day men cup red map via per dne pct usd eur gbp ans
""")
)
# Words for "and" and "or" between two answers.
CONNECTIVES = {
    "和": "and", "与": "and", "與": "and", "及": "and", "以及": "and", "と": "and", "および": "and", "와": "and",
    "과": "and", "그리고": "and", "et": "and", "und": "and", "и": "and", "và": "and", "และ": "and",
    "或": "or", "或者": "or", "または": "or", "或いは": "or", "또는": "or", "혹은": "or", "ou": "or", "oder": "or",
    "или": "or", "hoặc": "or", "หรือ": "or", "أو": "or",
}  # fmt: skip
