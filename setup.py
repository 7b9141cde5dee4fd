"""The wheel also carries conf/, data_catalog/, jobs/ and, where built, jar and kernels: see headrace.resources."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        data = Path(self.build_lib) / "headrace" / "_data"
        for name in ("conf", "data_catalog", "jobs"):
            shutil.copytree(ROOT / name, data / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for folder, built in (("jars", "headrace-assembly-*.jar"), ("kernels", "headrace-kernels-*.so")):
            for path in (ROOT / ".build").glob(built):
                (data / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, data / folder / path.name)


setup(cmdclass={"build_py": BuildWithData})
