"""The responses under way, as arrays: row i of each belongs to row i of the key-value cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from driftproof.engines.embedded.sampling import RowSettings, sample, streams, uniforms
from driftproof.engines.embedded.schedule import Job
from driftproof.engines.protocol import name_of
from driftproof.types import FinishReason, Response

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
        ("stopped", np.bool_),  # the last token is a stop token
        ("broken", np.bool_),  # its logits were not finite
    ]
)


class Rows:
    """A table of at most `slots` responses; the active ones are always rows [0, active)."""

    def __init__(self, slots: int, excluded: Tensor | None = None) -> None:
        """`excluded`, int64 [E], are ids that are never sampled."""
        self.active = 0
        self._excluded = excluded
        self._rows = np.zeros(slots, dtype=_ROW)
        self._tokens = np.zeros((slots, 1), dtype=np.int32)
        self._logprobs = np.zeros((slots, 1), dtype=np.float32)
        self._stop_ids = np.full((slots, 1), -1, dtype=np.int64)
        self._settings: RowSettings | None = None
        """Settings of all active rows, kept while the rows stay the same."""

    @property
    def records(self) -> NDArray[np.void]:
        """The active rows in place, with the fields of `_ROW`."""
        return self._rows[: self.active]

    def start(self, job: Job, samples: range, *, length: int, next_token: int = 0) -> None:
        """Append rows for samples of a job, with `length` positions in the cache."""
        sampling = job.request.sampling
        first, self.active = self.active, self.active + len(samples)
        rows = self._rows[first : self.active]
        rows["job"] = job
        rows["sample"] = np.array(samples)
        rows["length"] = length
        rows["next"] = next_token
        rows["written"] = 0
        rows["limit"] = job.limit
        rows["stream"] = streams(sampling.seed, rows["sample"])
        rows["temperature"] = sampling.temperature
        rows["top_p"] = sampling.top_p
        rows["top_k"] = sampling.top_k
        rows["want_logprobs"] = job.request.want_logprobs
        stop_ids = np.array(sampling.stop_ids, dtype=np.int64)
        self._stop_ids = _widen(self._stop_ids, len(stop_ids), fill=-1)
        self._stop_ids[first : self.active] = -1
        self._stop_ids[first : self.active, : len(stop_ids)] = stop_ids
        self._settings = None

    def write(self, first: int, logits: Tensor) -> NDArray[np.int64]:
        """Sample and record a token for each of rows [first, active) from `logits` [active - first, V]; returns the
        indices of the rows whose response ends with it."""
        rows = self._rows[first : self.active]
        written = rows["written"]
        settings = self._settings if first == 0 else None
        if settings is None:
            settings = RowSettings.of(
                rows["temperature"],
                rows["top_k"],
                rows["top_p"],
                vocabulary=logits.shape[-1],
                device=logits.device,
                excluded=self._excluded,
            )
        if first == 0:
            self._settings = settings
        uniform, want_logprobs = uniforms(rows["stream"], written), bool(rows["want_logprobs"].any())
        sampled, logprobs = sample(logits, settings, uniform, want_logprobs=want_logprobs)
        tokens = sampled.cpu().numpy()
        longest = int(written.max()) + 1
        index = np.arange(first, self.active)
        self._tokens = _widen(self._tokens, longest)
        self._tokens[index, written] = tokens
        if logprobs is not None:
            self._logprobs = _widen(self._logprobs, longest)
            self._logprobs[index, written] = logprobs.cpu().numpy()
        rows["next"] = tokens
        rows["written"] += 1
        rows["broken"] = tokens == logits.shape[-1]
        rows["stopped"] = (self._stop_ids[first : self.active] == tokens[:, None]).any(axis=1)
        return first + np.flatnonzero(rows["broken"] | rows["stopped"] | (rows["written"] >= rows["limit"]))

    def retire(self, row: int) -> Job:
        """Hand the response of a row, which ends here, to its job."""
        record = self._rows[row]
        job: Job = record["job"]
        request, written = job.request, int(record["written"])
        if record["broken"]:
            job.error = (
                f"{name_of(request)}: the model's logits are not finite at response token {written - 1}; "
                "the weights have probably diverged"
            )
        job.responses[int(record["sample"])] = Response(
            tokens=self._tokens[row, :written].copy(),
            finish_reason=FinishReason.STOP if record["stopped"] else FinishReason.LENGTH,
            behavior_logprobs=self._logprobs[row, :written].copy() if request.want_logprobs else None,
        )
        return job

    def remove(self, ended: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Close the gaps: the last active rows move into the places of the ended ones. Returns the rows to copy within
        the cache: sources, targets, and how many positions."""
        remaining = self.active - len(ended)
        survives = np.ones(self.active, dtype=np.bool_)
        survives[ended] = False
        source = remaining + np.flatnonzero(survives[remaining:])
        target = np.flatnonzero(~survives[:remaining])
        for per_row in (self._rows, self._tokens, self._logprobs, self._stop_ids):
            per_row[target] = per_row[source]
        self._rows["job"][remaining : self.active] = None
        self.active = remaining
        self._settings = None
        return source, target, int(self._rows["length"][target].max(initial=0))


def _widen(array: NDArray[Any], width: int, fill: int = 0) -> NDArray[Any]:
    """`array` [R, W] with at least `width` columns, by doubling."""
    if array.shape[1] >= width:
        return array
    wider = np.full((len(array), max(width, 2 * array.shape[1])), fill, dtype=array.dtype)
    wider[:, : array.shape[1]] = array
    return wider
