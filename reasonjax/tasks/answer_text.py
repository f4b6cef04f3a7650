r"""Where the answer of a completion stands, for models that were not told how to write it.

In this order: the last `\boxed{...}`; else what follows the last 'the answer is', 'Answer:' or
`####`; else the last value in bold, where no number stands on a later line; else the last line,
where it is nothing but an answer; else the last number in the text, with the formula or the unit
that it belongs to. What a model thinks before `</think>` is passed over, and so is all that stands
outside of `<answer>`, where there is one. A remark in parentheses at the end ("120 minutes (2
hours)") is no part of an answer.
"""

import collections
import itertools
import re
from collections.abc import Iterator

from reasonjax.tasks.answer_spelling import simplify_answer, simplify_characters
from reasonjax.tasks.answer_values import LONGEST, Group, Named, Value, Words, read_value

_BOXES = r'\\(?:boxed|fbox|framebox|bbox)\s*'
_BOX_OR_BRACE = re.compile(
    _BOXES + r'(?:\[[^\]\n]{0,80}\]\s*){0,2}\{|(?<![A-Za-z])boxed\{|\\.|[{}]', re.DOTALL
)
_BARE_BOX = re.compile(_BOXES + r'(?![\s\[{])([^\s$]{1,200})')
_SPECIAL = re.compile(r'</s>|<\|(?:im_end|endoftext|eot_id|end|eom_id)\|>|<eos>|<end_of_turn>')
_TAG = re.compile(r'<(/?)(?:final[_ ]?)?answer>', re.I)
_QUOTED = re.compile(
    r'answer["\']\s*:\s*(?:"((?:[^"\\\n]|\\.){1,200})"|\'([^\'\n]{1,200})\')', re.I
)
_IS = re.compile(r'answers?\b([^.\n:=]{0,60}?)(?:\b(?:is|are|was|be|equals)\b|:|=)', re.I)
_HASHES = re.compile(r'(?<!#)####(?!#)[^\S\n]*([^\n]*)')
_BOLD = re.compile(r'\*\*([^*\n]{1,200})\*\*|__([^_\n]{1,200})__')
_SENTENCE_END = re.compile(r'(?<!\\)[.!?](?=["\')*_\]]*(?:\s|$))')
_BECAUSE = re.compile(
    r'\s*(?:[,;(]|(?:because|since|as|which|when|if|so|for|where|that|given|after)\b)', re.I
)
_LEADING = re.compile(
    r'[-+]?\s*(?:\$\s*)?(?:\\frac\{[^{}]{0,40}\}\{[^{}]{0,40}\}|\.?\d[\d.,/]*)\s?%?'
)
_MATHS = re.compile(
    r'\$\$([^$]{1,500})\$\$|\$(?=\S)((?:[^$\n\\]|\\.){1,500}?)(?<=\S)\$(?!\d)|\$([^$\n]{0,200}[\\^_()\[{=][^$\n]{0,200})\$(?!\d)'
    r'|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]',
    re.DOTALL,
)
_GROUP = re.compile(r'\\?[(\[{][^()\[\]{}\n]{1,100}\\?[)\]}]')
# scripts that write numbers and words without spaces
_UNSPACED = '\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af'
_SPACES = re.compile(f'[ \\t\\n\\r\\f\\v{_UNSPACED}]+')
_EQUALS = re.compile(r'(?<![<>!:=])=(?!=)|\\equiv\b')
_ENVIRONMENT = re.compile(
    r'\\(?:begin|end)\{(?:align|aligned|alignat|equation|gather|gathered|split|multline)\*?\}|(?<!\\)&(?=\s*=)'
)
_TEXT_MODE = re.compile(r'\\(?:text|mbox|mathrm)\s*\{[^{}]*\}')
_DISPLAY = re.compile(r'\\[()\[\]]|\\begin\{[a-z]+\*?\}')
_STATES = re.compile(r'\W*(?:(?:the|my|final|correct)\s+)*answers?\W*(?:is\b|:|=)', re.I)
_NEGATIVE = re.compile(r'.*negative|(?:|=|is|be|was|are|equals|to|about)minus', re.I)
_REMARK = re.compile(r'\s\(([^()]{1,200})\)[.!]?\s*$')
_REMARKED = re.compile(r'\d[^\s()]*(?:\s+[A-Za-z]+){0,2}\W*$')
_CALCULATION = re.compile(r'\d\s*[-+*/x=\u00d7]\s*\$?\d')
_FUNCTIONS = frozenset('mod sin cos tan cot sec csc log exp max min sqrt gcd lcm'.split())
_CHOICE = re.compile(
    r'[(*_\s]*(?:(?i:option|choice|letter)\s+\(?([A-J])\b\)?|([A-J])(?:[).:]+(?=[\s*]|$)|\s+(?=(?:because|since|given|so)\b)))'
)
_CHOSEN = re.compile(
    r'\b(?i:option|choice) (?:(?:is|would be)(?: option)? )?\W{0,3}([A-J])\W{0,4}$'
)
_LABEL = re.compile(r'[A-Za-z][A-Za-z ]{0,60}:\s*')
_NUMBERED = re.compile(r'\d+[.)]:?')
_LABELS = frozenset(
    'step case part question problem example section method exercise figure table note'.split()
)
_SHORT_WORDS = frozenset('an as at be by he if in is it me my no of on so to up us we'.split())
_WINDOW = 1500  # characters before the last digit that are looked at
_MOST_WORDS = 12  # with a digit, looked at from the end on
_TRIES = 20  # occurrences of a marker, from the last on


