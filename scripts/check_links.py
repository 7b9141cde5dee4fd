"""Check that relative links in Markdown files lead to files that exist. Usage: check_links.py FILE_OR_FOLDER..."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main(arguments: list[str]) -> None:
    files = [
        path for name in arguments for path in ([Path(name)] if Path(name).is_file() else Path(name).rglob("*.md"))
    ]
    broken = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            targets = [name for name in LINK.findall(line) if "://" not in name]
            broken += [f"{file}:{number}: {name}" for name in targets if not (file.parent / name).exists()]
    if broken:
        sys.exit("error: links that lead nowhere\n" + "\n".join(broken))
    print(f"{len(files)} files, every relative link leads somewhere")


if __name__ == "__main__":
    main(sys.argv[1:])
