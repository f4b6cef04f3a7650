"""What the pages say is so: code parses, files, programs, flags, knobs and links exist."""

import argparse
import ast
import functools
import importlib
import os
import pathlib
import re
import sys

import documents
import pytest
import yaml

import reasonjax
from reasonjax import config as configs
from reasonjax.errors import UserError
from tools import papers

ROOT = documents.ROOT
PAGES = documents.pages()
CONFIGS = sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('configs/recipes/*.py')])
# The harness has a parser of its own, and importing it takes seconds.
OTHERS_FLAGS = ('reasonjax.interop.lm_eval',)
# How a program is given its config, where it takes overrides; those of `evaluate` are of its run's.
TAKES_CONFIG = ('train', 'plan', 'convert', 'inspect')


@pytest.mark.parametrize('page', PAGES)
def test_code_blocks_parse(page):
    for block in documents.blocks(documents.read(page)):
        if block.language == 'python':
            compile(block.code, page, 'exec')


@pytest.mark.parametrize('page', PAGES)
def test_every_fence_is_closed(page):
    lines = [line for line in documents.read(page).splitlines() if line.lstrip().startswith('```')]
    assert len(lines) == 2 * len(documents.blocks(documents.read(page)))


@pytest.mark.parametrize('page', PAGES)
def test_named_files_exist(page):
    names = {name.rstrip('./') for name in documents.PATH.findall(documents.read(page))}
    names -= documents.written_by_the_reader()
    assert not sorted(name for name in names if not _is_there(name))


def _is_there(name: str) -> bool:
    if pathlib.PurePath(name).stem.isupper() and not name.endswith('.md'):  # ID.py, NAME
        return True
    return any(ROOT.glob(name)) if '*' in name else (ROOT / name).exists()


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for link in documents.links(documents.read(page)):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            broken.append(link)
        elif anchor and anchor not in documents.anchors(target.read_text(encoding='utf-8')):
            broken.append(link)
    assert not broken


def _commands() -> list[documents.Command]:
    of_pages = [c for page in PAGES for c in documents.commands(page, documents.read(page))]
    return of_pages + [c for path in CONFIGS for c in documents.docstring_commands(path)]


COMMANDS = _commands()


class Parsed(Exception):
    """What a program's parser made of its arguments."""


def parse(command: documents.Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace | None:
    """Has the program's own parser read a command; None where only its flags are looked at.

    Raises:
      SystemExit: the parser refuses it.
    """
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, arguments=None, namespace=None):
        if not command.partial:
            raise Parsed(read(self, arguments, namespace))
        flags = {flag for action in self._actions for flag in action.option_strings}
        given = sys.argv[1:] if arguments is None else arguments
        unknown = {word.partition('=')[0] for word in given if word.startswith('--')} - flags
        if unknown:
            self.error(f'unrecognized arguments: {unknown}')
        raise Parsed(None)

    module = importlib.import_module(command.module)
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    monkeypatch.setattr(sys, 'argv', [command.module, *command.arguments])
    with pytest.raises(Parsed) as parsed:
        module.main()
    return parsed.value.args[0]


@pytest.mark.parametrize('page', sorted({command.page for command in COMMANDS}))
def test_commands_are_accepted_by_their_programs(page, monkeypatch, capsys):
    for command in (command for command in COMMANDS if command.page == page):
        assert importlib.util.find_spec(command.module), f'{command}: no such module'
        if command.module in OTHERS_FLAGS:
            continue
        with monkeypatch.context() as patch:
            try:
                parse(command, patch)
            except SystemExit:
                pytest.fail(f'{command}: {capsys.readouterr().err}')


def _location(command: documents.Command) -> str | None:
    """Returns the config that a command names, or None."""
    rest, _ = configs.split_arguments(command.arguments)
    name = command.module.rpartition('.')[2]
    if name == 'inspect':
        return next((word for word in rest if not word.startswith('--')), None)
    if '--config' in rest:
        return rest[rest.index('--config') + 1]
    return next((w.partition('=')[2] for w in rest if w.startswith('--config=')), None)


def _runs() -> dict[str, str]:
    """Returns the config of each workdir that a page trains."""
    trained = {}
    for command in COMMANDS:
        if command.module == 'reasonjax.train' and '--workdir' in command.arguments:
            workdir = command.arguments[command.arguments.index('--workdir') + 1]
            trained[workdir] = _location(command)
    return trained


