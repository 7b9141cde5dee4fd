"""Settings of gradient compression, and the reducer that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.comm.base import Collective
from headrace.compress import COMPRESSORS, CodecSpec, create
from headrace.compress.feedback import VARIANTS, Feedback
from headrace.compress.ladder import Rung, fitting, ladder
from headrace.compress.signsgd import SignSGD
from headrace.compress.spec import EXACT, NO_SIZES, OWN_FEEDBACK, OWN_MOMENTUM, SUMMABLE, UNBIASED
from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.options import choose, described, known
from headrace.strategies.adaptive import ERRORS, Adaptive, AdaptiveConfig, Tell
from headrace.strategies.coded_rows import CodedRows, why_not
from headrace.strategies.compressed import EXCHANGES, CompressedConfig, CompressedReducer
from headrace.strategies.hierarchical import Hierarchical
from headrace.strategies.majority import MajorityVote
from headrace.strategies.overlap import ByBuckets
from headrace.strategies.powersgd import PowerSGD, PowerSGDConfig
from headrace.strategies.reducers import BucketReducer

VOTE = "vote"
POWERSGD = "powersgd"  # sums matrices by a rule of its own: no codec
_POWERSGD_DEFAULTS = {"rank": 2}
AUTO = "auto"  # chooses codecs by tensor
_AUTO_DEFAULTS: dict[str, Any] = {
    "budget": 0.1, "interval": 50, "switch": True, "error": "absolute",
    "codecs": ("topk", "qsgd", "onebit", "int8_nearest", "fp16", "none"),
}  # fmt: skip


@dataclass(kw_only=True)
class CompressionConfig:
    """How gradients are compressed on their way; the help is made of COMPRESSORS, below."""

    name: str = "none"
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)
    feedback: str = "auto"
    decay: float = 1.0
    exchange: str = "auto"
    min_numel: int = 1024
    hierarchical: bool = False
    sparse: str = "none"

    @property
    def spec(self) -> CodecSpec:
        """Of the codec; not of powersgd, and not of auto.

        Raises:
            UserError: there is no such codec.
        """
        known("compression.name", self.name, (*COMPRESSORS, POWERSGD, AUTO))
        return COMPRESSORS[self.name]

    @property
    def traits(self) -> frozenset[str]:
        """Of the codec, or what is like them of powersgd and of auto.

        Raises:
            UserError: there is no such codec.
        """
        if self.name == POWERSGD:
            return frozenset({OWN_FEEDBACK})
        return frozenset() if self.name == AUTO else self.spec.traits

    @property
    def compresses(self) -> bool:
        """Whether any number is sent in another form."""
        return self.name != "none" or self.sparse != "none"

    @property
    def variant(self) -> str:
        """Of the feedback: what `auto` stands for.

        What is added to the next gradient grows without bound where the error of a draw may be larger than what was
        drawn, and codecs that are right in the mean can do without. What codecs leave that send no sizes says nothing.
        """
        if self.feedback != "auto":
            return self.feedback
        if self.traits & {EXACT, OWN_FEEDBACK, NO_SIZES}:
            return "none"
        return "none" if self.error >= 1 else "ef"

    @property
    def error(self) -> float:
        """omega of E |C(x) - x|^2 <= omega |x|^2 for a codec that is right in the mean; 0 for all others."""
        if UNBIASED not in self.traits:
            return 0.0
        spec = self.spec
        assert spec.omega is not None
        return spec.omega(_MANY, choose(f"codec {self.name}", spec.defaults, self.options))


_MANY = 1 << 20  # numbers of a large tensor
_ROW_CODECS = [name for name, spec in COMPRESSORS.items() if name != "none" and not why_not(spec)]

CompressionConfig.__doc__ = f"""How gradients are compressed on their way between ranks.

    Args:
        name: of dense gradients: none, or one of {", ".join(n for n in COMPRESSORS if n != "none")}, {POWERSGD};
            {AUTO}: chosen by tensor for the least error within budget (of the bytes as they are), anew every interval
            steps, and off where sending as is measures faster (switch).
        options: of the codec, each a setting by its own name, as in --compression.levels 7. With their defaults:
            {"; ".join(f"{name}: {described(spec.defaults) or 'none'}" for name, spec in COMPRESSORS.items())};
            {POWERSGD}: {described(_POWERSGD_DEFAULTS)}; {AUTO}: {described(_AUTO_DEFAULTS)}.
        feedback: ef (what was not sent is added to the next gradient), ef21, none; auto: ef, but none for codecs that
            keep it themselves or send no sizes, and for those that are right in the mean with errors larger than the
            gradient.
        decay: of what was not sent, in ef: 1 keeps all of it.
        exchange: {", ".join(EXCHANGES)}; auto: allreduce where payloads can be added up (with ef21 no casts), else
            allgather for two ranks (dgc: any number) and reduce_scatter for more. Of signs also {VOTE}: the majority of
            the ranks.
        min_numel: tensors of fewer numbers go as they are.
        hierarchical: dense gradients are summed as they are within a host, and compressed between hosts, which must
            have equal numbers of ranks.
        sparse: of row-sparse gradients' rows: none, or one of {", ".join(_ROW_CODECS)}, with its defaults.
    """


def check(cfg: CompressionConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: which, and what to do.
    """
    traits = cfg.traits
    known("compression.exchange", cfg.exchange, (*EXCHANGES, VOTE))
    known("compression.feedback", cfg.feedback, ("auto", *VARIANTS))
    if not 0 <= cfg.decay <= 1:
        raise UserError(f"--compression.decay {cfg.decay}", "from 0 to 1")
    if cfg.min_numel < 1:
        raise UserError(f"--compression.min_numel {cfg.min_numel}", "1 or more")
    others = {POWERSGD: _check_powersgd, AUTO: _check_auto}
    others.get(cfg.name, _check_codec)(cfg)
    if cfg.exchange == "allreduce" and SUMMABLE not in traits:
        sums = ", ".join(name for name, each in COMPRESSORS.items() if SUMMABLE in each.traits and name != "none")
        raise UserError(
            f"--compression.exchange allreduce: what {cfg.name} sends cannot be added up",
            f"--compression.exchange auto, or --compression.name with one of {sums}",
        )
    if OWN_FEEDBACK in traits and cfg.variant != "none":
        raise UserError(f"{cfg.name} keeps what it does not send by itself", "--compression.feedback none")
    if NO_SIZES in traits and cfg.variant != "none":
        raise UserError(
            f"--compression.feedback {cfg.variant}: {cfg.name} sends no sizes, so what it leaves out is no gradient",
            "--compression.feedback none, or --compression.name signsgd",
        )
    if OWN_MOMENTUM in traits and cfg.exchange == "reduce_scatter":
        raise UserError(
            f"--compression.exchange reduce_scatter: {cfg.name} would apply its momentum to sums once more",
            "--compression.exchange auto",
        )
    if cfg.decay != 1 and cfg.name != POWERSGD and cfg.variant != "ef":
        raise UserError(
            f"--compression.decay {cfg.decay:g}: {cfg.name} with feedback {cfg.variant} keeps nothing that could decay",
            "--compression.decay 1, or --compression.feedback ef",
        )
    _check_sparse(cfg)


