"""The messages between a rollout worker and the inbox, as JSON.

Guarantees: a message that exists is well-formed by itself: no unknown field, no text for a number, finite numbers,
log-probs as long as their tokens. A bad group does not take the others of its request down: it becomes a `Refusal`,
which is as small however much is wrong with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from driftproof.tasks.chat import chat_messages
from driftproof.types import Request

MAX_PROMPTS = 64
"""Groups leased by one request."""
MAX_GROUPS = 64
"""Groups in one request."""
MAX_RESPONSES = 1024
"""Responses of one group."""
SHOWN_PROBLEMS = 8
"""Problems that one refusal names; the rest is counted."""

Count = Annotated[int, Field(ge=0)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Logprob = Annotated[float, Field(ge=-1e9, le=0, allow_inf_nan=False, description="nats")]
Reward = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
WorkerName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="letters, digits, `.`, `_` and `-`, at most 64")
]
State = Literal["running", "stopping", "finished"]


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown_fields(cls, value: Any) -> Any:
        """Each unknown field would be a problem of its own, and there may be as many as fit into a body."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + SHOWN_PROBLEMS:
            raise ValueError(f"{len(value):,} fields; known are {', '.join(cls.model_fields)}")
        return value


class ChatMessage(Message):
    role: Literal["system", "user", "assistant"]
    content: str


class SamplingMessage(Message):
    """How responses are to be drawn: softmax(logits / temperature), cut to top_k, then to top_p."""

    max_tokens: Count = Field(description="most tokens of a response, the stop token included")
    temperature: float = Field(description="0 is greedy")
    top_p: float = Field(description="1 is off")
    top_k: Count = Field(description="0 is off")
    stop_ids: tuple[TokenId, ...] = Field(description="token ids that end a response")
    seed: Count


class PromptMessage(Message):
    """One group to be written."""

    dispatch: Count = Field(description="the number of this group; give it back with the responses")
    prompt: str
    system: str = Field(description="empty where there is none")
    messages: list[ChatMessage] = Field(description="prompt and system for servers with a chat route")
    chat_template_kwargs: dict[str, Any] = Field(description="variables of the chat template, for such servers")
    prompt_tokens: list[TokenId] = Field(description="what the learner trains on, its chat template applied")
    samples: Count = Field(description="responses wanted")
    sampling: SamplingMessage
    want_logprobs: bool = Field(description="whether every response must carry the log-probs it was sampled with")

    @classmethod
    def of(cls, request: Request, chat_template_kwargs: Mapping[str, Any]) -> Self:
        prompt = request.prompt
        return cls(
            dispatch=request.key,
            prompt=prompt.text,
            system=prompt.system,
            messages=[ChatMessage.model_validate(message) for message in chat_messages(prompt)],
            chat_template_kwargs=dict(chat_template_kwargs),
            prompt_tokens=request.prompt_tokens.tolist(),
            samples=request.samples,
            sampling=SamplingMessage(**asdict(request.sampling)),
            want_logprobs=request.want_logprobs,
        )


class Prompts(Message):
    """The groups to be written now; none where no group is admitted, until the learner has done a step."""

    state: State = Field(description="a worker may go home when it is not `running`")
    step: Count | None = Field(description="of the newest weights; null before the first are published")
    lease_seconds: float = Field(description="after so long a group may be given to another worker")
    retry_after_seconds: float = Field(description="how long to wait before asking again; 0 where there are prompts")
    prompts: list[PromptMessage]


class ResponseMessage(Message):
    """One response, as token ids, or as text where the engine has no ids; not both."""

    tokens: list[TokenId] | None = Field(
        fail_fast=True, default=None, min_length=1, description="the stop token included, the prompt excluded"
    )
    text: str | None = Field(default=None, description="tokenized by the learner, and recorded as re-tokenized")
    finish_reason: Literal["stop", "length"] = Field(description="`stop`: a stop token was written")
    logprobs: list[Logprob] | None = Field(
        fail_fast=True,
        default=None,
        description="one per token, of the distribution sampled from; exactly where want_logprobs is true",
    )
    reward: Reward | None = Field(default=None, description="where not given, the task's verifier decides")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tokens is None) == (self.text is None):
            raise ValueError("give either tokens or text")
        if self.logprobs is not None and len(self.logprobs) != len(self.tokens or ()):
            raise ValueError(f"logprobs has {len(self.logprobs)} values for {len(self.tokens or ())} tokens")
        return self


