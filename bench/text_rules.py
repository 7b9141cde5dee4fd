"""Documents per second on one core: extraction, language and the four families of rules, beside their peers.

    python bench/text_rules.py [--rounds 5] [--documents 300]

Peers: datatrove's filters (spaCy's tokens) for the rules, trafilatura for the main text, lingua for the language.
Verdicts are proved equal before a time counts; text and language are not equal by nature: shared words and agreement
are printed. Pages are those of the archives in ../shared/data, or generated ones where that is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.features import language, main_text, text_rules

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))


def pages(number: int) -> list[bytes]:
    """Bodies of HTML responses."""
    from unit.test_text_peers import REAL, archived

    found = [body for body in archived() if b"<html" in body[:2000].lower()] if REAL.is_dir() else []
    if not found:
        body = "The river and its mill were built of stone that people had to carry with care. " * 40
        found = [f"<html><body><p>{body} {i}</p></body></html>".encode() for i in range(20)]
    return [found[i % len(found)] for i in range(number)]


def timed(rounds: int, contestants: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each by round, interleaved; one round before that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, act in contestants.items():
            start = time.perf_counter()
            act()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def agreement(bodies: list[bytes], texts: list[str]) -> dict[str, float]:
    """How much of trafilatura's words are ours and the reverse; how often lingua says the same language."""
    import trafilatura
    from lingua import LanguageDetectorBuilder

    shared, theirs_total, ours_total = 0, 0, 0
    for body, text in zip(bodies, texts, strict=True):
        theirs = set((trafilatura.extract(body.decode("utf-8", "replace")) or "").split())
        ours = set(text.split())
        shared, theirs_total, ours_total = (
            shared + len(ours & theirs),
            theirs_total + len(theirs),
            ours_total + len(ours),
        )
    detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
    same = total = 0
    for text in texts:
        found = detector.detect_language_of(text[:6000])
        if found is not None:
            total += 1
            same += found.iso_code_639_1.name.lower() == language.detect(text).code
    return {
        "recall_of_trafilatura_words": shared / max(1, theirs_total),
        "precision_of_our_words": shared / max(1, ours_total),
        "lingua_agrees": same / max(1, total),
    }


def main() -> None:
    import trafilatura
    from datatrove.data import Document
    from unit import test_text_peers as peers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--results", default=str(HERE.parent / "docs" / "results" / "text_rules.jsonl"))
    args = parser.parse_args()
    bodies = pages(args.documents)
    settings = main_text.Settings()
    extracted = [main_text.extract(body, "text/html", settings).text or "" for body in bodies]
    kept = [(body, text) for body, text in zip(bodies, extracted, strict=True) if text]
    texts = [text for _, text in kept]
    for text in set(texts):
        assert peers.differences(text) == []
    measures = text_rules.Measures()

    def theirs() -> None:
        for text in texts:
            for rule in peers.filters().values():
                rule.filter(Document(text=text, id="0"))

    seconds = timed(
        args.rounds,
        {
            "rules": lambda: [measures.of(text) for text in texts],
            "rules, datatrove": theirs,
            "main text": lambda: [main_text.extract(body, "text/html", settings) for body, _ in kept],
            "main text, trafilatura": lambda: [
                trafilatura.extract(body.decode("utf-8", "replace")) for body, _ in kept
            ],
            "language": lambda: [language.detect(text) for text in texts],
        },
    )
    rates = {name: [len(texts) / s for s in taken] for name, taken in seconds.items()}
    for name, found in rates.items():
        print(f"{name:<24}{statistics.median(found):>10,.0f} documents/s  ({min(found):,.0f} to {max(found):,.0f})")
    load = os.getloadavg()[0]
    line = {
        "bench": "text_rules",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "documents": len(texts),
        "chars": sum(map(len, texts)),
        "rounds": args.rounds,
        "documents_per_s": {n: [round(f(r), 1) for f in (statistics.median, min, max)] for n, r in rates.items()},
        "rules_over_datatrove": round(
            statistics.median(rates["rules"]) / statistics.median(rates["rules, datatrove"]), 2
        ),
        "agreement": {name: round(value, 4) for name, value in agreement(bodies[:60], extracted[:60]).items()},
        "load": round(load, 2),
        "noisy": load > 2.5,
        "python": platform.python_version(),
    }
    print(json.dumps(line))
    with open(args.results, "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
