"""Settings of trackers, as a recipe's `[tracking]` gives them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingSettings:
    """Places that the metrics go to besides the ledger."""

    tensorboard: bool = True
    """Whether TensorBoard's event files are written."""
    wandb: str = ""
    """Weights & Biases project; empty is off."""
    trackio: str = ""
    """Trackio project; empty is off."""
