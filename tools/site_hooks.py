"""Hooks of mkdocs: pages that stand at the top of the repository, and links from pages to files
outside docs/.

On GitHub a page of docs/ links to `../BUILD.md` or `../configs/sft.py`. The site has BUILD.md and
its like as pages, and the other files as they are, below `source/`; links are rewritten to lead
there.
"""

import os
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ('BUILD.md', 'CONTRIBUTING.md', 'CHANGELOG.md')
HOME = ('README.md', 'docs')  # what the site's front page stands for
FENCE = re.compile(r'^( *)(```|~~~).*?^\1\2 *$', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))')


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages at the top of the repository."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of a page that lead out of docs/."""
    folder = pathlib.PurePosixPath(page.file.src_uri).parent
    in_repository = pathlib.PurePosixPath('.' if page.file.src_uri in PAGES else f'docs/{folder}')

    def rewrite(match: re.Match) -> str:
        path, anchor = match[1], match[2] or ''
        if re.match(r'[a-z]+:', path):
            return match[0]
        target = os.path.normpath(in_repository / path)
        uri = _uri(target, config, files)
        return match[0] if uri is None else os.path.relpath(uri, folder) + anchor

    pieces, end = [], 0
    for block in FENCE.finditer(markdown):  # code stays as it is
        pieces += [LINK.sub(rewrite, markdown[end : block.start()]), block[0]]
        end = block.end()
    return ''.join([*pieces, LINK.sub(rewrite, markdown[end:])])


def _uri(target: str, config: Any, files: Any) -> str | None:
    """Returns where the site has a file of the repository, or None, which mkdocs then reports as a
    broken link."""
    if target in HOME:
        return 'index.md'
    if target.startswith('docs/'):
        return target.removeprefix('docs/')
    if target in PAGES:
        return target
    if not (ROOT / target).is_file():
        return None
    uri = f'source/{target}'
    if files.get_file_from_path(uri) is None:
        source = str(ROOT / target)
        files.append(
            File.generated(config, uri, abs_src_path=source, inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return uri
