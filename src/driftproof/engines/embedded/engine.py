"""The embedded engine: decodes any Hugging Face causal language model with full attention, in this process.

Guarantees: every request comes out exactly once; a response depends on its request, the weights and nothing else in the
batch (up to float rounding); no step is spent on a finished response; the prompt of a group is read once; log-probs are
computed only while a request that wants them is under way; new weights drop nothing: responses under way keep their
tokens and their cache, and go on with the new weights.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from driftproof.engines.embedded.cache import SlotCache
from driftproof.engines.embedded.decode import PREFILL_TOKENS, Decoder
from driftproof.engines.embedded.load import load_state, load_weights
from driftproof.engines.embedded.rows import Rows
from driftproof.engines.embedded.schedule import Admission, Job, Schedule
from driftproof.engines.protocol import Capabilities, Completed, check_request, name_of
from driftproof.errors import EngineError
from driftproof.types import Request
from driftproof.weights.models import UNTRUSTED, ids_without_text


class EmbeddedEngine:
    """Continuous batching over `slots` rows of a key-value cache.

    The active responses are always rows [0, active): when one finishes, the last active row moves into its place.
    `tokens_generated` counts response tokens sampled so far, `busy_seconds` the time `collect` spent with work to do.
    """

    capabilities = Capabilities(logprobs=True, follows_weights=True)

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        excluded: Sequence[int] = (),
    ) -> None:
        """Take over `model`: its attention function is replaced by an equivalent one and it is put into eval mode.

        EngineError for a bad number, or a model whose attention or cache this engine cannot reproduce. `max_length`
        counts prompt and response together, by default the model's `max_position_embeddings`; `prefill_tokens`, read
        in one forward pass, bound the memory of long prompts; `excluded` are token ids that are never sampled.
        """
        if slots < 1 or prefill_tokens < 1:
            raise EngineError(f"slots is {slots} and prefill_tokens {prefill_tokens}; both must be at least 1")
        # One row more than slots: it keeps the prompt of a group of which only a part has been admitted.
        self._decoder = Decoder(model.to(device), rows=slots + 1, max_length=max_length, prefill_tokens=prefill_tokens)
        self._schedule = Schedule(slots)
        never = torch.tensor(excluded, dtype=torch.int64, device=self._decoder.device) if excluded else None
        self._rows = Rows(slots, never)
        self._closed = False
        self.slots = slots
        self.max_length = self._decoder.max_length
        self.tokens_generated = 0
        self.busy_seconds = 0.0

    @classmethod
    def from_directory(cls, path: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Self:
        """The engine of a model directory, with `options`, which never samples ids that only pad the vocabulary;
        EngineError where it cannot be opened or lacks weights."""
        if not (path / "config.json").is_file():
            raise EngineError(f"{path} has no config.json; give a Hugging Face model directory")
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, use_safetensors=True, output_loading_info=True, **UNTRUSTED
            )
        except Exception as error:
            # What transformers raises for files that are not in order is of no narrower class.
            raise EngineError(f"{path} cannot be opened as a causal language model: {error}") from error
        if loading["missing_keys"]:
            raise EngineError(f"{path}: the weights lack {', '.join(sorted(loading['missing_keys'])[:3])}")
        return cls(model, **{"excluded": ids_without_text(path)} | options)

    @property
    def counters(self) -> Mapping[str, float]:
        """`tokens_under_way`: tokens of the responses that are being written."""
        return {"tokens_under_way": float(self._rows.records["written"].sum())}

    @property
    def room(self) -> int:
        """Free slots that no waiting sample will take."""
        return max(0, self.slots - self._rows.active - self._schedule.waiting)

    def submit(self, request: Request) -> None:
        """Queue a request, first in, first out; a group may be larger than `slots`."""
        if self._closed:
            raise EngineError(f"{name_of(request)}: the engine is closed")
        check_request(
            request, under_way=self._schedule.keys, vocabulary=self._decoder.vocabulary, max_length=self.max_length
        )
        self._schedule.add(request, min(request.sampling.max_tokens, self.max_length - len(request.prompt_tokens)))

    def collect(self) -> list[Completed]:
        """Admit what fits, decode one token of every active response, and return the requests completed by it."""
        if self._rows.active or self._schedule.waiting:
            started = time.perf_counter()
            with torch.inference_mode():
                self._admit()
                if self._rows.active:
                    rows = self._rows.records
                    logits = self._decoder.next_logits(rows["next"], rows["length"])
                    rows["length"] += 1
                    self._accept(0, logits)
            self.busy_seconds += time.perf_counter() - started
        return self._schedule.take_completed()

    def load(self, snapshot: Path) -> None:
        """Take the weights of a snapshot directory, in place; if it has not all of them, the old weights stay."""
        load_weights(self._decoder.model, snapshot)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that are in memory: a `state_dict` of the same architecture, or the old weights stay."""
        load_state(self._decoder.model, state)

    def close(self) -> None:
        """Drop all work and the cache. The model stays with its owner."""
        self._closed = True
        self._schedule = Schedule(self.slots)
        self._rows = Rows(0)
        self._decoder.cache = SlotCache(layers=0, rows=0, limit=0)

    def _admit(self) -> None:
        """Give free slots to waiting samples; prompts read here also get their responses' first tokens."""
        admissions = self._schedule.admit(self._rows.active)
        if admissions and admissions[0][1].start:
            self._resume(*admissions.pop(0))
        if admissions:
            self._prefill(admissions)

    def _resume(self, job: Job, samples: range) -> None:
        """Start further samples of a group from the kept row of its prompt, whose last token they read anew."""
        first, prompt = self._rows.active, job.request.prompt_tokens
        self._rows.start(job, samples, length=len(prompt) - 1, next_token=int(prompt[-1]))
        targets = np.arange(first, self._rows.active)
        self._decoder.cache.copy_rows(np.full(len(targets), self.slots), targets, len(prompt) - 1)

    def _prefill(self, admissions: list[Admission]) -> None:
        """Read each prompt once, hand its keys and values to its rows, and sample the rows' first tokens."""
        partial = admissions[-1][0] if admissions[-1][0].waiting else None
        admissions.sort(key=lambda admission: -len(admission[0].request.prompt_tokens))
        prompts = [job.request.prompt_tokens for job, _ in admissions]
        first, cache = self._rows.active, self._decoder.cache
        logits = self._decoder.read(prompts, first)
        for job, samples in admissions:
            self._rows.start(job, samples, length=len(job.request.prompt_tokens))
        source = np.repeat(np.arange(len(admissions)), [len(samples) for _, samples in admissions])
        targets = np.arange(first, self._rows.active)
        if partial is not None:
            kept = first + next(i for i, (job, _) in enumerate(admissions) if job is partial)
            cache.copy_rows(np.array([kept]), np.array([self.slots]), len(partial.request.prompt_tokens))
        elsewhere = first + source != targets
        cache.copy_rows(first + source[elsewhere], targets[elsewhere], len(prompts[0]))
        self._accept(first, logits[torch.as_tensor(source, device=logits.device)])

    def _accept(self, first: int, logits: Tensor) -> None:
        """Sample a token for each of rows [first, active) from `logits` [active - first, V], and retire what ends."""
        self.tokens_generated += len(logits)
        ended = self._rows.write(first, logits)
        for row in ended.tolist():
            self._schedule.finish(self._rows.retire(row))
        if len(ended):
            self._decoder.cache.copy_rows(*self._rows.remove(ended))
