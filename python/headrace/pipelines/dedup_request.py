"""What a crawl's verdicts were computed from, as silver/dedup_report keeps it: files, settings, the crawls before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from headrace.catalog.delta import DataFile


VERDICTS = 2  # of the rules by which documents go: results of other rules are computed again


def finished(report: DataFrame) -> dict[str, str]:
    """Request by crawl of the crawls that were compared to the end."""
    rows = report.where("host IS NULL").select("crawl", "request").collect()
    return {row["crawl"]: row["request"] for row in rows}


def request(
    files: Sequence[DataFile], settings: Mapping[str, Any], earlier: Sequence[str], done: Mapping[str, str]
) -> str:
    """JSON that is the same exactly where the result must be.

    Args:
        files: data files of the crawl's documents: a file never changes, so neither do these.
        settings: what a duplicate is.
        earlier: the crawls it is compared with.
        done: request by crawl; each crawl's request stands for its verdicts.
    """
    before = {name: _sha(done[name]) for name in earlier}
    of = {"documents": _digest(files), "settings": dict(settings), "earlier": before, "verdicts": VERDICTS}
    return json.dumps(of, sort_keys=True)


def check_earlier(crawl: str, earlier: Sequence[str], done: Mapping[str, str], minhash: Mapping[str, Any]) -> None:
    """Refuse to compare with crawls that have no verdicts, or whose buckets mean something else.

    Raises:
        UserError: which crawl, and which settings differ.
    """
    for name in earlier:
        if name not in done:
            raise UserError(f"{name} comes before {crawl} and was not compared yet", "leave --crawl out, or add it")
        theirs = json.loads(done[name])["settings"]["minhash"]
        changed = [f"{key} {theirs.get(key)} -> {minhash[key]}" for key in minhash if theirs.get(key) != minhash[key]]
        if changed:
            raise UserError(
                f"{name} was signed with other settings ({', '.join(changed)}): its buckets say nothing about {crawl}",
                "give the same settings, or leave --crawl out, and all crawls are signed anew",
            )


def compared_before(done: Mapping[str, str]) -> list[str]:
    """Crawls that were compared with an earlier one as it no longer is."""
    before = {name: json.loads(text)["earlier"] for name, text in done.items()}
    return sorted(name for name in done if any(_sha(done.get(e, "")) != sha for e, sha in before[name].items()))


def outdated(done: Mapping[str, str], documents: Sequence[DataFile]) -> list[str]:
    """Crawls whose verdicts are missing, or were found among other documents than these, or beside crawls now gone.

    Args:
        done: request by crawl.
        documents: data files of all crawls, partitioned by crawl.
    """
    files: dict[str, list[DataFile]] = {}
    for file in documents:
        files.setdefault(str(file.partition["crawl"]), []).append(file)
    requests = {crawl: json.loads(done[crawl]) for crawl in files if crawl in done}
    fresh = {
        crawl
        for crawl, of in requests.items()
        if of["documents"] == _digest(files[crawl]) and set(of["earlier"]) <= set(files)
    }
    return sorted((set(files) - fresh) | (set(files) & set(compared_before(done))))


def _digest(files: Sequence[DataFile]) -> str:
    return _sha("\n".join(sorted(f"{file.path.rsplit('/', 1)[-1]} {file.rows} {file.size}" for file in files)))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
