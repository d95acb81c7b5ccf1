"""On which line of a TOML text does this key stand? tomllib does not say.

How it works
    One pass over a text that tomllib has accepted, so that only the outline matters: headers, keys, and where values begin
    and end. Each table, key and array item is noted with its line under the path it has in the parsed tree. A header below an
    array of tables means the array's last item, as in TOML itself. What is asked for and not found is looked for one level up.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}' r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)


def dotted(path: Path) -> str:
    """``pools.web.servers[1]``; keys that are not bare are quoted as in TOML."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE.fullmatch(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
            text += f".{key}" if text else key
    return text


class Lines:
    """The lines of one text, by path."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._counted = 0
        self._line = 1
        self._lines: dict[Path, int] = {}
        self._last_item: dict[Path, int] = {}
        self._read()

    def of(self, path: Path) -> int:
        """The line of `path`, or of the nearest thing around it; 1 when there is none."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _note(self, path: Path) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(path, self._line)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no TOML at offset {self._at}")
        self._at = match.end()

    def _is_next(self, mark: str) -> bool:
        """Does `mark` follow after blanks and comments? It is not skipped."""
        self._skip(_BLANK)
        return self._text.startswith(mark, self._at)

    def _read(self) -> None:
        table: Path = ()
        while self._at < len(self._text):
            if self._is_next("["):
                table = self._read_header()
            elif self._at < len(self._text):
                self._read_pair(table)

    def _read_header(self) -> Path:
        is_item = self._text.startswith("[[", self._at)
        self._at += 2 if is_item else 1
        start = self._at
        keys = self._read_key()
        end, self._at = self._at, start
        path: Path = ()
        for key in keys[:-1]:
            path = self._into((*path, key))
            self._note(path)
        path = (*path, keys[-1])
        if is_item:
            self._note(path)
            self._last_item[path] = self._last_item.get(path, -1) + 1
        path = self._into(path)
        self._note(path)
        self._at = end + (2 if is_item else 1)
        return path

    def _into(self, path: Path) -> Path:
        item = self._last_item.get(path)
        return path if item is None else (*path, item)

    def _read_key(self) -> list[str]:
        """A dotted key and the blanks around it; stops at ``=`` or ``]``."""
        keys = []
        while True:
            self._skip(_BLANK)
            start = self._at
            is_quoted = self._text[start] in "\"'"
            self._skip(_STRING if is_quoted else _BARE)
            word = self._text[start : self._at]
            keys.append(tomllib.loads(f"k={word}")["k"] if is_quoted else word)
            self._skip(_BLANK)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _read_pair(self, table: Path) -> None:
        start = self._at
        path = table
        keys = self._read_key()
        end, self._at = self._at, start
        for key in keys:
            path = (*path, key)
            self._note(path)
        self._at = end + 1
        self._read_value(path)

    def _read_value(self, path: Path) -> None:
        self._skip(_BLANK)
        opening = self._text[self._at]
        if opening == "[":
            self._read_array(path)
        elif opening == "{":
            self._read_inline_table(path)
        else:
            self._skip(_STRING if opening in "\"'" else _SCALAR)

    def _read_array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while not self._is_next("]"):
            if self._text.startswith(",", self._at):
                self._at += 1
                index += 1
            else:
                self._note((*path, index))
                self._read_value((*path, index))
        self._at += 1

    def _read_inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._is_next("}"):
            if self._text.startswith(",", self._at):
                self._at += 1
            else:
                self._read_pair(path)
        self._at += 1
