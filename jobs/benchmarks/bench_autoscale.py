"""Replicas that come and go with the load: when, how long it takes, and what is refused or lost meanwhile.

    python jobs/benchmarks/bench_autoscale.py [root=DIR] [rates=[100,500,900,900,100]] [seconds=20] [fast=true]
        [autoscaling.max_replicas=2] [autoscaling.upscale_delay_s=10]

`cirray serve` with an `autoscaling_config` in place of a fixed number of replicas. Requests leave by the clock, at each
rate for so many seconds, from a process of its own on this machine. Prints every change of the replicas, and a line of
answers for each rate.
"""

import asyncio
import multiprocessing
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from bench_overload import at_rate
from bench_serve import BenchConfig, free_port, request_bytes
from machine import machine
from pydantic import Field
from ray import serve

from cirray.cli.main import guarded, resolve
from cirray.core.config import Config
from cirray.core.environ import private_cluster, set_default
from cirray.core.interrupts import noted
from cirray.core.log import say
from cirray.index.store import open_index
from cirray.serving.config import HAPROXY_PORTS, OWN_CLUSTER, ServeRun
from cirray.serving.launch import fast_path, plan_of, start, stop

LOOK_S = 0.25


class Autoscaling(Config):
    """Settings of Ray Serve."""

    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: float = 16
    upscale_delay_s: float = 10
    downscale_delay_s: float = 30


class AutoscaleConfig(BenchConfig):
    """What is measured."""

    rates: tuple[int, ...] = (100, 500, 900, 900, 100)
    seconds: float = Field(20.0, gt=0, le=120)
    fast: bool = True
    autoscaling: Autoscaling = Autoscaling()


def send(port: int, message: bytes, rates: tuple[int, ...], seconds: float, channel: Connection) -> None:
    """Runs in a process of its own: each rate in turn."""
    for rate in rates:
        begin = time.perf_counter()
        seen = asyncio.run(at_rate(port, message, rate, seconds))
        channel.send((rate, time.perf_counter() - begin, dict(seen.statuses), seen.times))


def watch(begin: float, ended: threading.Event) -> None:
    """Print every change of the replicas until told to stop."""
    before: dict[str, int] = {}
    while not ended.wait(LOOK_S):
        states = serve.status().applications["cirray"].deployments["Retriever"].replica_states
        now = {str(getattr(state, "value", state)).lower(): count for state, count in states.items()}
        if now != before:
            told = ", ".join(f"{count} {state}" for state, count in sorted(now.items()))
            say(f"- {time.perf_counter() - begin:.1f} s: replicas: {told}")
        before = now


def trial(config: AutoscaleConfig, port: int) -> None:
    """All rates, one line each."""
    gallery = open_index(config.index)
    image_id = gallery.ids[0]
    message = request_bytes("id", port, image_id, gallery.picture(image_id))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    words = (port, message, config.rates, config.seconds, sender)
    process = context.Process(target=send, args=words)
    ended, begin = threading.Event(), time.perf_counter()
    watcher = threading.Thread(target=watch, args=(begin, ended))
    process.start()
    watcher.start()
    total: Counter[Any] = Counter()
    for _ in config.rates:
        rate, took, statuses, times = receiver.recv()
        total.update(statuses)
        p50, p99 = 1000 * np.percentile(times or [0.0], [50, 99])
        good, now = statuses.get(200, 0) / took, time.perf_counter() - begin
        say(f"- {now:.1f} s: {rate}/s sent, {good:.0f} answered, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {statuses}")
    process.join()
    time.sleep(config.autoscaling.downscale_delay_s + 10)
    ended.set()
    watcher.join()
    say(f"- in all: {dict(total)}")


def measure(config: AutoscaleConfig) -> None:
    """Serve, send, stop."""
    port = free_port()
    run = ServeRun(root=config.root, checkpoint=config.checkpoint, index=config.index, port=port, fast=config.fast)
    plan = plan_of(run)
    kept = {name: value for name, value in plan.deployment.items() if name != "num_replicas"}
    plan = replace(plan, deployment={**kept, "autoscaling_config": config.autoscaling.to_dict()})
    private_cluster(quiet=False)
    ports = {name: str(free_port()) for name in HAPROXY_PORTS}
    for name, value in {**OWN_CLUSTER, **({**fast_path(), **ports} if config.fast else {})}.items():
        set_default(name, value)
    say(f"{machine()}; {config.autoscaling.to_dict()}")
    with noted() as told:
        start(plan, told)
        time.sleep(3.0)
        trial(config, port)
        stop()


if __name__ == "__main__":
    sys.exit(guarded(lambda: measure(resolve(AutoscaleConfig, [], sys.argv[1:]).config)))
