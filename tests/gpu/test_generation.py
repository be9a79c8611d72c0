"""transformers' paged generation and ours give the same greedy answers on CUDA. Not run on a GPU yet."""

from __future__ import annotations

import copy
import random
from itertools import zip_longest

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from tests.bases import LORA, base, scrambled, template
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling

DEVICE = "cuda"
PROMPTS, ANSWER = 64, 24  # prompts, and the longest answer in tokens


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "lora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_paged_generation_gives_our_own_greedy_answers(kind: str, adapted: bool, exact_products: None):
    found = base(kind)
    network = copy.deepcopy(found.network).to(DEVICE)
    scrambled(network)
    torch.manual_seed(0)
    made = LORA.adapt(network, family=found.family, keep_reference=False)
    if adapted:
        with torch.no_grad():
            for _, value in made.trainable():
                value.normal_(std=0.3)
    made.train(False)
    chance = random.Random(0)
    prompts = [[chance.randrange(6, 300) for _ in range(chance.randrange(3, 60))] for _ in range(PROMPTS)]
    own = generate(made, prompts, sampling=Sampling(max_new_tokens=ANSWER), template=template(kind))
    made.network.set_attn_implementation("sdpa")
    settings = GenerationConfig(
        max_new_tokens=ANSWER, do_sample=False, eos_token_id=template(kind).tokenizer.eos_token_id, pad_token_id=0
    )
    cache = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=1024)  # by default it takes 90 % of the memory
    paged = made.network.generate_batch(prompts, settings, continuous_batching_config=cache)
    answers = {tuple(answer.prompt_ids): answer.generated_tokens for answer in paged.values()}
    theirs = [answers[tuple(prompt)] for prompt in prompts]
    ends = template(kind).tokenizer.eos_token_id
    same = total = 0
    for one, other in zip(own, theirs, strict=True):
        pairs = list(zip_longest(one.ids, [token for token in other if token != ends]))
        total += len(pairs)
        same += sum(mine == yours for mine, yours in pairs)
    assert total > PROMPTS
    assert same >= 0.99 * total
