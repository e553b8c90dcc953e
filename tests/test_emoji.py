"""The program that makes captioned clips of animated emoji, on animations that the test draws."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from absl import app
from PIL import Image
from tiny import binary

from walt.data.video_file import VideoFile
from walt.data.video_folder import VideoFolder

NAMES = {
    '\U0001f44b': {'name': 'waving hand', 'group': 'People & Body'},
    '\U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1': {'name': 'people holding hands', 'group': 'People & Body'},
    '\u2601\ufe0f': {'name': 'cloud', 'group': 'Travel & Places'},
}
HAND, CLOUD = '1f44b', '2601-fe0f'


@pytest.fixture(scope='module')
def program():
    return binary('emoji')


@pytest.fixture
def run(program, monkeypatch, capsys, tmp_path):
    """run(**flags) -> (exit status, what it printed); reads tmp_path/packages and writes to tmp_path/clips."""

    def run(size=16, every=4, frames=17, validation_fraction=0.0):
        values = {'PACKAGES': str(tmp_path / 'packages'), 'TARGET': str(tmp_path / 'clips'), 'SIZE': size}
        values |= {'EVERY': every, 'FRAMES': frames, 'VALIDATION_FRACTION': validation_fraction}
        for name, value in values.items():
            monkeypatch.setattr(program, name, SimpleNamespace(value=value))
        status = program.main([])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def draw(tmp_path):
    """draw(name, frames) writes an animation of 40 ms a frame: ever redder on the right, transparent on the left."""
    folder = tmp_path / 'packages' / 'unicode-emoji-json'
    folder.mkdir(parents=True)
    (folder / 'data-by-emoji.json').write_text(json.dumps(NAMES))

    def draw(name, frames=72, part=4):
        pictures = np.zeros((frames, 32, 32, 4), np.uint8)
        pictures[..., 0] = (240 // frames * np.arange(frames))[:, None, None]
        pictures[:, :, 16:, 3] = 255
        first, *others = [Image.fromarray(picture, 'RGBA') for picture in pictures]
        path = tmp_path / 'packages' / f'fluent-emoji-anim-{part}' / 'assets' / f'{name}.webp'
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(path, save_all=bool(others), append_images=others, duration=40, lossless=True, exact=True)
        return path

    return draw


def frames_shown(path, frames):
    """Which of an animation's frames a clip shows, by their red."""
    file = VideoFile.open(path)
    return (file.read(range(len(file)))[:, :, 12:, 0].mean((1, 2)) / (240 // frames)).round().astype(int).tolist()


def test_every_fourth_frame_is_taken_on_white(run, draw, tmp_path):
    draw(HAND)
    assert run()[0] == 0
    path = tmp_path / 'clips' / 'train' / 'people_and_body' / '1f44b.mp4'
    file = VideoFile.open(path)
    assert frames_shown(path, 72) == list(range(0, 72, 4))
    assert file.fps == pytest.approx(25 / 4, rel=1e-3) and (file.height, file.width) == (16, 16)
    assert (file.read(range(18))[:, :, :7] > 250).all()


@pytest.mark.parametrize(('every', 'frames'), [(4, 6), (1, 12), (7, 3)])
def test_short_animations_loop(run, draw, tmp_path, every, frames):
    draw(HAND, frames=10)
    run(every=every, frames=frames)
    expected = [every * n % 10 for n in range(max(frames, -(-10 // every)))]
    assert frames_shown(tmp_path / 'clips' / 'train' / 'people_and_body' / '1f44b.mp4', 10) == expected


@pytest.mark.parametrize(
    ('name', 'caption', 'toneless'),
    [
        ('1f44b', 'waving hand', 'waving hand'),
        ('1f44b-1f3fd', 'waving hand, medium skin tone', 'waving hand'),
        ('1f9d1-200d-1f91d-200d-1f9d1', 'people holding hands', 'people holding hands'),
        ('1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3fb', 'people holding hands, light skin tone', 'people holding hands'),
        (
            '1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff',
            'people holding hands, light skin tone and dark skin tone',
            'people holding hands',
        ),
        ('2601', 'cloud', 'cloud'),
        ('2601-fe0f', 'cloud', 'cloud'),
    ],
)
def test_the_caption_is_the_name_in_unicode_and_the_tones(program, draw, tmp_path, name, caption, toneless):
    names = program.read_names(tmp_path / 'packages' / 'unicode-emoji-json' / 'data-by-emoji.json')
    emoji = program.describe(name, names)
    assert (emoji.caption, emoji.toneless) == (caption, toneless)


@pytest.mark.parametrize('name', ['1f600', 'f0000ff-1', '110000', 'readme', '1f44b-', ''])
def test_what_is_no_emoji_of_unicode_has_no_caption(program, draw, tmp_path, name):
    names = program.read_names(tmp_path / 'packages' / 'unicode-emoji-json' / 'data-by-emoji.json')
    assert program.describe(name, names) is None


def test_the_splits_share_no_gesture_and_captions_stay_where_they_are(program, monkeypatch):
    def splits(captions, fraction):
        monkeypatch.setattr(program, 'VALIDATION_FRACTION', SimpleNamespace(value=fraction))
        return [program.place('1', program.Emoji(*caption, 'Objects')).parts[0] for caption in captions]

    tones = [(f'gesture {number}, {tone}', f'gesture {number}') for number in range(300) for tone in 'abc']
    found = np.array(splits(tones, 0.2)).reshape(300, 3)
    assert (found == found[:, :1]).all()
    assert 30 < (found[:, 0] == 'validation').sum() < 90
    more = np.array(splits(tones, 0.4)).reshape(300, 3)
    assert (more[found == 'validation'] == 'validation').all() and (more != found).any()


def test_video_folder_reads_the_splits_with_their_captions(run, draw, tmp_path):
    for tone in ('', '-1f3fb', '-1f3ff'):
        draw(f'{HAND}{tone}', frames=20)
    draw(CLOUD, frames=20, part=2)
    # By their hashes, 0.35 of all captions come before 'cloud', 0.79 before 'waving hand'.
    status, printed = run(every=1, validation_fraction=0.7)
    assert status == 0 and '4 files: 4 clips written, 0 there already' in printed
    fields = {'frames': 17, 'size': 16, 'validation_fraction': 0, 'validation_root': tmp_path / 'clips' / 'validation'}
    train, validation = (
        VideoFolder(tmp_path / 'clips' / 'train', split, **fields) for split in ('train', 'validation')
    )
    assert train.class_names == validation.class_names == ('people_and_body', 'travel_and_places')
    assert validation.captions == ('cloud',)
    assert sorted(train.captions + validation.captions) == sorted(
        ['cloud', 'waving hand', 'waving hand, light skin tone', 'waving hand, dark skin tone']
    )
    for data in (train, validation):
        assert {data[index]['caption'] for index in range(len(data.files))} == set(data.captions)


def test_clips_made_before_are_left_and_others_made_anew(run, draw, tmp_path):
    draw(HAND, frames=20)
    run()
    made = tmp_path / 'clips' / 'train' / 'people_and_body' / '1f44b.mp4'
    before = made.stat().st_mtime_ns
    draw(CLOUD, frames=20)
    assert '2 files: 1 clips written, 1 there already' in run()[1]
    assert made.stat().st_mtime_ns == before
    assert '2 files: 2 clips written, 0 there already' in run(size=8)[1]
    made.write_bytes(made.read_bytes()[:300])
    assert '1 clips written, 1 there already' in run(size=8)[1]


def test_captions_of_a_part_that_is_no_longer_here_are_kept(run, draw, tmp_path):
    path = draw(HAND, frames=20)
    run()
    path.unlink()
    draw(CLOUD, frames=20, part=2)
    run()
    captions = json.loads((tmp_path / 'clips' / 'train' / 'captions.json').read_text())
    assert captions == {'people_and_body/1f44b.mp4': 'waving hand', 'travel_and_places/2601-fe0f.mp4': 'cloud'}


def test_pictures_that_do_not_move_and_strangers_are_counted(run, draw, tmp_path):
    draw(HAND, frames=20)
    draw(CLOUD, frames=1)
    draw('1f600', frames=20)
    status, printed = run()
    assert status == 0 and '1 clips written, 0 there already, 1 do not move, 1 have no name in Unicode' in printed
    assert 'train: 1 clips, 1 captions without skin tone' in printed
    assert [path.name for path in (tmp_path / 'clips').rglob('*.mp4')] == ['1f44b.mp4']


def test_damaged_animations_are_named_and_leave_nothing(run, draw, tmp_path):
    draw(HAND, frames=20)
    cut = draw(CLOUD, frames=20)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    noise = draw(f'{HAND}-1f3fb', frames=20)
    noise.write_bytes(bytes(range(256)))
    status, printed = run()
    assert status == 1 and '1 clips written' in printed and '2 skipped' in printed
    assert f'skipped {cut}: ' in printed and f'skipped {noise}: ' in printed
    assert [path.name for path in (tmp_path / 'clips').rglob('*.mp4')] == ['1f44b.mp4']


def test_a_folder_without_packages_is_refused(run, draw):
    with pytest.raises(app.UsageError, match=r'no fluent-emoji-anim-\*/assets/\*\.webp in --packages'):
        run()
