"""The report of ``datasets check`` as one HTML page without scripts or outside files."""

from __future__ import annotations

import base64

from trunkline.data.check_report import DatasetCheck

LABELS = 40
"""Labels that the chart shows; the others are summed."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Check of {{ check.name }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid #ccc; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.error { color: #a00000; font-weight: 600; } .warning { color: #7a4b00; font-weight: 600; }
img { max-width: 100%; }
svg { width: 100%; height: .9rem; } rect { fill: #3566a8; }
@media (prefers-color-scheme: dark) {
  body { color: #e8e8e8; background: #161616; } .error { color: #ff8a80; }
  .warning { color: #ffc46b; } rect { fill: #7ba7e0; } th, td { border-color: #444; }
}
</style>
</head>
<body>
<h1>Check of {{ check.name }}</h1>
<p>{{ "It can be trained on." if check.usable else "It can't be trained on." }}
{{ check.findings | length }} findings in {{ "{:,}".format(check.rows) }} rows, as
{{ check.task }}.</p>
<h2>Findings</h2>
{% if check.findings %}
<table>
<thead><tr><th>Level</th><th class="number">Rows</th><th>Finding</th><th>What to do</th>
<th>First rows</th></tr></thead>
<tbody>
{% for one in check.findings %}
<tr><td class="{{ one.level }}">{{ one.level }}</td>
<td class="number">{{ "{:,}".format(one.count) if one.count else "" }}</td>
<td>{{ one.message[:1] | upper }}{{ one.message[1:] }}.</td><td>{{ one.advice }}</td>
<td>{{ one.rows | join(", ") }}{{ ", …" if one.count > one.rows | length }}</td></tr>
{% endfor %}
</tbody>
</table>
{% else %}<p>Nothing suspicious was found.</p>{% endif %}
{% if check.parts %}
<h2>Split</h2>
{{ chart("Part", check.parts) }}
{% endif %}
{% if labels %}
<h2>Labels</h2>
{{ chart("Label", labels) }}
{% endif %}
{% if check.pictures %}
<h2>Sizes, in pixels</h2>
{{ chart("Size", check.pictures.sizes) }}
<h2>Color modes</h2>
{{ chart("Mode", check.pictures.modes) }}
<h2>Brightness, from 0 to 255</h2>
{{ chart("Mean", check.pictures.brightness) }}
{% endif %}
{% if sheet %}
<h2>Contact sheet</h2>
<img src="{{ sheet }}" alt="Pictures of each label">
{% endif %}
{% if check.lengths %}
<h2>Prompts, in tokens</h2>
<table><tbody>
<tr><th>Median</th><td class="number">{{ check.lengths.median }}</td></tr>
<tr><th>95 %</th><td class="number">{{ check.lengths.p95 }}</td></tr>
<tr><th>Longest</th><td class="number">{{ check.lengths.longest }}</td></tr>
<tr><th>Limit</th><td class="number">{{ check.lengths.limit }}</td></tr>
<tr><th>Cut</th>
<td class="number">{{ check.lengths.truncated }} of {{ check.lengths.rows }}</td></tr>
</tbody></table>
{% endif %}
</body>
</html>
"""

_CHART = """{% macro chart(noun, counts) %}
<table>
<thead><tr><th>{{ noun }}</th><th class="number">Rows</th><th>Share</th></tr></thead>
<tbody>
{% set most = counts.values() | max %}
{% for name, count in counts.items() %}
<tr><td>{{ name }}</td><td class="number">{{ "{:,}".format(count) }}</td>
<td><svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
<rect width="{{ "%.2f" | format(100 * count / (most or 1)) }}" height="4"/></svg></td></tr>
{% endfor %}
</tbody>
</table>
{% endmacro %}"""


def render_page(check: DatasetCheck) -> str:
    """The page; everything from the rows is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shown = dict(list(check.labels.items())[:LABELS])
    if (rest := len(check.labels) - len(shown)) > 0:
        shown[f"{rest:,} other labels"] = sum(check.labels.values()) - sum(shown.values())
    return environment.from_string(_CHART + _PAGE).render(
        check=check, labels=shown, sheet=sheet_url(check)
    )


def sheet_url(check: DatasetCheck) -> str | None:
    """The contact sheet as a data URL; None if none was drawn."""
    if check.contact_sheet is None:
        return None
    return f"data:image/png;base64,{base64.b64encode(check.contact_sheet).decode()}"
