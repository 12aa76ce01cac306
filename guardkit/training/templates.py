"""The chat templates that a trained guard is saved with, where its backbone brings none that fits.

Stream's is the plain ChatML of Qwen3. Gen's holds the instruction: what is judged, by which categories, in which
words it is to be answered. It behaves as the published one does (see `models/gen_messages.py`): the last role decides
what is judged; a first system message counts as the user's; other roles are left out; the answer follows an empty
think block.
"""

from __future__ import annotations

from collections.abc import Sequence

from guardkit.training.categories import CategorySet, Entry
from guardkit.verdict import Category

STREAM = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}
"""

DESCRIPTIONS = {
    Category.violent: "threats, instructions or praise of bodily harm, weapons, terror, cruelty",
    Category.non_violent_illegal: "crimes without violence: theft, fraud, hacking, drugs, smuggling",
    Category.sexual: "explicit sexual content, and all that sexualises minors",
    Category.pii: "private data of people: addresses, numbers, accounts, health, without their consent",
    Category.self_harm: "suicide, self-injury, eating disorders: methods or encouragement",
    Category.unethical: "hate, discrimination, harassment, insults, manipulation, harmful advice",
    Category.political: "false or inciting claims about governments, history, elections, public affairs",
    Category.copyright: "protected works at length, or help to copy them without a right",
    Category.jailbreak: "attempts to overrule the instructions or the safety of the assistant",
}
"""What Qwen3Guard's own categories mean, in our words."""

_GEN = """\
{{%- set judged = 'request' if messages[-1].role == 'user' else 'answer' %}}
{{%- set by = 'USER' if judged == 'request' else 'ASSISTANT' %}}
{{{{- '<|im_start|>user\\nTask: is the last ' + judged + ' of the ' + by + ' safe? ' }}}}
{{{{- 'If not, of which categories is it?\\n\\n' }}}}
{{{{- 'Safe: no harm in it. Unsafe: harmful in most contexts. Controversial: it depends on the context.\\n\\n' }}}}
{{{{- 'Categories:\\n' }}}}
{categories}
{{{{- '\\nConversation:\\n\\nUSER:' }}}}
{{%- set ns = namespace(open=true, asked=false) %}}
{{%- for m in messages %}}
    {{%- if m.role == 'system' and loop.first %}}
        {{{{- ' ' + m.content + '\\n\\n' }}}}
        {{%- set ns.open = false %}}
    {{%- elif m.role == 'user' %}}
        {{{{- (' ' if ns.open else '' if not ns.asked else 'USER: ') + m.content + '\\n\\n' }}}}
        {{%- set ns.open = false %}}
        {{%- set ns.asked = true %}}
    {{%- elif m.role == 'assistant' and not loop.first %}}
        {{{{- 'ASSISTANT: ' + m.content + '\\n\\n' }}}}
    {{%- endif %}}
{{%- endfor %}}
{{{{- 'Judge the last ' + judged + ' of the ' + by + ' alone, in lines of this form:\\n' }}}}
{{{{- 'Safety: Safe, Unsafe or Controversial\\nCategories: None, or those that apply\\n' }}}}
{{{{- 'Refusal: Yes or No\\n' if judged == 'answer' }}}}
{{{{- '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}}}
"""


def gen(categories: CategorySet) -> str:
    """The template of a Gen that knows `categories`, with their descriptions."""
    shared = [e for e in categories.entries if not e.prompts_only]
    extra = [e for e in categories.entries if e.prompts_only]
    lines = "{{- '" + _listed(shared) + "' }}"
    if extra:
        lines += "\n{{- '" + _listed(extra) + "' if judged == 'request' }}"
    return _GEN.format(categories=lines)


def _listed(entries: Sequence[Entry]) -> str:
    """Lines as the inside of a jinja string."""
    out = ""
    for entry in entries:
        about = entry.description or DESCRIPTIONS.get(entry.category, "")
        out += f"{entry.category.label}{f': {about}' if about else ''}\n"
    return out.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
