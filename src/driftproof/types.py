"""The nouns of driftproof: what travels between engines, ledger and learner.

Everything here is frozen and checked where it is made: a `Group` that exists is well-formed, so no later room has to
ask again whether lengths agree, log-probs are finite or rewards are numbers. What holds arrays compares by identity.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from driftproof.errors import GroupError, TaskError

Tokens = NDArray[np.int32]
"""Token ids, int32."""

Baseline = Literal["mean", "mean-std", "leave-one-out"]
"""`mean`: r - mean(r), the default (arXiv 2606.03070, Eq. 1). `mean-std`: that over (std + 1e-6), with the unbiased
standard deviation (arXiv 2402.03300; verl). `leave-one-out`: r - mean of the others (arXiv 2402.14740)."""


REWARD_PARTS = "reward_parts"
"""Key of a group's facts under which the rewards of several functions stand, by the functions' names."""


class Channel(StrEnum):
    """An optional per-token input of an objective."""

    BEHAVIOR_LOGPROBS = "behavior_logprobs"
    PROXIMAL_LOGPROBS = "proximal_logprobs"
    REFERENCE_LOGPROBS = "reference_logprobs"
    ENTROPY = "entropy"
    VALUES = "values"


GROUP_CHANNELS = frozenset({Channel.BEHAVIOR_LOGPROBS})
"""Channels that come with the group, exactly when the objective needs them; the learner computes the others."""


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    """The policy wrote a stop token; it is the response's last token and is trained."""
    LENGTH = "length"
    """The token budget was used up."""
    FAILED = "failed"
    """The engine could not write it, again and again: no tokens, no reward."""


