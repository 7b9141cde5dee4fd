"""`make bench`: the main job by stage at a size that takes minutes, and streaming beside its peers.

    .venv/bin/python -m bench [--rows N] [--work DIR]

Each module runs alone, too, and says more with `--help`. Results are appended to docs/results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000")
    parser.add_argument("--work", help="a folder that is kept; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as temporary:
        work = args.work or temporary
        for module in (["main_job.py", "--rows", args.rows, "--work", work], ["streaming.py"]):
            subprocess.run([sys.executable, str(HERE / module[0]), *module[1:]], check=True)


if __name__ == "__main__":
    main()