def find_answer(text: str) -> str | None:
    """Returns the answer of a completion as it is written there, or None where there is none."""
    text = _SPECIAL.split(text, maxsplit=1)[0]
    thought, closed, spoken = text.rpartition('</think>')
    text = _tagged(spoken if closed and spoken.strip() else thought + spoken)
    boxed = find_last_boxed(text)
    if boxed is not None:
        return _without_sentence(boxed)
    text = _without_remark(_ENVIRONMENT.sub(' ', text) if '\\end{' in text else text)
    for way in (_stated, _bold, _last_line, _last_number):
        answer = way(text)
        if answer is not None:
            return answer
    return None


def find_answer_of_solution(text: str) -> str:
    """Returns the answer of a reference solution, or all of one that is an answer itself."""
    text = _tagged(text).strip()
    boxed = find_last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    hashes = [match[1].strip() for match in _HASHES.finditer(text) if match[1].strip()]
    if hashes:
        return hashes[-1]
    if '\n' in text or not _is_short(text):
        return _stated(text) or _bold(text) or _last_number(text) or text
    if _STATES.match(text) and (stated := _stated(text)):
        return stated
    unlabelled = _LABEL.sub('', text, count=1)
    return unlabelled if _is_value(read_value(unlabelled)) else _without_sentence(text)


def _tagged(text: str) -> str:
    """Returns the content of the last non-empty `<answer>`, closed or not, or else all text."""
    start, last = None, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            last, start = (start, tag.start()) if text[start : tag.start()].strip() else last, None
    if start is not None and text[start:].strip():
        last = (start, len(text))
    return text[slice(*last)] if last else text


def _without_remark(text: str) -> str:
    """Drops parentheses at the end that explain the number before them; those of a formula stay."""
    tail = text[-400:]
    remark = _REMARK.search(tail)
    if remark is None:
        return text
    line = tail[: remark.start()].rpartition('\n')[2]
    words = {word.lower() for word in _words(remark[1])}
    calculates = _words(line) and ',' not in remark[1] and _CALCULATION.search(remark[1])
    explains = words - _FUNCTIONS or calculates or re.fullmatch('[A-J]', remark[1])
    return (
        text[: len(text) - len(tail) + remark.start()]
        if explains and _REMARKED.search(line)
        else text
    )


def find_last_boxed(text: str) -> str | None:
    """Returns the content of the last closed box, in any spelling; None where there is none."""
    # One pass with a stack of open braces: a model that repeats an unclosed box must not make this
    # quadratic.
    opened, last = [], None
    for token in _BOX_OR_BRACE.finditer(text):
        written = token.group()
        if written[-1] == '{' and written != r'\{':
            opened.append((token.end(), len(written) > 1))
        elif written == '}' and opened:
            start, boxed = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, token.start())
    bare = _last(_BARE_BOX.finditer(text))
    if bare is not None and (last is None or bare.start() > last[0]):
        return bare[1].rstrip('.,;:')
    return last and text[slice(*last)]


def _last(matches: Iterator[re.Match]) -> re.Match | None:
    return next(iter(collections.deque(matches, maxlen=1)), None)


def _is_value(value: Value) -> bool:
    """Returns whether a value is more than words."""
    if isinstance(value, Named):
        return _is_value(value.value)
    if isinstance(value, Group):
        return all(map(_is_value, value.items))
    return not isinstance(value, Words)


def _is_short(text: str) -> bool:
    return len(text) <= 200


