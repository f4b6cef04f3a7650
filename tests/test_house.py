"""The three zones of the package: what may import what, and how large the core may be."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / 'reasonjax'
# The core, lowest first: each may import those before it, and the files beside the packages.
CORE = ('parallel', 'weights', 'model', 'data', 'sampling', 'tracking', 'training')
# Functions that a config names. Of the core they know what is below `training`.
NAMED = ('tasks', 'methods')
# Around the core, which knows them by dotted names alone.
AROUND = ('interop', 'planning', 'reporting', 'arena')
FILES = {
    'bounds',
    'config',
    'config_bounds',
    'config_files',
    'config_names',
    'errors',
    'files',
    'protocols',
    'randomness',
    'reduce',
    'selfcheck',
    'terminal',
}
COMMAND_LINE = {'programs', 'smoke'}
PROGRAMS = {
    '__init__',
    'api',
    'compare',
    'convert',
    'evaluate',
    'inspect',
    'plan',
    'sample',
    'train',
}
LINES = 13_000
FILE_LINES = 400


def imports(path: pathlib.Path) -> set[str]:
    """The first parts below `reasonjax` of what a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= (
                {f'{node.module}.{alias.name}' for alias in node.names}
                if node.module == 'reasonjax'
                else {node.module}
            )
    parts = {name.split('.')[1] for name in names if name.startswith('reasonjax.')}
    return {
        part for part in parts if (PACKAGE / part).is_dir() or (PACKAGE / f'{part}.py').is_file()
    }


def allowed(part: str) -> set[str]:
    if part in FILES:
        return FILES
    if part in CORE:
        return FILES | {*CORE[: CORE.index(part) + 1]}
    if part in NAMED:
        return FILES | {*CORE[: CORE.index('training')]} | {*NAMED[: NAMED.index(part) + 1]}
    core = FILES | {*CORE} | {*NAMED} | COMMAND_LINE
    if part in COMMAND_LINE:
        return core
    if part in AROUND:
        return core | {*AROUND[: AROUND.index(part) + 1]}
    return core | {*AROUND} | PROGRAMS


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_imports_point_one_way():
    files = sorted(PACKAGE.rglob('*.py'))
    assert {part_of(path) for path in files} == {
        *FILES,
        *CORE,
        *NAMED,
        *AROUND,
        *COMMAND_LINE,
        *PROGRAMS,
    }
    wrong = [
        f'{path.relative_to(PACKAGE)} imports {one}'
        for path in files
        for one in imports(path) - allowed(part_of(path))
    ]
    assert not wrong


def count_code(path: pathlib.Path) -> int:
    """Lines of a file without blank lines, comments and docstrings, which nobody should save on."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            prose |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        bool(line.strip()) and not line.lstrip().startswith('#') and number not in prose
        for number, line in lines
    )


def test_the_core_stays_small():
    apart = {*NAMED, *AROUND, *COMMAND_LINE, *PROGRAMS}
    core = [path for path in PACKAGE.rglob('*.py') if part_of(path) not in apart]
    assert sum(map(count_code, core)) <= LINES


def test_files_stay_small():
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob('*.py')}
    assert not {str(path): size for path, size in sizes.items() if size > FILE_LINES}


# Words that say how a value came about, where its name should say what it is.
BANNED = {'found', 'made', 'told', 'said', 'taken', 'whole'}
# What docstrings of functions do not begin with, because they begin with a verb.
NO_VERBS = set(
    'A An The What Where Which When Who How Whether If All Each Every One Its Their'.split()
)


def functions(path: pathlib.Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


def test_names_say_what_they_hold():
    wrong = []
    for path in PACKAGE.rglob('*.py'):
        for function in functions(path):
            for node in ast.walk(function):
                stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                name = node.id if stored else node.arg if isinstance(node, ast.arg) else ''
                wrong += [f'{path}: {function.name}: {name}'] if name in BANNED else []
    assert not wrong


def test_docstrings_of_functions_begin_with_a_verb():
    wrong = []
    for path in PACKAGE.rglob('*.py'):
        for function in functions(path):
            decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
            first = (ast.get_docstring(function) or 'Returns').split()[0]
            if first in NO_VERBS and not decorators & {'property', 'functools.cached_property'}:
                wrong.append(f'{path}: {function.name}: {first}')
    assert not wrong
