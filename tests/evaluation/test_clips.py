"""Which clips a run is measured on."""

import numpy as np
import pytest

from walt.evaluation.clips import read_clips


@pytest.mark.parametrize(
    ('files', 'clips', 'expected'),
    [(3, 12, [0, 1, 2, 3]), (9, 18, [0, 2, 4, 6]), (0, 12, [0, 1, 2, 3]), (3, 3, [0, 1, 2])],
)
def test_clips_are_of_files_from_all_over_a_folder(files, clips, expected):
    """Clip i of a folder is of file i modulo their number, and files are in order of class."""

    class Folder(list):
        pass

    source = Folder({'video': np.zeros((1, 2, 2, 3), np.uint8), 'label': number} for number in range(clips))
    source.files = (None,) * files
    np.testing.assert_array_equal(read_clips(source, 4).labels, expected)
