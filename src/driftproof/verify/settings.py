"""Settings of verification, as a recipe's `[verify]` gives them."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """The processes in which rewards are computed."""

    processes: Annotated[int, Ge(1), Le(1024)] = 1
    """Verifier processes of each rollout worker."""
    timeout_seconds: Annotated[float, Gt(0)] = 5.0
    """Time for one response; a verifier that needs longer is killed, and the response has no reward."""
