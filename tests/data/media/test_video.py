import struct
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from voco_llama.data.media import video
from voco_llama.data.media.video import count_frames, frame_indices, read_frames
from voco_llama.errors import DataError, SettingsError


def write_clip(
    path: Path, num_frames: int, size: tuple[int, int] = (32, 32), codec: str = "libx264", **options
) -> Path:
    """A clip whose i-th frame is grey 6 * i."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 6 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames) -> list[int]:
    """Which frames of `write_clip` these are."""
    return [round(np.array(frame).mean() / 6) for frame in frames]


def error_of(path: Path, num_frames: int = 4) -> str:
    with pytest.raises(DataError) as caught:
        read_frames(path, num_frames)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rotated(path: Path, quarters: int) -> Path:
    """A clip with a note to turn it so often clockwise, as phones write it: the matrix of its track (ISO 14496-12)."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    one, upright = 0x10000, struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    data = path.read_bytes()
    place = data.index(upright, data.index(b"tkhd"))
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 0x40000000)
    path.write_bytes(data[:place] + matrix + data[place + len(matrix) :])
    return path


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_frames_stand_upright(tmp_path, quarters):
    corner = np.zeros((32, 64, 3), dtype=np.uint8)
    corner[:16, :16] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        container.mux(stream.encode())
    for frame in read_frames(rotated(tmp_path / "a.mp4", quarters), 2):
        expected = np.rot90(corner, -quarters)
        assert frame.size == expected.shape[1::-1]
        np.testing.assert_allclose(np.array(frame).astype(int), expected, atol=60)


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (10, 4, [0, 3, 6, 9]),
        (10, 1, [0]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 8, [0, 1, 2, 3, 4, 5, 6, 8]),
        (1, 3, [0, 0, 0]),
        (3, 8, [0, 0, 0, 1, 1, 1, 2, 2]),
    ],
)
def test_indices(total, num_frames, expected):
    assert frame_indices(total, num_frames) == expected


def test_indices_repeat_only_where_they_must():
    for total in range(1, 40):
        for num_frames in range(1, 40):
            indices = frame_indices(total, num_frames)
            assert indices == sorted(indices)
            assert len(indices) == num_frames
            counts = Counter(indices).values()
            if total >= num_frames:
                assert set(counts) == {1}
                assert np.abs(np.array(indices) - np.linspace(0, total - 1, num_frames)).max() < 1
            else:
                assert len(counts) == total
                assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
)
def test_frames_are_sampled_over_the_whole_clip(tmp_path, ending, codec):
    path = write_clip(tmp_path / f"a.{ending}", 40, codec=codec)
    frames = read_frames(path, 4)
    assert numbers(frames) == [0, 13, 26, 39]
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (32, 32))}


def test_short_clip(tmp_path):
    frames = read_frames(write_clip(tmp_path / "a.mp4", 3), 8)
    assert numbers(frames) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len({id(frame) for frame in frames}) == 3


def test_fewer_frames_than_packets(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 10)
    monkeypatch.setattr(video, "_count_frames", lambda path, where: 14)
    assert numbers(read_frames(path, 4)) == [0, 3, 6, 9]


def test_missing(tmp_path):
    assert "no such file" in error_of(tmp_path / "a.mp4")


def test_not_a_clip(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"garbage" * 100)
    assert "corrupt or not a clip" in error_of(tmp_path / "a.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "corrupt or not a clip" in error_of(tmp_path / "empty.mp4")


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("num_frames", [1, 4])
def test_truncated_mp4(tmp_path, options, num_frames):
    path = write_clip(tmp_path / "a.mp4", 40, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    message = error_of(path, num_frames)
    assert "fetch it again" in message


def test_a_last_frame_cut_short_is_noticed_though_it_is_not_wanted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 40, movflags="faststart")
    path.write_bytes(path.read_bytes()[:-5])
    assert "corrupt or truncated at frame 39; fetch it again" in error_of(path, 1)


def test_truncated_mkv(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "of the 4.0 s it announces" in error_of(path)


def test_no_frames(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    message = error_of(path)
    assert "no frames" in message or "no video stream" in message


def test_sound_only(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "no video stream" in error_of(path)


def test_limits(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 12)
    monkeypatch.setattr(video, "MAX_CLIP_FRAMES", 11)
    assert "more than 11 frames" in error_of(path)
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 16 * 16)
    assert "frames too large (32 x 32; at most 16 on a side)" in error_of(path)


def test_a_playlist_does_not_open_other_files(tmp_path):
    write_clip(tmp_path / "secret.mp4", 5)
    playlist = tmp_path / "a.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    assert "corrupt or not a clip" in error_of(playlist)


def test_tags_that_are_not_utf8_do_no_harm(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 5)
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"L\xe4vf"))
    assert len(read_frames(path, 2)) == 2


def test_num_frames_must_be_positive(tmp_path):
    with pytest.raises(SettingsError, match="at least 1"):
        read_frames(tmp_path / "a.mp4", 0)


def test_frames_are_counted_without_decoding(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", 7)
    monkeypatch.setattr(video, "_decode", None)
    assert count_frames(clip) == 7
    (tmp_path / "b.mp4").write_bytes(b"no clip")
    with pytest.raises(DataError, match=r"clip .*b\.mp4: corrupt or not a clip"):
        count_frames(tmp_path / "b.mp4")
    with pytest.raises(DataError, match=r"clip .*c\.mp4: no such file"):
        count_frames(tmp_path / "c.mp4")
