"""The command line and configuration files: what is known, what is refused, and in which words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from headrace.config import nearest, parse, secret, to_yaml
from headrace.errors import UserError
from headrace.pipelines import train_ctr


@dataclass(kw_only=True)
class Rule:
    """A rule.

    Args:
        name: which
        lr: learning rate
    """

    name: str = "adam"
    lr: float = 1e-3


@dataclass(kw_only=True)
class Train:
    """Training.

    Args:
        batch_size: rows a step
    """

    batch_size: int = 512


@dataclass(kw_only=True)
class Config:
    """A job.

    Args:
        lake: the lake
        train: training
        rule: the rule
        plan: only say what would run
        counts: free keys
    """

    lake: str
    train: Train = field(default_factory=Train)
    rule: Rule = field(default_factory=Rule)
    plan: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def load(*argv: str) -> Config:
    return parse({"": Config, "rule2": Rule}, argv, "job")[""]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_then_environment_then_files_then_options(tmp_path, monkeypatch):
    assert load("--lake", "x").train.batch_size == 512
    monkeypatch.setenv("HEADRACE_TRAIN__BATCH_SIZE", "1")
    assert load("--lake", "x").train.batch_size == 1
    one = write(tmp_path / "one.yaml", "train:\n  batch_size: 2\nrule:\n  lr: 0.5\n")
    two = write(tmp_path / "two.yaml", "train:\n  batch_size: 3\n")
    config = load("--lake", "x", "--config", one, "--config", two)
    assert (config.train.batch_size, config.rule.lr) == (3, 0.5)
    assert load("--config", one, "--lake", "x", "--train.batch_size", "4").train.batch_size == 4


def test_typo_on_the_command_line_names_the_nearest_key():
    with pytest.raises(UserError, match=r"unknown option --train\.batchsize") as error:
        load("--lake", "x", "--train.batchsize", "3")
    assert error.value.remedy == "did you mean train.batch_size?"


def test_typo_in_a_file_names_file_and_line(tmp_path):
    path = write(tmp_path / "c.yaml", "lake: x\ntrain:\n  # a comment\n  batchsize: 3\n")
    with pytest.raises(UserError) as error:
        load("--config", path)
    assert error.value.problem == f"{path}:4: unknown setting train.batchsize"
    assert error.value.remedy == "did you mean train.batch_size?"


def test_wrong_type_names_the_key_and_where_it_came_from(tmp_path):
    path = write(tmp_path / "c.yaml", "train:\n  batch_size: many\n")
    with pytest.raises(UserError, match=r"train\.batch_size: .*int.*c\.yaml:2"):
        load("--lake", "x", "--config", path)
    with pytest.raises(UserError, match=r"rule\.lr: .*float.*command line"):
        load("--lake", "x", "--rule.lr", "fast")


def test_missing_required_option_is_named():
    with pytest.raises(UserError, match="missing: --lake"):
        load()


def test_spark_submits_conf_is_not_taken_for_config():
    with pytest.raises(UserError, match="unknown option --conf"):
        load("--lake", "x", "--conf", "a=b")


def test_unreadable_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="cannot read --config"):
        load("--lake", "x", "--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="is not YAML"):
        load("--lake", "x", "--config", write(tmp_path / "c.yaml", "a: [1"))
    with pytest.raises(UserError, match="c.yaml:1: settings must be"):
        load("--lake", "x", "--config", write(tmp_path / "c.yaml", "- 1\n"))


def test_a_bare_flag_is_true_hyphens_are_allowed_and_free_dictionaries_take_any_key():
    config = load("--plan", "--lake", "x", "--train.batch-size", "7", "--counts.c3", "20")
    assert (config.plan, config.train.batch_size, config.counts) == (True, 7, {"c3": 20})
    assert load("--lake", "x", "--plan", "false").plan is False


def test_a_free_dictionary_takes_keys_with_dots_beside_those_of_a_file(tmp_path):
    file = write(tmp_path / "c.yaml", "counts: {a.b: 1, c: 2}\n")
    config = load("--config", file, "--lake", "x", "--counts.spark.sql.parts", "8", "--counts.d.e=9")
    assert config.counts == {"a.b": 1, "c": 2, "spark.sql.parts": 8, "d.e": 9}


def test_resolved_yaml_reads_back_the_same(tmp_path):
    config = load("--lake", "x", "--rule.lr", "0.25", "--counts.c1", "2")
    assert load("--config", write(tmp_path / "r.yaml", to_yaml(config))) == config
    assert yaml.safe_load(to_yaml(config))["rule"] == {"name": "adam", "lr": 0.25}


def test_secrets_resolve_late_and_missing_ones_name_the_variable(tmp_path, monkeypatch):
    assert secret("plain") == "plain"
    monkeypatch.setenv("HEADRACE_SECRET__ML__TOKEN", "t")
    assert secret("secret:ml/token") == "t"
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "other").write_text("o\n")
    monkeypatch.setenv("HEADRACE_SECRETS", str(tmp_path))
    assert secret("secret:ml/other") == "o"
    with pytest.raises(UserError, match="HEADRACE_SECRET__ML__NONE"):
        secret("secret:ml/none")


@pytest.mark.parametrize(
    ("argv", "remedy"),
    [
        (["--compression", "topk"], "did you mean --compression.name topk?"),
        (["--train=3"], "--help lists --train.*"),
        (["--compression", "it's"], "did you mean --compression.name it's?"),
    ],
)
def test_a_group_of_settings_is_no_setting(argv: list[str], remedy: str) -> None:
    with pytest.raises(UserError, match=r"\(command line\), but \w+ is a group of settings") as error:
        of_train(*argv)
    assert error.value.remedy == remedy


def of_train(*argv: str) -> train_ctr.Config:
    made: train_ctr.Config = parse({"": train_ctr.Config}, ["--lake", "x", *argv], "headrace train-ctr")[""]
    return made


def test_a_group_in_a_file_is_named_with_its_line_and_its_members_with_theirs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("ranks: 2\ncompression: topk\n")
    with pytest.raises(UserError, match=r"topk \(.*a\.yaml:2\), but compression is a group"):
        of_train("--config", str(tmp_path / "a.yaml"))
    with pytest.raises(UserError, match=r"train\.epochs\": Expected a int.*\(command line\)"):
        of_train("--train", '{"epochs": "x"}')
    assert of_train("--train", '{"epochs": 2}').train.epochs == 2


def test_a_call_that_failed_leaves_nothing_to_the_next() -> None:
    with pytest.raises(UserError, match="epochs"):
        of_train("--print_config", "--train.epochs", "abc")
    assert of_train().train.epochs == train_ctr.Config(lake="x").train.epochs


@pytest.mark.parametrize(
    ("word", "said"), [("batch_size", "did you mean train.batch_size?"), ("zzz", ""), ("lak", "did you mean lake?")]
)
def test_nearest(word, said):
    assert nearest(word, ["lake", "train.batch_size", "rule.lr"]) == said
