"""What verbs have in common that show a family of specifications: all beside each other, one in full, their page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import UserError
from headrace.report import Report


class Shown(Protocol):
    """Settings of such a verb: one of the family or "", the file of the page or "", whether to compare only."""

    name: str
    page: str
    check: bool


@dataclass(frozen=True)
class SpecPage:
    """One family.

    Args:
        noun: of one of them, as in results: "optimizer"; of the verb with an s.
        specs: by name.
        find: the specification of a name; a UserError for an unknown one.
        line: of the list.
        facts: lines of one in full.
        head: of the page.
        columns: of the page's table, behind the name.
        cells: in these.
    """

    noun: str
    specs: Mapping[str, Any]
    find: Callable[[str], Any]
    line: Callable[[Any], str]
    facts: Callable[[Any], Iterable[str]]
    head: str
    columns: Sequence[str]
    cells: Callable[[Any], Sequence[str]]

    def run(self, cfg: Shown, report: Report) -> Report:
        """List, show or write.

        Raises:
            UserError: an unknown name, or, with check, a page that is not up to date.
        """
        if cfg.page:
            self._write(Path(cfg.page), cfg.check)
            report.results["page"] = cfg.page
        elif cfg.name:
            for line in self.facts(self.find(cfg.name)):
                report.say(line)
            report.results[self.noun] = cfg.name
        else:
            width = max(map(len, self.specs))
            for name, spec in self.specs.items():
                report.say(f"{name:{width}}  {self.line(spec)}")
            report.results[f"{self.noun}s"] = len(self.specs)
        return report

    def render(self) -> str:
        """The page, as Markdown."""
        lines = [self.head, _row(["name", *self.columns]), _row(["---"] * (1 + len(self.columns)))]
        lines += [_row(map(_escaped, [f"[{name}](#{name})", *self.cells(s)])) for name, s in self.specs.items()]
        for name, spec in self.specs.items():
            lines += [f"\n## {name}\n", *(f"- {line}" for line in self.facts(spec))]
        return "\n".join(lines) + "\n"

    def _write(self, path: Path, check: bool) -> None:
        text = self.render()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path} is not what the specifications say", f"headrace {self.noun}s --page {path}")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
