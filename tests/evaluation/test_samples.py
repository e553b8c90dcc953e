"""What is said of samples, with samples of which the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from walt.data.moving_digits import MovingDigits
from walt.evaluation.clips import read_clips
from walt.evaluation.judge import Judge
from walt.evaluation.samples import measure_prediction, measure_prompts, measure_retrieval
from walt.features.perceptual import squeezenet_distance


@pytest.fixture(scope='module')
def held_out():
    """Real clips of 9 frames, fast enough to tell where they go."""
    return read_clips(MovingDigits('validation', frames=9, size=24, digit_size=14, clips=40), 40)


@pytest.fixture(scope='module')
def judge():
    source = MovingDigits('train', frames=9, size=24, digit_size=14, clips=300)
    clips = [source[i] for i in range(300)]
    return Judge(10).fit(np.stack([clip['video'] for clip in clips]), np.array([clip['label'] for clip in clips]))


def sampler_of(monkeypatch, videos):
    """What is sampled are these clips, whatever is asked for; returns the requests."""
    requests = []

    def sample_clips(stage, request, seed, batch_size, frames=None):
        requests.append(request)
        return videos

    monkeypatch.setattr('walt.evaluation.samples.sample_clips', sample_clips)
    return requests


def test_real_clips_as_samples_are_as_good_as_real_clips(held_out, judge, monkeypatch):
    requests = sampler_of(monkeypatch, held_out.videos)
    result = measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert result['samples'] == result['real'] and result['real']['direction'] > 0.9 and result['real']['digit'] > 0.8
    assert list(requests[0].prompts) == held_out.captions and len(set(held_out.captions)) > 20


def test_clips_that_run_backwards_or_show_another_digit_are_seen(held_out, judge, monkeypatch):
    sampler_of(monkeypatch, held_out.videos[:, ::-1])
    backwards = measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert backwards['samples']['direction'] < 0.2 and backwards['samples']['digit'] == backwards['real']['digit']
    sampler_of(monkeypatch, held_out.videos[::-1])
    others = measure_prompts(None, judge, held_out, lead=4, seed=0, batch_size=8)
    assert others['samples']['digit'] < 0.4


def test_real_clips_are_found_by_their_captions_and_others_are_not(held_out, monkeypatch):
    """One clip a caption, in order of the captions, is what is sampled and what is ranked."""
    network = squeezenet_distance()
    captions, first_N = np.unique(held_out.captions, return_index=True)
    assert len(captions) < len(held_out.captions)
    requests = sampler_of(monkeypatch, held_out.videos[first_N])
    found = measure_retrieval(None, held_out, network, seed=0, batch_size=8)
    assert found['gallery'] == len(captions) and found['first'] == 1
    assert list(requests[0].prompts) == captions.tolist()
    sampler_of(monkeypatch, np.roll(held_out.videos[first_N], 7, axis=0))
    assert measure_retrieval(None, held_out, network, seed=0, batch_size=8)['first'] == 0


STAGE = SimpleNamespace(
    denoiser=SimpleNamespace(conditions={'frames': (3, 6, 6, 3)}),
    clip_shape=(9, 24, 24, 3),
    most_given=2,
    frozen=SimpleNamespace(module=SimpleNamespace(clip_shape=lambda *extent: (5, 1, 1, 3))),
)


def test_prediction_is_measured_where_the_mass_should_have_gone(held_out, monkeypatch):
    requests = sampler_of(monkeypatch, held_out.videos)
    right = measure_prediction(STAGE, held_out, 0, 8, frames=9)
    assert right['centre_off_pixels'] == 0 and right['border_jump'] is None
    np.testing.assert_array_equal(requests[0].frames_NTHWC, held_out.videos[:, :5])
    still = np.repeat(held_out.videos[:, 4:5], 9, axis=1)
    sampler_of(monkeypatch, still)
    stopped = measure_prediction(STAGE, held_out, 0, 8, frames=9)
    assert stopped['centre_off_pixels'] == stopped['centre_off_pixels_if_still'] > 1


def test_rollouts_are_told_by_their_seams(held_out, monkeypatch):
    """Chunks of 9 frames after 5: a border after frame 8."""
    rollouts = np.concatenate([held_out.videos, 255 - held_out.videos[:, :4]], axis=1)
    sampler_of(monkeypatch, rollouts)
    assert measure_prediction(STAGE, held_out, 0, 8, frames=13)['border_jump'] > 5