def _stated(text: str) -> str | None:
    """Returns what a completion says the answer is; None where it does not say."""
    hashes = next(filter(_is_answer, reversed(list(_HASHES.finditer(text))[-_TRIES:])), None)
    lowered, at = text.lower(), len(text)
    if len(lowered) != len(text):  # some letters have no lower case of one character
        lowered = text
    for _ in range(_TRIES):
        at = lowered.rfind('answer', 0, at)
        if at < 0 or (hashes and at < hashes.start()):
            break
        if quoted := _QUOTED.match(text, at):
            return _without_sentence(quoted[1] or quoted[2])
        statement = _IS.match(text, at)
        phrase = statement and _phrase(text, statement.end())
        if phrase and not re.match(r'not\b', phrase):
            return _without_sentence(_conclusion(phrase))
    return hashes and hashes[1].strip()


def _is_answer(hashes: re.Match) -> bool:
    """Returns whether an answer follows the hashes, and not the title of a section."""
    is_last = not hashes.string[hashes.end() :].strip()
    return (
        bool(hashes[1].strip())
        and _is_short(hashes[1])
        and (is_last or _is_value(read_value(hashes[1])))
    )


def _phrase(text: str, start: int) -> str:
    """Returns the first sentence from `start` on, skipping lines that are empty or end in ':'."""
    for line in text[start : start + LONGEST].split('\n')[:6]:
        line = line.strip().lstrip(':*_ ').strip()
        ends = (end.start() for end in _SENTENCE_END.finditer(line))
        sentence = line[: next((end for end in ends if _is_outside(line, end)), len(line))]
        if '\\' not in sentence and sentence.count('}') > sentence.count('{'):
            sentence = sentence.rstrip('} ')  # of JSON
        if _DISPLAY.sub('', sentence).strip('*_`$ ') and not sentence.rstrip('*_ ').endswith(':'):
            return sentence.strip()
    return ''


def _is_outside(line: str, at: int) -> bool:
    """Returns whether a position in a line is in no formula and no braces."""
    before = line[:at]
    return before.count('{') <= before.count('}') and (
        before.count('$') % 2 == 0 or line.count('$') % 2 == 1
    )


def _without_sentence(phrase: str) -> str:
    """Returns the answer in a phrase: all of the phrase where it is a value or has no number, else
    the number that the sentence is about."""
    phrase = _without_remark(phrase.strip())
    value = read_value(phrase)
    if (choice := _CHOICE.match(phrase)) and not any(map(str.isdigit, phrase)):
        return choice[1] or choice[2]
    if _is_value(value) or not _is_sentence(phrase):
        return phrase
    phrase = simplify_answer(phrase[:LONGEST])
    leading = _LEADING.match(phrase)
    if leading and (
        _BECAUSE.match(phrase, leading.end()) or not any(map(str.isdigit, phrase[leading.end() :]))
    ):
        return phrase[: leading.end()].strip().rstrip(',')
    if leading:
        return phrase
    return _stated(phrase) or _last_number(phrase) or phrase


def _is_sentence(text: str) -> bool:
    words = _words(simplify_answer(text[:LONGEST]))
    return len(words) >= 3 or (len(words) >= 1 and any(map(str.isdigit, text)) and '\\' not in text)


def _words(text: str) -> list[str]:
    """Lists the words of natural language in a text, without names of variables and of LaTeX."""
    words = re.findall(r'(?<![A-Za-z0-9\\{])[A-Za-z]{2,}', text)
    return [
        word
        for word in words
        if (len(word) > 2 or word.lower() in _SHORT_WORDS) and word != 'degrees'
    ]


def _conclusion(text: str) -> str:
    """Returns the last side of a chain of equations; an equation of variables stays as it is."""
    sides = _EQUALS.split(text)
    if len(sides) < 2 or _is_value(read_value(text)):
        return text
    calculates = len(sides) > 2 or _words(_TEXT_MODE.sub('', sides[0]))
    return (sides[-1].strip() or text) if calculates else text


def _bold(text: str) -> str | None:
    for match in reversed(list(_BOLD.finditer(text))[-_TRIES:]):
        content = (match[1] or match[2]).strip()
        line_start = text.rfind('\n', 0, match.start()) + 1
        if _NUMBERED.fullmatch(content) and not text[line_start : match.start()].strip():
            continue
        content = _LABEL.sub('', content, count=1)
        if content and _is_value(read_value(content)):
            line_end = text.find('\n', match.end())
            is_last = line_end < 0 or not re.search(r'\d', text[line_end:])
            return content if is_last else None
    return None


