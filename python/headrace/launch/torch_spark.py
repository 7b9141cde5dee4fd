"""Ranks as torch.distributed processes, one a Spark barrier task, started by Spark's TorchDistributor."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from typing import Any

from headrace.launch.channel import Address
from headrace.launch.rank import Closable, run_rank
from headrace.launch.slots import is_local
from headrace.launch.worker import LaunchOptions, Worker


class TorchBackend:
    """One `TorchDistributor.run`.

    Args:
        fn: what every rank runs.
        n: number of ranks.
        spark: the session.
        address: the driver's end of the channel.
        options: see LaunchOptions.
    """

    def __init__(
        self, fn: Callable[[Worker], Any], n: int, spark: Any, address: Address, options: LaunchOptions
    ) -> None:
        self._fn, self._n, self._spark, self._address, self._options = fn, n, spark, address, options
        self._group = f"headrace-torch-{uuid.uuid4().hex}"

    def run(self) -> None:
        """See `Backend.run`."""
        from pyspark.ml.torch.distributor import TorchDistributor

        gpu = self._use_gpu()
        self._spark.sparkContext.setJobGroup(self._group, "headrace: ranks", interruptOnCancel=True)
        distributor = TorchDistributor(num_processes=self._n, local_mode=False, use_gpu=gpu)
        distributor.logger.setLevel(logging.WARNING)
        iface = "lo" if is_local(self._spark) else ""
        distributor.run(_rank_main, self._fn, self._address, self._options, iface, gpu)

    def _use_gpu(self) -> bool:
        """What the options say, else whether Spark was told to hand out GPUs: a GPU nobody counts is left alone."""
        if self._options.use_gpu is not None:
            return self._options.use_gpu
        amount = self._spark.sparkContext.getConf().get("spark.task.resource.gpu.amount", "0")
        return float(amount) >= 1.0

    def abort(self, *, hard: bool) -> None:
        """See `Backend.abort`; its tasks end when the ranks do."""
        if hard:
            self._spark.sparkContext.cancelJobGroup(self._group)


def _rank_main(fn: Callable[[Worker], Any], address: Address, options: LaunchOptions, iface: str, gpu: bool) -> None:
    """The body of a rank's process; torchrun has set its place in the environment."""
    if iface:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = iface
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    def connect() -> Closable:
        from headrace.comm.torch_dist import TorchCollective

        return TorchCollective(options.transport_timeout_s, gpu=gpu)

    run_rank(fn, address, options, rank, local_rank, connect)
