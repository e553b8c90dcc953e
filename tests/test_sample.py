"""`walt.sample`: what its flags ask for, and what it writes, from denoisers of four training steps."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import app
from PIL import Image
from tiny import binary, run_here

from walt import restore
from walt.data.video_io import read_video, write_mp4
from walt.denoiser.walt import Walt
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim
from walt.generation.cascade import border_jump
from walt.generation.request import Request
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm


@pytest.fixture
def asked(small_tokenizer, tmp_path, monkeypatch):
    """asked(*flags, **fields of a denoiser) -> (request, frames of a clip, samples.json), and no clip is made."""

    def asked(*flags: str, **fields) -> tuple[Request, int | None, dict]:
        size = dict(latent_shape=(3, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2))
        frozen = FrozenTokenizer(small_tokenizer.module, {}, LatentNorm.identity(3))
        stage = Stage(Walt(**size | fields), {}, frozen, DiscreteLinear(), 'v', False, Ddim(), 2, 1.0, make_mesh())
        made = []

        def clips(self, request, seed, batch_size, frames, progress):
            made.append((request, frames))
            yield np.zeros((len(request), frames or 9, 16, 16, 3), np.uint8)

        monkeypatch.setattr(
            restore, 'stage', lambda *_: (stage, {'sampler': {'name': 'ddim', 'steps': 2, 'guidance': 1.0}}, 4)
        )
        monkeypatch.setattr(binary('sample').Cascade, 'clips', clips)
        run_here('sample', '--workdir=run', f'--out={tmp_path}/out', '--scale=1', *flags)
        (request, frames), record = made[0], json.loads((tmp_path / 'out' / 'samples.json').read_text())
        return request, frames, record

    return asked


TEXT = {'text_shape': (3, 4)}


def test_a_prompt_is_a_text_and_names_its_clips(asked):
    request, frames, record = asked('--prompts=The digit 3, moving left!', '--num=2', **TEXT)
    assert request.prompts == record['prompts'] == ['The digit 3, moving left!'] * 2
    assert request.labels is None and request.frames_NTHWC is None and not request.pictures and frames is None
    assert record['files'] == ['0000_the-digit-3-moving-left.mp4', '0001_the-digit-3-moving-left.mp4']


def test_a_file_of_prompts_has_one_in_every_line(asked, tmp_path):
    """Empty lines are none."""
    (tmp_path / 'prompts.txt').write_text('the digit one\n\n  the digit two \n')
    request, _, record = asked(f'--prompts={tmp_path}/prompts.txt', '--num=2', **TEXT)
    assert request.prompts == ['the digit one'] * 2 + ['the digit two'] * 2
    assert record['files'][2:] == ['0002_the-digit-two.mp4', '0003_the-digit-two.mp4']


def test_a_file_without_prompts_is_refused_and_a_long_prompt_is_no_file(asked, tmp_path):
    (tmp_path / 'prompts.txt').write_text('\n  \n')
    with pytest.raises(ValueError, match=r'prompts\.txt has no prompt in it'):
        asked(f'--prompts={tmp_path}/prompts.txt', **TEXT)
    request, _, record = asked('--prompts=' + 'word ' * 100, **TEXT)
    assert request.prompts == ['word ' * 100] and len(record['files'][0]) < 70


@pytest.mark.parametrize(
    ('flags', 'fields', 'labels', 'prompts'),
    [
        ([], {'classes': 3}, [0, 0, 1, 1, 2, 2], None),
        (['--labels=2,0'], {'classes': 3}, [2, 2, 0, 0], None),
        ([], TEXT, None, ['', '']),
        ([], {}, [-1, -1], None),
        (['--labels=1', '--prompts=a'], {'classes': 3} | TEXT, [1, 1], ['a', 'a']),
        (['--prompts=a'], {'classes': 3} | TEXT, None, ['a', 'a']),
    ],
    ids=str,
)
def test_by_default_all_classes_are_asked_for_or_nothing_in_particular(flags, fields, labels, prompts, asked):
    request, _, record = asked('--num=2', *flags, **fields)
    assert (request.labels, request.prompts) == (labels, prompts) == (record['labels'], record['prompts'])
    kind = 'clip' if max(labels or [-1]) < 0 else 'label'
    kind = 'a' if prompts == ['a', 'a'] and labels is None else kind
    assert all(name[5:].startswith(kind) for name in record['files'])


def test_labels_and_prompts_of_different_numbers_are_refused_with_both(asked):
    with pytest.raises(ValueError, match='2 labels and 1 prompts: give as many of both'):
        asked('--labels=0,1', '--prompts=a', classes=3, **TEXT)


@pytest.fixture(scope='module')
def street(tmp_path_factory):
    """A video of 40x48 pixels, larger than the clips, and its last frame as an image."""
    folder = tmp_path_factory.mktemp('street')
    video = np.random.default_rng(0).integers(256, size=(12, 5, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    write_mp4(folder / 'street.mp4', video)
    Image.fromarray(video[-1]).save(folder / 'street.png')
    return folder


@pytest.mark.parametrize(('name', 'count'), [('street.mp4', 5), ('street.png', 1)])
def test_frames_are_the_last_ones_of_a_file_for_every_clip(name, count, asked, street, capsys):
    """As many as training gave: the first two latent frames."""
    request, _, record = asked(f'--frames={street}/{name}', '--num=2', frame_prediction=True)
    assert request.frames_NTHWC.shape == (2, count, 16, 16, 3) and request.labels is None and request.prompts is None
    np.testing.assert_array_equal(*request.frames_NTHWC)
    assert record['frames'] == f'{street}/{name}' and record['files'] == ['0000_clip.mp4', '0001_clip.mp4']
    told = f'goes on from the last {count} frame(s) of {street}/{name}, from 40x48 scaled and cropped to 16x16'
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(('seconds', 'fps', 'frames'), [(2, 8, 16), (1.4, 8, 11), (0.01, 8, 1), (0.5, 4, 2)])
def test_seconds_are_frames_at_the_rate_of_the_files(seconds, fps, frames, asked, tmp_path):
    _, wanted, record = asked(f'--seconds={seconds}', f'--fps={fps}', frame_prediction=True)
    assert wanted == frames and ('border_jump' in record) == (frames > 9)
    video, rate = read_video(tmp_path / 'out' / record['files'][0])
    assert len(video) == frames and (frames == 1 or rate == pytest.approx(fps))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ((), 'give either --workdir or --cascade'),
        (('--workdir=a', '--cascade=a,b'), 'give either --workdir or --cascade'),
        (('--cascade=a,b', '--step=4'), '--step and --weak_workdir are of --workdir'),
        (('--cascade=a,b', '--weak_workdir=c', '--weak_guidance=2'), '--step and --weak_workdir are of --workdir'),
        (('--workdir=a', '--weak_workdir=c'), '--weak_workdir and --weak_guidance go together'),
    ],
    ids=str,
)
def test_one_of_workdir_and_cascade_is_given_and_a_step_is_of_the_first(flags, message):
    with pytest.raises(app.UsageError, match=message):
        run_here('sample', *flags)


@pytest.fixture
def sample(conditioned, letters, tmp_path):
    """sample(*flags) -> (the folder that was written, its samples.json, its clips), from `base` or a cascade."""

    def sample(*flags: str) -> tuple[Path, dict, list[np.ndarray]]:
        out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
        runs = [] if flags[0].startswith('--cascade') else [f'--workdir={conditioned.folder}/base']
        run_here('sample', *runs, f'--out={out}', '--scale=1', *flags)
        record = json.loads((out / 'samples.json').read_text())
        clips = [read_video(out / name)[0].astype(int) for name in record['files'] if name.endswith('mp4')]
        return out, record, clips

    return sample


def test_a_prompt_changes_its_clip_and_no_other(conditioned, letters):
    """Before rounding, after four steps of training, with nothing else different."""
    stage, _, _ = restore.stage(str(conditioned.folder / 'base'), make_mesh())
    key_B = jax.random.split(jax.random.key(0), 2)
    one, two, again = (
        np.asarray(stage.latents(stage.conditions(Request(prompts=prompts)), key_B))
        for prompts in (['a dog', 'snow'], ['a dog', 'a cat sleeps'], ['a dog', 'snow'])
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 1e-5


def test_a_clip_begins_with_the_given_frame_as_the_tokenizer_shows_it(sample, street, conditioned, letters):
    """The sheet has frames as they are; the colours of an mp4 are those of two by two pixels."""
    out, *_ = sample(f'--frames={street}/street.png', '--num=2')
    last = Image.open(street / 'street.png').crop((4, 0, 44, 40)).resize((16, 16), Image.Resampling.BICUBIC)
    stage, _, _ = restore.stage(str(conditioned.folder / 'base'), make_mesh())
    shown = stage.decode(stage.encode(np.asarray(last)[None, None]))[0, 0].astype(int)
    sheet = np.asarray(Image.open(out / 'samples.png')).astype(int)
    for top in (2, 20):
        np.testing.assert_allclose(sheet[top : top + 16, 2:18], shown, atol=8)  # resizing knows the edge
        assert np.abs(sheet[top : top + 16, 20:36] - shown).mean() > 10


def test_a_long_clip_is_made_in_chunks_and_a_short_one_is_its_beginning(sample):
    """5 frames, and 4 with every chunk more: 11 frames are of 3 chunks."""
    _, record, clips = sample('--prompts=snow', '--seconds=1.4', '--num=2')
    assert {clip.shape for clip in clips} == {(11, 16, 16, 3)} and (clips[0] != clips[1]).any()
    jumps = np.mean([border_jump(clip.astype(np.uint8), 5, 1) for clip in clips])
    assert record['border_jump'] == pytest.approx(jumps, rel=0.1)  # of the clips before the video coder
    _, record, (short, _) = sample('--prompts=snow', '--seconds=0.4', '--num=2')
    assert short.shape == (3, 16, 16, 3) and 'border_jump' not in record
    np.testing.assert_allclose(short, clips[0][:3], atol=6)


def test_a_cascade_makes_long_clips_of_the_last_stages_size(sample, conditioned, street):
    base, finer = (f'{conditioned.folder}/{name}' for name in ('base', 'finer'))
    flags = [f'--cascade={base},{finer}', '--prompts=a dog', '--seconds=1', f'--frames={street}/street.mp4']
    _, record, (clip,) = sample(*flags)
    assert clip.shape == (8, 32, 32, 3) and record['border_jump'] > 0
    assert record['checkpoint'] == [f'{base}/checkpoints/4', f'{finer}/checkpoints/4'] and record['step'] == [4, 4]
    assert record['sampler'] == [conditioned.configs[name]['sampler'] for name in ('base', 'finer')]


def test_pictures_are_stacks_in_a_row_and_no_videos(sample):
    out, record, _ = sample('--prompts=a dog', '--num=2', '--pictures')
    assert record['files'] == ['0000_a-dog.png', '0001_a-dog.png']
    assert {path.name for path in out.iterdir()} == {*record['files'], 'samples.json', 'samples.png'}
    first, second = (np.asarray(Image.open(out / name)) for name in record['files'])
    assert first.shape == (18 + 2, 2 * 18 + 2, 3) and (first != second).any()  # two pictures with margins


def test_a_weaker_run_to_guide_away_from_is_restored_and_must_be_of_the_same_kind(conditioned, letters):
    mesh, base, finer = make_mesh(), str(conditioned.folder / 'base'), str(conditioned.folder / 'finer')
    stage, _, _ = restore.stage(base, mesh, sampling={'weak_guidance': 2.0}, weak_workdir=base)
    assert stage.weak.denoiser == stage.denoiser and stage.weak_guidance == 2.0
    jax.tree.map(np.testing.assert_array_equal, stage.weak.params, stage.params)
    with pytest.raises(ValueError, match=r'other latents: \(2, 8, 8, 3\), the denoiser \(2, 4, 4, 3\)'):
        restore.stage(base, mesh, weak_workdir=finer)
