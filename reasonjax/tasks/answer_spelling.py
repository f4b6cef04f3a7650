r"""One spelling for what is written in several: Unicode and LaTeX ways to write the same number,
set or expression.

`simplify_characters` takes time in proportion to the text; the others are for answers, whose length
`answer_values.LONGEST` limits.
"""

import re
import unicodedata

_CHARACTERS = str.maketrans(
    dict.fromkeys('\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d', '-')
    | dict.fromkeys('\u00a0\u2007\u2008\u2009\u200a\u202f\u3000', ' ')
    | dict.fromkeys('\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u2061\ufe0f\u20e3', '')
    | dict.fromkeys('\u2018\u2019\u02bc\u2032', "'")
    | dict.fromkeys('\u201c\u201d\u201e', '"')
    | {
        '\u00d7': r' \times ',
        '\u00b7': r'\cdot ',
        '\u22c5': r'\cdot ',
        '\u2219': r'\cdot ',
        '\u00f7': '/',
        '\u2044': '/',
        '\u2215': '/',
        '\u221e': r'\infty ',
        '\u03c0': r'\pi ',
        '\u221a': r'\sqrt ',
        '\u00b0': r'^\circ ',
        '\u00ba': r'^\circ ',
        '\u222a': r' \cup ',
        '\u2208': r' \in ',
        '\u2264': r' \le ',
        '\u2265': r' \ge ',
        '\u2260': r' \ne ',
        '\u00b1': r' \pm ',
        '\u2248': r' \approx ',
        '\u2205': r'\emptyset ',
        '\uff05': '%',
        '\uff0c': ',',
        '\uff0e': '.',
        '\uff08': '(',
        '\uff09': ')',
        '\uff04': '$',
        '\uff1d': '=',
        '\u066b': '.',
        '\u066c': ',',
        '\u00a2': ' cents ',
        '\u3002': '.',
        '\uff1a': ':',
        '\uff1b': ';',
        '\uff01': '!',
        '\uff1f': '?',
        '\u3001': ',',
        '\u2103': r'^\circ C',
        '\u2109': r'^\circ F',
        '\u2234': r' \therefore ',
    }
    | dict.fromkeys('\u00ab\u00bb\u2039\u203a\u300c\u300d\u3010\u3011', '"')
    | dict.fromkeys('\u2192\u21d2\u27f9\u2794\u279c\u27a1', r' \Rightarrow ')
)
_SUPERSCRIPTS = '\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b'
_RAISED = re.compile(f'[{_SUPERSCRIPTS}]+')
_LOWERED = str.maketrans(_SUPERSCRIPTS, '0123456789+-')
_VULGAR = re.compile('[\u00bc-\u00be\u2150-\u215e]')

_COMMA = re.compile(r'\d+(?:\{,\}\d+)+')
_STYLED = re.compile(
    r'\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|emph|underline|bm|bold(?:symbol)?)\s*\{([^{}]*)\}'
)
_LATEX = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r'\\\\(?=[A-Za-z]{2})', r'\\'),  # escaped once too often
        (r'\\\\', ' \x03 '),  # the next row of a matrix
        (r'\\!\s*', ''),
        (
            r'\\(?:[,;:> ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|thinspace(?![A-Za-z])|hfill(?![A-Za-z]))',
            ' ',
        ),
        (r'\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*(?=[()\[\]{}|\\.])', ''),
        (r'\\(?:display|text|script)style(?![A-Za-z])', ''),
        (r'\\(?:text)?color\s*\{[^{}]*\}', ''),
        (r'\\(?:bf|it|rm|sf|tt|[lL]arge|LARGE|[hH]uge|boldmath)(?![A-Za-z])', ' '),
        (r'\\[dtc]frac(?![A-Za-z])', r'\\frac'),
        (r'\\(?:cdot|times|ast)(?![A-Za-z])', '*'),
        (r'\\div(?![A-Za-z])', '/'),
        (
            r'\^\s*(?:\\(?:circ|degree)(?![A-Za-z])|\{\s*\\(?:circ|degree)\s*\})|\\(?:degree|textdegree)(?![A-Za-z])',
            ' degrees ',
        ),
        (r'\\leq?(?:slant)?(?![A-Za-z])', '<='),
        (r'\\geq?(?:slant)?(?![A-Za-z])', '>='),
        (r'\\neq?(?![A-Za-z])', '!='),
        (r'\\lt(?![A-Za-z])', '<'),
        (r'\\gt(?![A-Za-z])', '>'),
        (r'\\(?:text)?dollar(?![A-Za-z])', '$'),
        (r'\\(?:pounds|textsterling)(?![A-Za-z])', '\u00a3'),
        (r'\\(?:euro|texteuro)(?![A-Za-z])\s*(?:\{\})?', '\u20ac'),
        # braces that are meant, as against those that group
        (r'\\(?:\{|lbrace(?![A-Za-z]))', '\u2983'),
        (r'\\(?:\}|rbrace(?![A-Za-z]))', '\u2984'),
        (r'\\%', '%'),
        (r'(?<!\\)\\[()\[\]]', ' '),
        (r'\{\s*(-?\s*\d+)\s*\\over(?![A-Za-z])\s*(-?\s*\d+)\s*\}', r'\\frac{\1}{\2}'),
        (r'^\s*(-?\s*\d+)\s*\\over(?![A-Za-z])\s*(\d+)\s*$', r'\\frac{\1}{\2}'),
    )
]
_PLAIN = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r'\+/-', r'\\pm '),
        (r'(?<=\d) ?[xX] ?(?=\d)', ' * '),
        (r'(?<=\w)\*\*(?=\w)', '^'),
        (r'\*\*|`|(?<!\\)~', ' '),
        (r'(?i:^\W*(?:minus|negative)\s+)(?=\$?\.?\d|\\frac)', '-'),
    )
]
_PLACEHOLDER = '\x02'  # for a dollar sign that was escaped, and so is one


