"""Settings of verification, as a recipe's `[verify]` gives them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

DEFAULT_MEMORY_GIB = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """The processes in which rewards are computed, and what becomes of a response that breaks them."""

    processes: Annotated[int, Ge(1), Le(1024)] = 1
    """Verifier processes of each rollout worker."""
    timeout_seconds: Annotated[float, Gt(0)] = 5.0
    """Time for one response; a verifier that needs longer is killed."""
    memory_gib: Annotated[float, Gt(0)] = DEFAULT_MEMORY_GIB
    """Memory that a verifier process may take beyond what it has with its functions imported, in GiB; Linux only."""
    on_timeout: Literal["zero", "none"] | Annotated[float, Ge(-1e9), Le(1e9)] = "zero"
    """Reward of a response that breaks a verifier which otherwise works, by time, memory, an exception or a value that
    is no number: `zero`, `none` (it is not trained on), or a number, where wrong answers get less than 0."""
    together: bool = False
    """Whether functions of TRL's form are given all responses of a group at once, to compare them, in
    `timeout_seconds`; otherwise each alone, so that none can harm another."""
    max_unscored: Annotated[int, Ge(1)] = 5
    """Steps in a row of which no response could be scored before the run is stopped."""
