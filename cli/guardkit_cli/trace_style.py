"""The style sheet of the page of `guard trace --html`.

The shades grow steadily darker (lighter in dark mode), so that they can be told apart without seeing colour; what is
flagged is underlined and named as well.
"""

STYLE = """
:root{--bg:#fff;--fg:#1b1d21;--dim:#5c626d;--line:#d5d8de;--card:#f7f8fa;--link:#0b57a4;
--r1:#fdf3c7;--r2:#fbcf75;--r3:#ec8a47;--r4:#94285a;--f4:#fff;--f3:#1b1d21}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#e4e6ea;--dim:#a2a9b5;--line:#3a3f49;--card:#1c1f25;
--link:#8cc2ff;--r1:#332f1a;--r2:#644a12;--r3:#a85a22;--r4:#f6b3cc;--f4:#14161a;--f3:#fff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:0;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.2rem 0 .2rem}a{color:var(--link)}p{margin:.4rem 0}
.legend{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.6rem .8rem;font-size:.9rem;
line-height:1.9}
.legend span{padding:0 .35em}
.r0{background:none}.r1{background:var(--r1)}.r2{background:var(--r2)}.r3{background:var(--r3);color:var(--f3)}
.r4{background:var(--r4);color:var(--f4)}
.r1,.r2,.r3,.r4{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.f-controversial{text-decoration:underline dashed 2px;text-underline-offset:.2em}
.f-unsafe{text-decoration:underline double 2px;text-underline-offset:.2em}
.badge{display:inline-block;border:1px solid var(--fg);border-radius:.3rem;padding:0 .4em;font-size:.8rem;
font-weight:600;white-space:nowrap}
.badge.safe,.badge.allow{border-color:var(--line);font-weight:400}
.badge.controversial,.badge.flag{border-style:dashed;background:var(--r2);color:var(--fg)}
.badge.unsafe,.badge.block,.badge.redact{background:var(--r4);color:var(--f4)}
fieldset{border:0;padding:0;margin:.8rem 0 .4rem}legend{float:left;font-weight:600;margin-right:.8rem}
label{margin-right:1rem;cursor:pointer}
.scroll{max-height:22rem;overflow:auto;border:1px solid var(--line);border-radius:.4rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{position:sticky;top:0;background:var(--card);text-align:left}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line)}td:first-child{overflow-wrap:anywhere;min-width:11rem}
article{margin:1.4rem 0;padding:.9rem 1.1rem;border:1px solid var(--line);border-radius:.5rem;
content-visibility:auto;contain-intrinsic-size:auto 30rem}
body:has(#only:checked) .plain{display:none}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border-radius:.4rem;padding:.7rem .9rem;
line-height:1.75;unicode-bidi:plaintext}
.sum{font-weight:600}.warn{border-left:.3rem solid var(--r4);padding-left:.6rem}.top{font-size:.85rem;text-align:right}
.strip{display:flex;height:1.1rem;border:1px solid var(--line);border-radius:.25rem;overflow:hidden;margin:.4rem 0}
.strip a{min-width:1px;flex-basis:0;border-right:1px solid var(--line)}.strip a:last-child{border:0}
.s::before{content:attr(data-n);font:normal .62rem/1 system-ui,sans-serif;color:var(--dim);vertical-align:super;
padding:0 .15em}
.s.unsafe::before,.s.controversial::before{color:var(--fg);font-weight:700;text-decoration:underline}
.begin::before{content:"\\25B6 " attr(data-n);font:600 .72rem/1 system-ui,sans-serif;background:var(--fg);
color:var(--bg);border-radius:.25rem;padding:.1em .4em;margin:0 .25em;vertical-align:.1em;white-space:nowrap}
.begin,.s{scroll-margin:40vh 0}
.begin:target::before,.s:target::before{outline:3px solid var(--link)}
.x{font:600 .7rem/1 ui-monospace,monospace;border:1px solid var(--dim);border-radius:.2rem;padding:0 .2em}
details{margin:.4rem 0}summary{cursor:pointer}
"""
