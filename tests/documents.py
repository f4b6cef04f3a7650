"""The pages of the documentation, taken apart: code, prose, commands, links."""

import ast
import itertools
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
TOP = ('README.md', 'BUILD.md', 'CONTRIBUTING.md', 'CHANGELOG.md')
FENCE = re.compile(r'^( *)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$', re.DOTALL | re.MULTILINE)
SPAN = re.compile(r'(?<!`)`([^`]+)`(?!`)')
LINK = re.compile(r'(?<=\]\()([^)\s]+)(?=\))')
PATH = re.compile(
    r'(?<![\w/.-])(?:configs|reasonjax|docs|tests|benchmarks|examples|colabs|tools)/[\w./*-]*'
)
# A module of the repository, or several: benchmarks.{peers,phases}.
MODULE = re.compile(
    r'python -m ((?:reasonjax|benchmarks|tools)(?:\.\w+)*)(\.\{[\w,]+\}|)(.+|$)', re.DOTALL
)
ENDS = re.compile(r'^[;&|()<>]+$')


def pages() -> list[str]:
    """Returns the paths of all pages, from the root of the repository."""
    inside = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('docs/**/*.md'))
    return [*TOP, *inside]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


class Block(NamedTuple):
    """A fenced block: its language, its code, and the paragraph before it."""

    language: str
    code: str
    introduction: str


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip('\n').rpartition('\n\n')[2]
        found.append(Block(match[2], textwrap.dedent(match[3]), before))
    return found


def prose(text: str) -> str:
    """Returns a page without its fenced blocks."""
    return FENCE.sub('', text)


def spans(text: str) -> Iterator[tuple[str, str]]:
    """Yields each inline code with the paragraph, or the row of a table, that it stands in."""
    for paragraph in re.split(r'\n\s*\n', prose(text)):
        places = paragraph.split('\n') if paragraph.lstrip().startswith('|') else [paragraph]
        for place in places:
            for match in SPAN.finditer(place):
                yield ' '.join(match[1].replace('\\|', '|').split()), place


def links(text: str) -> list[str]:
    return LINK.findall(SPAN.sub('', prose(text)))


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub writes them."""
    slugs: list[str] = []
    for title in re.findall(r'^#+ +(.+?) *$', prose(text), re.MULTILINE):
        plain = re.sub(r'\]\([^)]*\)', '', title).lower()
        slug = re.sub(r'[^\w\- ]', '', plain).replace(' ', '-')
        slugs.append(f'{slug}-{slugs.count(slug)}' if slug in slugs else slug)
    return set(slugs)


class Command(NamedTuple):
    """`python -m MODULE ARGUMENTS`; where it is `partial`, in running text, arguments may be missing."""

    page: str
    module: str
    arguments: tuple[str, ...]
    partial: bool

    def __str__(self) -> str:
        return shlex.join(['python', '-m', self.module, *self.arguments])


def commands(page: str, text: str) -> Iterator[Command]:
    """Yields the commands of a page that run a module of the repository."""
    for block in blocks(text):
        for line in re.sub(r'\\\n\s*', '', block.code).splitlines():
            for piece in re.split(r'(?=python -m )', line)[1:]:
                yield from _command(page, piece, partial=False)
        for listed in re.findall(r'\[python, -m, ([^\]]*)\]', block.code):
            line = ' '.join(re.split(r',\s*', listed))
            yield from _command(page, f'python -m {line}', partial=False)
    for span, _ in spans(text):
        yield from _command(page, span, partial=True)


def docstring_commands(path: pathlib.Path) -> Iterator[Command]:
    """Yields the commands in the docstring of a Python file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    for line in re.sub(r'\\\n\s*', '', docstring).splitlines():
        if line.startswith('    python -m '):
            yield from _command(path.relative_to(ROOT).as_posix(), line.strip(), partial=False)


def _command(page: str, text: str, *, partial: bool) -> Iterator[Command]:
    match = MODULE.match(text)
    if match is None:
        return
    arguments = tuple(itertools.takewhile(lambda word: not ENDS.match(word), words(match[3])))
    for end in match[2].strip('.{}').split(','):
        yield Command(page, f'{match[1]}.{end}' if end else match[1], arguments, partial)


def words(text: str) -> list[str]:
    """Splits text as a shell does; operators such as `&&` are words of their own."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # the text ends with the quotation that it stands in
        shorter = re.split('["\']', text[::-1], maxsplit=1)[-1][::-1]
        return words(shorter) if shorter != text else text.split()


def written_by_the_reader() -> set[str]:
    """Returns the files that pages have the reader write: those that a Python block's introduction names."""
    names = set()
    for page in pages():
        for block in blocks(read(page)):
            if block.language == 'python':
                names |= set(re.findall(r'`([\w/.]+\.py)`', block.introduction))
    return names
