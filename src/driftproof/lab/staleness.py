"""Rules for which weights write the data of a step: age as something one sets, not something that happens.

A step trains `groups` groups. `sources(step, groups)` says for each of them after which update the weights that write
it were taken (0: the base policy); its age is the updates between that and the step, `step - 1 - source`.
"""

from dataclasses import dataclass

from driftproof.errors import ConfigError, LedgerError
from driftproof.lab.settings import LabConfig
from driftproof.ledger.reader import LedgerReader
from driftproof.run import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactLag:
    """Every batch was written `lag` updates ago; the first `lag` steps by the base policy."""

    lag: int

    def sources(self, step: int, groups: int) -> list[int]:
        return [max(step - 1 - self.lag, 0)] * groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Periodic:
    """New weights reach the sampler every `every` updates: ages 0 to every - 1 in turn (the ASymPO paper's set-up)."""

    every: int

    def sources(self, step: int, groups: int) -> list[int]:
        return [(step - 1) // self.every * self.every] * groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The ages of a real run, step by step, from the start again when they are used up."""

    ages: tuple[tuple[int, ...], ...]
    """Ages of the groups of each step of that run, in updates; at least one step of at least one group."""

    def sources(self, step: int, groups: int) -> list[int]:
        ages = self.ages[(step - 1) % len(self.ages)]
        return [max(step - 1 - ages[group % len(ages)], 0) for group in range(groups)]


Staleness = ExactLag | Periodic | Replay


def make_staleness(config: LabConfig, staleness: int) -> Staleness:
    """The rule for the age of the data."""
    if config.lab.replay is not None:
        try:
            with LedgerReader(RunDirectory(path=config.lab.replay).ledger) as ledger:
                ages = ledger.ages_by_step()
        except LedgerError as error:
            raise ConfigError(f"lab.replay: {error}") from error
        if not ages:
            raise ConfigError(f"{config.lab.replay} has no trained step whose ages could be replayed")
        return Replay(ages=ages)
    if config.lab.schedule == "periodic" and staleness > 0:
        return Periodic(every=staleness)
    return ExactLag(lag=staleness)
