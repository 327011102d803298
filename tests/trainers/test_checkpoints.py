"""Which checkpoint a run resumes from."""

from pathlib import Path

import pytest

from tokencredit.trainers.checkpoints import MANIFEST, Manifest, checkpoints, file_sizes, forget_later, latest_complete


def save(run: Path, step: int, *, complete: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "shards" / "optimizer.pt").write_bytes(b"y" * 50)
    if complete:
        Manifest(step=step, world_size=1, zero_stage=0, files=file_sizes(folder)).write(folder)
    return folder


def test_newest_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9", "checkpoint-2"]
    assert latest_complete(tmp_path) == (tmp_path / "checkpoint-10", [])


def test_without_manifest_is_skipped(tmp_path: Path) -> None:
    save(tmp_path, 2)
    unfinished = save(tmp_path, 4, complete=False)
    assert latest_complete(tmp_path) == (tmp_path / "checkpoint-2", [unfinished])


@pytest.mark.parametrize("file", ["model.safetensors", "shards/optimizer.pt"])
@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_damaged_is_skipped(tmp_path: Path, file: str, damage: str) -> None:
    whole, damaged = save(tmp_path, 2), save(tmp_path, 4)
    (damaged / file).unlink() if damage == "lost" else (damaged / file).write_bytes(b"x")
    assert latest_complete(tmp_path) == (whole, [damaged])


def test_manifest_cut_off_is_skipped(tmp_path: Path) -> None:
    whole, damaged = save(tmp_path, 2), save(tmp_path, 4)
    (damaged / MANIFEST).write_text('{"step": 4, "world')
    assert latest_complete(tmp_path) == (whole, [damaged])


def test_nothing_to_resume(tmp_path: Path) -> None:
    only = save(tmp_path, 4, complete=False)
    assert latest_complete(tmp_path) == (None, [only])
    assert latest_complete(tmp_path / "nowhere") == (None, [])


def test_later_checkpoints_are_forgotten_before_they_are_written_again(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    forget_later(tmp_path, 2)
    assert latest_complete(tmp_path)[0] == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file(), "only the manifest goes"
