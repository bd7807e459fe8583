"""The scorers of reasoning-gym. Used through the process pool only, like all foreign code.

The answer of such a prompt is JSON, `{"dataset": name, "options": {...}, "index": i, "answer": text}`: the entry is
made anew from it, because scorers look at more of an entry than its answer.
"""

import json
from functools import lru_cache
from typing import Any

try:
    import reasoning_gym
    from reasoning_gym.utils import extract_answer
except ImportError as error:
    raise ImportError(
        f"reasoning-gym is missing ({error}); install it: pip install 'driftproof[reasoning-gym]'"
    ) from error


def score(text: str, answer: str) -> float:
    """The dataset's own score of the text in the last `<answer>` tags, or of the whole text where there are none.

    ValueError where the dataset made another entry than the task's, as another version of it may.
    """
    wanted = json.loads(answer)
    dataset = _dataset(wanted["dataset"], json.dumps(wanted["options"]))
    entry = dataset[wanted["index"]]
    if entry["answer"] != wanted["answer"]:
        raise ValueError(f"reasoning_gym {wanted['dataset']}, entry {wanted['index']} is not the one of the task")
    found = extract_answer(text)
    return float(dataset.score_answer(text.strip() if found is None else found, entry))


@lru_cache(maxsize=8)
def _dataset(name: str, options: str) -> Any:
    return reasoning_gym.create_dataset(name, **json.loads(options))