def _check_codec(cfg: CompressionConfig) -> None:
    codec = create(cfg.name, **cfg.options)
    if cfg.name == "none":
        for setting, usual in (("exchange", ("auto",)), ("feedback", ("auto", "none"))):
            if getattr(cfg, setting) not in usual:
                raise UserError(
                    f"--compression.{setting} {getattr(cfg, setting)} is of compressed gradients, and dense ones go as "
                    "they are",
                    "--compression.name, or leave it out",
                )
    if cfg.exchange == "allreduce" and cfg.variant == "ef21" and codec.number is not None:
        raise UserError(
            f"--compression.exchange allreduce with {cfg.name} and feedback ef21: sums of changes would be rounded "
            "once more in every step, and drift away",
            "--compression.exchange auto, which sends as many bytes, or --compression.feedback ef",
        )
    if cfg.exchange == VOTE and (not isinstance(codec, SignSGD) or cfg.variant == "ef21"):
        raise UserError(
            f"--compression.exchange vote with {cfg.name} and feedback {cfg.variant}: votes are of signs, and no sum",
            "--compression.name signsgd, --compression.feedback none or ef",
        )


def _check_powersgd(cfg: CompressionConfig) -> None:
    if powersgd_rank(cfg) < 1:
        raise UserError(f"--compression.rank {powersgd_rank(cfg)}", "1 or more")
    if cfg.exchange != "auto":
        raise UserError(
            f"--compression.exchange {cfg.exchange}: {POWERSGD} has its own, two sums of thin matrices",
            "--compression.exchange auto",
        )
    if cfg.hierarchical:
        raise UserError(
            f"--compression.hierarchical: {POWERSGD} takes whole matrices, hosts exchange chunks",
            "--compression.hierarchical false, or another --compression.name",
        )


