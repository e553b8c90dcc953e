"""Files in folders that name their classes: which are found, in which order, and what class they have."""

import pytest

from walt.data.class_folders import class_of, find_files, height_width

FILES = ('b/z.gif', 'b-c/a.mp4', 'b/deep/er/y.MP4', 'top.mp4', 'a/x.webm')
PASSED_OVER = ('a/x.txt', 'a/.x.mp4', '.a/x.mp4', 'b/.deep/x.mp4', 'mp4')


def test_files_are_found_at_any_depth_in_order_of_path_parts(tmp_path):
    for name in FILES + PASSED_OVER:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'b' / 'folder.mp4').mkdir()
    found = find_files(tmp_path, ('.mp4', '.gif', '.webm'), 'videos')
    # As pathlib sorts: a folder's files stay together, although '-' comes before '/' in the alphabet of bytes.
    assert found == ['a/x.webm', 'b/deep/er/y.MP4', 'b/z.gif', 'b-c/a.mp4', 'top.mp4']
    assert [class_of(path) for path in found] == ['a', 'b', 'b', 'b-c', '']


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'root is empty: .* the pictures'):
        find_files('', ('.png',), 'pictures')
    with pytest.raises(FileNotFoundError, match=r'no folder of pictures at .*nowhere'):
        find_files(tmp_path / 'nowhere', ('.png',), 'pictures')


def test_size_is_one_number_or_two():
    assert height_width(5) == (5, 5) and height_width((3, 4)) == (3, 4)
    for size in (0, (0, 8), (8, -1)):
        with pytest.raises(ValueError, match=r'size must be 1 or more, got'):
            height_width(size)
