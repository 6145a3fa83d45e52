"""Metrics of the mirror's processes: memory, CPU and open files of each, reloads, lost workers."""

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mirror.metrics import multiprocess

#: The name of the process that starts the workers, which are named by their numbers.
SUPERVISOR = "supervisor"


class Lifecycle:
    """Events that one process handles for all; the others report no values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode="mostrecent")

        self._successful = gauge(
            "mirror_config_last_reload_successful",
            "Whether the last configuration that was read is in force (1) or not (0).",
        )
        self._success_time = gauge(
            "mirror_config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration in force was read.",
        )
        self._replaced = Counter(
            "mirror_workers_replaced_total",
            "Workers that ended or hung, and were replaced.",
            registry=registry,
        )

    def reloaded(self, *, successful: bool) -> None:
        """Record the result of reading the configuration, at the start or again."""
        self._successful.set(successful)
        if successful:
            self._success_time.set_to_current_time()

    def worker_replaced(self) -> None:
        """Count a worker that ended although the mirror goes on."""
        self._replaced.inc()


class WorkerProcesses(Collector):
    """``process_*`` of all processes of the mirror, labelled with the process."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of each process that runs."""
        metrics: dict[str, Metric] = {}
        for name, pid in multiprocess.processes().items():
            for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                labelled = [each._replace(labels={"worker": name}) for each in metric.samples]
                if metric.name in metrics:
                    metrics[metric.name].samples += labelled
                else:
                    metric.samples = labelled
                    metrics[metric.name] = metric
        return metrics.values()