class GroupMessage(Message):
    """One prompt's responses."""

    dispatch: Count
    worker: WorkerName = Field(default="anonymous", description="under which it was leased")
    responses: list[ResponseMessage] = Field(
        min_length=1, max_length=MAX_RESPONSES, description="as many as `samples` of the prompt"
    )


class Refusal(BaseModel):
    """A group that is not well-formed."""

    dispatch: int | None = None
    """Its number, where it can be read."""
    problems: tuple[tuple[tuple[int | str, ...], str], ...]
    """(where in the group, what is wrong), the first few."""
    count: int
    """Problems in all."""


def read_group(value: Any, max_tokens: int) -> GroupMessage | Refusal:
    """The group of a JSON value, or why it is none; of a response that is too long nothing is kept."""
    try:
        group = GroupMessage.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:SHOWN_PROBLEMS]
        wrong = ((problem["loc"], problem["msg"].removeprefix("Value error, ")) for problem in found)
        return Refusal(problems=tuple(wrong), count=error.error_count())
    said = "{} tokens, the stop token included; max_tokens is {}"
    lengths = {position: len(response.tokens or ()) for position, response in enumerate(group.responses)}
    long = [
        (("responses", position, "tokens"), said.format(length, max_tokens))
        for position, length in lengths.items()
        if length > max_tokens
    ]
    return Refusal(dispatch=group.dispatch, problems=tuple(long[:SHOWN_PROBLEMS]), count=len(long)) if long else group


class Groups(Message):
    """Written groups."""

    groups: list[GroupMessage | SkipJsonSchema[Refusal]] = Field(min_length=1, max_length=MAX_GROUPS)


class Outcome(Message):
    """The outcome of one group of a request."""

    dispatch: int | None = Field(description="null where the group has none that can be read")
    outcome: Literal["accepted", "duplicate", "refused"] = Field(
        description="`duplicate`: it is recorded already, or was given to another worker when its lease had expired"
    )
    problems: list[str] = Field(default=[], description="why it was refused, each with its field")


class Outcomes(Message):
    """The outcomes of the groups, in their order."""

    groups: list[Outcome]


class Problem(Message):
    """Why a request was refused."""

    error: str


class SomeRefused(Problem):
    """The outcomes of the groups, in their order; none where the request as a whole cannot be read."""

    groups: list[Outcome] = []


class Identity(Message):
    """A proof of who serves here."""

    url: str = Field(description="the address in the run's inbox.json")
    proof: str = Field(description="HMAC-SHA256 with the token as its key")


class WeightsFile(Message):
    name: str
    size: Count = Field(description="bytes")
    url: str = Field(description="path of the route that sends it")


class Weights(Message):
    """A published snapshot: a Hugging Face model directory."""

    step: Count
    path: str = Field(description="where it lies on the learner's machine")
    files: list[WeightsFile]


class RunStatus(Message):
    """The ledger's counts of now."""

    state: State
    step: Count = Field(description="optimizer steps done")
    steps: Count = Field(description="of the whole run")
    dispatched: Count
    leased: Count
    ready: Count
    trained: Count


def field_path(parts: Iterable[int | str]) -> str:
    """`groups[2].responses[0].tokens[17]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:60]}" for part in parts).removeprefix(".")


def shown(problems: list[str], count: int = 0) -> list[str]:
    """The first problems, and how many more of `count` there are; storable, whatever a sender called its fields."""
    rest = max(len(problems), count) - SHOWN_PROBLEMS
    first = [problem.encode(errors="backslashreplace").decode() for problem in problems[:SHOWN_PROBLEMS]]
    return [*first, f"and {rest} more"] if rest > 0 else first
