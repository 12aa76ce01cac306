"""What the Gen benchmarks share: guardkit's Gen and transformers' causal model over the same random weights.

Random weights answer at random, so the answer is given: a constant is added to what guardkit reads for the labels of
"Safe, None" (one pass) or of "Unsafe, Violent" (which leaves the guessed path). `generate` is held to the length of
that answer. The chat template is our own, as long as the published one: 296 tokens around a prompt, of which the first
201 never change, and 267 around a response.

Needs the repository's tests folder and dashscope (Qwen's tokenizer is rebuilt from it).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import stream_models
import torch
from common import question, sentence
from stream_models import CLEAR, SIZES, RandomWeights, make_weights
from torch import Tensor

from guardkit import Guard
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.engine import Head
from guardkit.engine.qwen3 import Embedding, Linear
from guardkit.engine.setup import DTYPES, Options, build
from guardkit.engine.template import ChatTemplate
from guardkit.messages import read_messages
from guardkit.models.base import Query
from guardkit.models.gen import Qwen3GuardGen
from guardkit.models.gen_walk import Grammar
from guardkit.models.qwen_tokenizer import QwenTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests folder
from tests.engine.checkpoints import GEN_TEMPLATE
from tests.engine.qwen3_tokenizer_builder import MISSING, cached

# The smallest, to try the scripts; the grammar needs the whole vocabulary.
SIZES["quick"] = dataclasses.replace(SIZES["tiny"], vocab_size=151936)
ANSWERS = {"one pass": ("Safe", "None", "No"), "walked": ("Unsafe", "Violent", "No")}
NEW_TOKENS = {"prompt": 8, "response": 12}  # of "Safety: Unsafe, Categories: Violent", and of its Refusal line
PUBLISHED = {"user": (201, 296), "assistant": (0, 267)}  # tokens of the fixed head, and of the whole template
GIVEN = 1000.0  # what is added to a label's logit
Talk = list[dict[str, str]]


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = stream_models.parser(doc)
    made.add_argument("--quick", action="store_true", help="tiny shapes and few texts: to try the script")
    return made


def weights_of(args: argparse.Namespace) -> RandomWeights:
    """After `common.header`."""
    if MISSING is not None:
        sys.exit(MISSING)
    if args.quick:
        args.size = "quick"
    return make_weights(args, "Gen")


class Ours:
    """`Guard` over guardkit's engine. `answer` chooses what its model says."""

    def __init__(self, weights: RandomWeights, threads: int | None = None):
        self.tokenizer = QwenTokenizer(cached())
        template = published_template(self.tokenizer)
        self.template = template
        self.grammar = Grammar.of(self.tokenizer, cached())
        columns = {token: i for i, token in enumerate(self.grammar.ids)}
        self._biases = {name: self._bias(columns, labels, weights.device) for name, labels in ANSWERS.items()}
        self._given: Tensor | None = None

        def heads(_: Mapping[str, Tensor], embed: Embedding) -> dict[str, Head]:
            rows = Linear(embed(torch.tensor(self.grammar.ids, device=weights.device)))
            return {"grammar": lambda hidden: rows(hidden).float() + (0 if self._given is None else self._given)}

        dtype = next(name for name, dtype in DTYPES.items() if dtype == weights.dtype)
        options = Options(device=str(weights.device), dtype=dtype, threads=threads)
        self.engine = build(cast(Checkpoint, weights), {}, heads, options)
        made = ChatTemplate(template, self.tokenizer, Path("template"))
        self.model = Qwen3GuardGen(f"random {weights.size}", self.engine, self.tokenizer, made, self.grammar)
        self.guard = Guard(self.model, policy="loose")

    def _bias(self, columns: Mapping[int, int], labels: Sequence[str], device: torch.device) -> Tensor:
        severity, category, refusal = labels
        grammar = self.grammar
        bias = torch.zeros(len(columns), device=device)
        for ids in (grammar.severities[severity], grammar.categories[category], grammar.refusals[refusal]):
            bias[columns[ids[0]]] = GIVEN
        bias[columns[grammar.refusal_line[0]]] = GIVEN  # never a comma: a response has the line, a prompt ends
        bias[columns[grammar.end[0]]] = GIVEN / 2
        return bias

    def answer(self, name: str | None) -> None:
        """ "one pass", "walked", or None: what the weights say."""
        self._given = None if name is None else self._biases[name]

    def ids(self, talk: Talk) -> list[int]:
        """The talk as guardkit renders it."""
        read = read_messages(talk)
        query = Query(read[-1].content, read[-1].stage, tuple(read[:-1]))
        return self.model.encode(self.model.frame(query), query.text)

    def head(self, talk: Talk) -> list[int]:
        """The fixed head, whose keys and values are kept."""
        return self.model._heads[talk[-1]["role"] == "assistant"].ids


