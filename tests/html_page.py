"""Reading the pages that we write."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects them with their text."""

    VOID = {'meta', 'br', 'path', 'use'}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.words = ' '.join(' '.join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.text.append(data)


def addresses(text):
    """What a page would fetch: elements that load something, and addresses other than the names of
    the SVG vocabularies."""
    page = Page(text)
    found = {'script', 'link', 'img', 'iframe', 'object', 'base', 'image'} & set(page.tags)
    for tag, name, value in page.attributes:
        outside = name in ('href', 'xlink:href', 'src') and not value.startswith('#')
        if outside or value and '://' in value and name not in ('xmlns', 'xmlns:xlink'):
            found.add((tag, name, value))
    found |= {
        address
        for address in re.findall(r'url\(["\']?([^)]*)', text)
        if not address.startswith('#')
    }
    return found | ({'@import'} if '@import' in text else set())
