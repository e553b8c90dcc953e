"""The commit of a checkout, and only of a checkout of this code."""

import subprocess

from walt.training.code import _commit, code_version


def git(folder, *arguments):
    subprocess.run(['git', '-C', folder, '-c', 'user.name=n', '-c', 'user.email=e', *arguments], check=True)


def test_versions_of_what_computes_are_told():
    versions = code_version()
    assert set(versions) == {'walt', 'jax', 'jaxlib', 'commit'} and versions['jax'].count('.') >= 2


def test_a_commit_is_told_where_the_package_is_tracked_and_marked_where_it_was_changed(tmp_path):
    package = tmp_path / 'walt'
    package.mkdir()
    (package / '__init__.py').touch()
    assert _commit(package) is None  # no checkout
    git(tmp_path, 'init', '-q')
    (tmp_path / 'other').touch()
    git(tmp_path, 'add', 'other')
    git(tmp_path, 'commit', '-qm', 'other')
    assert _commit(package) is None  # installed in a checkout of something else
    git(tmp_path, 'add', 'walt')
    git(tmp_path, 'commit', '-qm', 'walt')
    commit = _commit(package)
    assert len(commit) == 40
    (package / '__init__.py').write_text('changed')
    assert _commit(package) == f'{commit}-dirty'


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert _commit(tmp_path) is None