def _last_line(text: str) -> str | None:
    lines = text.rstrip().rsplit('\n', 1)
    line = lines[-1].strip()
    if not re.search('[\\w\u221e\u2205]', line) or not _is_short(line):
        return None
    for part in (line, _LABEL.sub('', line, count=1)):
        if _is_value(read_value(part)):
            return part
    if _MATHS.search(line):
        return None  # the formula is looked for next
    if not _words(_TEXT_MODE.sub('', line)) and not re.search(f'[{_UNSPACED}]', line):
        return _conclusion(line)
    if any(map(str.isdigit, line)):
        return None
    if chosen := _CHOSEN.search(line):
        return chosen[1]
    return _without_sentence(line) if len(lines) == 1 and len(line.split()) <= 3 else None


def _last_number(text: str) -> str | None:
    """Returns the last number, with the formula or the words that belong to it. A formula without a
    number counts only at the very end."""
    text = _joined_characters(text).rstrip()
    at = next((i for i in range(len(text) - 1, -1, -1) if text[i].isdigit()), -1)
    formula = _last(_MATHS.finditer(text, max(0, len(text) - _WINDOW)))
    if formula is not None and formula.end() > at:
        content = next(group for group in formula.groups() if group).strip()
        at_end = not re.search(r'\w', text[formula.end() :]) and (
            at < 0 or not re.fullmatch('[A-Za-z]', content)
        )
        if formula.start() < at or at_end:
            return _conclusion(content)
    if at < 0:
        return None
    line_end = text.find('\n', at)
    start, end = max(0, at - _WINDOW), min(line_end if line_end >= 0 else len(text), at + 200)
    for group in _GROUP.finditer(text, start, end):
        if (
            group.start() < at < group.end()
            and isinstance(read_value(group[0]), Group)
            and _is_value(read_value(group[0]))
        ):
            return group[0]
    return _in_prose(text[start:end])


def _joined_characters(text: str) -> str:
    """Simplifies characters after putting commas for the special spaces that separate thousands."""
    if text.isascii():
        return text
    return simplify_characters(re.sub('(?<=\\d)[\u00a0\u2007\u2009\u202f](?=\\d{3})', ',', text))


def _in_prose(window: str) -> str | None:
    words = _SPACES.split(window)
    places = (i for i in reversed(range(len(words))) if any(map(str.isdigit, words[i])))
    for i in itertools.islice(places, _MOST_WORDS):
        if (
            i
            and words[i - 1].strip('#*').lower() in _LABELS
            and words[i].rstrip('*_')[-1:] in ':.)'
        ):
            continue
        word = _bare(words[i])
        before = [words[j] if j >= 0 else '' for j in (i - 2, i - 1)]
        if re.fullmatch(r'10\s*\^.*', word) and before[1] in ('*', 'x', r'\times', r'\cdot'):
            word = f'{_bare(before[0])} * {word}'
        elif re.fullmatch(r'\d+/\d+', word) and re.fullmatch(r'[$-]*\d+', before[1]):
            word = f'{before[1]} {word}'
        elif before[1] == '-' and re.search(r'(?:[=:(]|\bis)$', before[0]) and word[:1].isdigit():
            word = f'-{word}'
        elif word[:1].isdigit() and _NEGATIVE.fullmatch(before[0] + before[1]):
            word = f'-{word}'
        if _is_value(read_value(word)):
            return _with_unit(word, words[i + 1 : i + 5], words[i])
        if not re.match(r'[A-Za-z#]', word) or re.search(r'[\^+*/=\\(]', word):
            return word  # a formula, a date, a score: no number, but what was said last
    return None


def _bare(word: str) -> str:
    """Strips from a word what surrounds it in a sentence, such as quotes and unmatched brackets."""
    word = re.sub(r'^[=:>~"\'*_`#]+|^->|^-+>', '', word.strip('"\'*_`'))
    word = re.sub(r'[.,;:?!"\'*_`]+$', '', word)
    word = re.sub(r'^[A-Za-z]+:(?=\S)', '', word)
    for opening, closing in ('()', '[]', '{}'):
        if word.count(closing) > word.count(opening):
            word = word.rstrip(closing)
        if word.count(opening) > word.count(closing):
            word = word.lstrip(opening)
    if re.fullmatch(r'\[[^\[\],]*\]', word):
        word = word[1:-1]
    return re.sub(r'[.,;:?!"\'*_`]+$', '', word)


def _with_unit(number: str, following: list[str], written: str) -> str:
    """Appends the words after a number that say what it counts, up to the end of the sentence."""
    best = number
    if re.search(r'[.,;:?!)]$', written.rstrip('"\'*_')):
        return best
    for i, word in enumerate(following, 1):
        longer = f'{number} {" ".join(following[:i])}'
        if _is_value(read_value(longer)) and not isinstance(read_value(longer), Group):
            best = longer
        if re.search(r'[.,;:?!)]$', word):
            break
    return best.rstrip('.,;:?!"\'*_)')
