"""The style sheet of the HTML report: one column, light and dark, no fonts or images from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --panel: #ffffff; --ink: #16202c; --muted: #5f6b7a; --line: #e2e6ec; --accent: #1f5fd0;
  --good: #12724a; --good-back: #e0f4ea; --worse: #8a5a00; --worse-back: #fdf1d8;
  --bad: #a4361b; --bad-back: #fdebe4; --mark: #ffd9cc;
  --series-0: #1f6fd6; --series-1: #d9791a; --series-2: #17917a; --series-3: #a34fc4; --series-4: #7c8797;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151c; --panel: #18202a; --ink: #e8edf3; --muted: #98a5b5; --line: #2a3542; --accent: #7fb0ff;
    --good: #6fdcab; --good-back: #123527; --worse: #f0c368; --worse-back: #3b2d10;
    --bad: #ffab91; --bad-back: #42221a; --mark: #6b2f1f;
    --series-0: #6ba9ff; --series-1: #f3a553; --series-2: #4fd0b4; --series-3: #cf92ea; --series-4: #93a0b1;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px; }
header { margin-bottom: 28px; }
.kicker { margin: 0; color: var(--accent); font-size: 12px; font-weight: 600; letter-spacing: .09em;
  text-transform: uppercase; }
h1 { margin: 4px 0 16px; font-size: 34px; line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 19px; letter-spacing: -.01em; }
h3 { margin: 22px 0 8px; font-size: 13px; font-weight: 600; color: var(--muted); }
p { margin: 0 0 12px; max-width: 74ch; }
.verdict { max-width: none; margin: 8px 0 0; padding: 10px 14px; border-radius: 8px; font-weight: 600; }
.good { color: var(--good); background: var(--good-back); }
.worse { color: var(--worse); background: var(--worse-back); }
.bad { color: var(--bad); background: var(--bad-back); }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr));
  margin-bottom: 14px; }
.card, section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 16px 18px; }
.card h3 { margin: 0; }
.card p { margin: 0; }

.card .value { margin: 2px 0 6px; font-size: 29px; font-weight: 650; line-height: 1.2;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.card .note { margin-top: 6px; color: var(--muted); font-size: 12.5px; }
section { padding: 24px 26px; margin-bottom: 14px; }
.chip { display: inline-block; padding: 1px 8px; border-radius: 99px; font-size: 12px; font-weight: 600;
  white-space: nowrap; }
.none { color: var(--muted); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { padding: 6px 12px 6px 0; color: var(--muted); font-size: 12px; font-weight: 600; text-align: right;
  vertical-align: bottom; border-bottom: 1px solid var(--line); }
td { padding: 7px 12px 7px 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child, .layers th:nth-child(2), .layers td:nth-child(2) { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.samples th, .samples td { text-align: left; vertical-align: top; white-space: normal;
  overflow-wrap: anywhere; }
.samples td:first-child { width: 44%; }
.samples img { display: block; max-width: 100%; max-height: 64px; border-radius: 4px; }
.label { margin-top: 3px; color: var(--muted); font-size: 12.5px; }
mark { padding: 0 1px; border-radius: 3px; color: inherit; background: var(--mark); }
figure { margin: 6px 0 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 640px; height: auto; }
figure svg text { font-family: inherit !important; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); font-weight: 600; font-size: 13.5px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 13.5px; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 28px 14px 40px; }
  section { padding: 18px 16px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .card { padding: 12px 14px; }
  .card .value { font-size: 23px; }
  h1 { font-size: 27px; }
}
@media print { body { background: none; } section, .card { break-inside: avoid; } }
"""
