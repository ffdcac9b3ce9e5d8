"""MP4: refused with the command to install where ffmpeg's package is absent, and otherwise a video with every frame."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from minisd import image, video
from minisd.errors import ResourceError, UsageError


def pictures(n: int = 3, size: tuple = (32, 16)) -> list:
    return [Image.new("RGB", size, (80 * i, 0, 0)) for i in range(n)]


@pytest.fixture
def writer(monkeypatch):
    """A stand-in for imageio_ffmpeg: writes the raw frames into the file. `.calls` are the settings it was given."""
    calls = []

    def write_frames(path, size, **settings):
        calls.append((size, settings))
        with open(path, "wb") as file:
            while True:
                try:
                    file.write((yield))
                except GeneratorExit:
                    return

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(write_frames=write_frames, calls=calls))
    return calls


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UsageError, match=r"pip install imageio-ffmpeg"):
        image.check_output(tmp_path / "a.mp4", formats=image.ANIMATIONS)


def test_frames_are_written_in_order_and_the_last_is_held(writer, tmp_path):
    image.save_animation(pictures(), tmp_path / "a.mp4", milliseconds=100)
    [(size, settings)] = writer
    assert size == (32, 16) and settings["fps"] == 10
    frames = np.frombuffer((tmp_path / "a.mp4").read_bytes(), "uint8").reshape(-1, 16, 32, 3)
    assert frames[:, 5, 5, 0].tolist() == [0, 80, *[160] * 11]
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sizes_are_refused(writer, tmp_path):
    with pytest.raises(UsageError, match="31×16"):
        video.write_mp4(pictures(size=(31, 16)), tmp_path / "a.mp4", 10)


def test_a_failure_of_ffmpeg_leaves_nothing_behind(monkeypatch, tmp_path):
    def write_frames(path, size, **settings):
        open(path, "wb").close()
        yield
        raise OSError("no encoder")

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(write_frames=write_frames))
    with pytest.raises(ResourceError, match="no encoder"):
        image.save_animation(pictures(), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its pipes, closed by nobody
def test_a_real_video_has_every_frame(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg", reason="the extra “video” is not installed")
    video.write_mp4(pictures(), tmp_path / "a.mp4", fps=10)
    frames = reader.read_frames(str(tmp_path / "a.mp4"))
    assert next(frames)["size"] == (32, 16)
    reds = [np.frombuffer(frame, "uint8").reshape(16, 32, 3)[5, 5, 0] for frame in frames]
    np.testing.assert_allclose(reds, [0, 80, 160], atol=12)
