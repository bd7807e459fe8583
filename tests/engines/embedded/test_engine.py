import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPTNeoConfig,
    Lfm2Config,
    MambaConfig,
    MptConfig,
    PreTrainedModel,
)

from driftproof.engines.embedded.decode import check_decoding
from driftproof.engines.embedded.engine import EmbeddedEngine
from driftproof.engines.protocol import Capabilities, generate
from driftproof.errors import EngineError
from driftproof.types import FinishReason

from ..tiny import CONFIGS, VOCABULARY, ask, drain, nbytes, random_prompts, tiny_model, tokens_of

LENGTHS = [1, 2, 17, 5, 9, 3, 30, 1, 12, 8]


def greedy_oracle(model: PreTrainedModel, prompt: np.ndarray, max_tokens: int) -> list[int]:
    ids = torch.tensor(prompt[None].astype(np.int64))
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def full_forward(model: PreTrainedModel, prompt: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
    """Logits [T, V] that predict `tokens`, from one pass over prompt and response."""
    ids = torch.tensor(np.concatenate([prompt, tokens])[None].astype(np.int64))
    with torch.no_grad():
        return model(input_ids=ids).logits[0, len(prompt) - 1 : -1]


class Watch:
    """Counts what the model is asked to compute."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.read = 0
        """Prompt tokens, padding included."""
        self.decoded: list[int] = []
        """Rows of each decode step."""
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: torch.nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
        input_ids = keywords["input_ids"]
        assert isinstance(input_ids, torch.Tensor)
        if keywords.get("attention_mask") is None:
            self.read += input_ids.numel()
        else:
            self.decoded.append(len(input_ids))


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("slots", [3, 16])
def test_greedy_equals_transformers_generate(architecture, slots):
    oracle = tiny_model(architecture)
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=slots)
    prompts = random_prompts(LENGTHS)
    limits = [3 + 5 * i % 17 for i in range(len(prompts))]
    answers = generate(
        engine, [ask(i, p, max_tokens=n, temperature=0) for i, (p, n) in enumerate(zip(prompts, limits, strict=True))]
    )
    for prompt, limit, (response,) in zip(prompts, limits, answers, strict=True):
        assert response.tokens.tolist() == greedy_oracle(oracle, prompt, limit)
        assert response.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("slots", [1, 3, 5, 40])
def test_groups_of_any_size_equal_the_oracle_and_their_prompts_are_read_once(slots):
    oracle = tiny_model()
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=slots, prefill_tokens=1)
    watch = Watch(engine._decoder.model)
    prompts = random_prompts([6, 1, 13, 4])
    samples = [4, 7, 2, 5]
    requests = [
        ask(i, p, samples=n, max_tokens=5 + i, temperature=0)
        for i, (p, n) in enumerate(zip(prompts, samples, strict=True))
    ]
    for request, responses in zip(requests, generate(engine, requests), strict=True):
        expected = greedy_oracle(oracle, request.prompt_tokens, request.sampling.max_tokens)
        assert tokens_of(responses) == [expected] * request.samples
    assert watch.read == sum(len(prompt) for prompt in prompts)


@pytest.mark.parametrize("prefill_tokens", [1, 4, 7, 1000])
def test_long_prompts_are_read_in_pieces(prefill_tokens):
    oracle = tiny_model("llama")
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=6, prefill_tokens=prefill_tokens)
    prompts = random_prompts([23, 7, 7, 2, 15, 40])
    answers = generate(engine, [ask(i, p, temperature=0, max_tokens=4) for i, p in enumerate(prompts)])
    assert [r[0].tokens.tolist() for r in answers] == [greedy_oracle(oracle, p, 4) for p in prompts]


def test_no_step_is_spent_on_finished_responses():
    engine = EmbeddedEngine(tiny_model(), slots=8)
    watch = Watch(engine._decoder.model)
    prompts = random_prompts([4] * 30)
    requests = [ask(i, p, samples=2, max_tokens=1 + i % 7) for i, p in enumerate(prompts)]
    tokens = sum(len(r.tokens) for responses in generate(engine, requests) for r in responses)
    assert engine.tokens_generated == tokens
    first_tokens = 60
    resumed = sum(watch.decoded) - (tokens - first_tokens)
    assert 0 <= resumed <= 30  # samples that came later than their group's first read the prompt's last token
    assert max(watch.decoded) <= 8
    assert engine.busy_seconds > 0


@pytest.mark.parametrize("architecture", CONFIGS)
def test_logprobs_equal_a_full_forward_pass(architecture):
    oracle = tiny_model(architecture)
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=5)
    requests = [
        ask(i, prompt, samples=3, max_tokens=6, temperature=temperature, seed=i, want_logprobs=True)
        for i, prompt in enumerate(random_prompts(LENGTHS))
        for temperature in [(1.0, 0.7)[i % 2]]
    ]
    for request, responses in zip(requests, generate(engine, requests), strict=True):
        for response in responses:
            logits = full_forward(oracle, request.prompt_tokens, response.tokens) / request.sampling.temperature
            expected = logits.log_softmax(-1)[range(len(response.tokens)), response.tokens]
            assert response.behavior_logprobs is not None
            assert response.behavior_logprobs.dtype == np.float32
            np.testing.assert_allclose(response.behavior_logprobs, expected, atol=1e-5)
            assert (response.behavior_logprobs <= 0).all()


def test_logprobs_are_renormalised_over_what_top_k_and_top_p_leave():
    oracle = tiny_model()
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=64)
    (prompt,) = random_prompts([9])
    request = ask(0, prompt, samples=64, max_tokens=5, temperature=1.3, top_k=6, top_p=0.8, want_logprobs=True)
    for response in generate(engine, [request])[0]:
        chance = (full_forward(oracle, prompt, response.tokens) / 1.3).softmax(-1)
        ordered, order = chance.topk(6)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        ordered[ordered.cumsum(-1) - ordered >= 0.8] = 0
        kept = torch.zeros_like(chance).scatter(1, order, ordered)
        kept = kept / kept.sum(-1, keepdim=True)
        expected = kept[range(5), response.tokens].log()
        assert response.behavior_logprobs is not None
        np.testing.assert_allclose(response.behavior_logprobs, expected, atol=1e-5)


def test_only_requests_that_want_logprobs_get_them():
    engine = EmbeddedEngine(tiny_model(), slots=4)
    prompts = random_prompts([3, 4])
    with_logprobs, without = generate(engine, [ask(0, prompts[0], want_logprobs=True), ask(1, prompts[1])])
    assert with_logprobs[0].behavior_logprobs is not None
    assert without[0].behavior_logprobs is None


def test_no_logprob_is_computed_unless_wanted(monkeypatch):
    computed = []
    original = torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda *a, **k: computed.append(1) or original(*a, **k))
    engine = EmbeddedEngine(tiny_model(), slots=4)
    (prompt,) = random_prompts([3])
    generate(engine, [ask(0, prompt, samples=4, top_p=0.9)])
    assert not computed
    generate(engine, [ask(0, prompt, samples=4, top_p=0.9, want_logprobs=True)])
    assert computed


def test_frequencies_of_a_first_token_match_the_model():
    oracle = tiny_model()
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=500)
    (prompt,) = random_prompts([7])
    (responses,) = generate(engine, [ask(0, prompt, samples=5000, max_tokens=1, temperature=1.2)])
    counts = np.bincount([r.tokens[0] for r in responses], minlength=VOCABULARY)
    expected = (full_forward(oracle, prompt, np.array([0]))[0] / 1.2).softmax(-1).numpy() * 5000
    common = expected > 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum()
    assert freedom > 5
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)
    assert counts[~common].sum() < expected[~common].sum() + 4 * np.sqrt(expected[~common].sum() + 1)


def test_a_request_gets_the_same_tokens_alone_and_in_a_crowd():
    prompts = random_prompts(LENGTHS, seed=4)
    request = ask(99, prompts[2], samples=6, max_tokens=12, seed=8)
    (alone,) = generate(EmbeddedEngine(tiny_model(), slots=6), [request])
    crowd = [
        ask(i, p, samples=1 + i % 4, max_tokens=3 + i, seed=i, top_p=(1.0, 0.8)[i % 2], temperature=i % 3 / 2)
        for i, p in enumerate(prompts)
    ]
    engine = EmbeddedEngine(tiny_model(), slots=7)
    answers = generate(engine, [*crowd[:6], request, *crowd[6:]])
    assert tokens_of(answers[6]) == tokens_of(alone)
    assert len({tuple(t) for t in tokens_of(alone)}) == 6
    (other_seed,) = generate(engine, [ask(0, prompts[2], samples=6, max_tokens=12, seed=9)])
    assert tokens_of(other_seed) != tokens_of(alone)


@pytest.mark.parametrize("slots", [2, 8])
def test_new_weights_are_taken_between_steps_and_nothing_is_dropped(slots, tmp_path):
    old, new = tiny_model(seed=0), tiny_model(seed=1)
    new.save_pretrained(tmp_path)
    engine = EmbeddedEngine(copy.deepcopy(old), slots=slots)
    (prompt, later) = random_prompts([6, 4])
    engine.submit(ask(0, prompt, samples=2, max_tokens=10, temperature=0))
    engine.submit(ask(1, later, samples=2, max_tokens=10, temperature=0))
    for _ in range(3):
        assert engine.collect() == []
    engine.load(tmp_path)
    answers = {item.request.key: item.responses for item in drain(engine)}

    expected = switched_oracle(old, new, prompt, before=4, total=10)
    assert tokens_of(answers[0]) == [expected] * 2
    assert expected[:4] == greedy_oracle(old, prompt, 4)
    assert expected != greedy_oracle(old, prompt, 10)
    waited = slots == 2
    assert tokens_of(answers[1]) == [switched_oracle(old, new, later, before=0 if waited else 4, total=10)] * 2


@torch.no_grad()
def switched_oracle(
    old: PreTrainedModel, new: PreTrainedModel, prompt: np.ndarray, *, before: int, total: int
) -> list[int]:
    """Greedy tokens when `old` writes the first `before` and `new` goes on with the cache of `old`."""
    cache, ids, tokens = DynamicCache(), torch.tensor(prompt[None].astype(np.int64)), []
    for position in range(total):
        model = old if position < before else new
        ids = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(ids.item())
    return tokens


def test_weights_of_another_model_are_refused_and_work_goes_on(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    oracle = tiny_model("qwen3")
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=2)
    (prompt,) = random_prompts([5])
    engine.submit(ask(0, prompt, temperature=0))
    engine.collect()
    with pytest.raises(EngineError, match="not a snapshot of this model"):
        engine.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        engine.load(tmp_path / "pruned")
    (completed,) = drain(engine)
    assert completed.responses[0].tokens.tolist() == greedy_oracle(oracle, prompt, 8)


def test_stop_ids_end_a_response_and_belong_to_it():
    oracle = tiny_model()
    (prompt,) = random_prompts([5])
    greedy = greedy_oracle(oracle, prompt, 20)
    length = next(n for n in range(3, 20) if greedy[n - 1] not in greedy[: n - 1])
    stop = greedy[length - 1]
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=4)
    missing = next(token for token in range(VOCABULARY) if token not in greedy)
    answers = generate(
        engine,
        [
            ask(0, prompt, max_tokens=20, temperature=0, stop_ids=(missing, stop)),
            ask(1, prompt, max_tokens=20, temperature=0, stop_ids=(missing,)),
            ask(2, prompt, max_tokens=20, temperature=0),
            ask(3, prompt, max_tokens=length, temperature=0, stop_ids=(stop,)),
            ask(4, prompt, max_tokens=20, temperature=0, stop_ids=(greedy[0],)),
        ],
    )
    assert [r[0].tokens.tolist() for r in answers] == [greedy[:length], greedy, greedy, greedy[:length], greedy[:1]]
    reasons = [r[0].finish_reason for r in answers]
    stopped, used_up = FinishReason.STOP, FinishReason.LENGTH
    assert reasons == [stopped, used_up, used_up, stopped, stopped]


def test_each_request_keeps_its_own_stop_ids_while_rows_move_and_slots_are_reused():
    oracle = tiny_model()
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=3)
    prompts = random_prompts([3 + i % 5 for i in range(14)], seed=7)
    greedy = [greedy_oracle(oracle, prompt, 12) for prompt in prompts]
    stops = [(tokens[3 + i % 6],) if i % 3 else () for i, tokens in enumerate(greedy)]
    answers = generate(
        engine,
        [
            ask(i, prompt, max_tokens=12, temperature=0, stop_ids=stop)
            for i, (prompt, stop) in enumerate(zip(prompts, stops, strict=True))
        ],
    )
    for tokens, stop, (response,) in zip(greedy, stops, answers, strict=True):
        assert response.tokens.tolist() == (tokens[: tokens.index(stop[0]) + 1] if stop else tokens)


def test_requests_that_join_a_running_batch_keep_their_settings():
    requests = [
        ask(i, prompt, samples=2, max_tokens=9, temperature=temperature, top_k=top_k, seed=i)
        for i, prompt in enumerate(random_prompts([5, 3, 8], seed=3))
        for temperature, top_k in [((1.0, 0), (0.0, 0), (1.4, 4))[i]]
    ]
    engine = EmbeddedEngine(tiny_model(), slots=16)
    completed = []
    for request in requests:
        engine.submit(request)
        completed += engine.collect()
    completed += drain(engine)
    for item in completed:
        alone = generate(EmbeddedEngine(tiny_model(), slots=16), [item.request])[0]
        assert tokens_of(item.responses) == tokens_of(alone)


def test_freed_slots_are_refilled_while_others_go_on():
    engine = EmbeddedEngine(tiny_model(), slots=8)
    watch = Watch(engine._decoder.model)
    lengths = [60] + [4] * 70
    generate(engine, [ask(i, [i % VOCABULARY], max_tokens=length) for i, length in enumerate(lengths)])
    assert len(watch.decoded) <= 60


def test_the_context_ends_a_response():
    oracle = tiny_model()
    engine = EmbeddedEngine(copy.deepcopy(oracle), slots=2, max_length=12)
    prompts = random_prompts([11, 5])
    answers = generate(engine, [ask(i, p, max_tokens=50, temperature=0) for i, p in enumerate(prompts)])
    assert [len(r[0].tokens) for r in answers] == [1, 7]
    assert [r[0].tokens.tolist() for r in answers] == [greedy_oracle(oracle, p, 12 - len(p)) for p in prompts]
    assert answers[0][0].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(5, range(12)), "prompt has 12 tokens and leaves no room.*context of 12"),
        (ask(5, []), "no tokens"),
        (ask(5, [3, VOCABULARY]), "vocabulary from 0 to 60"),
        (ask(5, [-1]), "range from -1"),
        (ask(5, [1], samples=0), "samples is 0"),
        (ask(7, [1]), "request 7 .*already under way"),
    ],
)
def test_a_request_that_can_never_be_answered_is_refused(request_, message):
    engine = EmbeddedEngine(tiny_model(), slots=2, max_length=12)
    engine.submit(ask(7, [1, 2]))
    with pytest.raises(EngineError, match=message):
        engine.submit(request_)
    assert [item.request.key for item in drain(engine)] == [7]


def test_logits_that_are_not_finite_fail_the_request_and_the_engine_recovers(tmp_path):
    oracle = tiny_model()
    oracle.save_pretrained(tmp_path)
    model = copy.deepcopy(oracle)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    engine = EmbeddedEngine(model, slots=4)
    (prompt,) = random_prompts([5])
    engine.submit(ask(3, prompt, samples=6, want_logprobs=True))
    (failed,) = drain(engine)
    assert failed.responses == ()
    assert "request 3 (prompt 3): the model's logits are not finite at response token 0" in failed.error
    with pytest.raises(EngineError, match="not finite"):
        generate(engine, [ask(3, prompt, temperature=0)])
    engine.load(tmp_path)
    assert tokens_of(generate(engine, [ask(3, prompt, temperature=0)])[0]) == [greedy_oracle(oracle, prompt, 8)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    slots=st.integers(1, 9),
    prefill_tokens=st.integers(1, 30),
    requests=st.lists(
        st.tuples(
            st.integers(1, 12),  # prompt tokens
            st.integers(1, 11),  # samples
            st.integers(1, 9),  # max_tokens
            st.sampled_from([0.0, 1.0]),
            st.integers(0, 4),  # calls of collect after submitting
        ),
        max_size=8,
    ),
)
def test_every_request_comes_out_exactly_once(slots, prefill_tokens, requests):
    engine = EmbeddedEngine(tiny_model(), slots=slots, prefill_tokens=prefill_tokens)
    completed = []
    for key, (length, samples, max_tokens, temperature, steps) in enumerate(requests):
        room = engine.room
        assert 0 <= room <= slots
        engine.submit(
            ask(key, range(length), samples=samples, max_tokens=max_tokens, temperature=temperature, stop_ids=(1, 2, 3))
        )
        assert engine.room == max(0, room - samples)
        for _ in range(steps):
            completed += engine.collect()
    completed += drain(engine)
    assert Counter(item.request.key for item in completed) == Counter(range(len(requests)))
    for item in completed:
        assert len(item.responses) == item.request.samples
        for response in item.responses:
            stopped = response.tokens[-1] in (1, 2, 3)
            assert stopped == (response.finish_reason is FinishReason.STOP)
            assert stopped or len(response.tokens) == item.request.sampling.max_tokens
            assert not np.isin(response.tokens[:-1], (1, 2, 3)).any()
    assert engine.collect() == []
    assert engine.room == slots


def test_requests_are_admitted_first_in_first_out():
    engine = EmbeddedEngine(tiny_model(), slots=2)
    for key, prompt in enumerate(random_prompts([3] * 9)):
        engine.submit(ask(key, prompt, max_tokens=4))
    assert [item.request.key for item in drain(engine)] == list(range(9))


def test_the_cache_grows_with_need_only():
    engine = EmbeddedEngine(tiny_model(), slots=4)
    generate(engine, [ask(0, [1], max_tokens=4)])
    small = nbytes(engine._decoder.cache)
    generate(engine, [ask(0, [1], max_tokens=60)])
    assert nbytes(engine._decoder.cache) == 2 * small
    generate(engine, [ask(i, [1], max_tokens=60) for i in range(9)])
    assert nbytes(engine._decoder.cache) == 2 * small


def test_open_a_directory(tmp_path: Path):
    oracle = tiny_model("llama")
    oracle.save_pretrained(tmp_path)
    engine = EmbeddedEngine.from_directory(tmp_path, slots=2)
    (prompt,) = random_prompts([5])
    assert tokens_of(generate(engine, [ask(0, prompt, temperature=0)])[0]) == [greedy_oracle(oracle, prompt, 8)]
    assert engine.capabilities == Capabilities(logprobs=True, follows_weights=True)


def test_bfloat16_weights_decode(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    engine = EmbeddedEngine.from_directory(tmp_path, slots=2, dtype=torch.bfloat16)
    (responses,) = generate(engine, [ask(0, [1, 2, 3], samples=3, want_logprobs=True)])
    assert all(np.isfinite(r.behavior_logprobs).all() for r in responses if r.behavior_logprobs is not None)
    assert len(responses) == 3


def test_bad_directories_are_refused(tmp_path: Path):
    with pytest.raises(EngineError, match=r"no config\.json"):
        EmbeddedEngine.from_directory(tmp_path, slots=2)
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="cannot be opened"):
        EmbeddedEngine.from_directory(tmp_path, slots=2)


def test_bad_settings_are_refused():
    with pytest.raises(EngineError, match="slots is 0"):
        EmbeddedEngine(tiny_model(), slots=0)
    with pytest.raises(EngineError, match=r"max_length is 65.*at most the model's 64"):
        EmbeddedEngine(tiny_model(), slots=1, max_length=65)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=20), "takes no position_ids"),
        (MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=20), "takes no position_ids"),
        (
            Lfm2Config(
                hidden_size=16,
                intermediate_size=16,
                num_attention_heads=2,
                num_key_value_heads=1,
                layer_types=["conv"],
                num_hidden_layers=1,
                vocab_size=20,
            ),
            "has conv layers; this engine decodes chunked_attention, full_attention, sliding_attention",
        ),
    ],
)
def test_models_it_cannot_decode_are_refused(config, problem):
    with pytest.raises(EngineError, match=problem):
        EmbeddedEngine(AutoModelForCausalLM.from_config(config), slots=1, max_length=16)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_check_that_a_small_model_is_decoded_right(architecture):
    check_decoding(tiny_model(architecture))


def test_what_is_decoded_wrongly_is_refused():
    """GPT-Neo places the windows of its local layers by the length of the cache, whatever the rows hold."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        vocab_size=20,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with pytest.raises(
        EngineError, match=r"GPTNeoForCausalLM is not decoded right by this engine, whose logits differ"
    ):
        check_decoding(AutoModelForCausalLM.from_config(config))


def test_a_closed_engine_takes_nothing():
    engine = EmbeddedEngine(tiny_model(), slots=2)
    engine.submit(ask(0, [1]))
    engine.collect()
    engine.close()
    assert engine.collect() == []
    with pytest.raises(EngineError, match="closed"):
        engine.submit(ask(1, [1]))
