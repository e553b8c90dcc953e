"""A page of a run: clips playing, figures, how they came about.

python -m walt.gallery --workdir=runs/quickstart/denoiser --out=runs/quickstart/index.html

Reads WORKDIR/samples and WORKDIR/evaluation.json, which `walt.sample` and `walt.evaluate` wrote, and prints the figures
as a table. The page refers to the clips by relative paths, so keep them together.
"""

import html
import json
import os
from pathlib import Path
from string import Template
from typing import Any

from absl import app, flags

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a denoiser run.', required=True)
OUT = flags.DEFINE_string('out', None, 'Page to write; WORKDIR/index.html by default.')
SECONDS = flags.DEFINE_string('seconds', None, 'Folder of files that hold the seconds of each stage of the run.')

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  .clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .5rem; }
  figure { margin: 0; } video { width: 100%; display: block; image-rendering: pixelated; background: #000; }
  figcaption { font-size: .8rem; color: #666; text-align: center; }
  td { padding: .1rem 1rem .1rem 0; } td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
  pre { background: #f4f4f4; padding: 1rem; overflow: auto; font-size: .8rem; }
</style>
<h1>$title</h1>
<table>$rows</table>
<h2>Samples</h2>
<div class="clips">$clips</div>
<h2>How they came about</h2>
<pre>$record</pre>
</html>
""")


def figures(evaluation: dict[str, Any], seconds: dict[str, int]) -> list[tuple[str, str]]:
    """The rows of the table: (what, value)."""
    tokenizer, samples, judge = (evaluation[key] for key in ('tokenizer', 'samples', 'judge_on_held_out'))
    rows = [
        ('held-out reconstruction, PSNR', f'{tokenizer["psnr_db"]:.1f} dB'),
        ('held-out reconstruction, SSIM', f'{tokenizer["ssim"]:.3f}'),
        ('judge right on real held-out clips', f'{judge["clips"]:.1%}'),
        ('samples read as the class asked for', f'{samples["clips"]:.1%}'),
        ('frames of samples read so', f'{samples["frames"]:.1%}'),
    ]
    rows += [(f'time: {name}', f'{value // 60}:{value % 60:02d} min') for name, value in seconds.items()]
    if seconds:
        total = sum(seconds.values())
        rows.append(('time: in all', f'{total // 60}:{total % 60:02d} min'))
    return rows


def page(workdir: Path, out: Path, rows: list[tuple[str, str]], samples: dict[str, Any], evaluation: dict) -> str:
    """The page as HTML."""
    folder = Path(os.path.relpath(workdir / 'samples', out.parent))
    clips = [
        f'<figure><video src="{html.escape((folder / name).as_posix())}" autoplay loop muted playsinline></video>'
        f'<figcaption>{label}</figcaption></figure>'
        for name, label in zip(samples['files'], samples['labels'])
    ]
    record = {'samples': {key: value for key, value in samples.items() if key != 'files'}, 'evaluation': evaluation}
    return PAGE.substitute(
        title=f'W.A.L.T samples, step {samples["step"]}',
        rows=''.join(f'<tr><td>{html.escape(what)}</td><td>{html.escape(value)}</td></tr>' for what, value in rows),
        clips='\n'.join(clips),
        record=html.escape(json.dumps(record, indent=2)),
    )


def main(_) -> None:
    workdir = Path(WORKDIR.value)
    out = Path(OUT.value or workdir / 'index.html')
    samples = json.loads((workdir / 'samples' / 'samples.json').read_text())
    evaluation = json.loads((workdir / 'evaluation.json').read_text())
    files = sorted(Path(SECONDS.value).iterdir(), key=os.path.getmtime) if SECONDS.value else []
    rows = figures(evaluation, {file.name: int(file.read_text()) for file in files})
    out.write_text(page(workdir, out, rows, samples, evaluation))
    width = max(len(what) for what, _ in rows)
    print('\n'.join(f'{what:<{width}}  {value:>10}' for what, value in rows))
    print(f'\nclips   {workdir / "samples"}\npage    {out}')


if __name__ == '__main__':
    app.run(main)
