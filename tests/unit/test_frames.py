"""The right frames in the right order: every picture carries its number, whatever container, codec and order of storing it went through"""

import io
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw2.data.probe import Video, VideoError, probe
from hw2.data.video import clip_times, decode, frame_times, frames_at, read_frames
from hw2.explorer.browser_video import as_mp4

RATE = 25
HEIGHT, WIDTH = 96, 128
FFMPEG = shutil.which("ffmpeg")


# Pictures that carry their number


def numbered(i: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    "(h, w, 3) uint8: the eight bits of `i` as dark and bright blocks, two rows of four."
    bits = np.array([i >> k & 1 for k in range(8)]).reshape(2, 4)
    levels = np.kron(np.where(bits, 210, 45), np.ones((height // 2, width // 4), int))
    return np.repeat(levels[..., None], 3, 2).astype(np.uint8)


def number(rgb: np.ndarray) -> int:
    "The number that a picture carries."
    h, w = rgb.shape[0] // 2, rgb.shape[1] // 4
    blocks = rgb[:2*h, :4*w].astype(float).mean(2).reshape(2, h, 4, w)[:, h//4:-h//4, :, w//4:-w//4].mean((1, 3))
    return sum(1 << k for k, level in enumerate(blocks.ravel()) if level > 128)


def encoded(path, n=30, codec="libx264", form=None, options=None, container=None, size=None, rate=RATE) -> Path:
    "Numbered pictures in a container."
    with av.open(str(path), "w", format=form, options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size or (WIDTH, HEIGHT)
        known = [f.name for f in av.Codec(codec, "w").video_formats or []]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p" if not known or "yuv420p" in known else known[0]
        for i in range(n): out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i, stream.height, stream.width), format="rgb24")))
        out.mux(stream.encode())
    return Path(path)


def remuxed(source: Path, target: Path, keep=lambda i, packet: True) -> Path:
    "The packets that are kept, in another file."
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = read.streams.video[0]
        copy, base = out.add_stream_from_template(stream), None
        for i, packet in enumerate(read.demux(stream)):
            if packet.dts is None or not keep(i, packet): continue
            base = packet.dts if base is None else base
            packet.pts, packet.dts, packet.stream = packet.pts - base, packet.dts - base, copy
            out.mux(packet)
    return target


def shifted(source: Path, target: Path, seconds: float, **options) -> Path:
    "The same packets, shown so much later."
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as out:
        stream = read.streams.video[0]
        copy, units = out.add_stream_from_template(stream), round(seconds / stream.time_base)
        for packet in read.demux(stream):
            if packet.dts is None: continue
            packet.pts, packet.dts, packet.stream = packet.pts + units, packet.dts + units, copy
            out.mux(packet)
    return target


def numbers(video: Video) -> list[int]:
    "What `decode` hands out, position by position."
    got = dict(decode(video, np.arange(len(video.times))))
    return [number(got[i]) for i in range(len(video.times))]


def decoder_says(path) -> list[int]:
    "The oracle: the numbers in the order in which the decoder hands out its frames."
    with av.open(str(path)) as container: return [number(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def ffmpeg_says(path) -> list[int]:
    "A second oracle: what the program `ffmpeg` shows."
    with av.open(str(path)) as container: frame = next(container.decode(video=0))
    height, width = frame.height, frame.width
    command = [FFMPEG, "-v", "error", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    return [number(rgb) for rgb in raw.reshape(-1, height, width, 3)]


needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason="the program ffmpeg is not installed")


# Every container, codec and order that PyAV can write


CONTAINERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi", "asf": "asf", "mxf": "mxf", "flv": "flv", "ts": "mpegts",
              "mpg": "mpeg", "vob": "vob", "nut": "nut", "ogv": "ogv", "3gp": "3gp", "m4v": "m4v", "wtv": "wtv", "f4v": "f4v", "ivf": "ivf",
              "h264": "h264", "h265": "hevc", "m1v": "mpeg1video", "m2v": "mpeg2video", "gif": "gif", "apng": "apng", "mjpeg": "mjpeg", "y4m": "yuv4mpegpipe"}
X264 = {"x264-params": "b-adapt=0:scenecut=0:keyint=12"}
CODECS = [("libx264", {"bf": "0"} | X264), ("libx264", {"bf": "1"} | X264), ("libx264", {"bf": "3"} | X264),
          ("libx264", {"x264-params": "open-gop=1:keyint=8:bframes=3"}), ("libx264", {"x264-params": "tff=1:bframes=2"}),
          ("libx265", {"x265-params": "log-level=none:bframes=3:b-adapt=0"}),
          ("libx265", {"x265-params": "log-level=none:bframes=0"}), ("mpeg4", {}), ("mpeg4", {"bf": "2"}), ("mpeg2video", {}), ("mpeg2video", {"bf": "2"}),
          ("mpeg1video", {}), ("mpeg1video", {"bf": "2"}), ("libvpx", {"deadline": "realtime"}), ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
          *[(c, {}) for c in ("mjpeg", "flv1", "wmv1", "wmv2", "msmpeg4", "h263", "ffv1", "huffyuv", "rawvideo", "png", "gif", "apng", "prores", "qtrle",
                              "cinepak", "msvideo1", "utvideo", "rv20", "flashsv", "dnxhd")]]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_pair_of_container_and_codec(suffix, tmp_path):
    "The decoder's frames in the decoder's order, none missing, none twice; or refused where the decoder itself fails."
    wrong, right = [], 0
    for k, (codec, options) in enumerate(CODECS):
        path = tmp_path/f"{k}.{suffix}"
        try: encoded(path, codec=codec, form=CONTAINERS[suffix], options=options)
        except (av.error.FFmpegError, ValueError, OSError): continue  # this container does not take this codec
        try: true = decoder_says(path)
        except (av.error.FFmpegError, IndexError): true = None
        try:
            video = probe(path)
            same = numbers(video) == true and (np.diff(video.times) > 0).all() and abs(video.duration - len(true) / RATE) < 2 / RATE + .01
        except VideoError as e: same = true != list(range(30)) and e.cause
        right += same is True
        if not same: wrong.append((codec, options))
    assert not wrong and right


@pytest.mark.parametrize("suffix, codec, options", [
    ("mp4", "libx264", {"bf": "3"}), ("avi", "libx264", {"bf": "3"}), ("avi", "mpeg4", {"bf": "2"}), ("asf", "libx264", {"bf": "2"}),
    ("mkv", "libx265", {"x265-params": "log-level=none"}), ("mxf", "mpeg2video", {"bf": "2"}), ("gif", "gif", {})])
def test_as_frames_as_clips_and_in_the_browser(suffix, codec, options, tmp_path):
    path = encoded(tmp_path/f"a.{suffix}", 50, codec, options=options)
    video = probe(path)
    for times in (frame_times(video.duration, 6), clip_times(video.duration, 3, 15)):
        seen = [number(rgb) for rgb in read_frames(path, times).reshape(-1, HEIGHT, WIDTH, 3)]
        assert seen == frames_at(video, times).ravel().tolist()
        assert all((np.diff(row) >= 0).all() for row in np.reshape(seen, times.shape))
    with av.open(io.BytesIO(as_mp4(video))) as played: assert [number(f.to_ndarray(format="rgb24")) for f in played.decode(video=0)] == list(range(50))


# Packets and headers that say something else than the decoder


def boxes_grown(data: bytes, where: list[bytes], new: bytes) -> bytes:
    "An MP4 whose innermost named box has another content; the index stands last, so that no offset moves."
    at, path = 0, []
    for name in where:
        at = data.index(name, at)
        path.append(at - 4)
    old = struct.unpack(">I", data[path[-1]:path[-1] + 4])[0]
    grown = data[:at + 4] + new + data[path[-1] + old:]
    for p in path: grown = grown[:p] + struct.pack(">I", struct.unpack(">I", grown[p:p + 4])[0] + len(new) + 8 - old) + grown[p + 4:]
    return grown


def edited(path: Path, edits: list[tuple[float, float]]) -> Path:
    "An MP4 that shows these pieces: (seconds, first second in the media, or -1 for nothing)."
    data = path.read_bytes()
    scale = struct.unpack(">I", data[(at := data.index(b"mdhd") + 16):at + 4])[0]
    offset = struct.unpack(">i", data[(at := data.index(b"elst") + 16):at + 4])[0]  # the encoder's delay
    rows = b"".join(struct.pack(">Iihh", int(s * 1000), -1 if begin < 0 else int(begin * scale) + offset, 1, 0) for s, begin in edits)
    path.write_bytes(boxes_grown(data, [b"moov", b"trak", b"edts", b"elst"], struct.pack(">II", 0, len(edits)) + rows))
    return path


EDITS = {"end cut": [(1, 0)], "start cut": [(1.6, .8)], "start and end cut": [(.8, .6)], "two pieces": [(.4, 0), (.6, 1.2)],
         "begins later": [(.5, -1), (2.4, 0)], "a piece twice": [(.4, .4), (.4, .4)]}


@pytest.mark.parametrize("bf", [0, 2])
@pytest.mark.parametrize("name", EDITS)
def test_edit_lists(name, bf, tmp_path):
    path = edited(encoded(tmp_path/"a.mp4", 60, options={"bf": str(bf), "g": "12", "x264-params": "scenecut=0"}), EDITS[name])
    video, true = probe(path), decoder_says(path)
    assert numbers(video) == true and len(true) < 61
    pieces = [range(round(RATE * begin), round(RATE * (begin + s))) for s, begin in EDITS[name] if begin >= 0]
    assert abs(len(true) - sum(map(len, pieces))) <= 2 and (np.diff(video.times) > 0).all()
    assert true[0] == pieces[0][0] and video.remarks == ()


def test_empty_chunks_are_no_frames(tmp_path):
    "An AVI at twice the rate with an empty chunk behind each picture, as stream copies are."
    data = bytearray(encoded(tmp_path/"a.avi", 30, "mpeg4").read_bytes())
    movi, at, chunks = data.index(b"movi"), data.index(b"movi") + 4, []
    while data[at:at + 4] == b"00dc":
        size = struct.unpack("<I", data[at + 4:at + 8])[0]
        chunks.append(bytes(data[at:at + 8 + size + size % 2]))
        at += 8 + size + size % 2
    spaced = b"movi" + b"".join(c + b"00dc" + bytes(4) for c in chunks)
    index, where = b"", 4
    for c in chunks:
        for chunk, flag in ((c, 16), (b"00dc" + bytes(4), 0)):
            index += b"00dc" + struct.pack("<III", flag, where, struct.unpack("<I", chunk[4:8])[0])
            where += len(chunk)
    head = bytearray(data[:movi - 4])
    for tag, offset, value in [(b"avih", 8, 20_000), (b"avih", 24, 60), (b"strh", 32, 2 * RATE), (b"strh", 28, 1), (b"strh", 40, 60)]:
        struct.pack_into("<I", head, head.index(tag) + offset, value)
    body = bytes(head) + struct.pack("<I", len(spaced)) + spaced + b"idx1" + struct.pack("<I", len(index)) + index
    (tmp_path/"b.avi").write_bytes(b"RIFF" + struct.pack("<I", len(body) - 8) + body[8:])
    video = probe(tmp_path/"b.avi")
    assert numbers(video) == decoder_says(tmp_path/"b.avi") == list(range(30))
    assert video.duration == pytest.approx(30 / RATE, abs=1.5 / RATE) and video.remarks == ()


def test_packed_b_frames(tmp_path):
    "As DivX and XviD store MPEG-4 in AVI: a B-picture in the packet of the picture before it, a stand-in in the next one."
    with av.open(str(encoded(tmp_path/"a.avi", 30, "mpeg4", options={"bf": "1", "g": "30"}))) as c:
        coded = [bytes(p) for p in c.demux(video=0) if p.size]
    kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in coded]
    assert kinds.count(2) > 5
    packed, k = [], 0
    while k < len(coded):
        both = k + 1 < len(coded) and kinds[k] == 1 and kinds[k + 1] == 2
        packed += [coded[k] + coded[k + 1], b"\0\0\1\xb6\x57\xe5\x7f"] if both else [coded[k]]  # P, no time passed, not coded
        k += 1 + both
    at = packed[0].index(b"\0\0\1\xb6")
    packed[0] = packed[0][:at] + b"\0\0\1\xb2DivX503b1393p" + packed[0][at:]
    with av.open(str(tmp_path/"a.avi")) as read, av.open(str(tmp_path/"b.avi"), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for i, data in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, RATE), stream, i == 0
            out.mux(packet)
    video, true = probe(tmp_path/"b.avi"), decoder_says(tmp_path/"b.avi")
    assert numbers(video) == true == sorted(true) and len(set(true)) >= 29


def u(n: int, value: int) -> str: return f"{value:0{n}b}"
def ue(value: int) -> str: return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"  # an Exp-Golomb code


def unit(head: int, bits: str, body: bytes = b"") -> bytes:
    "A NAL unit of H.264 behind a start code."
    raw, out = int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8)) + body, bytearray()
    for byte in raw:
        if out[-2:] == b"\0\0" and byte <= 3: out.append(3)
        out.append(byte)
    return b"\0\0\0\1" + bytes([head]) + bytes(out)


