"""Files that a user hands in."""

import json
import pathlib
from typing import Any

from reasonjax.errors import UserError


def json_object(file: pathlib.Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
      UserError: not JSON, or JSON of another kind.
    """
    try:
        value = json.loads(file.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f'{file}: not JSON ({error}).') from error
    if not isinstance(value, dict):
        raise UserError(f'{file}: expected a JSON object, found {type(value).__name__}.')
    return value
