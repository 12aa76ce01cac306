"""What is trained, as torch modules whose tensors have the published names: Stream's heads, and Gen's language model,
over transformers' Qwen3 backbone, which is frozen, adapted by LoRA, or trained in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guardkit.errors import MissingExtra
from guardkit.training.examples import IGNORED, RISKS, Example

BACKBONES = ("lora", "full", "frozen")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Batch = dict[str, Tensor]


class GuardModule(nn.Module):  # type: ignore[misc]
    """A backbone under `model`, and what a subclass puts on it. `forward` gives the loss and, for each example, the
    probabilities of the risk classes [b, 3] at the place where it is judged."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.model = backbone

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[b, n, hidden], after the final norm."""
        found: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return found

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.model.enable_input_require_grads()
        newest = getattr(self.model, "activation_checkpointing_enable", None)
        (newest or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def train_backbone(self, how: str, rank: int = 16, alpha: int = 32) -> None:
        """Choose what of the backbone learns: one of `BACKBONES`."""
        if how == "full":
            return
        self.model.requires_grad_(False)
        if how == "lora":
            try:
                from peft import LoraConfig, inject_adapter_in_model
            except ImportError as error:
                raise MissingExtra("--backbone lora", "train") from error
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_TARGETS))
            inject_adapter_in_model(config, self.model)

    def published(self) -> dict[str, Tensor]:
        """All tensors by their published names, adapters merged into the weights they adapt. Ends the training."""
        for name, module in list(self.model.named_modules()):
            if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
                module.merge(safe_merge=True)
                parent, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, module.get_base_layer())
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}


class StreamModule(GuardModule):
    """Stream's heads. weights: of the risk classes, for prompts [3] and responses [3]."""

    def __init__(
        self, backbone: Any, inner: int, n_query: int, n_response: int, weights: tuple[Tensor, Tensor] | None = None
    ):
        super().__init__(backbone)
        width, eps = backbone.config.hidden_size, backbone.config.rms_norm_eps
        for side, n in (("", n_response), ("query_", n_query)):
            self.add_module(f"{side}risk_level_category_pre", nn.Linear(width, inner, bias=False))
            self.add_module(f"{side}risk_level_category_layernorm", nn.RMSNorm(inner, eps=eps))
            self.add_module(f"{side}risk_level_head", nn.Linear(inner, len(RISKS), bias=False))
            self.add_module(f"{side}category_head", nn.Linear(inner, n, bias=False))
        even = torch.ones(len(RISKS))
        query, response = weights or (even, even)
        self.register_buffer("query_weights", query, persistent=False)
        self.register_buffer("response_weights", response, persistent=False)

    def logits(self, hidden: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Risk [n, 3] and category [n, c] of hidden states [n, hidden]. side: "" for responses, or "query_"."""
        part = self.get_submodule
        x = part(f"{side}risk_level_category_layernorm")(part(f"{side}risk_level_category_pre")(hidden))
        return part(f"{side}risk_level_head")(x).float(), part(f"{side}category_head")(x).float()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        at: Tensor,
        severity: Tensor,
        category: Tensor,
        is_query: Tensor,
    ) -> dict[str, Tensor]:
        """labels [b, n]: risk class at each token, or -100; at, severity, category, is_query [b]. The report's loss: a
        prompt at its end; a response on average over its labelled tokens; a category only where the risk is not safe.
        """
        hidden = self.hidden(input_ids, attention_mask)
        loss = hidden.new_zeros((), dtype=torch.float32)
        risk = torch.zeros(len(labels), len(RISKS), device=hidden.device)
        judged = torch.arange(labels.shape[1], device=labels.device) == at[:, None]
        known = labels != IGNORED
        # Both heads take part in every step, with none of their examples too: processes wait for all gradients.
        for side, chosen in (("query_", is_query), ("", ~is_query)):
            row, place = torch.nonzero(known & chosen[:, None], as_tuple=True)
            risks, categories = self.logits(hidden[row, place], side)
            target = labels[row, place]
            share = 1.0 / known.sum(1)[row]  # of an example's labelled tokens
            weight = getattr(self, f"{side or 'response_'}weights")[target]
            each = F.cross_entropy(risks, target, reduction="none") * weight
            named = torch.where(target == 0, IGNORED, category[row])  # class 0 is safe
            each = each + F.cross_entropy(categories, named, ignore_index=IGNORED, reduction="none")
            loss = loss + (each * share).sum()
            here = judged[row, place]
            risk = risk.index_copy(0, row[here], risks.detach()[here].softmax(1))
        return {"loss": loss / len(labels), "risk": risk}


class GenModule(GuardModule):
    """A causal language model that learns the answers. choices: the first tokens of the three severities, in the order
    of `RISKS`."""

    def __init__(self, backbone: Any, lm_head: Tensor | None, choices: Sequence[int], weights: Tensor | None = None):
        super().__init__(backbone)
        self.lm_head: nn.Linear | None = None
        if lm_head is not None:
            self.lm_head = nn.Linear(lm_head.shape[1], lm_head.shape[0], bias=False)
            self.lm_head.weight = nn.Parameter(lm_head)
        self.choices = list(choices)
        self.register_buffer("class_weights", torch.ones(len(RISKS)) if weights is None else weights, persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        at: Tensor,
        severity: Tensor,
        category: Tensor,
        is_query: Tensor,
    ) -> dict[str, Tensor]:
        """labels [b, n]: the next token where it is learned, or -100. The loss is averaged over an answer's tokens,
        then over examples by the weight of their severity."""
        hidden = self.hidden(input_ids, attention_mask)
        row, place = torch.nonzero(labels != IGNORED, as_tuple=True)
        table = self.model.get_input_embeddings().weight if self.lm_head is None else self.lm_head.weight
        logits = F.linear(hidden[row, place], table).float()
        target = labels[row, place]
        share = 1.0 / (labels != IGNORED).sum(1)[row]
        each = F.cross_entropy(logits, target, reduction="none") * share * self.class_weights[severity][row]
        risk = logits.detach()[place == at[row]][:, self.choices].softmax(1)  # one row an example, in order
        return {"loss": each.sum() / len(labels), "risk": risk}


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Examples to a batch, padded at the end."""
    longest = max(map(len, examples))
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), IGNORED)
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    for i, example in enumerate(examples):
        n = len(example)
        ids[i, :n] = torch.from_numpy(example.ids)
        labels[i, :n] = torch.from_numpy(example.labels)
        mask[i, :n] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "at": torch.tensor([e.at for e in examples]),
        "severity": torch.tensor([e.severity for e in examples]),
        "category": torch.tensor([e.category for e in examples]),
        "is_query": torch.tensor([e.is_query for e in examples]),
    }