def fields(n: int) -> bytes:
    "H.264 whose frames of 64 x 64 are two fields in packets of their own, as camcorders write them; samples are stored as they are (I_PCM)."
    sets = unit(0x67, u(24, 77 << 16 | 30) + ue(0) * 3 + ue(4) + ue(1) + "0" + ue(3) + ue(1) + "0000" + "01")
    sets += unit(0x68, ue(0) * 2 + "00" + ue(0) * 3 + "000" + ue(0) * 3 + "0001")
    out = b""
    for i in range(n):
        for bottom in (0, 1):
            first, luma = not i and not bottom, numbered(i, 64, 64)[bottom::2, :, 0]
            header = ue(0) + ue(7) + ue(0) + u(4, i % 16) + "1" + u(1, bottom) + ue(0) * first + u(8, (2 * i + bottom) % 256) + "0" * (1 + first) + "1"
            head, *rest = (luma[16*y:16*y + 16, 16*x:16*x + 16].tobytes() + bytes([128]) * 128 for y in range(2) for x in range(4))
            body = head + b"".join(int(ue(25) + "0" * (-len(ue(25)) % 8), 2).to_bytes(2) + block for block in rest) + b"\x80"
            out += unit(9, u(3, 0) + "1") + sets * first + unit(0x65 if first else 0x61, header + ue(25), body)
    return out


