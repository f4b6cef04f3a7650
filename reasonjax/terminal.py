"""Text of unknown origin, made safe to show: what a model wrote must not move the cursor, ring the
bell or turn a line round."""

import re
import sys

# Control characters of both sets (line feed and tab stay), marks that change the direction of text,
# line and paragraph separators, invisible tag characters, and halves of characters, which no stream
# can encode.
_UNSAFE = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]'
)


def printable(text: str) -> str:
    r"""Returns a text with every unsafe character written as Python escapes it ('\x1b', '\u202e');
    line feeds and tabs stay."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def printable_json(text: str) -> str:
    r"""Returns JSON text of the same value, in which unsafe characters are JSON escapes
    ('\u001b')."""
    return _UNSAFE.sub(lambda match: ''.join(f'\\u{unit:04x}' for unit in _utf16(match[0])), text)


def _utf16(character: str) -> list[int]:
    units = character.encode('utf-16-be', 'surrogatepass')
    return [int.from_bytes(units[i : i + 2], 'big') for i in range(0, len(units), 2)]


def open_streams() -> None:
    """Makes standard output and error take every character, whatever the locale: what they cannot
    encode is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