class Theirs:
    """transformers' `Qwen3ForCausalLM` on the same tensors, and its tokenizer with the same template."""

    def __init__(self, weights: RandomWeights, template: str):
        try:
            import transformers
        except ImportError:
            sys.exit(f"{sys.executable} has no transformers, which guardkit is compared with: pip install transformers")
        c, self.device = weights.config, weights.device
        fields = {f.name: getattr(c, f.name) for f in dataclasses.fields(c)}
        self.config = transformers.Qwen3Config(**fields, eos_token_id=151645, pad_token_id=151643)
        with torch.device("meta"):
            self.model = transformers.Qwen3ForCausalLM._from_config(self.config, attn_implementation="sdpa")
        tensors = {n: t for n, t in weights.tensors.items() if n.startswith("model.")}
        self.model.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, assign=True)
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(self.config).to(weights.device)
        self.model.eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(cached() / "tokenizer.json"),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            padding_side="left",
        )
        self.tokenizer.chat_template = template

    def generate(self, talks: Sequence[Talk], new_tokens: int, **options: Any) -> list[str]:
        """The model card's snippet, for one talk or a padded batch."""
        texts = [self.tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        given = self.tokenizer(texts, return_tensors="pt", padding=len(texts) > 1).to(self.device)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=given.input_ids, attention_mask=given.attention_mask, do_sample=False, pad_token_id=151643,
                min_new_tokens=new_tokens, max_new_tokens=new_tokens, **options,
            )  # fmt: skip
        new = out[:, given.input_ids.shape[1] :].tolist()
        if {len(row) for row in new} != {new_tokens}:
            sys.exit("generate() made another number of tokens than it was asked for")
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def prefix(self, ids: Sequence[int]) -> Any:
        """A cache that holds `ids`."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        self.forward(ids, cache)
        return cache

    def forward(self, ids: Sequence[int], cache: Any) -> Tensor:
        """Logits [vocab] after `ids`, which stay in the cache."""
        given = torch.tensor([list(ids)], device=self.device)
        with torch.inference_mode():
            return self.model(given, past_key_values=cache, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]


def published_template(tokenizer: QwenTokenizer) -> str:
    """The tests' template, filled up to the published lengths."""
    plain = ChatTemplate(GEN_TEMPLATE, tokenizer, Path("template"))
    fill = {}
    for role, (head, whole) in PUBLISHED.items():
        layout = plain.lay_out(["user", role][-1 if role == "user" else 0 :])
        begins = len(plain.encode(layout[:1], [])) - 1  # the space at its end joins the text
        own = len(plain.encode(layout, ["a", "a"])) - len(layout) // 2
        in_head = head - begins if head else whole - own
        fill[role] = (in_head, whole - own - in_head)
    (first, last), (response, _) = fill["user"], fill["assistant"]
    filler = "{{- '%s' * (%d if judged == 'query' else %d) }}\n"
    at = GEN_TEMPLATE.index("{{- '[CATEGORIES]")
    end = GEN_TEMPLATE.index("{{- 'The first line")
    return (
        GEN_TEMPLATE[:at]
        + filler % (" word", first, response)
        + GEN_TEMPLATE[at:end]
        + filler % ("word ", last, 0)
        + GEN_TEMPLATE[end:]
    )


def talk(rng: random.Random, response: bool, sentences: int) -> Talk:
    """A prompt of so many sentences, or a question and such a response."""
    text = " ".join(sentence(rng) for _ in range(sentences))
    if response:
        return [{"role": "user", "content": question(rng)}, {"role": "assistant", "content": text}]
    return [{"role": "user", "content": text}]


def agree(ours: Ours, theirs: Theirs, talks: Sequence[Talk], dtype: torch.dtype) -> str:
    """Render alike, and read the same label where its margin is clear; else the run ends."""
    labels = {name: ids[0] for name, ids in ours.grammar.severities.items()}
    ours.answer(None)
    clear = 0
    for one in talks:
        ids = ours.ids(one)
        if ids != theirs.tokenizer(theirs.tokenizer.apply_chat_template(one, tokenize=False))["input_ids"]:
            sys.exit("guardkit and transformers render the template differently: nothing was measured")
        logits = theirs.forward([*ids, *ours.grammar.safety], None)
        expected = {name: float(logits[token]) for name, token in labels.items()}
        first, second = sorted(expected.values())[-1:-3:-1]
        found = ours.guard.check(one)
        if first - second > CLEAR[dtype]:
            clear += 1
            if max(expected, key=lambda name: expected[name]).lower() != found.severity.value:
                sys.exit(f"guardkit says {found.severity.value}, transformers' logits are {expected}")
    return f"{len(talks)} texts are rendered alike; {clear} have a clear label, and it is the same for all."
