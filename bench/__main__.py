"""`make bench`: the main job by stage at a size that takes minutes, and single stages beside their peers.

    .venv/bin/python -m bench [NAME ...] [--rows N] [--work DIR]

Without a name, all of them. Each module runs alone, too, and says more with `--help`. Results are appended to
docs/results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# By name: the module, and whether it takes --rows and --work.
MODULES = {
    "main_job": ("main_job.py", True),
    "streaming": ("streaming.py", False),
    "criteo": ("criteo.py", True),
    "warc": ("warc.py", False),
    "graph": ("graph.py", False),
    "graph_memory": ("graph_memory.py", False),
    "text_rules": ("text_rules.py", False),
    "optim": ("optim.py", False),
    "codecs": ("codecs.py", False),
    "exchange": ("exchange_lab.py", False),
    "saga": ("saga.py", False),
    "saga_memory": ("saga_memory.py", False),
    "als": ("als.py", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODULES))
    parser.add_argument("--rows", default="1000000")
    parser.add_argument("--work", help="a folder that is kept; a temporary one by default")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MODULES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        for name in args.names or MODULES:
            file, sized = MODULES[name]
            more = ["--rows", args.rows, "--work", str(Path(args.work or temporary) / name)] if sized else []
            subprocess.run([sys.executable, str(HERE / file), *more], check=True)


if __name__ == "__main__":
    main()
