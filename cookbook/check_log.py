"""Check a log line by line, and print the lines that the policy does not let pass.

python cookbook/check_log.py [LOG]
"""

import sys
from collections import Counter
from pathlib import Path

from guardkit import Action, Guard


def main() -> None:
    log = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("app.log")
    guard = Guard.load()
    actions: Counter[Action] = Counter()
    with log.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            decision = guard.decide(line.rstrip("\n"))
            actions[decision.action] += 1
            if decision.action is not Action.allow:
                print(f"{number}: {decision}")
                print(f"    {line.strip()}")
    counts = ", ".join(f"{actions[a]} {a.value}" for a in Action if actions[a])
    print(f"{sum(actions.values())} lines: {counts}")


if __name__ == "__main__":
    main()
