"""An engine's answers to the prompts of an evaluation: held-out prompts, benchmarks and the lab all ask here.

Guarantees: the same weights, prompts and sampling give the same responses, whatever else is asked beside them. There is
one seed rule: that of a prompt is `sampling.seed` plus its position.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from driftproof.engines.protocol import Completed, Engine
from driftproof.tasks.codec import Codec
from driftproof.types import Prompt, Request, Sampling


def answer(
    engine: Engine, prompts: Mapping[int, Prompt], codec: Codec, sampling: Sampling, samples: int
) -> Iterator[Completed]:
    """Have an idle engine answer each prompt `samples` times; the answers as they come.

    `prompts` are by their positions in the task, which are the keys of the requests.

    Raises:
        EngineError: a prompt can never be answered, or the engine can answer none any more.
    """
    for position, prompt in prompts.items():
        seeded = replace(sampling, seed=sampling.seed + position)
        tokens = codec.encode(prompt)
        engine.submit(Request(key=position, prompt=prompt, prompt_tokens=tokens, samples=samples, sampling=seeded))
    under_way = len(prompts)
    while under_way:
        for completed in engine.collect():
            under_way -= 1
            yield completed