@pytest.mark.parametrize("suffix", ["h264", "ts", "mp4", "mkv"])
def test_two_fields_in_two_packets_are_one_frame(suffix, tmp_path):
    (tmp_path/"a.h264").write_bytes(fields(30))
    path = tmp_path/f"a.{suffix}"
    if suffix != "h264":
        with av.open(str(tmp_path/"a.h264")) as read, av.open(str(path), "w") as out:
            copy = out.add_stream_from_template(stream := read.streams.video[0])
            for i, packet in enumerate(p for p in read.demux(stream) if p.size):
                packet.pts = packet.dts = round(i / 2 / RATE / stream.time_base)
                packet.stream = copy
                out.mux(packet)
    with av.open(str(path)) as c: assert sum(p.size > 0 for p in c.demux(video=0)) == 60
    video = probe(path)
    assert numbers(video) == decoder_says(path) == list(range(30))
    assert video.duration == pytest.approx(30 / RATE, abs=1.5 / RATE)


def test_two_recordings_in_one_stream(tmp_path):
    path = encoded(tmp_path/"a.ts", 40, options={"bf": "2"})
    path.write_bytes(path.read_bytes() * 2)
    video = probe(path)
    assert numbers(video) == decoder_says(path) == [*range(40), *range(40)]
    np.testing.assert_allclose(video.times, np.arange(80) / RATE, atol=1.5 / RATE)


