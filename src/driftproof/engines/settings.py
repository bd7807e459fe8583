"""Settings of engines and of sampling, as a recipe's `[engine]` and `[sampling]` give them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """The distribution that responses are drawn from."""

    max_tokens: Annotated[int, Ge(1)] = 256
    """Tokens of a response at most, its stop token included."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Temperature of sampling, at which the learner scores as well; 0.6 to 1.2."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Probability mass of the likeliest tokens that are sampled from; 1 is all."""
    top_k: Annotated[int, Ge(0)] = 0
    """Likeliest tokens that are sampled from; 0 is all."""


def _live_engine(name: object) -> object:
    if name == "recorded":
        raise ValueError(
            "a recorded trace is no engine any more; leave engine.name out and set rollouts.recorded_share = 1 beside "
            "rollouts.path, to train on the trace alone"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The engine that writes responses, and the servers behind it."""

    name: Annotated[Literal["embedded", "openai", "vllm"], BeforeValidator(_live_engine)] = "embedded"
    """Engine: one of our own, servers that speak OpenAI's protocol, or vLLM's, which follow the weights."""
    slots: Annotated[int, Ge(1)] = 128
    """Responses written at once; engines `openai` and `vllm`: by each server."""
    threads: Annotated[int, Ge(1), Le(4096)] | Literal["auto"] = "auto"
    """CPU threads of each worker or launched server; `auto` shares the cores by who is busy, tiny models get one."""
    device: str = "auto"
    """Device of the engine: `cpu`, `cuda`, `cuda:1`; `auto` is the first GPU, if there is one."""
    url: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    """Addresses of the servers of the engines `openai` and `vllm`, one or several, each of one server."""
    model: str = ""
    """Name that the servers know their model by; empty is the first of each."""
    timeout_seconds: Annotated[float, Gt(0)] = 600.0
    """Timeout of one server call, in seconds."""
    attempts: Annotated[int, Ge(1)] = 5
    """Calls for one request before it has failed."""
    retokenize: bool = False
    """Whether the learner's tokenizer may make tokens of a server's text, if the server gives no token ids."""
    api_key_variable: str = ""
    """Environment variable that holds the servers' API key; empty is none."""
    launch: bool = False
    """Whether the run starts, watches and stops a vLLM server of its own."""
    python: Path = Path(".venv-vllm/bin/python")
    """Interpreter of vLLM's environment, which `make vllm` makes."""
    arguments: tuple[str, ...] = ()
    """Further command-line arguments of a launched vLLM."""
    canary_tolerance: Annotated[float, Ge(0)] = 1e-3
    """Nats by which a server's log-probs may differ from those of new weights; 0 does not look."""