MOST_COLUMN_CHARACTERS = 2**20
"""Most characters of a prompt's columns, written as JSON."""
_NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question of a task, such as `Prompt(index=3, text="47+85=", answer="132")`."""

    index: int
    """Position in the task's split, 0-based."""
    text: str
    """The user's message; the last one of a conversation."""
    answer: str
    """The text that the verifier compares with."""
    system: str = ""
    """System message, for models with a chat template."""
    turns: tuple[tuple[str, str], ...] = ()
    """Role and content of the messages before `text`, such as worked examples; for models with a chat template."""
    columns: Mapping[str, Any] = field(default_factory=lambda: _NO_COLUMNS, hash=False)
    """The columns of its row, for reward functions: JSON values, at most `MOST_COLUMN_CHARACTERS` of them as JSON."""
    conversational: bool = field(default=False, compare=False)
    """Whether its row has it as chat messages; reward functions of TRL's form are then given messages, too."""
    source: str = field(default="", compare=False)
    """FILE:LINE of its row, for errors; empty where it has none."""

    def __post_init__(self) -> None:
        if self.columns:
            _check_columns(self.columns)

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The messages of a chat: system, the turns, and the user's text."""
        system = [("system", self.system)] if self.system else []
        said = (*system, *self.turns, ("user", self.text))
        return tuple({"role": role, "content": content} for role, content in said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a response is drawn. The distribution is softmax(logits / temperature), cut to top_k, then to top_p."""

    max_tokens: int
    """Most tokens a response may have, the stop token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """1 is off."""
    top_k: int = 0
    """0 is off."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a response."""
    seed: int = 0
    """Seed of this request; sample j at position t depends on (seed, j, t) and the probabilities alone."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; a response needs at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 is off)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or a positive count")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt handed to an engine, to be answered `samples` times."""

    key: int
    """Chosen by the caller, given back with the responses; unique among the requests under way."""
    prompt: Prompt
    prompt_tokens: Tokens
    """int32 [P], P >= 1."""
    samples: int
    """Responses wanted, G."""
    sampling: Sampling
    want_logprobs: bool = False
    """Whether each response must carry the log-probs of the distribution it was sampled from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """One sampled completion, as an engine returns it."""

    tokens: Tokens
    """int32 [T], the stop token included, the prompt excluded."""
    finish_reason: FinishReason
    behavior_logprobs: NDArray[np.float32] | None = None
    """float32 [trained tokens], nats, of the distribution sampled from; None unless asked for."""
    reward: float | None = None
    """Known already for recorded traces, NaN for those without one; None for fresh responses, which are scored."""
    retokenized: bool = False
    """True when the learner's tokenizer made the tokens from text; False when they were sampled."""
    trained: NDArray[np.bool_] | None = None
    """bool [T]: the tokens that the policy wrote and the loss sees; the others are context. None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verification of one response: a reward, or the reason why there is none."""

    reward: float | None
    problem: str = ""
    """Empty, or how the verification went wrong (time limit, crash, a reward that is no number); with a reward: the
    response broke a verifier that otherwise works."""
    parts: tuple[tuple[str, float | None], ...] = ()
    """The rewards that several functions gave, by their names, before weights; None: none on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """One prompt with its G responses and rewards: the unit that is leased, committed, trained and counted.

    Responses lie one behind the other in flat arrays. A group of two responses, of 3 and 1 tokens:
    `response_tokens=[5, 6, 1, 1], response_lengths=[3, 1], rewards=[1.0, 0.0]`. A response whose context was rewritten
    on the way has several sequences: there are S of them, S > G, and `sequence_of` says which response each is of.
    """

    prompt_index: int
    prompt_tokens: Tokens
    """int32 [P]."""
    response_tokens: Tokens
    """int32 [sum of lengths]."""
    response_lengths: NDArray[np.int32]
    """int32 [S], one per sequence; S = G without `sequence_of`."""
    rewards: NDArray[np.float64]
    """float64 [G]; NaN marks a response without a reward, and `problems` says why."""
    finish_reasons: tuple[FinishReason, ...]
    problems: tuple[str, ...] = ()
    """[G] or empty: per response "" or how its verification went wrong; see `Verdict.problem`."""
    behavior_logprobs: NDArray[np.float32] | None = None
    """float32 [trained tokens], or None when the objective does not need it."""
    retokenized: bool = False
    """True when the learner's tokenizer made the tokens of a response from text."""
    trained: NDArray[np.bool_] | None = None
    """bool [sum of lengths]: the tokens that the policy wrote and the loss sees. None: all."""
    sequence_of: NDArray[np.int32] | None = None
    """int32 [S], ascending: the response of each sequence. None: one sequence each."""
    facts: Mapping[str, Any] | None = None
    """Facts that an environment or a verifier tells of the responses (JSON values); shown, never trained on."""

    def __post_init__(self) -> None:
        _check_group(self)

    @classmethod
    def unchecked(cls, **fields: Any) -> Self:
        """The group of all fields, without a check: they are proven to be those of a group that was made before."""
        group = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(group, name, value)
        return group

    @property
    def size(self) -> int:
        return len(self.rewards)

    @classmethod
    def from_responses(
        cls, prompt_index: int, prompt_tokens: Tokens, responses: Sequence[Response], verdicts: Sequence[Verdict]
    ) -> Self:
        """Join an engine's responses and the verifier's verdicts."""
        if len(responses) != len(verdicts):
            raise GroupError(f"prompt {prompt_index}: {len(responses)} responses but {len(verdicts)} verdicts")
        for position, verdict in enumerate(verdicts):
            if verdict.reward is not None and not math.isfinite(verdict.reward):
                where = f"prompt {prompt_index}, response {position}"
                raise GroupError(f"{where}: reward is {verdict.reward}; rewards must be finite")
        given = [r.behavior_logprobs for r in responses if r.behavior_logprobs is not None]
        if given and len(given) != len(responses):
            raise GroupError(f"prompt {prompt_index}: {len(given)} of {len(responses)} responses carry log-probs")
        problems = tuple(v.problem or ("no reward" if v.reward is None else "") for v in verdicts)
        masked = any(r.trained is not None for r in responses)
        return cls(
            prompt_index=prompt_index,
            prompt_tokens=prompt_tokens,
            response_tokens=_concatenate([r.tokens for r in responses], np.int32),
            response_lengths=np.array([len(r.tokens) for r in responses], dtype=np.int32),
            rewards=np.array([math.nan if v.reward is None else v.reward for v in verdicts], dtype=np.float64),
            finish_reasons=tuple(r.finish_reason for r in responses),
            problems=problems if any(problems) else (),
            behavior_logprobs=_concatenate(given, np.float32) if given else None,
            retokenized=any(r.retokenized for r in responses),
            trained=_concatenate(map(_mask, responses), np.bool_) if masked else None,
            facts=_parts(verdicts),
        )

    def split(self) -> list[Tokens]:
        """The sequences' token ids, S arrays."""
        return np.split(self.response_tokens, np.cumsum(self.response_lengths)[:-1])

    def split_trained(self) -> list[NDArray[np.bool_]]:
        """The sequences' masks of trained tokens, S arrays."""
        trained = np.ones(len(self.response_tokens), bool) if self.trained is None else self.trained
        return np.split(trained, np.cumsum(self.response_lengths)[:-1])

    @property
    def reward_parts(self) -> Mapping[str, Sequence[float | None]]:
        """The rewards of each of several functions, [G], None where it gave none; empty where there is one function."""
        parts: Mapping[str, Sequence[float | None]] = (self.facts or {}).get(REWARD_PARTS, {})
        return parts

    @property
    def trained_lengths(self) -> NDArray[np.int32]:
        """int32 [S]: trained tokens of each sequence."""
        if self.trained is None:
            return self.response_lengths
        return np.array([mask.sum() for mask in self.split_trained()], np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """The groups of one optimizer step, in the order of their dispatch."""

    step: int
    """The step that trains them, 1-based: the first update is step 1."""
    groups: tuple[Group, ...]
    ages: tuple[int, ...]
    """Learner updates between each group's dispatch and this step."""
    weights_ages: tuple[int, ...] = ()
    """The same from the step of the weights that were newest at dispatch; empty where it was not recorded."""

    @property
    def responses(self) -> int:
        return sum(group.size for group in self.groups)

    @property
    def tokens(self) -> int:
        return sum(len(group.response_tokens) for group in self.groups)


def _check_columns(columns: Mapping[str, Any]) -> None:
    try:
        characters = len(json.dumps(dict(columns), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(f"the columns of a prompt are no JSON object: {error}") from error
    if characters > MOST_COLUMN_CHARACTERS:
        raise TaskError(
            f"the columns of a prompt have {characters} characters as JSON; at most {MOST_COLUMN_CHARACTERS} are kept "
            "for reward functions: leave out columns that they do not need"
        )


def _concatenate(arrays: Iterable[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    parts = list(arrays)
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _parts(verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """The facts of a group whose responses were scored by several functions."""
    parts = [dict(verdict.parts) for verdict in verdicts]
    labels = dict.fromkeys(label for of_response in parts for label in of_response)
    return {REWARD_PARTS: {label: [part.get(label) for part in parts] for label in labels}} if labels else None


def _mask(response: Response) -> NDArray[np.bool_]:
    return np.ones(len(response.tokens), bool) if response.trained is None else response.trained


def _check_group(group: Group) -> None:
    where = f"prompt {group.prompt_index}"
    size, sequences, total = group.size, len(group.response_lengths), int(group.response_lengths.sum())
    tokens = len(group.response_tokens)
    if size == 0:
        raise GroupError(f"{where}: a group needs at least one response")
    if len(group.prompt_tokens) == 0:
        raise GroupError(f"{where}: the prompt has no tokens")
    if group.response_lengths.min(initial=0) < 0 or tokens != total:
        raise GroupError(f"{where}: {tokens} response tokens do not match lengths that sum to {total}")
    lowest = min(int(ids.min(initial=0)) for ids in (group.prompt_tokens, group.response_tokens))
    if lowest < 0:
        raise GroupError(f"{where}: a token id is {lowest}; ids start at 0")
    responses = sequences if group.sequence_of is None else size
    if size != responses or len(group.finish_reasons) != responses:
        raise GroupError(f"{where}: {responses} responses, {size} rewards, {len(group.finish_reasons)} finish reasons")
    if group.problems and len(group.problems) != size:
        raise GroupError(f"{where}: {size} responses but {len(group.problems)} problems")
    for position in np.flatnonzero(~np.isfinite(group.rewards)):
        reward = group.rewards[position]
        if not (group.problems and group.problems[position] and math.isnan(reward)):
            raise GroupError(f"{where}, response {position}: reward is {reward}; rewards must be finite")
    _check_episodes(where, group)
    if group.behavior_logprobs is not None:
        _check_logprobs(where, group.behavior_logprobs, group)


def _check_episodes(where: str, group: Group) -> None:
    """Check what only responses of several turns have."""
    tokens, sequences = len(group.response_tokens), len(group.response_lengths)
    trained, owners = group.trained, group.sequence_of
    if trained is not None and (trained.dtype != bool or len(trained) != tokens):
        raise GroupError(f"{where}: trained has {len(trained)} {trained.dtype} for {tokens} response tokens")
    if owners is not None:
        named = np.array_equal(np.unique(owners), np.arange(group.size))
        if len(owners) != sequences or not named or np.any(np.diff(owners) < 0):
            raise GroupError(
                f"{where}: sequence_of is {owners.tolist()} for {sequences} sequences; it must name the "
                f"{group.size} responses in their order"
            )
    if group.facts is not None:
        try:
            json.dumps(dict(group.facts))
        except (TypeError, ValueError) as error:
            raise GroupError(f"{where}: facts are no JSON object: {error}") from error


def _check_logprobs(where: str, logprobs: NDArray[np.float32], group: Group) -> None:
    trained = group.trained
    expected = len(group.response_tokens) if trained is None else int(trained.sum())
    if len(logprobs) != expected:
        kind = "response" if trained is None else "trained"
        raise GroupError(f"{where}: {len(logprobs)} behavior_logprobs for {expected} {kind} tokens")
    bad = np.flatnonzero(~(np.isfinite(logprobs) & (logprobs <= 0)))
    if len(bad):
        token = bad[0] if trained is None else np.flatnonzero(trained)[bad[0]]
        sequence = int(np.searchsorted(np.cumsum(group.response_lengths), token, side="right"))
        response = sequence if group.sequence_of is None else group.sequence_of[sequence]
        where, found = f"{where}, response {response}", logprobs[bad[0]]
        raise GroupError(f"{where}: behavior_logprobs has {found}; a log-probability must be finite and at most 0")
