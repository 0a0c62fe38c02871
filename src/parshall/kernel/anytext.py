"""A column for text of any kind, whatever its engine keeps."""

import re

from sqlalchemy import Dialect, Text, TypeDecorator

_ESCAPE = "\ufdd0"
"""A noncharacter, which no text means anything by."""
_ESCAPED = re.compile(f"{_ESCAPE}(.)", re.DOTALL)


class AnyText(TypeDecorator[str]):
    """Text as a model writes it, which may hold a NUL: PostgreSQL keeps none, so there it is written as two others."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is kept."""
        if value is None or dialect.name != "postgresql" or ("\0" not in value and _ESCAPE not in value):
            return value
        return value.replace(_ESCAPE, _ESCAPE * 2).replace("\0", f"{_ESCAPE}0")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """What was given."""
        if value is None or dialect.name != "postgresql" or _ESCAPE not in value:
            return value
        return _ESCAPED.sub(lambda found: "\0" if found[1] == "0" else _ESCAPE, value)
