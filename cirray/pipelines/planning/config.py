"""Configuration of `cirray plan`, and the table of GPUs. No torch, no ray."""

import os
from dataclasses import dataclass

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.errors import unknown_name
from cirray.core.fields import Effort, Place


@dataclass(frozen=True)
class Gpu:
    """One card: memory that a program can use (GiB), memory traffic (TB/s), dense bf16 products (TFLOP/s)."""

    memory_gib: float
    bandwidth: float
    tflops: float


GPUS: dict[str, Gpu] = {
    "h200": Gpu(139.0, 4.8, 989.0),
    "h100": Gpu(79.0, 3.35, 989.0),
    "a100": Gpu(79.0, 2.04, 312.0),
    "a100_40": Gpu(39.0, 1.56, 312.0),
    "l40s": Gpu(44.0, 0.86, 362.0),
    "a10": Gpu(22.0, 0.60, 125.0),
    "rtx4090": Gpu(23.5, 1.01, 165.0),
}
"""Stated, not measured: NVIDIA's data sheets (SXM cards; dense bf16 without sparsity), memory rounded down to what the
driver leaves. A program reaches a share of the products (`utilisation`) and most of the traffic."""


CPU = "cpu"


def _this_machine() -> Gpu:
    """Memory and cores of this machine; products and traffic of a core as measured on one with AVX-512 (EPYC, 2026)."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Gpu(memory, 0.02, 0.16 * cores)


class PlanConfig(Config):
    """What a plan assumes where it cannot know."""

    gpu: str = "h200"
    """Card, a name of the table `cirray.pipelines.planning.config.GPUS`; `cpu`: the cores of this machine."""
    memory_gib: float | None = Field(None, gt=0)
    """Usable memory of one card; null: the table's."""
    tflops: float | None = Field(None, gt=0)
    """Dense bf16 products of one card in TFLOP/s; null: the table's."""
    bandwidth: float | None = Field(None, gt=0)
    """Memory traffic of one card in TB/s; null: the table's."""
    utilisation: float = Field(0.4, gt=0, le=1)
    """Share of the products that training and encoding reach (assumed; large matrices reach 0.3 to 0.5)."""
    traffic: float = Field(0.7, gt=0, le=1)
    """Share of the memory traffic that is reached (assumed)."""
    launch_us: float = Field(6.0, gt=0)
    """Microseconds that Python needs to start a kernel: the floor of small batches (assumed; 5 to 10)."""
    reserve_gib: float = Field(2.0, ge=0)
    """Memory of the CUDA context, library workspaces and fragmentation."""
    samples_per_second: float | None = Field(None, gt=0)
    """Measured samples (training), images (embedding) or pairs (generation) a second; null: from the products."""
    rows: int | None = Field(None, ge=1)
    """Triplets or pairs of the run; null: read from its inputs where they are there, else a published count."""
    images: int | None = Field(None, ge=1)
    """Images of the run; null: as `rows`."""
    patch_tokens: int | None = Field(None, ge=1)
    """Tokens of an image; null: as features, towers or their recipe say."""
    patch_width: int | None = Field(None, ge=1)
    """Their width."""
    vocabulary: int = Field(30523, ge=4)
    """Words of a tokenizer that is not there yet."""
    text_tokens: int | None = Field(None, ge=2)
    """Tokens that a batch's texts are padded to; null: the model's `text_length`, the most there can be."""
    answer_tokens: int = Field(24, ge=2)
    """Tokens of a generated or trained answer, end token included (human texts of CIRR: 11 words on average)."""
    picture_tokens: int | None = Field(None, ge=1)
    """Tokens of a picture that a large model sees; null: one for every 28 x 28 pixels."""
    tokens_per_second: float | None = Field(None, gt=0)
    """Measured tokens that a large model writes a second, all servers together; needed for its time."""
    price: tuple[float, float] | None = None
    """Price of a million tokens read, and of a million written, in any currency."""
    disk_gib: float | None = Field(None, gt=0)
    """Free disk where features go; null: not compared."""

    @model_validator(mode="after")
    def _known(self) -> "PlanConfig":
        if self.gpu not in (*GPUS, CPU) and None in (self.memory_gib, self.tflops, self.bandwidth):
            told = unknown_name("gpu", self.gpu, (*GPUS, CPU))
            raise ValueError(f"{told} Or give memory_gib, tflops and bandwidth of another card")
        return self

    @property
    def card(self) -> Gpu:
        """The card, with what was said over the table's."""
        stated = _this_machine() if self.gpu == CPU else GPUS.get(self.gpu, Gpu(0.0, 0.0, 0.0))
        return Gpu(
            self.memory_gib or stated.memory_gib, self.bandwidth or stated.bandwidth, self.tflops or stated.tflops
        )

    def seconds(self, flops: float, written: float, kernels: float, bf16: bool = True) -> float:
        """Time of a pass: products and traffic one after the other, or starting its kernels, whichever is longer.

        Floating-point operations in fp32 run as tf32 at half the rate; operators read as many bytes as they write.
        """
        products = flops / (self.card.tflops * 1e12 * self.utilisation * (1.0 if bf16 else 0.5))
        traffic = 2 * written / (self.card.bandwidth * 1e12 * self.traffic)
        return max(products + traffic, kernels * self.launch_us * 1e-6)


class PlanRun(Config):
    """Count what a run would need."""

    files: tuple[Place, ...] = ()
    """The run's YAML files, the later over the earlier. On the command line: `cirray plan RUN.yaml HARDWARE.yaml`."""
    assignments: tuple[str, ...] = ()
    """Fields of the run over the files'; on the command line `path.to.field=value`."""
    verb: str = ""
    """Verb of the files; empty: a file's name begins with it (`finetune-ptha.yaml`)."""
    plan: PlanConfig = PlanConfig()
    """What the plan assumes."""
    as_json: Effort[bool] = False
    """Print everything as JSON (`--json`)."""