def simplify_characters(text: str) -> str:
    """Returns the text with one character for each meaning: ASCII digits, signs and operators,
    LaTeX for other symbols."""
    if text.isascii():
        return text
    text = unicodedata.normalize('NFC', text)
    text = _RAISED.sub(lambda raised: f'^{{{raised[0].translate(_LOWERED)}}}', text)
    text = _VULGAR.sub(
        lambda vulgar: ' ' + unicodedata.normalize('NFKC', vulgar[0]).replace('\u2044', '/'), text
    )
    text = text.translate(_CHARACTERS)
    return (
        text
        if text.isascii()
        else ''.join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in text)
    )


def simplify_answer(text: str) -> str:
    r"""Returns an answer without what only decorates it: math mode, text mode, spacing, emphasis,
    stops at its end.

    Braces that are meant (`\{`) become U+2983 and U+2984.
    """
    text = _COMMA.sub(_joined, simplify_characters(text))
    text = text.replace(r'\$', _PLACEHOLDER)
    if text.count('$') != 1:  # several are math mode, a single one is money
        text = text.replace('$', ' ')
    text = text.replace(_PLACEHOLDER, '$')
    if '\\' in text:
        for _ in range(3):  # as deep as text within text is followed
            text = _STYLED.sub(r' \1 ', text)
        for pattern, by in _LATEX:
            text = pattern.sub(by, text)
    for pattern, by in _PLAIN:
        text = pattern.sub(by, text)
    text = _without_pictures(' '.join(text.split()))
    return text.lstrip(' "\'*_:#').rstrip(' .,;:?"\'*_\\\x03')


def _without_pictures(text: str) -> str:
    """Drops check marks, emoji and the like around an answer; an answer that is nothing else
    stays."""
    start, end = 0, len(text)
    while start < end and _is_picture(text[start]):
        start += 1
    while start < end and _is_picture(text[end - 1]):
        end -= 1
    return text[start:end] if start < end else text


def _is_picture(character: str) -> bool:
    return character.isspace() or (
        not character.isascii() and unicodedata.category(character) in ('So', 'Sk')
    )


def _joined(match: re.Match) -> str:
    """Replaces LaTeX's `{,}` in a number: by a comma before three digits, else by a point."""
    first, *others = match[0].split('{,}')
    if all(len(other) == 3 for other in others) and len(first) <= 3 and first[0] != '0':
        return ','.join((first, *others))
    return '.'.join((first, *others)) if len(others) == 1 else match[0]


_SHAPED = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r'([\^_])\s*(-?\d+|[A-Za-z])', r'\1{\2}'),  # while spaces still say where they end
        (r'\s+', ''),
        (r'\\frac(\w)(\w)', r'\\frac{\1}{\2}'),
        (r'\\frac(\w)\{', r'\\frac{\1}{'),
        (r'(\\frac\{[^{}]*\})(\w)', r'\1{\2}'),
        (r'\\sqrt(\w)', r'\\sqrt{\1}'),
        (r'(?<![A-Za-z\\])pi(?![A-Za-z])', r'\\pi'),
        (r'(?<=[\w)}])\*(?=[A-Za-z\\(])', ''),
        (r'\\sqrt\{([^{}]*)\}', r'sqrt(\1)'),
    )
]
_FRACTION = re.compile(r'\\frac\{([^{}]*)\}\{([^{}]*)\}')
_ATOM = re.compile(r'[A-Za-z]|\d+|\\[a-z]+|sqrt\([^()]*\)')
_PRODUCT = re.compile(rf'(?:{_ATOM.pattern})+')
_WORD = re.compile(r'(?<![^\W\d_])(?<!\\)[^\W\d_]{3,}|^no$', re.I)


def simplify_expression(text: str) -> str:
    """Returns an expression, or words, in the one spelling that is compared.

    Args:
      text: as `simplify_answer` returns it.
    """
    if not re.search(r'[\\^=+*/]', text) and _WORD.search(text):
        text = text.casefold()
        return text[1:-1].strip() if text[:1] + text[-1:] == '()' and '(' not in text[1:] else text
    for pattern, by in _SHAPED:
        text = pattern.sub(by, text)
    for _ in range(4):  # as deep as fractions within fractions are followed
        text = _FRACTION.sub(_divided, text)
    return text


def _divided(match: re.Match) -> str:
    above = match[1] if _PRODUCT.fullmatch(match[1]) else f'({match[1]})'
    return f'{above}/{match[2] if _ATOM.fullmatch(match[2]) else f"({match[2]})"}'
