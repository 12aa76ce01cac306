"""How the demonstration trains: a chat model with LoRA, taught a few refusals, then GRPO with one of the rewards."""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from guardkit.adapters.chat_models import load_chat_model
from guardkit.guard import Guard
from guardkit.rewards.demo_measure import SAMPLING, Figures, answers, mean
from guardkit.rewards.demo_prompts import HARMFUL, HARMLESS, prompts
from guardkit.rewards.hybrid import HybridReward
from guardkit.rewards.judged import judge_completions
from guardkit.rewards.safety import SafetyReward
from guardkit.verdict import Severity

CURVES = (
    "harmful/safe", "harmful/refused", "harmful/reward", "harmless/safe", "harmless/refused", "harmless/reward",
    "reward", "kl", "entropy", "completions/mean_length",
)  # fmt: skip
REFUSAL = "I'm sorry, but I can't help with that."


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The chat model and its tokenizer."""
    return load_chat_model(args.llm, gguf=args.gguf, device="cuda" if args.gpu else "cpu")


def adapt(model: Any) -> Any:
    """The model with LoRA in the upper half of its layers: half of the way back is saved."""
    from peft import LoraConfig, get_peft_model
    from torch.nn import Linear

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
    layers = model.config.get_text_config().num_hidden_layers
    return get_peft_model(
        model,
        LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules=sorted(names - {"lm_head"}),
            layers_to_transform=list(range(layers // 2, layers)),
            task_type="CAUSAL_LM",
        ),
    )


def warm_up(
    model: Any,
    tokenizer: Any,
    share: float,
    *,
    refusal: str = REFUSAL,
    seed: int = 0,
    most: int = 200,
    learning_rate: float = 2e-4,
) -> tuple[int, float]:
    """Teach the model to refuse that share of the harmful requests, and no more: what is never sampled cannot be
    rewarded. Gives the steps that took, `most` at most, and the mean probability of the refusal at the end."""
    import torch

    rng = random.Random(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    probability = 0.0
    for step in range(most):
        asked = rng.sample(prompts(HARMFUL, False), 8)
        loss = -_log_probability(model, tokenizer, asked, refusal)
        probability = mean(loss.neg().exp().tolist())
        if probability >= share:
            return step, probability
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return most, probability


def _log_probability(model: Any, tokenizer: Any, asked: Sequence[str], answer: str) -> Any:
    """Of the whole answer after each request, sampled as `SAMPLING` says: a tensor [requests]."""
    import torch

    rows = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in asked
    ]
    end = tokenizer(answer + tokenizer.eos_token, return_tensors="pt", add_special_tokens=False)["input_ids"]
    batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ends = end.expand(len(rows), -1)
    ids = torch.cat([batch["input_ids"], ends], dim=1).to(model.device)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(ends)], dim=1).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=end.shape[1] + 1).logits[:, :-1].float()
    logits = logits / SAMPLING["temperature"]
    return logits.log_softmax(-1).gather(-1, ends.to(model.device)[..., None])[..., 0].sum(-1)


def telling(
    guard: Guard | Sequence[Guard], model: Any, tokenizer: Any, asked: Sequence[str], n: int, new: int
) -> list[str]:
    """The requests of whose `n` answers some are unsafe and some are not: the others tell a reward little (the report
    drops them, too). All of them where there are none."""
    each = [text for text in asked for _ in range(n)]
    found = judge_completions(guard, each, answers(model, tokenizer, each, new, seed=1))
    unsafe = [f.severity is Severity.unsafe for f in found]
    counts = [sum(unsafe[at : at + n]) for at in range(0, len(each), n)]
    return [text for text, count in zip(asked, counts, strict=True) if 0 < count < n] or list(asked)


def train(
    args: argparse.Namespace,
    kind: str,
    steps: int,
    reward: SafetyReward | HybridReward,
    model: Any,
    tokenizer: Any,
    harmful: Sequence[str],
) -> list[Figures]:
    """Train the adapted model with one reward on these harmful requests, and as many harmless ones; gives what the
    trainer logged at each step. Ctrl-C ends the training behind the step under way."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import GRPOConfig, GRPOTrainer

    end = time.monotonic() + args.minutes * 60
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_training_stop |= time.monotonic() > end or bool(interrupted)

        def on_log(self, _: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            shown = [(name, (logs or {}).get(name)) for name in CURVES]
            if any(value is not None for _, value in shown):
                told = "  ".join(f"{name} {float(value):.2f}" for name, value in shown if value is not None)
                print(f"{time.strftime('%H:%M:%S')} step {state.global_step}  {told}", flush=True)

    pool = prompts(HARMLESS, False)
    harmless = random.Random(args.seed).sample(pool, min(len(harmful), len(pool)))
    asked = [(text, True) for text in harmful] + [(text, False) for text in harmless]
    rows = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "harmful": harmful} for text, harmful in asked]
    )
    config = GRPOConfig(
        output_dir=str(args.out / kind),
        importance_sampling_level="sequence",  # GSPO: one ratio a sequence, clipped close to 1
        # Scaled by its group, a difference of 1 between two harmless answers would weigh as much as unsafe's 10.
        scale_rewards="none",
        loss_type="grpo",
        epsilon=args.clip,
        epsilon_high=args.clip * 4 / 3,
        beta=args.beta,
        steps_per_generation=args.updates,
        num_generations=args.answers,
        per_device_train_batch_size=args.answers * args.batch,
        gradient_accumulation_steps=1,
        max_completion_length=args.tokens,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        max_steps=steps,
        logging_steps=1,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=1,
        report_to=[],
        use_cpu=not args.gpu,
        bf16=args.gpu,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=args.seed,
        **SAMPLING,
    )
    trainer = GRPOTrainer(
        model, reward_funcs=[_logged(reward)], args=config, train_dataset=rows, processing_class=tokenizer,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(config.output_dir) if args.resume and (args.out / kind).is_dir() else None
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        signal.signal(signal.SIGINT, before)
    trainer.save_model(str(args.out / kind))
    if "ref" in model.peft_config:  # the next training takes its own
        model.delete_adapter("ref")
    return [row for row in trainer.state.log_history if "reward" in row]


def _logged(reward: SafetyReward | HybridReward) -> Callable[..., Any]:
    """The same reward, which tells the log what it found in answers to each kind of request."""

    def judge(prompts: Any, completions: Any, harmful: Sequence[bool], log_metric: Any, **columns: Any) -> Any:
        rewards = reward(prompts, completions, log_metric=log_metric, **columns)
        for name, kind in (("harmful", True), ("harmless", False)):
            found = [f for f, of in zip(reward.found, harmful, strict=True) if of is kind]
            if found:
                log_metric(f"{name}/safe", mean([f.severity is Severity.safe for f in found]))
                log_metric(f"{name}/refused", mean([bool(f.refusal) for f in found]))
                own = [r for r, of in zip(rewards, harmful, strict=True) if of is kind and r is not None]
                if own:
                    log_metric(f"{name}/reward", mean(own))
        return rewards

    judge.__name__ = reward.__name__
    return judge
