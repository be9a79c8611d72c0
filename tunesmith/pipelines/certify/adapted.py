"""An adapter in a copy of a network: where its gradients arrive, and its logits from PEFT and from merged weights.

Letters: T tokens of a row, D hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel

from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.errors import ModelError, briefly
from tunesmith.models.attention.packed import state_tolerance
from tunesmith.models.batch import pack
from tunesmith.models.certificate import Measured
from tunesmith.models.loading.load import Base
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import generative_class, merge_adapter, reading_text, without_missing_packages
from tunesmith.models.measurements import difference
from tunesmith.models.policy import Policy
from tunesmith.techniques import Lora

# Small adapter of the checks, and the standard deviation of its B, which starts at zero.
ADAPTER, SCALE = Lora(rank=2), 0.05
# Largest relative difference of logits that are the same sums in another order, in float32.
SAME_LOGITS = 1e-4
# An adapter that changes the logits by less than this would prove nothing.
LEAST_EFFECT = 1e-3


@dataclass(frozen=True, slots=True)
class Adapted:
    """A copy of a network with a small random adapter, which is also saved in a folder."""

    base: Base  # the network without the adapter
    policy: Policy  # the copy
    folder: Path
    row: list[int]  # token ids that all outputs are computed for
    before: Tensor  # outputs of the base
    expected: Tensor  # outputs of the policy

    @classmethod
    def of(cls, base: Base, policy: Policy, row: list[int], folder: Path) -> Adapted:
        """Adapt a copy of a base and save the adapter; seeds the random generator.

        Args:
            base: the base model.
            policy: the base as a policy.
            row: token ids to compare outputs on.
            folder: an existing folder for the adapter.

        Raises:
            AssertionError: the adapter has no effect, so that nothing could be compared.
        """
        torch.manual_seed(0)
        adapted = ADAPTER.adapt(copy.deepcopy(base.network), family=base.family, keep_reference=False)
        with torch.no_grad():
            for name, value in adapted.trainable():
                if "lora_B" in name or "lora_embedding_B" in name:
                    value.normal_(0, SCALE)
        adapted.train(False)
        ADAPTER.save(adapted, folder)
        before, expected = _outputs(policy, row), _outputs(adapted, row)
        assert difference([expected], [before]) > LEAST_EFFECT, "the adapter changes nothing"
        return cls(base, adapted, folder, row, before, expected)

    def gradients(self, rows: Sequence[Tokens]) -> Measured:
        """Run one backward pass over the tokens of some rows and look at every parameter."""
        batch = pack(rows).to(self.policy.device)
        decoder = self.base.family == "decoder"
        loss = self.policy.sum_nll(batch) if decoder else self.policy.pooled(batch).square().sum()
        loss.backward()
        trained = dict(self.policy.trainable())
        grads = {name: value.grad for name, value in trained.items()}
        found = {
            "no gradient reaches": [name for name, grad in grads.items() if grad is None or not bool(grad.any())],
            "no finite gradient reaches": [
                name for name, grad in grads.items() if grad is not None and not bool(grad.isfinite().all())
            ],
            "a gradient also reaches": [
                name
                for name, value in self.policy.network.named_parameters()
                if name not in trained and (value.requires_grad or value.grad is not None)
            ],
        }
        for value in trained.values():
            value.grad = None
        for problem, names in found.items():
            if names:
                note = f"{problem} {len(names)} of {len(trained)} parameters, {names[0]} among them"
                return Measured(outcome="failed", note=note)
        return Measured(outcome="passed", note=f"{len(trained)} parameters of LoRA")

    def merged(self) -> Measured:
        """Merge the adapter into the copy and compare; the adapter is gone afterwards."""
        try:
            with quiet():
                merge_adapter(self.policy.network, self.policy.adapter)
        except ModelError as error:
            return Measured(outcome="refused", note=str(error))
        return self._compared(self.policy.network)

    def peft(self) -> Measured:
        """Open the saved adapter in PEFT over the checkpoint as transformers loads it, and compare."""
        with quiet():
            try:
                plain = self._plain()
                self._run(self._reading(plain))
            except Exception as error:  # a tower needs a library, or the class cannot run on text alone
                reason = briefly(error).partition(". ")[0]
                return Measured(outcome="not measured", note=f"transformers itself cannot run it: {reason}")
            opened = self._reading(PeftModel.from_pretrained(plain, str(self.folder)).eval())
        return self._compared(opened, note=f"over {type(plain).__name__}")

    def _plain(self) -> Any:
        """Return the checkpoint in transformers' own class."""
        base = self.base
        if base.folder is None:  # a GGUF file, or a run merged in memory
            network = copy.deepcopy(base.network)
            network.set_attn_implementation("sdpa")
            return network
        # An encoder is tuned without the head that its checkpoint may have.
        kind: Any = generative_class(base.folder) if base.family == "decoder" else AutoModel
        with without_missing_packages():
            network = kind.from_pretrained(
                base.folder, dtype=base.network.dtype, use_safetensors=True, local_files_only=True,
                trust_remote_code=False,
            )  # fmt: skip
        return network.to(base.network.device).eval()

    def _reading(self, network: Any) -> Any:
        """Return a network of transformers or PEFT, or its text decoder if only that runs on text."""
        return reading_text(network, where=self.base.name) if self.base.family == "decoder" else network

    @torch.no_grad()
    def _run(self, network: Any) -> Tensor:
        """Return logits or states of transformers or PEFT."""
        with quiet():
            out = network(input_ids=torch.tensor([self.row], device=self.policy.device))
        found: Tensor = out.logits if self.base.family == "decoder" else out.last_hidden_state
        return found[0].float()

    def _compared(self, network: Any, note: str = "") -> Measured:
        """Compare the outputs of transformers or PEFT with those of the policy."""
        bound = state_tolerance(self.base.network, float32=SAME_LOGITS)
        return Measured(difference([self._run(network)], [self.expected]), bound, note)


@torch.no_grad()
def _outputs(policy: Policy, row: list[int]) -> Tensor:
    """Return logits [T, V] of a decoder or states [T, D] of an encoder for a row."""
    states = policy.states(pack([Tokens.of(row)]).to(policy.device))
    return (policy.words.logits(states) if policy.family == "decoder" else states).float()
