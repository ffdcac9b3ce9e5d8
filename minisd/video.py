"""MP4 files through ffmpeg, from the optional package imageio-ffmpeg (`pip install "minisd[video]"`)."""

from .errors import ResourceError, UsageError

INSTALL = 'pip install imageio-ffmpeg (it is the extra "video": pip install "minisd[video]")'


def check_video():
    """The package that brings ffmpeg. Raises UsageError where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UsageError("MP4 needs ffmpeg", "the optional package imageio-ffmpeg is not installed", f"{INSTALL}, or write a .gif, .webp or .png") from None
    return imageio_ffmpeg


def write_mp4(images: list, path, fps: float, hold: int = 0):
    """PIL images of one even size as an H.264 video that every browser plays; the last one is shown `hold` frames longer."""
    width, height = images[0].size
    if width % 2 or height % 2:
        raise UsageError(f"a video of {width}×{height}", "H.264 stores colour for 2×2 pixels", "make width and height even, or write a .gif")
    writer = check_video().write_frames(
        str(path), (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=1, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for image in [*images, *images[-1:] * hold]:
            writer.send(image.convert("RGB").tobytes())
    except OSError as error:
        raise ResourceError(f"{path}: ffmpeg stopped", str(error), "write a .gif, .webp or .png instead") from None
    finally:
        writer.close()
