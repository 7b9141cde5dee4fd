"""Settings of gradient compression, and the reducer that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.compress import COMPRESSORS, CodecSpec, create
from headrace.compress.feedback import VARIANTS, Feedback
from headrace.compress.spec import EXACT, OWN_FEEDBACK, SUMMABLE
from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.options import described, known
from headrace.strategies.compressed import EXCHANGES, CompressedConfig, CompressedReducer
from headrace.strategies.reducers import BucketReducer


@dataclass(kw_only=True)
class CompressionConfig:
    """How gradients are compressed on their way; the help is made of COMPRESSORS, below."""

    name: str = "none"
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)
    feedback: str = "auto"
    decay: float = 1.0
    exchange: str = "auto"
    min_numel: int = 1024

    @property
    def spec(self) -> CodecSpec:
        """Of the codec.

        Raises:
            UserError: there is no such codec.
        """
        known("compression.name", self.name, COMPRESSORS)
        return COMPRESSORS[self.name]

    @property
    def variant(self) -> str:
        """Of the feedback: what `auto` stands for."""
        if self.feedback != "auto":
            return self.feedback
        return "none" if self.spec.traits & {EXACT, OWN_FEEDBACK} else "ef"


CompressionConfig.__doc__ = f"""How dense gradients are compressed on their way between ranks.

    Args:
        name: none, or one of {", ".join(name for name in COMPRESSORS if name != "none")}.
        options: of the codec, each a setting by its own name, as in --compression.levels 7. With their defaults:
            {"; ".join(f"{name}: {described(spec.defaults) or 'none'}" for name, spec in COMPRESSORS.items())}.
        feedback: ef (what was not sent is added to the next gradient), ef21, none; auto: ef, but for codecs that keep
            it themselves.
        decay: of what was not sent, in ef: 1 keeps all of it.
        exchange: {", ".join(EXCHANGES)}; auto: by the fewest bytes.
        min_numel: tensors of fewer numbers go as they are.
    """


def check(cfg: CompressionConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: which, and what to do.
    """
    spec = cfg.spec
    known("compression.exchange", cfg.exchange, EXCHANGES)
    known("compression.feedback", cfg.feedback, ("auto", *VARIANTS))
    create(cfg.name, **cfg.options)
    if not 0 <= cfg.decay <= 1:
        raise UserError(f"--compression.decay {cfg.decay}", "from 0 to 1")
    if cfg.min_numel < 1:
        raise UserError(f"--compression.min_numel {cfg.min_numel}", "1 or more")
    if cfg.exchange == "allreduce" and SUMMABLE not in spec.traits:
        sums = ", ".join(name for name, each in COMPRESSORS.items() if SUMMABLE in each.traits)
        raise UserError(
            f"--compression.exchange allreduce: what {cfg.name} sends cannot be added up",
            f"--compression.exchange auto, or one of {sums}",
        )
    if OWN_FEEDBACK in spec.traits and cfg.variant != "none":
        raise UserError(f"{cfg.name} keeps what it does not send by itself", "--compression.feedback none")


def compressed(cfg: CompressionConfig, rest: BucketReducer, seed: int) -> BucketReducer | CompressedReducer:
    """The reducer of a run: `rest` itself where nothing is compressed.

    Args:
        cfg: checked.
        rest: sums what is not compressed, and says how large buckets are.
        seed: of what codecs draw.
    """
    if cfg.name == "none":
        return rest
    settings = CompressedConfig(
        exchange=cfg.exchange, min_numel=cfg.min_numel, bucket_bytes=rest.bucket_bytes, seed=seed
    )
    feedback = Feedback(create(cfg.name, **cfg.options), cfg.variant, cfg.decay)
    return CompressedReducer(cfg.spec, feedback, rest, settings)
