import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from spikformer_edu.atomic import TEMPORARY, write_atomically
from spikformer_edu.data.cache import VERSION, Cache, CacheWarning
from spikformer_edu.data.files import sweep


def entry(fill: int = 7) -> dict[str, np.ndarray]:
    return {"a": np.full((3, 5), fill, dtype=np.uint8), "b": np.arange(4)}


def never():
    raise AssertionError("built although it was in the cache")


@pytest.mark.parametrize("compress", [False, True])
def test_an_entry_is_built_once_and_comes_back_equal(tmp_path, compress):
    cache = Cache("x", tmp_path)
    cache.get({"k": 1}, entry, compress)
    again = Cache("x", tmp_path).get({"k": 1}, never, compress)
    assert {name: (array.dtype, array.tolist()) for name, array in again.items()} == {
        name: (array.dtype, array.tolist()) for name, array in entry().items()
    }


def test_another_key_is_another_entry(tmp_path):
    cache = Cache("x", tmp_path)
    cache.get({"time_steps": 8}, entry)
    assert cache.get({"time_steps": 16}, lambda: entry(9))["a"][0, 0] == 9
    assert cache.get({"time_steps": 8}, never)["a"][0, 0] == 7


def test_another_version_of_the_code_makes_another_entry_and_leaves_the_old_one(tmp_path, monkeypatch):
    cache = Cache("x", tmp_path)
    cache.get({"k": 1}, entry)
    (old,) = cache.folders[0].iterdir()
    os.utime(old, (0, 0))
    with monkeypatch.context() as upgraded:
        upgraded.setattr("spikformer_edu.data.cache.VERSION", VERSION + 1)
        assert cache.get({"k": 1}, lambda: entry(9))["a"][0, 0] == 9
        assert cache.get({"k": 1}, never)["a"][0, 0] == 9
        sweep(cache.folders[0])
    assert len(list(cache.folders[0].iterdir())) == 2
    assert cache.get({"k": 1}, never)["a"][0, 0] == 7  # the old code, perhaps in another environment, still has its own


def test_a_file_under_another_entrys_name_is_noticed(tmp_path):
    cache = Cache("x", tmp_path)
    cache.get({"k": 1}, entry)
    (first,) = (tmp_path / "spikformer-cache" / "x").iterdir()
    content = first.read_bytes()
    cache.get({"k": 2}, lambda: entry(9))
    (second,) = set((tmp_path / "spikformer-cache" / "x").iterdir()) - {first}
    second.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get({"k": 2}, lambda: entry(9))["a"][0, 0] == 9


@pytest.mark.parametrize("compress", [False, True])
def test_every_single_flipped_or_missing_byte_is_noticed_and_mended(tmp_path, compress):
    cache = Cache("x", tmp_path)
    cache.get({"k": 1}, entry, compress)
    (file,) = (tmp_path / "spikformer-cache" / "x").iterdir()
    good = file.read_bytes()
    for place in range(0, len(good), 7 if compress else 13):
        for bad in (
            good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :],
            good[:place],
            good[:place] + good[place + 1 :],
        ):
            file.write_bytes(bad)
            with pytest.warns(UserWarning, match="damaged"):
                assert cache.get({"k": 1}, entry, compress)["a"].sum() == 7 * 15
            assert file.read_bytes() == good  # built again


def test_where_the_folder_cannot_be_written_the_users_cache_is_taken(tmp_path, user_cache):
    (tmp_path / "spikformer-cache").write_text("a file where the folder should be")  # holds for root too
    with pytest.warns(UserWarning, match="cannot write to .*the cache goes to"):
        Cache("x", tmp_path).get({"k": 1}, entry)
    assert len(list((user_cache / "spikformer_edu" / "x").iterdir())) == 1
    assert Cache("x", tmp_path).get({"k": 1}, never)["a"][0, 0] == 7


