"""The smallest change that fits: in which order changes are tried, and which are not tried at all."""

from walt.planning.fitting import changes, smallest

MESH = {'data': 4, 'fsdp': 1, 'tensor': 1}
REMAT = [{'denoiser.remat': 'attention'}, {'denoiser.remat': 'blocks'}]


def test_recomputation_comes_before_accumulation_and_that_before_the_mesh():
    tried = list(changes(4, MESH, REMAT, accumulation=1))
    strongest = {'denoiser.remat': 'blocks'}
    split = {'mesh.data': 2, 'mesh.fsdp': 2}
    assert tried[:6] == [
        {'denoiser.remat': 'attention'},
        strongest,
        strongest | {'accumulation': 2},
        strongest | {'accumulation': 4},
        split,
        split | {'denoiser.remat': 'attention'},
    ]
    assert tried[-1] == {'mesh.data': 1, 'mesh.fsdp': 4} | strongest | {'accumulation': 4}
    assert len(tried) == 4 + 5 + 5


def test_every_change_leaves_as_many_devices_and_whole_rows():
    for change in changes(6, MESH, REMAT, accumulation=2):
        assert change.get('mesh.data', 4) * change.get('mesh.fsdp', 1) == 4
        assert change.get('accumulation', 2) in (2, 4)  # of 6 rows a half is 3, which has none


def test_one_row_with_the_strongest_policy_has_only_its_mesh():
    assert list(changes(1, MESH, [], accumulation=1)) == [
        {'mesh.data': 2, 'mesh.fsdp': 2},
        {'mesh.data': 1, 'mesh.fsdp': 4},
    ]


def test_the_first_that_fits_is_taken_and_nothing_is_compiled_whose_state_alone_does_not():
    compiled = []

    def fits(change):
        compiled.append(change)
        return change.get('accumulation', 1) >= 2

    change, tried = smallest(changes(4, MESH, REMAT, 1), lambda change: 'mesh.fsdp' in change, fits)
    assert change == {'mesh.data': 2, 'mesh.fsdp': 2, 'denoiser.remat': 'blocks', 'accumulation': 2}
    assert tried == len(compiled) == 4 and all('mesh.fsdp' in one for one in compiled)
    assert smallest(changes(4, MESH, REMAT, 1), lambda change: True, lambda change: False) == (None, 14)
