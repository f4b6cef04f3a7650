"""What self-contained pages share: one HTML document with its style, tables that scroll, and
figures as inline SVG.

A page needs nothing but itself: figures take their text colour from the page, so it reads in a dark
and in a light browser, on a phone, and from an e-mail.
"""

import contextlib
import html
import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.backends.backend_svg
import matplotlib.figure

from reasonjax import files
from reasonjax.terminal import printable

COLOURS = ('#2f81c7', '#e0812b', '#3a9f5c', '#9a6bc9', '#d2524c', '#2aa3a3', '#b08a1e', '#d067a5')
# Drawn in a colour that nothing else has, then replaced: SVG text takes the colour of the page
# around it.
INK = '#7b7c7d'


def write(target: str | os.PathLike, title: str, parts: Sequence[str]) -> pathlib.Path:
    """Writes a document in one piece: a reader never sees half of it.

    Control characters, and marks that turn the direction of text, are written out wherever they
    are, as on a terminal.

    Args:
      target: the file.
      title: plain text.
      parts: HTML; empty ones are left out.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta '
        f'charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light '
        f'dark"><style>{STYLE}</style></head>\n<body><main>\n'
        + '\n'.join(part for part in parts if part)
        + '\n</main></body></html>\n'
    )
    target = pathlib.Path(target)
    files.write_text(target, printable(page))
    return target


def section(title: str, body: str) -> str:
    """Builds a titled part of a page; `title` is plain text, `body` HTML."""
    return f'<section><h2>{html.escape(title)}</h2>{body}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = False) -> str:
    """Builds an HTML table from cells that are HTML already. The wrapper scrolls, so a wide table
    does not widen the page of a phone."""
    return (
        f'<div class="wide"><table{" class=numeric" if numeric else ""}><thead><tr>'
        + ''.join(f'<th>{name}</th>' for name in head)
        + '</tr></thead><tbody>'
        + ''.join('<tr>' + ''.join(f'<td>{cell}</td>' for cell in row) + '</tr>' for row in rows)
        + '</tbody></table></div>'
    )


def number(value: Any, digits: int) -> str:
    """Formats a number with thousands set apart; a dash where there is none."""
    if isinstance(value, int | float):
        return f'{value:,.{digits}f}'
    return '–' if value is None else html.escape(str(value))


def style(salt: str, ink: str = INK) -> contextlib.AbstractContextManager:
    """Applies matplotlib's settings for a figure, for the time of a `with` block.

    Args:
      salt: what the names inside an SVG are drawn from: figures of one page need different ones.
      ink: colour of text and axes.
    """
    # No mathematics in a name: a dollar sign is a dollar sign.
    return matplotlib.rc_context(
        {
            'svg.fonttype': 'none',
            'svg.hashsalt': salt,
            'font.size': 9.5,
            'font.family': 'sans-serif',
            'text.color': ink,
            'text.parse_math': False,
            'axes.edgecolor': ink,
            'axes.labelcolor': ink,
            'xtick.color': ink,
            'ytick.color': ink,
        }
    )


def frame(plot: Any, grid: str, ink: str = INK) -> None:
    """Draws axes left and below, and thin lines across: `grid` is 'x', 'y' or 'both'."""
    plot.spines[['top', 'right']].set_visible(False)
    plot.grid(axis=grid, color=ink, alpha=0.25, linewidth=0.6)
    plot.set_axisbelow(True)


def figure(title: str, drawn: matplotlib.figure.Figure) -> str:
    """Renders a drawing as an SVG element in an HTML figure. The drawing and this call need the
    same `style(title)`."""
    matplotlib.backends.backend_svg.FigureCanvasSVG(drawn)
    buffer = io.StringIO()
    drawn.savefig(buffer, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    # Only the drawing: the prologue and the metadata name addresses, and the colour of the text is
    # the page's.
    svg = buffer.getvalue()
    svg = re.sub(
        r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.DOTALL
    ).replace(INK, 'currentColor')
    # Groups are numbered from one in each drawing, and nothing refers to them: on a page of many
    # the names would be there twice.
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)
    label = html.escape(title, quote=True)
    svg = re.sub(
        r'<svg .*?viewBox="([^"]*)"[^>]*>',
        lambda match: f'<svg viewBox="{match[1]}" role="img" aria-label="{label}">',
        svg,
        count=1,
        flags=re.DOTALL,
    )
    return f'<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>'


STYLE = """
:root{--line:#8884}
*{box-sizing:border-box}
body{margin:0;font:16px/1.5 system-ui,sans-serif;background:Canvas;color:CanvasText}
main{max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .6rem}
.lead{font-size:1.1rem;margin:0}.quiet{opacity:.7;font-size:.85em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600;white-space:nowrap}
.numeric td{white-space:nowrap;font-variant-numeric:tabular-nums}
pre,code{font:.82rem/1.4 ui-monospace,monospace;margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
td pre{min-width:9rem;max-width:34rem}
article{border:1px solid var(--line);border-radius:8px;padding:.8rem;margin:0 0 .8rem}
.prompt{font-weight:600;margin-bottom:.5rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem .9rem;margin:0}
dt{opacity:.7;font-size:.85rem}dd{margin:0;min-width:0}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:0 0 .6rem;font-size:.9rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.2rem}
figure{margin:0}figcaption{font-size:.9rem;font-weight:600;margin-bottom:.2rem}
svg{width:100%;height:auto;display:block}svg text{font-family:system-ui,sans-serif!important}
details{margin:0 0 .6rem}summary{cursor:pointer;padding:.2rem 0}
"""