def test_without_any_writable_folder_work_goes_on_with_a_warning(tmp_path, user_cache):
    (tmp_path / "spikformer-cache").write_text("")
    (user_cache / "spikformer_edu").write_text("")
    with pytest.warns(CacheWarning, match="no cache is kept"):
        assert Cache("x", tmp_path).get({"k": 1}, entry)["a"][0, 0] == 7


def test_without_a_home_folder_the_cache_lies_beside_the_data_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "~no-such-user/cache")
    monkeypatch.chdir(tmp_path)
    Cache("x", tmp_path / "data").get({"k": 1}, entry)
    assert Cache("x", tmp_path / "data").get({"k": 1}, never)["a"][0, 0] == 7
    with pytest.warns(CacheWarning, match="no cache is kept, no home folder is known: .*set XDG_CACHE_HOME"):
        assert Cache("x", None).get({"k": 1}, entry)["a"][0, 0] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_users_cache_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert Cache("x", None).folders == [tmp_path / "cache" / "spikformer_edu" / "x"]


def _fill_the_disk(folder, queue):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a write beyond it fails as on a full disk
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = Cache("x", folder).get({"k": 1}, lambda: {"a": np.ones(100_000, dtype=np.uint8)})
    queue.put(
        ([str(w.message) for w in caught], int(arrays["a"].sum()), [str(p) for p in folder.rglob("*") if p.is_file()])
    )


def test_a_full_disk_leaves_no_file_behind_and_is_said(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_fill_the_disk, args=(tmp_path, queue))
    process.start()
    said, total, files = queue.get(timeout=600)
    process.join()
    assert total == 100_000 and files == []
    assert len(said) == 1 and "no cache is kept" in said[0] and "free space" in said[0]


def _keep_writing(folder):
    content = os.urandom(3_000_000)
    for _ in range(1000):
        write_atomically(folder / "file", lambda file: file.write_bytes(content))


def test_killed_while_writing_leaves_either_nothing_or_all(tmp_path):
    context, moments, seen = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(200):  # until one was killed in the middle of its work, and one after a file was whole
        process = context.Process(target=_keep_writing, args=(tmp_path,))
        process.start()
        for _ in range(600):  # a busy machine starts it late
            time.sleep(0.05 + moments.random() * 0.1)
            if (tmp_path / "file").exists():
                break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (tmp_path / "file").exists():
            seen += 1
            assert (tmp_path / "file").stat().st_size == 3_000_000
            (tmp_path / "file").unlink()
        interrupted = any(TEMPORARY.fullmatch(p.name) for p in tmp_path.iterdir())
        if seen and interrupted:
            return
    raise AssertionError(f"{seen} files, interrupted: {interrupted}; the test has shown nothing")


def test_what_is_flushed_is_open_for_writing_as_windows_wants_it(tmp_path, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (os.write(fd, b""), flush(fd)))
    write_atomically(tmp_path / "file", lambda file: file.write_text("content"))
    assert (tmp_path / "file").read_text() == "content"


def test_processes_of_one_number_in_two_containers_use_different_files(tmp_path):
    names = []
    for _ in range(2):
        write_atomically(tmp_path / "file.npz", lambda file: (names.append(file.name), file.touch()))
    assert names[0] != names[1] and all(TEMPORARY.fullmatch(name) and name.endswith("file.npz") for name in names)


def _get_many(folder, number):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged entry would warn
        for k in range(60):
            arrays = Cache("x", folder).get({"k": k}, lambda k=k: {"a": np.full(50_000, k, dtype=np.int64)})
            assert (arrays["a"] == k).all()


def test_processes_that_build_the_same_entries_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_get_many, args=(tmp_path, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "spikformer-cache" / "x").iterdir())) == 60


def test_sweeping_bears_a_file_that_another_process_has_just_finished(tmp_path, monkeypatch):
    old = tmp_path / ".tmp-1-0123abcd-old"
    old.touch()
    os.utime(old, (0, 0))
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([tmp_path / ".tmp-1-0123abcd-vanished", old]))
    sweep(tmp_path)
    assert not old.exists()
