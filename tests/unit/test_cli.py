"""The console command: verbs, exit statuses, the last line, and `headrace compare`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing

import docstring_parser
import pytest

from headrace.pipelines import cli
from headrace.pipelines.compare import table


def write_run(lake, name, stages=(), **results):
    folder = lake / "runs" / name
    folder.mkdir(parents=True)
    told = [{"name": stage, "seconds": seconds} for stage, seconds in stages]
    (folder / "report.json").write_text(json.dumps({"verb": "train-ctr", "stages": told, "results": results}))


def test_help_lists_every_verb_and_a_typo_names_the_nearest(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.VERBS)
    assert cli.main(["train_ctr"]) == 2
    assert "did you mean train-ctr?" in capsys.readouterr().err


def undocumented(config: type) -> list[str]:
    """Settings, nested ones too, that a docstring's `Args:` does not explain."""
    docs = [docstring_parser.parse(each.__doc__ or "") for each in config.__mro__ if dataclasses.is_dataclass(each)]
    said = {param.arg_name for doc in docs for param in doc.params if param.description}
    missing = []
    for name, hint in typing.get_type_hints(config).items():
        if name not in said:
            missing.append(f"{config.__name__}.{name}")
        if dataclasses.is_dataclass(hint):
            missing += undocumented(hint)
    return missing


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_every_setting(verb, capsys):
    module = importlib.import_module(f"headrace.pipelines.{cli.VERBS[verb].module}")
    assert undocumented(module.Config) + undocumented(cli.SessionConfig) + undocumented(cli.ScreenConfig) == []
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.name}" in shown for field in dataclasses.fields(module.Config))


def test_compare_sorts_draws_and_ends_with_json(tmp_path, capsys):
    write_run(tmp_path, "a", model="logistic", ranks=2, test_auc=0.70, train_seconds=10.0, megabytes_sent=3.0)
    write_run(tmp_path, "b", model="deepfm", ranks=2, test_auc=0.75, train_seconds=30.0, megabytes_sent=9.0)
    assert cli.main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.strip().splitlines()[-1])
    assert [run["run_id"] for run in last["results"]["runs"]] == ["b", "a"]
    assert shown.err.index("0.7500") < shown.err.index("0.7000")
    assert (tmp_path / "runs" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", "--lake", str(tmp_path), "--sort", "train_seconds"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [run["run_id"] for run in last["results"]["runs"]] == ["a", "b"]


def test_mistakes_of_the_user_exit_2_with_a_remedy_and_no_trace(tmp_path, capsys):
    assert cli.main(["compare", "--lake", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert f"headrace train-ctr --lake {tmp_path}" in shown
    assert "Traceback" not in shown
    assert cli.main(["compare", "--lak", str(tmp_path)]) == 2
    assert "did you mean lake?" in capsys.readouterr().err
    write_run(tmp_path, "a", test_auc=0.5)
    assert cli.main(["compare", "--lake", str(tmp_path), "--runs", "zzz"]) == 2
    assert "there are: a" in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_trace_in_a_file(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise json.JSONDecodeError("a fault of ours", "", 0)

    monkeypatch.setattr("headrace.pipelines.compare.table", broken)
    write_run(tmp_path, "a")
    assert cli.main(["compare", "--lake", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    trace = shown.split("the whole trace is in ")[1].split(" (")[0]
    with open(trace) as file:
        assert "JSONDecodeError" in file.read()
    assert shown.count("\n") == 2


def test_a_run_without_a_figure_shows_a_dash_and_a_figure_of_no_run_is_left_out():
    lines = table([{"run_id": "a", "test_auc": 0.5}, {"run_id": "b", "test_rmse": 0.9}]).splitlines()
    assert lines[0].split("  ")[0].strip() == "run" and "logloss" not in lines[0]
    assert lines[1].split() == ["a", "0.5000", "-"]
    assert lines[2].split() == ["b", "-", "0.9000"]


def test_deep_models_and_baselines_stand_in_one_table_and_one_picture(tmp_path, capsys):
    write_run(
        tmp_path, "a", model="deepfm", optimizer="adam", ranks=2, test_auc=0.7, train_seconds=9.0, megabytes_sent=3.0
    )
    baseline = {"model": "logistic", "optimizer": "lbfgs", "test_auc": 0.71, "train_seconds": 4.0, "shuffled_mb": 0.5}
    write_run(tmp_path, "b", stages=[("pin", 1.0), ("train", 4.0)], peak_memory_mb=900.0, **baseline)
    write_run(tmp_path, "c", model="als", test_rmse=0.93, test_ndcg_at_k=0.2, stages=[("train", 2.0), ("train", 1.5)])
    assert cli.main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["b", "a", "c"]
    assert "pin 1.0, train 4.0" in lines[1] and "train 3.5" in lines[3] and " 900 " in lines[1]
    assert (tmp_path / "runs" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["compare", str(tmp_path), "--sort", "test_rmse"]) == 0
    assert capsys.readouterr().err.splitlines()[1].split()[0] == "c"
    assert cli.main(["compare", str(tmp_path), "--sort", "stages"]) == 0
    assert capsys.readouterr().err.splitlines()[1].split()[0] == "c"
