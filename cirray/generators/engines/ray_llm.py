"""The engine `ray_llm`: Ray Data answers the questions of a whole stage, which is done in `cirray.pipelines.texts`."""

from typing import NoReturn

from cirray.core.errors import ConfigError
from cirray.generators.engines.config import ENGINES, RayLlmConfig


@ENGINES.register("ray_llm")
def _elsewhere(settings: RayLlmConfig, device: str) -> NoReturn:
    raise ConfigError(
        "The engine 'ray_llm' answers whole data sets, which `cirray generate` asks of it; elsewhere start a server "
        f"(vllm serve {settings.source}) and take engine kind 'http', or take 'hf'."
    )
