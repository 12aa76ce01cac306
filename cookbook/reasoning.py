"""Judge a model's reasoning and its answer apart, each at its own stage.

python cookbook/reasoning.py
"""

from guardkit import Guard
from guardkit.messages import split_reasoning

QUESTION = {"role": "user", "content": "Somebody was rude to my sister. What should she do?"}
REPLIES = {
    "tags": "<think>She is upset. Advise her to stay calm.</think>She could talk to a friend and let it rest.",
    "opening tag missing": "She is upset. Advise her to stay calm.</think>She could talk to a friend.",
    "unsafe reasoning": (
        "<think>He should be beaten up. I will kill him tonight, slowly, and make his family watch.</think>"
        "She could talk to a friend and let it rest."
    ),
}


def main() -> None:
    guard = Guard.load()
    for name, reply in REPLIES.items():
        reasoning, answer = split_reasoning(reply)
        print(f"{name}: {len(reasoning)} characters of reasoning, {len(answer)} of answer")
        print(f"    reasoning {guard.check(reasoning, stage='reasoning').severity.value}")
        print(f"    response  {guard.check(answer, stage='response').severity.value}")

        # A message is split in the same way; the worst part's verdict counts, and its stage says which part it was.
        verdict = guard.check([QUESTION, {"role": "assistant", "content": reply}])
        print(f"    whole message: {verdict.severity.value}, stage {verdict.stage.value}")

    # Servers that give the reasoning in a field of its own need no tags.
    message = {"role": "assistant", "reasoning_content": "She is upset.", "content": "She could talk to a friend."}
    verdict = guard.check([QUESTION, message])
    print(f"own field: {verdict.severity.value}, stage {verdict.stage.value}")


if __name__ == "__main__":
    main()
