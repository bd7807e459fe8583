import pytest
import torch

from driftproof.logprobs import Head

WEIGHT = torch.ones(5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_VH": torch.ones(5)}, r"the head's weight has shape \[5\]; it must be \[V, H\]"),
        ({"bias_V": torch.ones(2)}, r"the head's bias has shape \[2\] beside a weight of \[5, 2\]; it must be \[5\]"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a positive number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"softcap": -1.0}, "softcap is -1.0; it must be a positive number, or None for no cap"),
        ({"softcap": float("inf")}, "softcap is inf"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Head(**({"weight_VH": WEIGHT} | arguments))
