# SPDX-License-Identifier: Apache-2.0
"""GET /: a small page that shows the agent live, for people without a terminal at hand. The seed of the dashboard.

One file, nothing from elsewhere: the policy allows this style, this script (by hash) and this origin only. Names from
the kernel reach the page as text, never as markup.
"""

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #66707f; --line: #dfe3e8; --paper: #f6f7f9; --card: #fff;
  --need: #2f6fde; --cold: #8fb7e8; --page: #d5dae1; --good: #1a7f4b; --warn: #a35a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --dim: #949dab; --line: #2b323c; --paper: #12161b;
  --card: #1a1f26; --need: #6ea2f7; --cold: #38598a; --page: #3a424d; --good: #55c78c; --warn: #e0a352;
  --bad: #f2867e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.2rem; }
header { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: baseline; margin-bottom: 1rem; }
h1 { font-size: 1.35rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: .95rem; margin: 0 0 .6rem; }
.badge { border: 1px solid currentcolor; border-radius: 99px; padding: .05rem .6rem; font-size: .8rem; }
.apply { color: var(--good); } .observe { color: var(--need); } .gone { color: var(--bad); }
.dim { color: var(--dim); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
  margin-bottom: 1rem; overflow-x: auto; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; }
.facts b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--dim); font-size: .8rem; }
td { text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
th, td { padding: .3rem .5rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; max-width: 24rem; overflow: hidden;
  text-overflow: ellipsis; }
td.wide { white-space: normal; text-align: left; min-width: 16rem; } th.wide { text-align: left; }
.bar { display: flex; width: 8rem; height: .55rem; border-radius: 3px; overflow: hidden; background: var(--line);
  margin-left: auto; }
.bar i { display: block; height: 100%; }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin: 0 .3em 0 .8em; }
.need { background: var(--need); } .cold { background: var(--cold); } .cache { background: var(--page); }
.note { color: var(--warn); margin: .2rem 0; } [hidden] { display: none; }
"""

_SCRIPT = """
"use strict";
const units = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];
function size(bytes) {
  if (bytes === null || bytes === undefined) return "\\u2013";
  for (const [unit, one] of units)
    if (Math.abs(bytes) >= one) return (bytes / one).toFixed(bytes / one >= 100 ? 0 : 1) + " " + unit;
  return bytes + " B";
}
function time(s) {
  return s < 120 ? s.toFixed(0) + " s" : s < 7200 ? (s / 60).toFixed(0) + " min" : (s / 3600).toFixed(1) + " h";
}
const share = (ratio, digits = 1) => (ratio * 100).toFixed(digits) + " %";
const $ = (id) => document.getElementById(id);
function cell(content, kind) {
  const td = document.createElement("td");
  if (kind) td.className = kind;
  if (content instanceof Node) td.append(content); else { td.textContent = content; td.title = content; }
  return td;
}
function fill(id, rows) {
  $(id).replaceChildren(...rows.map((cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells.map((one) => Array.isArray(one) ? cell(...one) : cell(one)));
    return tr;
  }));
  $(id).closest("section").hidden = rows.length === 0;
}
function bar(parts, whole) {
  const box = document.createElement("div");
  box.className = "bar";
  for (const [kind, bytes] of parts) {
    const part = document.createElement("i");
    part.className = kind;
    part.style.width = Math.min(100, 100 * bytes / Math.max(1, whole)) + "%";
    box.append(part);
  }
  return box;
}
function top(forecast) {
  const quantiles = forecast.quantiles_bytes;
  const row = forecast.levels.indexOf(0.99);
  return quantiles.length ? quantiles[row < 0 ? quantiles.length - 1 : row] : null;
}
function show(s) {
  $("mode").textContent = s.mode;
  $("mode").className = "badge " + s.mode;
  $("up").textContent = "up " + time(s.uptime_s) + ", " + s.agent.tick_count + " ticks, " + s.host + " host, memsculpt "
    + s.version;
  const m = s.memory;
  $("used").textContent = m ? size(m.total_bytes - m.available_bytes) + " of " + size(m.total_bytes) : "\\u2013";
  $("swap").textContent = m ? size(m.swap_total_bytes - m.swap_free_bytes) + " of " + size(m.swap_total_bytes) : "";
  $("agent").textContent = share(s.agent.cpu_share) + ", " + size(s.agent.resident_bytes);
  const scores = s.scores, level = scores ? scores.levels.indexOf(0.99) : -1;
  $("scores").textContent = scores && scores.scored_count && level >= 0
    ? share(scores.covered_ratio[level]) + " at 99 %" : "none scored yet";
  const notes = [...s.notes];
  if (s.last_problem) notes.push(s.last_problem);
  if (s.backoff) notes.push("holding still for " + time(s.backoff.remaining_s) + ": " + s.backoff.reason);
  $("notes").replaceChildren(...notes.map((text) => {
    const p = document.createElement("p");
    p.className = "note";
    p.textContent = text;
    return p;
  }));
  fill("partitions", s.partitions.map((p) => [p.name, p.kind, size(p.guarantee_bytes), size(p.used_bytes),
    size(p.size_bytes), size(p.ceiling_bytes), size(top(p.forecast)), bar([["need", p.used_bytes]], p.size_bytes)]));
  const by = [...s.workloads].sort((a, b) => b.resident_bytes - a.resident_bytes).slice(0, 25);
  const most = by.length ? by[0].resident_bytes : 1;
  fill("workloads", by.map((w) => [w.id, w.partition || "", size(w.resident_bytes), size(w.needed_bytes),
    size(w.cold_bytes), size(w.reclaimable_bytes), size(w.swapped_bytes), size(top(w.forecast)),
    bar([["need", w.needed_bytes], ["cold", w.cold_bytes], ["cache", w.reclaimable_bytes]], most)]));
  fill("actions", s.actions.recent.map((a) => [String(a.id), a.action.kind, a.status, size(a.done_bytes),
    time(a.age_s) + " ago", [a.action.text, "wide"]]));
}
async function poll() {
  try {
    const answer = await fetch("/v1/status");
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
  } catch (error) {
    $("mode").textContent = "not reachable";
    $("mode").className = "badge gone";
  }
  setTimeout(poll, document.hidden ? 10000 : 1000);
}
poll();
"""

_BODY = """
<main>
<header><h1>memsculpt</h1><span id="mode" class="badge dim">…</span><span id="up" class="dim"></span></header>
<section><div class="facts">
<div><span class="dim">memory in use</span><b id="used">–</b></div>
<div><span class="dim">swap in use</span><b id="swap">–</b></div>
<div><span class="dim">forecasts held</span><b id="scores">–</b></div>
<div><span class="dim">the agent itself</span><b id="agent">–</b></div>
</div><div id="notes"></div></section>
<section hidden><h2>Partitions</h2><table><thead><tr><th>name<th>kind<th>guarantee<th>used<th>size<th>ceiling
<th>need, 99 %<th>used of size</tr></thead><tbody id="partitions"></tbody></table></section>
<section hidden><h2>Workloads <span class="key dim"><i class="need"></i>needed<i class="cold"></i>cold<i class="cache">
</i>page cache</span></h2><table><thead><tr><th>workload<th>partition<th>resident<th>needed<th>cold<th>reclaimable
<th>swapped<th>need, 99 %<th></tr></thead><tbody id="workloads"></tbody></table></section>
<section hidden><h2>Last actions</h2><table><thead><tr><th>id<th>kind<th>status<th>bytes<th>when<th class="wide">why
</tr></thead><tbody id="actions"></tbody></table></section>
</main>
"""


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HTML = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>memsculpt</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    f"<style>{_STYLE}</style></head><body>{_BODY}<script>{_SCRIPT}</script></body></html>\n"
)

# style-src-attr: the script sets the width of a bar.
POLICY = (
    f"default-src 'none'; script-src {_hash_of(_SCRIPT)}; style-src {_hash_of(_STYLE)}; "
    "style-src-attr 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