def test_time_stamps_below_zero_and_past_the_counter(tmp_path):
    source = encoded(tmp_path/"a.mp4", 40, options={"bf": "2"})
    for name, seconds in [("below.mkv", -.4), ("past.ts", 2**33 / 90_000 - .6)]:
        shifted(source, tmp_path/name, seconds, avoid_negative_ts="disabled")
        video = probe(tmp_path/name)
        assert numbers(video) == list(range(40))
        np.testing.assert_allclose(video.times, np.arange(40) / RATE, atol=2e-3)


# Streams that begin or change in the middle


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
@pytest.mark.parametrize("codec, options", [("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
                                            ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
                                            ("mpeg2video", {"bf": "2", "g": "12"}), ("mpeg4", {"g": "12"})])
@pytest.mark.parametrize("begin", ["second key picture", "a few pictures later"])
def test_streams_begun_in_the_middle(suffix, codec, options, begin, tmp_path):
    source = encoded(tmp_path/f"a.{suffix}", 60, codec, options=options)
    with av.open(str(source)) as c: keys = [i for i, p in enumerate(c.demux(video=0)) if p.is_keyframe]
    first = keys[1] + (0 if begin == "second key picture" else 3)
    path = remuxed(source, tmp_path/f"b.{suffix}", lambda i, packet: i >= first)
    video, true = probe(path), decoder_says(path)
    assert numbers(video) == true and len(true) > 30 and true[-1] == 59
    with av.open(str(path)) as c: lost = sum(p.size > 0 for p in c.demux(video=0)) - len(true)
    assert video.remarks == ((f"{lost} picture{'s' * (lost > 1)} at the beginning cannot be decoded",) if lost else ())


@pytest.mark.parametrize("later", [-100, -1, 100])
def test_a_clock_that_was_set_between_two_recordings(later, tmp_path):
    "By so many seconds."
    first = encoded(tmp_path/"a.ts", 40, options={"bf": "2"})
    parts = [shifted(first, tmp_path/f"{seconds}.ts", seconds, muxdelay="0") for seconds in (200, 200 + later)]
    (tmp_path/"both.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    video = probe(tmp_path/"both.ts")
    assert numbers(video) == [*range(40), *range(40)] and video.remarks == ()
    assert (np.diff(video.times) > 0).all() and (later > 0 or video.duration == pytest.approx(80 / RATE, abs=3 / RATE))


@pytest.mark.parametrize("codec, options", [("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"})])
def test_a_recording_begun_in_the_middle_behind_another(codec, options, tmp_path):
    "What its first pictures refer to is not there; the decoder leaves them out, and so does the video."
    source = encoded(tmp_path/"a.mkv", 60, codec, options=options)
    with av.open(str(source)) as c: keys = [i for i, p in enumerate(c.demux(video=0)) if p.is_keyframe]
    with av.open(str(tmp_path/"b.mkv"), "w") as out:
        copy, base = None, 0
        for begin in (0, keys[1]):
            with av.open(str(source)) as read:
                stream = read.streams.video[0]
                copy = copy or out.add_stream_from_template(stream)
                packets = [p for i, p in enumerate(read.demux(stream)) if p.dts is not None and i >= begin]
                later = base - packets[0].dts
                for p in packets:
                    p.pts, p.dts, p.stream = p.pts + later, p.dts + later, copy
                    base = max(base, p.pts + 40)
                    out.mux(p)
    assert numbers(probe(tmp_path/"b.mkv")) == decoder_says(tmp_path/"b.mkv")


@pytest.mark.parametrize("suffix, container", [("mp4", {}), ("mp4", {"movflags": "frag_keyframe+empty_moov"}), ("mkv", {}), ("flv", {}), ("avi", {})])
@pytest.mark.parametrize("more", [b"\r\n", b"junkjunkjunk", b"SEFH" + bytes(40)])
def test_bytes_behind_the_end_are_no_cut(suffix, container, more, tmp_path):
    path = encoded(tmp_path/f"a.{suffix}", 30, "mpeg4" if suffix == "avi" else "libx264", options={} if suffix == "avi" else {"bf": "0"}, container=container)
    path.write_bytes(path.read_bytes() + more)
    assert numbers(probe(path)) == list(range(30)) and probe(path).remarks == ()


def test_packets_without_a_picture_are_no_loss(tmp_path):
    "Supplemental information in a packet of its own, as FFmpeg's stream copies into ASF have it: decoders call it an error."
    with av.open(str(encoded(tmp_path/"a.mp4", 30, options={"bf": "2"}))) as read, av.open(str(tmp_path/"b.mkv"), "w") as out:
        copy = out.add_stream_from_template(stream := read.streams.video[0])
        for i, packet in enumerate(read.demux(stream)):
            if packet.dts is None: continue
            packet.stream = copy
            out.mux(packet)
            if i == 15:
                lone = av.Packet(bytes([0, 0, 0, 5, 6, 6, 1, 0xc4, 0x80]))
                lone.pts, lone.dts, lone.time_base, lone.stream = packet.pts + 1, packet.dts, packet.time_base, copy
                out.mux(lone)
    assert numbers(probe(tmp_path/"b.mkv")) == list(range(30))


ORIENTED = {"rotate=90": lambda x: np.rot90(x, 1), "rotate=180": lambda x: np.rot90(x, 2), "flip=horizontal": lambda x: x[:, ::-1],
            "flip=vertical": lambda x: x[::-1]}


@pytest.mark.parametrize("how", ORIENTED)
def test_orientation_kept_in_the_stream(how, tmp_path):
    "In H.264's own supplemental information, in a container that knows of none."
    with av.open(str(encoded(tmp_path/"a.ts", 8, options={"bf": "0", "crf": "5"}))) as read, av.open(str(tmp_path/"b.ts"), "w") as out:
        copy = out.add_stream_from_template(stream := read.streams.video[0])
        turn = av.BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{how}", stream)
        for packet in read.demux(stream):
            for turned in turn.filter(packet if packet.size else None):
                turned.stream = copy
                out.mux(turned)
    (_, got), = decode(probe(tmp_path/"b.ts"), np.array([5]))
    true = ORIENTED[how](numbered(5)).astype(int)
    assert got.shape == true.shape and np.abs(got - true).mean() < 12


def test_a_change_of_size_in_the_middle(tmp_path):
    "Later frames are scaled to the first one's size, as FFmpeg does."
    parts = [encoded(tmp_path/f"{i}.ts", 20, options={"bf": "0"}, size=size) for i, size in enumerate([(128, 96), (256, 192)])]
    (tmp_path/"both.ts").write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    video = probe(tmp_path/"both.ts")
    assert numbers(video) == [*range(20), *range(20)]
    assert {f.shape for _, f in decode(video, np.arange(40))} == {(96, 128, 3)}
    assert read_frames(tmp_path/"both.ts", clip_times(video.duration, 2, 12)).shape == (2, 16, 96, 128, 3)


# Which stream, and which way up


def test_the_default_stream_counts(tmp_path):
    "Of two video streams; a cover that comes first is none."
    for name, chosen in [("first", 0), ("second", 1)]:
        with av.open(str(tmp_path/f"{name}.mkv"), "w") as out:
            streams = [out.add_stream("mpeg4", rate=RATE) for _ in range(2)]
            for k, s in enumerate(streams):
                s.width, s.height, s.pix_fmt, s.disposition = WIDTH, HEIGHT, "yuv420p", av.stream.Disposition.default if k == chosen else 0
            for i in range(20):
                for k, s in enumerate(streams): out.mux(s.encode(av.VideoFrame.from_ndarray(numbered(i + 100 * k), format="rgb24")))
            for s in streams: out.mux(s.encode())
        assert numbers(probe(tmp_path/f"{name}.mkv")) == [i + 100 * chosen for i in range(20)]


def test_a_cover_is_no_video(tmp_path):
    source = encoded(tmp_path/"a.mp4", 20)
    with av.open(str(source)) as read, av.open(str(tmp_path/"cover.mp4"), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", av.stream.Disposition.attached_pic
        copy = out.add_stream_from_template(read.streams.video[0])
        for packet in cover.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")) + cover.encode(): out.mux(packet)
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    data = (tmp_path/"cover.mp4").read_bytes()
    track, meta = (data.index(name) - 4 for name in (b"trak", b"udta"))  # whose picture is then the first stream
    (tmp_path/"cover.mp4").write_bytes(data[:track] + data[meta:] + data[track:meta])
    with av.open(str(tmp_path/"cover.mp4")) as c: assert c.streams.video[0].disposition & av.stream.Disposition.attached_pic
    assert numbers(probe(tmp_path/"cover.mp4")) == list(range(20))
    with av.open(str(tmp_path/"song.m4a"), "w", format="mp4") as out:
        sound, cover = out.add_stream("aac", rate=8000), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        out.mux([*cover.encode(picture), *cover.encode(), *sound.encode(silence), *sound.encode()])
    with pytest.raises(VideoError, match="no video stream"): probe(tmp_path/"song.m4a")


MATRICES = {"as it is": (1, 0, 0, 1), "a quarter": (0, 1, -1, 0), "half": (-1, 0, 0, -1), "three quarters": (0, -1, 1, 0),
            "left and right": (-1, 0, 0, 1), "top and bottom": (1, 0, 0, -1), "transposed": (0, 1, 1, 0), "the other diagonal": (0, -1, -1, 0)}


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored(name, tmp_path):
    "A stored point (x, y) is shown at (a x + c y, b x + d y); and as the program ffmpeg shows it, where it is installed."
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:32, :48], stored[:32, 48:], stored[32:, :48], stored[32:, 48:] = (200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 200)
    with av.open(str(tmp_path/"a.mp4"), "w") as out:
        s = out.add_stream("libx264", rate=RATE, options={"crf": "1"})
        s.width, s.height, s.pix_fmt = 96, 64, "yuv444p"
        out.mux([*s.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")), *s.encode()])
    data, (a, b, c, d) = (tmp_path/"a.mp4").read_bytes(), MATRICES[name]
    at = data.index(b"tkhd") + 44
    (tmp_path/"a.mp4").write_bytes(data[:at] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + data[at + 36:])
    (_, got), = decode(probe(tmp_path/"a.mp4"), np.array([0]))
    y, x = np.mgrid[:64, :96]
    to_x, to_y = a * x + c * y, b * x + d * y
    true = np.zeros_like(got)
    true[to_y - to_y.min(), to_x - to_x.min()] = stored
    np.testing.assert_allclose(got.astype(int), true, atol=12)
    if not FFMPEG: return
    subprocess.run([FFMPEG, "-v", "error", "-i", str(tmp_path/"a.mp4"), "-frames:v", "1", "-update", "1", str(tmp_path/"a.png")], check=True)
    with av.open(str(tmp_path/"a.png")) as png: np.testing.assert_allclose(next(png.decode(video=0)).to_ndarray(format="rgb24").astype(int), true, atol=12)


def long_still(path: Path, seconds: float, bf: int = 0) -> Path:
    "Six frames, the third of which is shown for so long."
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "bf": str(bf)})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, 1000)
        for i, t in enumerate([0, .1, .2, .2 + seconds, .3 + seconds, .4 + seconds]):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = round(t * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("bf", [0, 2])
def test_a_slide_that_stays_for_minutes(suffix, bf, tmp_path):
    "The header states the same length, so the long frame is no damage; a stamp that is hours off is."
    video = probe(long_still(tmp_path/f"slides.{suffix}", 400, bf))
    assert np.allclose(video.times, [0, .1, .2, 400.2, 400.3, 400.4], atol=2e-3) and numbers(video) == list(range(6))
    with pytest.raises(VideoError, match="damaged time stamps: one frame for 40,000 s"): probe(long_still(tmp_path/f"hours.{suffix}", 40_000, bf))


def test_a_long_frame_of_which_the_header_knows_nothing_is_damage(tmp_path):
    data = bytearray(long_still(tmp_path/"slides.mkv", 400).read_bytes())
    at = data.index(bytes.fromhex("448988")) + 3  # Duration, a float of 8 bytes, in milliseconds
    data[at:at + 8] = struct.pack(">d", 500.)
    (tmp_path/"slides.mkv").write_bytes(data)
    with pytest.raises(VideoError, match="damaged time stamps: one frame for 400 s"): probe(tmp_path/"slides.mkv")


def test_a_picture_that_stays_for_minutes_in_an_animation(tmp_path):
    "Its own delay says so."
    data = bytearray(encoded(tmp_path/"a.gif", 3, "gif", rate=10).read_bytes())
    at = [i for i in range(len(data) - 7) if data[i:i + 3] == b"\x21\xf9\x04"]
    for i in at: struct.pack_into("<H", data, i + 4, 40_000)  # hundredths of a second
    (tmp_path/"a.gif").write_bytes(data)
    video = probe(tmp_path/"a.gif")
    assert numbers(video) == [0, 1, 2] and video.duration == pytest.approx(1200, rel=.01)


# The program ffmpeg, where it is installed


@needs_ffmpeg
@pytest.mark.parametrize("suffix, codec, options", [
    ("avi", "libx264", {"bf": "3"}), ("asf", "libx264", {"bf": "2"}), ("mxf", "libx264", {"bf": "2"}), ("mp4", "libx265", {"x265-params": "log-level=none"}),
    ("mpg", "mpeg2video", {"bf": "2"}), ("avi", "mpeg4", {"bf": "2"})])
def test_ffmpeg_shows_the_same(suffix, codec, options, tmp_path):
    path = encoded(tmp_path/f"a.{suffix}", 40, codec, options=options)
    assert numbers(probe(path)) == ffmpeg_says(path) == list(range(40))


@needs_ffmpeg
def test_ffmpeg_shows_the_same_of_edit_lists(tmp_path):
    path = edited(encoded(tmp_path/"a.mp4", 60, options={"bf": "2", "g": "12", "x264-params": "scenecut=0"}), [(.4, .2), (.6, 1.2)])
    assert numbers(probe(path)) == ffmpeg_says(path)


@needs_ffmpeg
@pytest.mark.parametrize("rate", [10, 25])
def test_stream_copies_into_avi(rate, tmp_path):
    source = encoded(tmp_path/"a.mp4", 40, options={"bf": "0"}, rate=rate)
    subprocess.run([FFMPEG, "-v", "quiet", "-i", str(source), "-c", "copy", str(tmp_path/"a.avi")], check=True)
    video = probe(tmp_path/"a.avi")
    assert numbers(video) == list(range(40)) and video.duration == pytest.approx(40 / rate, abs=1.5 / rate)


# The frame policy, for any video


videos = st.lists(st.floats(.005, 2), min_size=1, max_size=60).map(
    lambda steps: Video("", 8, 8, np.cumsum([0, *steps[:-1]]), float(np.sum(steps)), None))


@settings(deadline=None)
@given(videos, st.floats(.1, 60))
def test_frames_are_on_show_when_they_are_asked_for(video, fps):
    t = frame_times(video.duration, fps)
    at = frames_at(video, t)
    assert len(t) == max(1, round(video.duration * fps)) and (np.diff(at.ravel()) >= 0).all()
    ends = np.append(video.times[1:], video.duration)
    assert (video.times[at] <= t + 1e-3).all() and (ends[at] >= t - 1e-3).all()


@settings(deadline=None)
@given(videos, st.integers(1, 8), st.floats(1, 60))
def test_clips_stay_within_the_video(video, n_clips, fps):
    t = clip_times(video.duration, n_clips, fps)
    assert t.shape == (n_clips, 16) and (t >= 0).all() and (t < video.duration).all()
    if 16 / fps <= video.duration: assert (np.diff(t, axis=1) > 0).all() and np.allclose(np.diff(t, axis=1), 1 / fps)


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(1, 60), st.floats(.5, 30))
def test_backwards_the_same_frames_backwards(n, rate, fps):
    "But for the frame in the exact middle of an even number."
    video = Video("", 8, 8, np.arange(n) / rate, n / rate, None)
    t = frame_times(video.duration, fps)
    at, back = frames_at(video, t).ravel(), frames_at(video, video.duration - t).ravel()
    middle = np.abs(t.ravel() - video.duration / 2) < 2e-3
    assert (at + back == n - 1)[~middle].all()
