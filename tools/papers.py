"""Write docs/papers.md, the papers that configs cite, from the docstrings of the configs.

python -m tools.papers            # from the root of the repository
python -m tools.papers --check    # write nothing; exit with 1 where the page is out of date
"""

import argparse
import ast
import json
import pathlib
import re
import sys
import textwrap
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'papers.md'
ARXIV = re.compile(r'arXiv:?\s?(\d{4}\.\d{4,5})')
OPENING = """# Papers

Configs that follow a paper, by its arXiv number. Written from the docstrings of the configs by `python -m tools.papers`;
`--check` says whether it is up to date. Systems without a config are in the [roadmap](roadmap.md), and methods
that are an override away in [Configs](configs.md#published-methods-by-override).

| paper | config | what it is |
|---|---|---|
"""
RECIPES = """
## Recipes

What the docstrings of `configs/recipes/` say. A claim is the paper's, not ours, unless it says so; the verdict is that of
`python -m reasonjax.compare --claims` on a small task ([Claims](CLAIMS.md)).
"""


class Config(NamedTuple):
    """A config file and its docstring."""

    path: pathlib.PurePosixPath
    docstring: str

    @property
    def title(self) -> str:
        """The first sentence, without its last full stop."""
        return self.docstring.split('\n\n')[0].replace('\n', ' ').rstrip('.')

    @property
    def papers(self) -> list[str]:
        """The arXiv numbers, in the order in which they are cited."""
        return list(dict.fromkeys(ARXIV.findall(self.docstring)))


def configs(root: pathlib.Path = ROOT) -> list[Config]:
    """Reads the docstrings of all configs and recipes."""
    paths = sorted([*root.glob('configs/*.py'), *root.glob('configs/recipes/*.py')])
    docstrings = {
        path: ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '' for path in paths
    }
    return [
        Config(pathlib.PurePosixPath(path.relative_to(root).as_posix()), text)
        for path, text in docstrings.items()
    ]


def page(root: pathlib.Path = ROOT) -> str:
    """Returns the text of docs/papers.md."""
    everything = configs(root)
    rows = sorted((paper, config) for config in everything for paper in config.papers)
    table = ''.join(
        f'| [{paper}](https://arxiv.org/abs/{paper}) | [`{config.path}`](../{config.path}) | '
        f'{config.title} |\n'
        for paper, config in rows
    )
    recipes = [config for config in everything if config.path.parts[1] == 'recipes']
    return OPENING + table + RECIPES + ''.join(_section(config, root) for config in recipes)


def _section(config: Config, root: pathlib.Path) -> str:
    title, _, rest = config.docstring.partition('\n\n')
    parts = [f'\n### {config.path.stem}\n', f'{title}\n']
    for paragraph in filter(None, rest.split('\n\n')):
        indented = paragraph.startswith('    ')
        parts.append(
            f'```bash\n{textwrap.dedent(paragraph).strip()}\n```\n'
            if indented
            else f'{paragraph.strip()}\n'
        )
    verdict = root / 'docs' / 'claims' / f'{config.path.stem}.json'
    if verdict.is_file():
        value = json.loads(verdict.read_text(encoding='utf-8'))['verdict']
        parts.append(f'Verdict on the small task: [{value}](claims/{config.path.stem}.json).\n')
    return '\n'.join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'python -m tools.papers', description='Write docs/papers.md from the configs.'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with 1 where the page is out of date',
    )
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(page(), encoding='utf-8')
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding='utf-8') == page():
        return 0
    print('docs/papers.md is out of date; write it with: python -m tools.papers', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
