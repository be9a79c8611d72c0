"""Texts without labels: losses as plain transformers has them, and the same gradients under any batching."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests.bases import LORA, base, farthest, gradients, policy, template
from tests.tiny import DECODERS, ENCODERS, SENTENCES
from tunesmith.data.examples.types import Text
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.data.tokenization.masking import Masking
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch, collate
from tunesmith.models.mlm_head import MaskedHead, own_head
from tunesmith.models.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.techniques import Full, Lora

TEXTS = [Text(f"manual:{i}", " ".join(SENTENCES[i:] + SENTENCES[:i]) * (1 + i % 3)) for i in range(5)]
LIMIT = 48
TECHNIQUES = {"full": Full(), "lora": LORA}


def rows(kind: str, *, turn: int = 0) -> list[Encoded]:
    """The windows of all texts as a pass sees them."""
    made = [row for text in TEXTS for row in Domain().encode_all(text, template(kind), limit=LIMIT)]
    if kind in DECODERS:
        return made
    masking = Masking.of(template(kind), share=0.3, seed=0)
    return [masking.hide(row, turn) for row in made]


def learner(kind: str, technique: Full | Lora | None = None) -> Policy:
    torch.manual_seed(5)
    made = policy(kind, technique, lively=0.05)
    made.head = Domain().bind(TEXTS, made.family).head(made)
    made.train(False)
    return made


def total(made: Policy, batches: list[Batch]) -> torch.Tensor:
    return sum((Domain().loss(batch, made).total for batch in batches), torch.zeros(()))


def test_texts_are_read_from_the_detected_or_named_column():
    found = Domain().examples([Row("a.jsonl:1", {"id": 1, "text": "One.", "doc": "d"})], group="doc")
    assert found == [Text("a.jsonl:1", "One.", "d")]
    assert Domain(text="body").examples([Row("a:1", {"body": "One."})], group="") == [Text("a:1", "One.")]


def test_a_label_beside_the_text_does_not_stand_in_the_way():
    assert Domain().examples([Row("a:1", {"text": "One.", "label": "x"})], group="") == [Text("a:1", "One.")]


def test_the_headline_follows_from_the_family_and_the_terms_from_the_texts():
    texts = [Text(f"m:{i}", "The tablespace of a database is a tablespace too, and so it is.") for i in range(6)]
    assert Domain().bind(texts, "decoder").metric == "perplexity"
    assert Domain().bind(texts, "encoder").metric == "masked_loss"
    assert set(Domain().bind(texts, "decoder").terms) == {"tablespace", "database"}
    assert Domain(terms=("vacuum",)).bind(texts, "decoder").terms == ("vacuum",)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_next_token_loss_is_the_one_that_transformers_computes(kind: str):
    made, summed, units = policy(kind), 0.0, 0
    for row in rows(kind):
        ids = torch.tensor([row.sequences[0].ids])
        with torch.no_grad():
            summed += float(base(kind).network(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        units += ids.shape[1] - 1
    batch = collate(rows(kind))
    with torch.no_grad():
        loss = Domain().loss(batch, made)
    assert loss.units == Domain().units(batch) == units
    assert float(loss.total) / units == pytest.approx(summed / units, rel=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_masked_loss_is_the_one_that_transformers_computes_with_the_same_mask(kind: str, tmp_path):
    config = base(kind).network.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = AutoModelForMaskedLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    network = whole.base_model
    head = own_head(network, tmp_path)
    assert head is not None
    made = Policy(network, "encoder", None, reference=torch.no_grad, head=head, packs=False)
    some = rows(kind)[:4]
    width = max(row.length for row in some)
    ids, labels = torch.zeros(4, width, dtype=torch.int64), torch.full((4, width), -100)
    for i, row in enumerate(some):
        ids[i, : row.length] = torch.tensor(row.sequences[0].ids)
        for place, told in row.hidden:
            labels[i, place] = told
    mask = (torch.arange(width) < torch.tensor([[row.length] for row in some])).long()
    with torch.no_grad():
        wanted = float(whole(input_ids=ids, attention_mask=mask, labels=labels).loss)
        loss = Domain().loss(collate(some, share=False), made)
    assert loss.units == sum(len(row.hidden) for row in some)
    assert float(loss.total) / loss.units == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "bert", "modernbert"])
def test_packed_rows_have_the_gradients_of_lone_rows(kind: str, technique: str):
    made, found = learner(kind, TECHNIQUES[technique]), rows(kind)[:6]
    alone = total(made, [collate([row], share=False) for row in found])
    alone.backward()
    wanted = moved(made)
    packed = total(made, [collate(found, share=kind in DECODERS)])
    packed.backward()
    assert packed.item() == pytest.approx(alone.item(), rel=1e-4)
    assert farthest(moved(made), wanted) < 1e-4
    made.packs = False
    padded = total(made, [collate(found[:2], share=False), collate(found[2:], share=False)])
    padded.backward()
    assert farthest(moved(made), wanted) < 1e-4


def moved(made: Policy) -> dict[str, torch.Tensor]:
    """The gradients but those of keys' biases: softmax takes them out, so they are rounding."""
    return {name: value for name, value in gradients(made).items() if not name.endswith(("key.bias", "k_lin.bias"))}


def test_a_window_does_not_see_the_window_before_it():
    first, second = Domain().encode_all(Text("m:1", TEXTS[0].text), template("llama"), limit=LIMIT)[:2]
    made = policy("llama")
    with torch.no_grad():
        alone = float(Domain().loss(collate([second]), made).total)
        both = float(Domain().loss(collate([first, second]), made).total)
        before = float(Domain().loss(collate([first]), made).total)
    assert both == pytest.approx(alone + before, rel=1e-5)


def test_the_head_of_a_checkpoint_in_half_precision_is_its_own(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = AutoModelForMaskedLM.from_config(base("bert").network.config).eval()
    with torch.no_grad():
        whole.cls.predictions.transform.dense.weight.mul_(9)  # logits that half precision would round visibly
    whole.to(torch.bfloat16).save_pretrained(tmp_path)
    assert own_head(whole.float().base_model, tmp_path) is not None


def test_the_head_of_a_checkpoint_without_one_is_fresh_and_its_words_are_the_networks():
    made = learner("bert")
    assert own_head(base("bert").network, None) is None
    assert isinstance(made.head, MaskedHead)
    assert {name for name, _ in made.head.named_parameters()} == {
        "dense.weight",
        "dense.bias",
        "norm.weight",
        "norm.bias",
        "bias",
    }
    states, words = torch.randn(3, 32), made.network.get_input_embeddings().weight
    told = made.head.norm(torch.nn.functional.gelu(made.head.dense(states)))
    assert torch.allclose(made.head(states), told @ words.T + made.head.bias, atol=1e-5)


def test_a_folder_without_a_head_brings_none():
    from tests.bases import folder

    assert own_head(base("bert").network, folder("bert")) is None


def test_the_words_of_the_network_get_gradient_through_the_head_when_all_moves():
    made = learner("bert", Full())
    states = torch.randn(4, 32)
    made.head.sum_nll(states, torch.tensor([5, 6, 7, 8])).backward()
    assert made.network.get_input_embeddings().weight.grad.abs().sum() > 0


def test_terms_of_a_recipe_are_asked_for_in_any_letters_or_refused():
    assert Domain(terms=("Vacuum", "WAL_log")).bind([], "decoder").terms == ("vacuum", "wal_log")
    for term in ("two words", "x86_64"):
        with pytest.raises(DataError, match=r"objective.terms: '.*' is not a word that is scored"):
            Domain(terms=(term,)).bind([], "decoder")
