"""The console command `headrace <verb>`; every job file is a shim over it.

Standard output ends with one line of JSON; what people read goes to standard error. Exit status: 0 done, 1 a fault of
ours or of the machine, 2 something the user can mend, 130 Ctrl-C, 143 SIGTERM. Training ends in order on either: 143.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from headrace import __version__
from headrace.config import nearest, parse
from headrace.errors import UserError
from headrace.report import PROGRESS_MODES, Report

_TRACE = "HEADRACE_TRACE"


class Verb(NamedTuple):
    """One verb: the module in `headrace.pipelines` with `Config` and `run`, its line of help, does it need Spark."""

    module: str
    help: str
    spark: bool = True


VERBS = {
    "doctor": Verb("doctor", "is this machine ready? what to type if not", spark=False),
    "demo": Verb("demo", "the main job on generated data, end to end"),
    "demo-lake": Verb("demo_lake", "crawl, graph and ratings on generated data: found beside planted"),
    "demo-crash": Verb("demo_crash", "the same killed and resumed: same table, same weights", spark=False),
    "generate-criteo": Verb("generate_criteo", "write files in the Criteo Terabyte format with a planted model"),
    "generate-graph": Verb("generate_graph", "write a power-law graph with planted communities, features and labels"),
    "generate-crawl": Verb("generate_crawl", "write WARC, WET and WAT files with planted duplicates and the truth"),
    "generate-ratings": Verb("generate_ratings", "write ratings from a planted model, with the best possible error"),
    "ingest-criteo": Verb("ingest_criteo", "Criteo logs -> bronze/criteo, every line accounted for"),
    "ingest-ratings": Verb("ingest_ratings", "MovieLens and other ratings -> bronze/ratings, every line accounted for"),
    "ingest-commoncrawl": Verb(
        "ingest_commoncrawl", "WARC, WET, WAT -> bronze/commoncrawl, every record accounted for"
    ),
    "ingest-graph": Verb(
        "ingest_graph", "edge lists, triples, node features and labels -> bronze, every row accounted for"
    ),
    "featurize-ctr": Verb("featurize_ctr", "bronze/criteo -> vocabularies and silver/ctr, split by day"),
    "featurize-graph": Verb(
        "featurize_graph", "a graph in bronze -> dense ids, CSR shards, features and labels by row"
    ),
    "featurize-ratings": Verb("featurize_ratings", "bronze/ratings -> dense ids, splits, folds in silver/ratings"),
    "featurize-text": Verb("featurize_text", "bronze/commoncrawl -> documents, corpus, tokens, packed sequences"),
    "sample-graph": Verb("sample_graph", "sampled neighbourhoods of a graph's nodes -> gold/graph_neighbourhoods"),
    "sample-negatives": Verb("sample_negatives", "negatives of a knowledge graph's triples -> gold/graph_negatives"),
    "propagate-graph": Verb("propagate_graph", "propagated features (SGC, SIGN) -> gold/graph_hops"),
    "rank-graph": Verb("rank_graph", "PageRank and connected components -> gold/graph_ranks"),
    "train-ctr": Verb("train_ctr", "silver/ctr -> Petastorm -> ranks -> a model in MLflow"),
    "baseline-logistic": Verb(
        "baseline_logistic", "logistic regression on Spark: same rows, metrics, MLflow as train-ctr"
    ),
    "baseline-classifier": Verb(
        "baseline_classifier", "MLlib's linear SVM, factorization machine, boosted trees: the same"
    ),
    "baseline-als": Verb("baseline_als", "silver/ratings -> ALS -> recommendations for users and items, RMSE, NDCG"),
    "score-ctr": Verb("score_ctr", "a trained model over bronze or raw rows -> gold/ctr_predictions"),
    "rows": Verb("rows", "what became of one input file's rows"),
    "forget": Verb("forget", "files out of the lake again, to be read anew; an open batch given up"),
    "quarantine": Verb("quarantine", "refused rows: reasons, counts, examples"),
    "dedup-text": Verb(
        "dedup_text", "silver/documents -> silver/duplicates: exact and near, against earlier crawls too"
    ),
    "catalog": Verb("catalog", "tables: list, show, validate, report", spark=False),
    "codecs": Verb("codecs", "how gradients can be compressed: what is sent, bits, error, options", spark=False),
    "optimizers": Verb("optimizers", "what can train a model: rules, state, options", spark=False),
    "maintain": Verb("maintain", "table care: join small files, list or remove old ones, statistics"),
    "compare": Verb("compare", "runs beside each other: quality against seconds, memory and bytes", spark=False),
    "sync-runs": Verb("sync_runs", "send to the tracking store what it missed while it was down", spark=False),
}


@dataclass(kw_only=True)
class SessionConfig:
    """Where Spark runs; under spark-submit its own options come first.

    Args:
        master: Spark master, for example local[4] or local-cluster[2,1,2048]; the default is spark-submit's or local.
        driver_memory: heap of the driver, for example 4g (only where this process starts the JVM).
        conf: further Spark settings as JSON, for example --session.conf '{"spark.sql.shuffle.partitions": "200"}'.
    """

    master: str | None = None
    driver_memory: str | None = None
    conf: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class ScreenConfig:
    """What is shown while it runs.

    Args:
        progress: auto (a bar on a terminal, a line every 10 s elsewhere), bar, log or none.
        trace: show the stack trace of an unexpected error.
    """

    progress: str = "auto"
    trace: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the return value is the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"headrace {__version__}")
        return 0
    if args[0] not in VERBS:
        hint = nearest(args[0], list(VERBS)) or "headrace --help lists the verbs"
        print(f"error: no verb {args[0]!r}\n  -> {hint}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        return _run(args[0], args[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except OSError as error:
        status = _unexpected(args[0], error)
        return 2 if error.filename else status  # a file or folder of the user's
    except Exception as error:
        return _unexpected(args[0], error)


def job(verb: str) -> None:
    """Entry of `jobs/*.py`: the verb with this process's arguments, then exit with its status."""
    status = main([verb, *sys.argv[1:]])
    sys.stdout.flush()
    if status:
        sys.exit(status)


