"""The style sheet of the page of `guard trace --html`: the shared one, and what only this page has."""

from guardkit import pages

OWN = """
.scroll{max-height:22rem}td:first-child{overflow-wrap:anywhere;min-width:11rem}
article{margin:1.4rem 0;padding:.9rem 1.1rem;border:1px solid var(--line);border-radius:.5rem;
content-visibility:auto;contain-intrinsic-size:auto 30rem}
article h2{margin:0;font-size:1.1rem}
body:has(#only:checked) .plain{display:none}
.top{font-size:.85rem;text-align:right}
svg.strip{width:100%;height:1.2rem;border:1px solid var(--line);border-radius:.25rem;margin:.4rem 0}
.strip rect{fill:var(--bg);stroke:var(--line);vector-effect:non-scaling-stroke}
.strip .r1 rect{fill:var(--r1)}.strip .r2 rect{fill:var(--r2)}.strip .r3 rect{fill:var(--r3)}
.strip .r4 rect{fill:var(--r4)}
.strip a:focus-visible{outline:0}.strip a:focus-visible rect{stroke:var(--link);stroke-width:4}
.s::before{content:attr(data-n);font:normal .62rem/1 system-ui,sans-serif;color:var(--dim);vertical-align:super;
padding:0 .15em}
.s.unsafe::before,.s.controversial::before{color:var(--fg);font-weight:700;text-decoration:underline}
.begin::before{content:"\\25B6 " attr(data-n);font:600 .72rem/1 system-ui,sans-serif;background:var(--fg);
color:var(--bg);border-radius:.25rem;padding:.1em .4em;margin:0 .25em;vertical-align:.1em;white-space:nowrap}
.begin,.s{scroll-margin:40vh 0}
.begin:target::before,.s:target::before{outline:3px solid var(--link)}
@media print{.scroll{max-height:none}article{content-visibility:visible;break-inside:auto}.top,fieldset{display:none}}
"""
STYLE = pages.STYLE + OWN
