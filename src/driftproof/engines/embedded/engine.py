"""The embedded engine: decodes any Hugging Face causal language model with full attention, in this process.

Guarantees: every request comes out exactly once; a response depends on its request, the weights and nothing else in the
batch (up to float rounding); no step is spent on a finished response; the prompt of a group is read once; log-probs are
computed only while a request that wants them is under way; new weights drop nothing: responses under way keep their
tokens and their cache, and go on with the new weights.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftproof.engines.embedded.attention import IMPLEMENTATION
from driftproof.engines.embedded.cache import SlotCache
from driftproof.engines.embedded.load import load_weights
from driftproof.engines.embedded.sampling import RowSettings, sample, streams, uniforms
from driftproof.engines.protocol import Capabilities, Completed
from driftproof.errors import EngineError
from driftproof.types import FinishReason, Request, Response
from driftproof.weights.models import UNTRUSTED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 8192
"""Prompt tokens, padding included, in one forward pass."""
_ADMISSION_SHARE = 8
"""Waiting samples are admitted when 1/8 of the slots is free: a prefill per freed slot costs more than it gains."""

_ROW = np.dtype(
    [
        ("job", object),
        ("sample", np.int64),  # index within the group
        ("length", np.int64),  # positions in the cache
        ("next", np.int64),  # token to be read next
        ("written", np.int64),  # response tokens so far
        ("limit", np.int64),  # response tokens at most
        ("stream", np.uint64),  # randomness
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int64),
        ("want_logprobs", np.bool_),
    ]
)


@dataclass(slots=True)
class _Job:
    """A request under way."""

    request: Request
    limit: int
    """Response tokens at most: max_tokens or what the context leaves."""
    admitted: int = 0
    """Samples that have, or had, a slot."""
    responses: dict[int, Response] = field(default_factory=dict)
    """By sample index."""
    error: str = ""

    @property
    def waiting(self) -> int:
        return self.request.samples - self.admitted


class EmbeddedEngine:
    """Continuous batching over `slots` rows of a key-value cache.

    The active responses are always rows [0, active): when one finishes, the last active row moves into its place.
    `tokens_generated` counts response tokens sampled so far, `busy_seconds` the time `collect` spent with work to do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        prefill_tokens: int = _PREFILL_TOKENS,
    ) -> None:
        """Take over `model`: its attention function is replaced by an equivalent one and it is put into eval mode.

        Args:
            model: a causal language model.
            slots: responses written at once.
            max_length: tokens of prompt and response together; default the model's `max_position_embeddings`.
            device: where to move the model; default where it is.
            prefill_tokens: prompt tokens read in one forward pass; bounds the memory of long prompts.

        Raises:
            EngineError: a bad number, or a model whose attention or cache this engine cannot reproduce.
        """
        if slots < 1 or prefill_tokens < 1:
            raise EngineError(f"slots is {slots} and prefill_tokens {prefill_tokens}; both must be at least 1")
        config = model.config.get_text_config()
        _check_model(model, config)
        self.slots = slots
        self.max_length = _check_length(config, max_length)
        self.tokens_generated = 0
        self.busy_seconds = 0.0

        self._model = model if device is None else model.to(device)
        self._model.eval()
        self._model.set_attn_implementation(IMPLEMENTATION)
        self._device: torch.device = model.device
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        self._prefill_tokens = prefill_tokens
        # One row more than slots: it keeps the prompt of a group of which only a part has been admitted.
        self._cache = SlotCache(layers=config.num_hidden_layers, rows=slots + 1, limit=self.max_length)
        self._rows = np.zeros(slots, dtype=_ROW)
        self._active = 0
        self._tokens = np.zeros((slots, 1), dtype=np.int32)
        self._logprobs = np.zeros((slots, 1), dtype=np.float32)
        self._stop_ids = np.full((slots, 1), -1, dtype=np.int64)
        self._settings: RowSettings | None = None
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._keys: set[int] = set()
        self._completed: list[Completed] = []
        self._closed = False

    @classmethod
    def from_directory(
        cls,
        path: Path,
        *,
        slots: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> EmbeddedEngine:
        """The engine of a Hugging Face model directory.

        Raises:
            EngineError: the directory cannot be opened or lacks weights.
        """
        from transformers import AutoModelForCausalLM

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
        return cls(model, slots=slots, max_length=max_length, device=device)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(logprobs=True, follows_weights=True)

    @property
    def counters(self) -> dict[str, float]:
        return {}

    @property
    def room(self) -> int:
        """Free slots that no waiting sample will take."""
        return max(0, self.slots - self._active - self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request, first in, first out; a group may be larger than `slots`.

        Raises:
            EngineError: closed, key already under way, or a prompt that is empty, too long or outside the vocabulary.
        """
        prompt = np.asarray(request.prompt_tokens)
        where = f"request {request.key} (prompt {request.prompt.index})"
        if self._closed:
            raise EngineError(f"{where}: the engine is closed")
        if request.key in self._keys:
            raise EngineError(f"{where}: a request with this key is already under way; keys must be unique")
        if request.samples < 1:
            raise EngineError(f"{where}: samples is {request.samples}; at least 1 response must be wanted")
        if not len(prompt):
            raise EngineError(f"{where}: the prompt has no tokens")
        if len(prompt) >= self.max_length:
            raise EngineError(
                f"{where}: the prompt has {len(prompt)} tokens and leaves no room for a response in a context of "
                f"{self.max_length}; drop the prompt or raise max_length"
            )
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            raise EngineError(
                f"{where}: token ids range from {prompt.min()} to {prompt.max()}, the model's vocabulary from 0 to "
                f"{self._vocabulary - 1}; the tokenizer belongs to another model"
            )
        self._keys.add(request.key)
        limit = min(request.sampling.max_tokens, self.max_length - len(prompt))
        self._queue.append(_Job(request=request, limit=limit))
        self._waiting += request.samples

    def collect(self) -> list[Completed]:
        """Admit what fits, decode one token of every active response, and return the requests completed by it.

        A request fails when the model's logits for it are not finite.
        """
        if self._active or self._queue:
            started = time.perf_counter()
            with torch.inference_mode():
                if self._may_admit():
                    self._admit()
                if self._active:
                    self._decode()
            self.busy_seconds += time.perf_counter() - started
        completed, self._completed = self._completed, []
        return completed

    def load(self, snapshot: Path) -> None:
        """Take the weights of a snapshot directory, in place; responses under way go on with them.

        Raises:
            EngineError: not a snapshot of this model; the old weights stay.
            FileNotFoundError: no weights there, or no longer; the old weights stay.
        """
        load_weights(self._model, snapshot)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that are in memory: a `state_dict` of the same architecture.

        Raises:
            EngineError: a tensor that is missing, unknown or of another shape; the old weights stay.
        """
        own = self._model.state_dict()
        wrong = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
        if wrong:
            raise EngineError(
                f"these weights are of another model: {sorted(wrong)[:3]} differ, are missing or not known"
            )
        for name, target in own.items():
            target.copy_(state[name])

    def close(self) -> None:
        """Drop all work and the cache. The model stays with its owner."""
        self._closed = True
        self._active = self._waiting = 0
        self._queue.clear()
        self._keys.clear()
        self._completed.clear()
        self._rows = np.zeros(0, dtype=_ROW)
        self._cache = SlotCache(layers=0, rows=0, limit=0)

    # Admission: from the queue into slots.

    def _may_admit(self) -> bool:
        free = self.slots - self._active
        if not self._queue or not free:
            return False
        return self._active == 0 or free * _ADMISSION_SHARE >= self.slots or free >= self._waiting

    def _admit(self) -> None:
        """Give the free slots to waiting samples; prompts read here also get their responses' first tokens."""
        fresh: list[tuple[_Job, int]] = []
        while self._queue and (free := self.slots - self._active - sum(count for _, count in fresh)):
            job = self._queue[0]
            count = min(free, job.waiting)
            if job.admitted:
                self._resume(job, count)
            else:
                fresh.append((job, count))
            job.admitted += count
            self._waiting -= count
            if not job.waiting:
                self._queue.popleft()
        if fresh:
            self._prefill(fresh)

    def _resume(self, job: _Job, count: int) -> None:
        """Further samples of a group whose prompt was read before: they start from its kept row.

        They read the prompt's last token themselves, with the weights of now.
        """
        first = self._active
        prompt = job.request.prompt_tokens
        self._start(job, count, from_sample=job.admitted, length=len(prompt) - 1)
        self._rows["next"][first : self._active] = prompt[-1]
        targets = np.arange(first, self._active)
        self._cache.copy_rows(np.full(count, self.slots), targets, len(prompt) - 1)

    def _prefill(self, fresh: list[tuple[_Job, int]]) -> None:
        """Read each prompt once, hand its keys and values to its rows, and sample the rows' first tokens."""
        partial = fresh[-1][0] if fresh[-1][0].waiting else None
        fresh.sort(key=lambda entry: -len(entry[0].request.prompt_tokens))
        prompts = [job.request.prompt_tokens for job, _ in fresh]
        first = self._active
        logits = torch.cat([self._read(prompts[a:b], first + a) for a, b in self._prefill_batches(prompts)])
        for job, count in fresh:
            self._start(job, count, from_sample=0, length=len(job.request.prompt_tokens))
        source = np.repeat(np.arange(len(fresh)), [count for _, count in fresh])
        targets = np.arange(first, self._active)
        if partial is not None:
            kept = first + next(i for i, (job, _) in enumerate(fresh) if job is partial)
            self._cache.copy_rows(np.array([kept]), np.array([self.slots]), len(partial.request.prompt_tokens))
        elsewhere = first + source != targets
        self._cache.copy_rows(first + source[elsewhere], targets[elsewhere], len(prompts[0]))
        self._accept(first, logits[torch.as_tensor(source, device=self._device)])

    def _prefill_batches(self, prompts: list[NDArray[np.int32]]) -> Iterator[tuple[int, int]]:
        """Ranges of prompts, longest first, that fit the token budget when padded; a longer prompt is alone."""
        start = 0
        while start < len(prompts):
            stop = start + max(1, self._prefill_tokens // len(prompts[start]))
            yield start, min(stop, len(prompts))
            start = stop

    def _read(self, prompts: list[NDArray[np.int32]], first: int) -> Tensor:
        """Write the prompts' keys and values into rows from `first` on; returns the last tokens' logits [B, V]."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        ids = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        input_ids, last = self._tensor(ids), self._tensor(lengths - 1)
        for start in range(0, longest, self._prefill_tokens):
            stop = min(longest, start + self._prefill_tokens)
            self._cache.write_span(first, first + len(prompts), start, stop)
            output = self._model(
                input_ids=input_ids[:, start:stop],
                position_ids=torch.arange(start, stop, device=self._device).expand(len(prompts), -1),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=(last - start).clamp(max=stop - start - 1)[:, None],
            )
        logits: Tensor = output.logits[:, 0]
        return logits

    def _start(self, job: _Job, count: int, *, from_sample: int, length: int) -> None:
        """Make the next `count` rows active, for the samples of `job` from index `from_sample` on."""
        first, self._active = self._active, self._active + count
        sampling = job.request.sampling
        rows = self._rows[first : self._active]
        rows["job"] = job
        rows["sample"] = np.arange(from_sample, from_sample + count)
        rows["length"] = length
        rows["written"] = 0
        rows["limit"] = job.limit
        rows["stream"] = streams(sampling.seed, rows["sample"])
        rows["temperature"] = sampling.temperature
        rows["top_p"] = sampling.top_p
        rows["top_k"] = sampling.top_k
        rows["want_logprobs"] = job.request.want_logprobs
        stop_ids = np.array(sampling.stop_ids, dtype=np.int64)
        self._stop_ids = _widen(self._stop_ids, len(stop_ids), fill=-1)
        self._stop_ids[first : self._active] = -1
        self._stop_ids[first : self._active, : len(stop_ids)] = stop_ids
        self._settings = None

    # Decoding: one token for every active row.

    def _decode(self) -> None:
        rows = self._rows[: self._active]
        longest = int(rows["length"].max()) + 1
        positions = self._tensor(rows["length"])
        self._cache.write_next(positions, longest)
        seen = torch.arange(longest, device=self._device) <= positions[:, None]
        output = self._model(
            input_ids=self._tensor(rows["next"])[:, None],
            position_ids=positions[:, None],
            attention_mask=seen[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        rows["length"] += 1
        self._accept(0, output.logits[:, -1])

    def _accept(self, first: int, logits: Tensor) -> None:
        """Sample a token for each of rows [first, active) from `logits` [active - first, V], and retire what ends."""
        rows = self._rows[first : self._active]
        written = rows["written"]
        want_logprobs = bool(rows["want_logprobs"].any())
        sampled, logprobs = sample(
            logits, self._row_settings(first), uniforms(rows["stream"], written), want_logprobs=want_logprobs
        )
        tokens = sampled.cpu().numpy()
        longest = int(written.max()) + 1
        index = np.arange(first, self._active)
        self._tokens = _widen(self._tokens, longest)
        self._tokens[index, written] = tokens
        if logprobs is not None:
            self._logprobs = _widen(self._logprobs, longest)
            self._logprobs[index, written] = logprobs.cpu().numpy()
        rows["next"] = tokens
        rows["written"] += 1
        self.tokens_generated += len(tokens)

        broken = tokens == logits.shape[-1]
        stopped = (self._stop_ids[first : self._active] == tokens[:, None]).any(axis=1)
        ended = broken | stopped | (rows["written"] >= rows["limit"])
        if ended.any():
            for row in np.flatnonzero(ended).tolist():
                self._finish(first + row, stopped=bool(stopped[row]), broken=bool(broken[row]))
            self._close_gaps(first + np.flatnonzero(ended))

    def _row_settings(self, first: int) -> RowSettings:
        if first == 0 and self._settings is not None:
            return self._settings
        rows = self._rows[first : self._active]
        settings = RowSettings.of(
            rows["temperature"], rows["top_k"], rows["top_p"], vocabulary=self._vocabulary, device=self._device
        )
        if first == 0:
            self._settings = settings
        return settings

    def _finish(self, row: int, *, stopped: bool, broken: bool) -> None:
        """Take the response of a row; complete its request when it was the last."""
        record = self._rows[row]
        job: _Job = record["job"]
        request, written = job.request, int(record["written"])
        if broken:
            job.error = (
                f"request {request.key} (prompt {request.prompt.index}): the model's logits are not finite at response "
                f"token {written - 1}; the weights have probably diverged"
            )
        job.responses[int(record["sample"])] = Response(
            tokens=self._tokens[row, :written].copy(),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            behavior_logprobs=self._logprobs[row, :written].copy() if request.want_logprobs else None,
        )
        if len(job.responses) < request.samples:
            return
        self._keys.remove(request.key)
        responses = () if job.error else tuple(job.responses[i] for i in range(request.samples))
        self._completed.append(Completed(request=request, responses=responses, error=job.error))

    def _close_gaps(self, ended: NDArray[np.int64]) -> None:
        """Move the last active rows into the places of the ended ones."""
        remaining = self._active - len(ended)
        survives = np.ones(self._active, dtype=np.bool_)
        survives[ended] = False
        source = remaining + np.flatnonzero(survives[remaining:])
        target = np.flatnonzero(~survives[:remaining])
        for per_row in (self._rows, self._tokens, self._logprobs, self._stop_ids):
            per_row[target] = per_row[source]
        self._cache.copy_rows(source, target, int(self._rows["length"][target].max(initial=0)))
        self._rows["job"][remaining : self._active] = None
        self._active = remaining
        self._settings = None

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values.copy()).to(self._device)


def _check_model(model: PreTrainedModel, config: Any) -> None:
    """Refuse what would be decoded wrongly."""
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise EngineError(f"{name} takes no position_ids; this engine decodes rows of unequal length by them")
    if getattr(config, "attn_logit_softcapping", None) is not None or not model._supports_sdpa:
        raise EngineError(
            f"{name} needs an attention that torch's scaled_dot_product_attention does not compute; "
            "serve it with vLLM or SGLang"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise EngineError(
            f"{name} has {', '.join(sorted(kinds))} layers; this engine decodes full attention only, "
            "serve it with vLLM or SGLang"
        )


def _check_length(config: Any, wanted: int | None) -> int:
    """The context to use: `wanted` or the model's, within what the model can do."""
    longest = getattr(config, "max_position_embeddings", None)
    length = longest if wanted is None else wanted
    if length is None:
        raise EngineError("the model's configuration names no max_position_embeddings; give max_length")
    if length < 2 or (longest is not None and length > longest):
        raise EngineError(f"max_length is {length}; it must be at least 2 and at most the model's {longest} positions")
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if slides else None
    if window is not None and length > window:
        raise EngineError(
            f"max_length is {length}, but the model's attention slides beyond {window} tokens, which this engine does "
            f"not decode; give max_length={window} or less"
        )
    return int(length)


def _widen(array: NDArray[Any], width: int, fill: int = 0) -> NDArray[Any]:
    """`array` [R, W] with at least `width` columns, by doubling."""
    if array.shape[1] >= width:
        return array
    wider = np.full((len(array), max(width, 2 * array.shape[1])), fill, dtype=array.dtype)
    wider[:, : array.shape[1]] = array
    return wider


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