def _run(name: str, argv: Sequence[str]) -> int:
    verb = VERBS[name]
    module = importlib.import_module(f"headrace.pipelines.{verb.module}")
    sections = {"": module.Config, "session": SessionConfig, "screen": ScreenConfig}
    config = parse(sections, _positional(module, argv), f"headrace {name}")
    screen = config["screen"]
    if screen.trace:
        os.environ[_TRACE] = "1"
    if screen.progress not in PROGRESS_MODES:
        raise UserError(f"screen.progress: {screen.progress!r} is not one of {', '.join(PROGRESS_MODES)}")
    report = Report(name, progress=screen.progress)
    report = _with_spark(module, config, report) if verb.spark else module.run(None, config[""], report)
    for label, path in report.paths.items():
        report.say(f"{label}: {path}")
    print(report.to_json(), flush=True)
    return int(report.results.get("exit_status", 0))


def _with_spark(module: ModuleType, config: dict[str, Any], report: Report) -> Report:
    """Run under Spark; what a module's `early(config)` refuses is refused before Spark takes its seconds to start."""
    from headrace.pipelines.spark_events import event_log
    from headrace.session import build_session

    if hasattr(module, "early"):
        module.early(config[""])
    session = config["session"]
    slots = module.slots(config[""]) if hasattr(module, "slots") else 0
    with event_log(getattr(module, "MEASURED", False)) as conf:
        conf |= session.conf
        if session.driver_memory:
            conf["spark.driver.memory"] = session.driver_memory
        spark = build_session(f"headrace {report.verb}", master=session.master, conf=conf, slots=slots)
        try:
            result: Report = module.run(spark, config[""], report)
            return result
        finally:
            spark.stop()


def _positional(module: ModuleType, argv: Sequence[str]) -> list[str]:
    """`headrace rows FILE`: leading bare words fill the fields that the module names in POSITIONAL."""
    args, fields = list(argv), list(getattr(module, "POSITIONAL", ()))
    words = []
    while args and fields and not args[0].startswith("-"):
        words += [f"--{fields.pop(0)}", args.pop(0)]
    return words + args


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"headrace {__version__}: from the lakehouse into distributed training",
            "",
            "usage: headrace VERB [--config FILE ...] [--key value ...]",
            "",
            *lines,
            "",
            "headrace VERB --help shows a verb's settings, --print_config prints them resolved. Every setting can also",
            "be given by environment (HEADRACE_TRAIN__BATCH_SIZE) or in a YAML file; jobs/VERB.py is the same for",
            "spark-submit.",
        ]
    )


def _unexpected(verb: str, error: Exception) -> int:
    if os.environ.get(_TRACE):
        traceback.print_exc()
        return 1
    with tempfile.NamedTemporaryFile("w", prefix=f"headrace-{verb}-", suffix=".trace", delete=False) as file:
        traceback.print_exception(error, file=file)
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, OSError) and error.filename:
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
    else:
        print(f"error: {type(error).__name__}: {first[:500]}", file=sys.stderr)
    print(f"  -> the whole trace is in {file.name} (--screen.trace shows it here)", file=sys.stderr)
    return 1


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
