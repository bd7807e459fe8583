"""Python imports this module at the start of every process that has its directory on the path: the witness of a storm.

It wraps the ledger's commit and take and the learner's training, as soon as they are imported, with notes for
`benchmarks.chaos.witness`. So the product has no code for it, and what is noted is not what the ledger says.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_taken: dict[int, list[int]] = {}
"""The dispatches of a step's batch, as they lay in it."""


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        wrap = _WRAPPERS.get(name)
        spec = PathFinder.find_spec(name, path) if wrap else None
        if wrap is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            wrap(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def _note(**note: Any) -> None:
    witness.append(Path(os.environ["DRIFTPROOF_FAULTS"]) / witness.NOTES, note)


def _wrap_leases(module: Any) -> None:
    commit = module.LocalLeases.commit

    def noted_commit(ledger: Any, worker: str, groups: Any, *rest: Any) -> int:
        accepted: int = commit(ledger, worker, groups, *rest)
        ours = {dispatch: witness.content(group) for dispatch, group in groups.items()}
        if accepted < len(ours):
            found = {n: _content_of(ledger, n, worker) for n in ours} if accepted else {}
            ours = {dispatch: content for dispatch, content in ours.items() if found.get(dispatch) == content}
        for dispatch, content in ours.items():
            _note(what="commit", dispatch=dispatch, prompt=groups[dispatch].prompt_index, content=content)
        return accepted

    module.LocalLeases.commit = noted_commit


def _wrap_steps(module: Any) -> None:
    take = module.Steps.take

    def noted_take(ledger: Any, count: int) -> Any:
        batch = take(ledger, count)
        if batch is not None:
            trained = ledger.browse("oldest", step=batch.step, limit=len(batch.groups) + 1)
            _taken[batch.step] = [group.dispatch for group in trained]
        return batch

    module.Steps.take = noted_take


def _content_of(ledger: Any, dispatch: int, worker: str) -> str | None:
    """Of a group that `worker` has committed."""
    found = (record.group for record in ledger.records() if (record.dispatch, record.worker) == (dispatch, worker))
    return next(map(witness.content, found), None)


def _wrap_learner(module: Any) -> None:
    train = module.Learner.train

    def noted_train(learner: Any, batch: Any) -> Any:
        before = witness.weights(learner.policy.trained_parameters().items())
        metrics = train(learner, batch)
        groups = zip(_taken.pop(batch.step), map(witness.content, batch.groups), strict=True)
        after = witness.weights(learner.policy.trained_parameters().items())
        _note(what="train", step=batch.step, before=before, after=after, groups=list(groups), pid=os.getpid())
        return metrics

    module.Learner.train = noted_train


_WRAPPERS = {
    "driftproof.ledger.leases": _wrap_leases,
    "driftproof.ledger.steps": _wrap_steps,
    "driftproof.learner.learner": _wrap_learner,
}

if os.environ.get("DRIFTPROOF_FAULTS"):
    sys.path.append(str(Path(__file__).parents[3]))
    from benchmarks.chaos import witness

    sys.meta_path.insert(0, _Finder())