def _check_auto(cfg: CompressionConfig) -> None:
    found, rungs = chosen(cfg)
    if not 0 < found.budget <= 1:
        raise UserError(f"--compression.budget {found.budget:g}", "over 0, and 1 at most: all bytes as they are")
    least = min(rung.nbytes(_MANY, torch.float32) for rung in rungs) / (4 * _MANY)
    if found.budget < least:
        raise UserError(
            f"--compression.budget {found.budget:g}: of a large tensor's bytes these codecs send {least:.2g} at least",
            f"{2 * least:.1g} or more, or other --compression.codecs",
        )
    if found.interval < 1:
        raise UserError(f"--compression.interval {found.interval}", "1 or more")
    known("compression.error", found.error, ERRORS)
    if cfg.exchange == VOTE:
        raise UserError("--compression.exchange vote: votes are of signs", "--compression.exchange auto")
    if found.switch and cfg.variant == "ef21":
        raise UserError(
            "--compression.feedback ef21 follows what is sent, and gradients as they are would pass it by",
            "--compression.switch false, or --compression.feedback ef",
        )


def _check_sparse(cfg: CompressionConfig) -> None:
    known("compression.sparse", cfg.sparse, COMPRESSORS)
    if why := why_not(COMPRESSORS[cfg.sparse]):
        raise UserError(f"--compression.sparse {cfg.sparse}: {why}", f"one of none, {', '.join(_ROW_CODECS)}")


def powersgd_rank(cfg: CompressionConfig) -> int:
    """Columns of PowerSGD's factors.

    Raises:
        UserError: an option that it has not, or of another type.
    """
    rank: int = choose(f"compression {POWERSGD}", _POWERSGD_DEFAULTS, cfg.options)["rank"]
    return rank


def chosen(cfg: CompressionConfig) -> tuple[AdaptiveConfig, list[Rung]]:
    """How `auto` chooses, and from what.

    Raises:
        UserError: an option that it has not, or of another type; a codec that cannot be chosen.
    """
    options = choose(f"compression {AUTO}", _AUTO_DEFAULTS, cfg.options)
    names, memory = options.pop("codecs"), cfg.variant != "none"
    rungs = ladder(names if "codecs" in cfg.options else fitting(names, memory), memory)
    return AdaptiveConfig(**options), rungs


def compressed(
    cfg: CompressionConfig, rest: BucketReducer, seed: int, collective: Collective | None = None, host: str = "",
    tell: Tell = lambda event: None,
) -> ByBuckets:  # fmt: skip
    """The reducer of a run: `rest` itself where nothing is compressed.

    Args:
        cfg: checked.
        rest: sums what is not compressed, and says how large buckets are.
        seed: of what codecs draw.
        collective: of a hierarchical sum, which all ranks make together.
        host: this rank's name of its host.
        tell: takes events of what `auto` decides, and of a memory that is lost.

    Raises:
        UserError: hosts have unequal numbers of ranks.
    """
    if not cfg.hierarchical:
        made = _dense(cfg, rest, seed, cfg.min_numel, None, tell)
    else:
        if collective is None:
            raise ValueError("a hierarchical sum needs a collective")
        made = Hierarchical(_dense(cfg, rest, seed, 0, collective, tell), rest, collective, host, cfg.min_numel, tell)
    return CodedRows(create(cfg.sparse), made, seed) if cfg.sparse != "none" else made


def _dense(
    cfg: CompressionConfig, rest: BucketReducer, seed: int, min_numel: int, everyone: Collective | None, tell: Tell
) -> ByBuckets:
    if cfg.name == "none":
        return rest
    if cfg.name == POWERSGD:
        return PowerSGD(PowerSGDConfig(rank=powersgd_rank(cfg), decay=cfg.decay, min_numel=min_numel, seed=seed), rest)
    made = MajorityVote if cfg.exchange == VOTE else CompressedReducer
    exchange = "auto" if cfg.exchange == VOTE else cfg.exchange
    if cfg.name == AUTO:
        settings = CompressedConfig(exchange=exchange, min_numel=min_numel, bucket_bytes=rest.bucket_bytes, seed=seed)
        adaptive, rungs = chosen(cfg)
        feedback = Feedback(rungs[0].codec, cfg.variant, cfg.decay)
        return Adaptive(rungs, feedback, rest, settings, adaptive, everyone, tell)
    options = choose(f"compression {cfg.name}", cfg.spec.defaults, cfg.options)
    settings = CompressedConfig(
        exchange=exchange, min_numel=min_numel, bucket_bytes=rest.bucket_bytes, seed=seed, options=options
    )
    return made(cfg.spec, Feedback(create(cfg.name, **cfg.options), cfg.variant, cfg.decay), rest, settings)