RUNS = _runs()


@functools.cache
def refusal(location: str, overrides: tuple[tuple[str, str], ...]) -> str:
    """Returns why a config does not take these overrides, or ''."""
    try:
        configs.load(location, overrides)
    except UserError as error:
        return str(error)
    return ''


def _placeholder(text: str) -> bool:
    """Whether a word stands for something: CONFIG, FOLDER, KEY=VALUE, STAGE.steps."""
    return text.split('.')[0].split('=')[0].isupper()


@pytest.mark.parametrize('page', sorted({command.page for command in COMMANDS}))
def test_configs_take_the_overrides_of_commands(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in (command for command in COMMANDS if command.page == page):
        name = command.module.rpartition('.')[2]
        location = _location(command)
        if name == 'evaluate' and '--workdir' in command.arguments:
            location = RUNS.get(command.arguments[command.arguments.index('--workdir') + 1])
        if location is None or _placeholder(location):
            continue
        path = location.partition(':')[0]
        if path in documents.written_by_the_reader():
            continue
        _, overrides = configs.split_arguments(command.arguments)
        overrides = [(key, value) for key, value in overrides if not _placeholder(key)]
        problem = refusal(location, tuple(overrides))
        assert not problem, f'{command}: {problem}'


@pytest.mark.parametrize('page', PAGES)
def test_overrides_in_running_text_are_taken_by_a_config(page, monkeypatch):
    """An override is of a config that its paragraph, or its row of a table, names; else of any."""
    monkeypatch.chdir(ROOT)
    code = '\n'.join(block.code for block in documents.blocks(documents.read(page)))
    for span, stage in documents.spans(documents.read(page)):
        words = [
            word for word in documents.words(span) if word.startswith('--config.') and '=' in word
        ]
        _, overrides = configs.split_arguments(words)
        overrides = tuple((key, value) for key, value in overrides if not _placeholder(key))
        if not overrides or span.startswith('python -m '):
            continue
        if all(f'c.{key.rpartition(".")[0]} = ' in code for key, _ in overrides):
            continue  # of a config that the page has the reader write
        named = re.findall(r'configs/[\w/]+\.py(?::\w+)?', stage)
        known = [name for name in named if (ROOT / name.partition(':')[0]).is_file()]
        candidates = known or [str(path.relative_to(ROOT)) for path in CONFIGS]
        if any(
            key.startswith('tokenizer.') for key, _ in overrides
        ):  # any config may have this one
            overrides = (
                ('tokenizer.name', 'huggingface'),
                ('tokenizer.path', 'FOLDER'),
                *overrides,
            )
        assert any(not refusal(location, overrides) for location in candidates), (
            f'{span}: {refusal(candidates[0], overrides)}'
        )


@pytest.mark.parametrize('page', PAGES)
def test_configs_take_the_overrides_of_python(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in documents.blocks(documents.read(page)):
        if block.language != 'python':
            continue
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_config':
                location, *overrides = [ast.literal_eval(argument) for argument in node.args]
                reasonjax.load_config(location, *overrides)


def test_readme_is_short():
    assert len(documents.read('README.md').splitlines()) <= 150


def test_the_site_names_every_page():
    class Loader(yaml.SafeLoader):
        """Reads tags of mkdocs as nothing."""

    Loader.add_multi_constructor('tag:yaml.org,2002:python/', lambda *_: None)
    nav = yaml.load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'), Loader)['nav']  # noqa: S506

    def leaves(node):
        if isinstance(node, str):
            return [node]
        return [
            leaf
            for child in (node.values() if isinstance(node, dict) else node)
            for leaf in leaves(child)
        ]

    named = leaves(nav)
    assert len(named) == len(set(named))
    # README.md is the front page of the repository, docs/index.md that of the site.
    assert set(named) == {page.removeprefix('docs/') for page in PAGES} - {'README.md'}


def test_the_index_of_papers_is_up_to_date():
    assert documents.read('docs/papers.md') == papers.page(), 'python -m tools.papers'


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert str(citation['version']) == reasonjax.__version__


def test_ci_runs_the_command_of_the_readme():
    pattern = r'<!-- test-command -->\n```bash\n(.*?)```\n<!-- /test-command -->'
    block = re.search(pattern, documents.read('README.md'), re.DOTALL)
    assert block and 'pytest' in block[1] and "pip install -e '.[test,tasks]'" in block[1]
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
