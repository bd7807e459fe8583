"""One run of the lab: learner and sampler in turns in one process, on data of a chosen age.

Guarantees: the same learner, objective, task and engine as `driftproof train`; at age 0 the same run as its synchronous
mode, bit for bit where the engine has a slot for every response of a step; the same settings give the same numbers
again, bit for bit, on one machine.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftproof.config import Config
from driftproof.engines.protocol import Completed, generate
from driftproof.evaluation.heldout import evaluate
from driftproof.lab.grid import Cell, cell_config
from driftproof.lab.settings import LabConfig
from driftproof.lab.staleness import Staleness, make_staleness
from driftproof.learner.learner import Learner
from driftproof.ledger.order import PromptOrder
from driftproof.metrics import names
from driftproof.metrics.steps import mean_metrics
from driftproof.rollout.requests import make_request
from driftproof.runtime.build import make_codec, make_learner, make_sampling, make_task, make_verifier, open_engine
from driftproof.tasks.codec import Codec
from driftproof.types import Batch, Channel, FinishReason, Group, Prompt, Request, Response, Verdict
from driftproof.verify.judge import judge

State = dict[str, Tensor]
Row = dict[str, float]
Signals = dict[str, list[float | None]]
Accuracy = Callable[[Learner], float]

SIGNALS = (
    names.REWARD,
    names.POSITIVE_NLL,
    names.NEGATIVE_NLL,
    names.SCALE_IMBALANCE,
    names.GRADIENT_IMBALANCE,
    names.ENTROPY,
    names.GRAD_NORM,
)
"""The metrics that may announce a collapse, kept of every step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A finished run, step by step."""

    cell: Cell
    seconds: float
    rows: Sequence[Row]
    """An evaluation at step 0, every so many steps, and at the last: `step`, `accuracy`, and the means of the learner's
    metrics since the row before."""
    signals: Signals = field(default_factory=dict)
    """Each of `SIGNALS` at every step; None where a step does not have it."""

    @property
    def final(self) -> float:
        """Accuracy after the last step."""
        return self.rows[-1]["accuracy"]


class Sampler:
    """The rollout side: it writes groups and has them scored."""

    def __init__(self, config: Config, want_logprobs: bool) -> None:
        self.task = make_task(config)
        self.codec = make_codec(config)
        self.engine = open_engine(config, config.model.path)
        self.verifier = make_verifier(config, self.task)
        self.sampling = make_sampling(config, self.codec)
        self._samples = config.rollouts.group_size
        self._order = PromptOrder(config.run.seed, len(self.task.train))
        self._want_logprobs = want_logprobs

    def write(self, dispatches: Sequence[int], state: State) -> list[Group]:
        """The groups of some dispatches, written with these weights."""
        self.engine.load_state(state)
        requests = [self._request(dispatch) for dispatch in dispatches]
        answers = zip(requests, generate(self.engine, requests), strict=True)
        completed = [Completed(request=request, responses=responses) for request, responses in answers]
        return judge(self.codec, self.verifier, completed)

    def _request(self, dispatch: int) -> Request:
        prompt = self.task.train[self._order.prompt_of(dispatch)]
        tokens, wanted = self.codec.encode(prompt), self._want_logprobs
        return make_request(
            dispatch, prompt, tokens, samples=self._samples, sampling=self.sampling, want_logprobs=wanted
        )


def run(config: LabConfig, cell: Cell) -> Result:
    """One run of a grid, with an evaluation at step 0, every `lab.evaluate_every` steps, and at the last."""
    started = time.monotonic()
    of_cell = cell_config(config, cell)
    learner = make_learner(of_cell)
    sampler = Sampler(of_cell, Channel.BEHAVIOR_LOGPROBS in learner.objective.needs)
    prompts = sampler.task.heldout[: config.evaluation.prompts]
    with closing(sampler.verifier), closing(sampler.engine):
        if sampler.task.verifier == "exact":
            accuracy = exact_accuracy(prompts, sampler.codec)
        else:
            accuracy = sampled_accuracy(prompts, sampler, config.evaluation.samples)
        rows, signals = _train(config, learner, sampler, make_staleness(config, cell.staleness), accuracy)
    return Result(cell=cell, seconds=time.monotonic() - started, rows=rows, signals=signals)


def _train(
    config: LabConfig, learner: Learner, sampler: Sampler, staleness: Staleness, accuracy: Accuracy
) -> tuple[list[Row], Signals]:
    steps, groups_per_step = config.run.steps, config.learner.groups_per_step
    rows: list[Row] = [{"step": 0, "accuracy": accuracy(learner)}]
    history = {0: _copy(learner)}
    since: list[dict[str, Any]] = []
    signals: Signals = {name: [] for name in SIGNALS}
    planned = [staleness.sources(step, groups_per_step) for step in range(1, steps + 1)]
    oldest = max(done - min(sources) for done, sources in enumerate(planned))
    for step, sources in enumerate(planned, start=1):
        first = (step - 1) * groups_per_step
        groups: dict[int, Group] = {}
        for source in sorted(set(sources)):
            chosen = [first + place for place, of_group in enumerate(sources) if of_group == source]
            groups |= dict(zip(chosen, sampler.write(chosen, history[source]), strict=True))
        ages = tuple(step - 1 - source for source in sources)
        batch = Batch(step=step, groups=tuple(groups[dispatch] for dispatch in sorted(groups)), ages=ages)
        since.append(learner.train(batch))
        for name, series in signals.items():
            series.append(since[-1].get(name))
        history[step] = _copy(learner)
        for old in [update for update in history if update < step - oldest]:
            del history[old]
        if step % config.lab.evaluate_every == 0 or step == steps:
            rows.append({**mean_metrics(since), "step": step, "accuracy": accuracy(learner)})
            since = []
    return rows, signals


def exact_accuracy(prompts: Sequence[Prompt], codec: Codec) -> Accuracy:
    """Mean probability, over prompts, of sampling exactly the answer and the end of the response, without noise."""
    groups = []
    for prompt in prompts:
        tokens = np.array(codec.encode_response(prompt.answer), dtype=np.int32)
        answer = Response(tokens=tokens, finish_reason=FinishReason.STOP)
        groups.append(Group.from_responses(prompt.index, codec.encode(prompt), [answer], [Verdict(reward=1.0)]))
    lengths_R = torch.tensor([len(group.response_tokens) for group in groups])
    response_N = torch.arange(len(lengths_R)).repeat_interleave(lengths_R)

    def accuracy(learner: Learner) -> float:
        logprobs_N = learner.score(groups).logprobs_N.double()
        totals_R = torch.zeros(len(lengths_R), dtype=torch.float64).index_add(0, response_N, logprobs_N.cpu())
        return float(totals_R.exp().mean())

    return accuracy


def sampled_accuracy(prompts: Sequence[Prompt], sampler: Sampler, samples: int) -> Accuracy:
    """Mean reward of so many sampled responses to each prompt."""

    def accuracy(learner: Learner) -> float:
        sampler.engine.load_state(learner.policy.state())
        return evaluate(sampler.engine, prompts, sampler.codec, sampler.verifier, sampler.sampling, samples).sampled

    return accuracy


def _copy(learner: Learner) -> State:
    return {name: tensor.detach().clone() for name, tensor in learner.policy.state().items()}
