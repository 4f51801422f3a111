from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skt_components.data import read_image, write_image
from skt_components.data.io import SUPPORTED_SUFFIXES

cv2 = pytest.importorskip("cv2")
OpenEXR = pytest.importorskip("OpenEXR")
tifffile = pytest.importorskip("tifffile")


def _picture(height: int = 13, width: int = 21, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.linspace(0, 1, width).expand(3, height, width).clone()
    smooth[:, ::2] = torch.rand(3, (height + 1) // 2, width, generator=generator)
    smooth[:, 3, 4:18] = 0.25  # a run, so that run-length coding has something to do
    return smooth


def _decode_rgbe(data: bytes) -> np.ndarray:
    """Decode Radiance RGBE, flat or new-style run-length coded, from the format's description."""
    header, _, body = data.partition(b"\n\n")
    assert header.startswith(b"#?RADIANCE")
    assert b"FORMAT=32-bit_rle_rgbe" in header
    size, _, body = body.partition(b"\n")
    minus_y, height, plus_x, width = size.split()
    assert (minus_y, plus_x) == (b"-Y", b"+X")
    rows, columns = int(height), int(width)
    at, out = 0, np.zeros((rows, columns, 4), np.uint8)
    for row in range(rows):
        if columns < 8 or body[at : at + 2] != b"\x02\x02":
            out[row] = np.frombuffer(body[at : at + 4 * columns], np.uint8).reshape(columns, 4)
            at += 4 * columns
            continue
        assert body[at + 2] * 256 + body[at + 3] == columns
        at += 4
        for channel in range(4):
            x = 0
            while x < columns:
                count, at = body[at], at + 1
                if count > 128:
                    out[row, x : x + count - 128, channel] = body[at]
                    x, at = x + count - 128, at + 1
                else:
                    out[row, x : x + count, channel] = np.frombuffer(body[at : at + count], np.uint8)
                    x, at = x + count, at + count
    assert at == len(body)
    mantissa, exponent = out[..., :3].astype(np.float64), out[..., 3:].astype(np.int64)
    return np.where(exponent > 0, np.ldexp(mantissa, exponent - 136), 0.0)


def _decode_tif(data: bytes) -> np.ndarray:
    """Decode an uncompressed little-endian 16-bit RGB TIFF from the format's description."""
    assert data[:4] == b"II*\0"
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    tags = {}
    for i in range(count):
        tag, kind, number = struct.unpack_from("<HHI", data, directory + 2 + 12 * i)
        size = {3: 2, 4: 4}.get(kind)
        if size is None:
            continue
        place = directory + 2 + 12 * i + 8
        if size * number > 4:
            (place,) = struct.unpack_from("<I", data, place)
        tags[tag] = struct.unpack_from(f"<{number}{'H' if size == 2 else 'I'}", data, place)
    assert tags[258] == (16, 16, 16)
    assert tags[259] == (1,)
    assert tags[262] == (2,)
    strips = b"".join(data[a : a + n] for a, n in zip(tags[273], tags[279], strict=True))
    return np.frombuffer(strips, "<u2").reshape(tags[257][0], tags[256][0], 3)


# matches_reference


@pytest.mark.parametrize("width", [5, 21, 200])
def test_hdr_bytes_are_rgbe_by_an_independent_decoder(tmp_path: Path, width: int) -> None:
    image = torch.rand(3, 9, width) * torch.logspace(-6, 6, width)
    image[:, 2, : width // 2] = 0.5
    image[:, 3] = 0
    path = tmp_path / "a.hdr"
    write_image(path, image)
    decoded = _decode_rgbe(path.read_bytes()).transpose(2, 0, 1)
    peak = image.double().amax(0, keepdim=True).numpy()
    error = np.abs(decoded - image.double().numpy())
    assert (error <= peak / 128).all()
    assert error.max() > 0
    np.testing.assert_array_equal(read_image(path).double().numpy(), decoded)


def test_tif_bytes_are_16_bit_rgb_rounded_to_nearest(tmp_path: Path) -> None:
    image = _picture()
    image[:, 0, 0] = torch.tensor([0.5, 1.0, 0.0])  # 32767.5 goes to the even 32768
    path = tmp_path / "a.tif"
    write_image(path, image)
    stored = _decode_tif(path.read_bytes())
    expected = np.rint(image.double().permute(1, 2, 0).numpy() * 65535)
    np.testing.assert_array_equal(stored, expected)
    assert stored[0, 0].tolist() == [32768, 65535, 0]
    torch.testing.assert_close(
        read_image(path), torch.from_numpy(expected / 65535).float().permute(2, 0, 1), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("suffix", [".exr", ".npy"])
def test_float_formats_are_exact(tmp_path: Path, suffix: str) -> None:
    image = _picture() * torch.logspace(-8, 8, 21) - 0.1
    write_image(tmp_path / f"a{suffix}", image)
    assert torch.equal(read_image(tmp_path / f"a{suffix}"), image)


def test_half_exr_is_exactly_float16(tmp_path: Path) -> None:
    image = _picture() * 1000
    write_image(tmp_path / "a.exr", image, half=True)
    assert torch.equal(read_image(tmp_path / "a.exr"), image.half().float())


def test_exr_channels_are_taken_by_name_and_extras_ignored(tmp_path: Path) -> None:
    planes = {name: np.full((4, 6), value, np.float32) for name, value in zip("ABGRZ", (9, 3, 2, 1, 8), strict=True)}
    with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, planes) as file:
        file.write(str(tmp_path / "a.exr"))
    assert read_image(tmp_path / "a.exr")[:, 0, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 4), (4, 6)])
@pytest.mark.parametrize("planar", [False, True])
def test_tif_kinds(tmp_path: Path, dtype: type, peak: int, shape: tuple[int, ...], planar: bool) -> None:
    if planar and shape == (4, 6):
        pytest.skip("one plane has no order")
    array = (np.arange(np.prod(shape)).reshape(shape) % (peak + 1)).astype(dtype)
    options: dict[str, object] = {"photometric": "rgb" if len(shape) == 3 else "minisblack"}
    if planar:
        options["planarconfig"] = "separate"
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(array, -1, 0) if planar else array, **options)
    expected = array[..., :3] if array.ndim == 3 else np.repeat(array[..., None], 3, -1)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected / np.float32(peak), rtol=1e-6)


def test_lzw_tif_is_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    parameters = [cv2.IMWRITE_TIFF_COMPRESSION, 5]
    assert cv2.imwrite(str(tmp_path / "a.tif"), array[..., ::-1], parameters)
    expected = torch.from_numpy(array.astype(np.float32) / np.float32(65535)).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.tif"), expected)


def _lzw(data: bytes) -> bytes:
    """Encode as TIFF's LZW, with codes of 9 bits."""
    codes = [code for i, byte in enumerate(data) for code in ([256] if i % 250 == 0 else []) + [byte]] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("imagecodecs", [True, False])
@pytest.mark.parametrize("kind", ["rgb", "planar", "rgba", "gray", "8 bits", "turned", "big-endian"])
def test_compressed_tifs_have_the_same_values_or_name_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, imagecodecs: bool
) -> None:
    if imagecodecs:
        pytest.importorskip("imagecodecs")
    else:
        monkeypatch.setitem(tifffile.TIFF.DECOMPRESSORS._codecs, 5, _missing_codec)
    monkeypatch.setitem(tifffile.TIFF.COMPRESSORS._codecs, 5, lambda data, **_: _lzw(bytes(data)))
    shape = {"planar": (3, 8, 10), "rgba": (8, 10, 4), "gray": (8, 10)}.get(kind, (8, 10, 3))
    array = (np.arange(np.prod(shape)).reshape(shape) * 200).astype(np.uint8 if kind == "8 bits" else np.uint16)
    options: dict[str, object] = {"photometric": "minisblack" if kind == "gray" else "rgb", "metadata": None}
    options |= {"planarconfig": "separate"} if kind == "planar" else {}
    options |= {"extratags": [(274, 3, 1, 6, True)]} if kind == "turned" else {}
    options |= {"byteorder": ">"} if kind == "big-endian" else {}
    tifffile.imwrite(tmp_path / "plain.tif", array, **options)
    tifffile.imwrite(tmp_path / "lzw.tif", array, compression="lzw", **options)
    if imagecodecs or kind in ("rgb", "gray", "big-endian"):
        assert torch.equal(read_image(tmp_path / "lzw.tif"), read_image(tmp_path / "plain.tif"))
    else:
        with pytest.raises(ValueError, match=r'lzw\.tif: LZW .* imagecodecs: pip install "skt-components\[data\]"'):
            read_image(tmp_path / "lzw.tif")


def _missing_codec(*_: object, **__: object) -> None:
    raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tifs_are_upright(tmp_path: Path, orientation: int) -> None:
    from PIL import Image, ImageOps

    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extratags=tags, metadata=None)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.tif")))
    np.testing.assert_array_equal((read_image(tmp_path / "a.tif").permute(1, 2, 0) * 255).round().numpy(), upright)


def test_pages_of_a_tif_are_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((2, 3, 3), np.uint8), photometric="rgb", subfiletype=1)  # a thumbnail
        for value in (51, 102):
            file.write(np.full((4, 6, 3), value, np.uint8), photometric="rgb", metadata=None)
    with pytest.warns(UserWarning, match=r"a\.tif: has 2 pages that could be the picture, page 1 is read"):
        assert read_image(path).unique().tolist() == pytest.approx([0.2])
    assert read_image(path, part=2).unique().tolist() == pytest.approx([0.4])
    with pytest.raises(ValueError, match="part must be the number of one of 3 pages, from 0, got 3"):
        read_image(path, part=3)


def test_tifs_of_other_kinds_give_the_reason(tmp_path: Path) -> None:
    path, gray = tmp_path / "a.tif", np.zeros((16, 16), np.uint8)
    tifffile.imwrite(path, gray, photometric="miniswhite")
    with pytest.raises(ValueError, match=r"a\.tif: color type must be RGB or gray, got MINISWHITE"):
        read_image(path)
    data = bytearray(_tagged(tmp_path, gray))
    for tag, value, message in ((259, 7, "compression must be one of .* got JPEG"), (279, 0, "strips or tiles")):
        changed = data.copy()
        place = _tag_place(changed, tag)
        changed[place : place + 2] = struct.pack("<H", value)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"a\.tif: .*{message}"):
            read_image(path)


def _tagged(folder: Path, array: np.ndarray) -> bytes:
    tifffile.imwrite(folder / "tagged.tif", array, photometric="minisblack", metadata=None, byteorder="<")
    return (folder / "tagged.tif").read_bytes()


def _tag_place(data: bytearray, tag: int) -> int:
    """Return the offset of the value of a tag that fits into the directory."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = (directory + 2 + 12 * i for i in range(count))
    return next(entry + 8 for entry in entries if struct.unpack_from("<H", data, entry) == (tag,))


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f2", ">f8", "<u2"])
def test_npy_of_any_byte_order(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(60).reshape(4, 5, 3) * 900).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    expected = array.astype(np.float32) / np.float32(65535 if dtype.endswith("u2") else 1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy").permute(1, 2, 0).numpy(), expected)


def test_npy_layouts(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((5, 6, 3))
    np.save(tmp_path / "hwc.npy", array)
    np.save(tmp_path / "chw.npy", np.asfortranarray(array.transpose(2, 0, 1)))
    assert torch.equal(read_image(tmp_path / "hwc.npy"), read_image(tmp_path / "chw.npy"))
    np.save(tmp_path / "ambiguous.npy", array[:3, :, :3])
    assert read_image(tmp_path / "ambiguous.npy").shape == (3, 3, 6)


def test_photograph_is_decoded_as_described(hdri_dir: Path) -> None:
    path = sorted(hdri_dir.glob("*.hdr"))[0]
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).double().numpy(), _decode_rgbe(path.read_bytes()))


# invariants


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
def test_round_trip_is_stable_and_rgb(tmp_path: Path, suffix: str) -> None:
    image = torch.zeros(3, 9, 16)
    image[0], image[1, :, 8:], image[2, 4:] = 1.0, 0.5, 0.25
    upper = tmp_path / f"A B ü{suffix.upper()}"
    write_image(upper, image)
    first = read_image(upper)
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    torch.testing.assert_close(first, image, rtol=1 / 128, atol=1e-5)
    write_image(upper, first, overwrite=True)
    assert torch.equal(read_image(upper), first)
    assert [p.name for p in tmp_path.iterdir()] == [upper.name]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 12), width=st.integers(1, 40), seed=st.integers(0, 99), scale=st.integers(-20, 20))
def test_rgbe_error_bound(tmp_path: Path, height: int, width: int, seed: int, scale: int) -> None:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2.0**scale
    write_image(tmp_path / "a.hdr", image, overwrite=True)
    assert ((read_image(tmp_path / "a.hdr") - image).abs() <= image.amax(0) / 128).all()


def test_write_takes_other_floats_and_layouts(tmp_path: Path) -> None:
    image = torch.rand(9, 8, 3, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    write_image(tmp_path / "a.npy", image)
    assert torch.equal(read_image(tmp_path / "a.npy"), image.detach().float())


def test_new_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for suffix in SUPPORTED_SUFFIXES:
        write_image(tmp_path / f"a{suffix}", _picture())
        assert (tmp_path / f"a{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


# rejects_bad_input


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
def test_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.*no such file"):
        read_image(tmp_path / f"none{suffix}")
    (tmp_path / f"none{suffix}").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none.*no such file"):
        read_image(tmp_path / f"none{suffix}")


def test_wrong_suffix_lists_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png: suffix must be one of \.hdr, \.exr, \.tif, \.tiff, \.npy"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="suffix must be one of"):
        write_image(tmp_path / "a", _picture())


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    write_image(whole, _picture(40, 60))
    data = whole.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    lengths = {0, 1, 4, 8, 9, 20, 60, 127, 128, 129, 200, 300, 400, len(data) // 2, len(data) - 7, len(data) - 1}
    for length in sorted(n for n in lengths if n < len(data)):
        broken.write_bytes(data[:length])
        with pytest.raises((ValueError, OSError), match="broken"):
            read_image(broken)


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"#?RADIANCE\n", b"II*\0", b"v/1\x01", b"\x93NUMPY\x01\0"])
def test_garbage_files_are_named(tmp_path: Path, suffix: str, fill: bytes) -> None:
    path = tmp_path / f"garbage{suffix}"
    for seed in range(3):
        noise = np.random.default_rng(seed).bytes(500)
        for data in (fill + noise, fill * 200):
            path.write_bytes(data)
            with pytest.raises((ValueError, OSError), match="garbage"):
                read_image(path)


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
def test_flipped_bytes_give_a_picture_or_a_clear_error(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    write_image(whole, _picture(16, 24))
    data = whole.read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    rng, readable = np.random.default_rng(0), 0
    for _ in range(150):
        changed = bytearray(data)
        changed[rng.integers(min(len(data), 600))] ^= int(rng.integers(1, 256))
        damaged.write_bytes(changed)
        message = "damaged"
        try:
            image = read_image(damaged)
            readable += 1
            assert image.shape[0] == 3
            assert bool(image.isfinite().all())
        except (ValueError, OSError) as error:
            message = str(error)
        assert "damaged" in message
    assert 0 < readable < 150


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_non_finite_radiance_is_counted(tmp_path: Path, value: float) -> None:
    pixels = np.ones((4, 5, 3), np.float32)
    pixels[1, 2, 0] = pixels[3, 3, 2] = value
    np.save(tmp_path / "bad.npy", pixels)
    planes = {name: np.ascontiguousarray(pixels[..., i]) for i, name in enumerate("RGB")}
    with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, planes) as file:
        file.write(str(tmp_path / "bad.exr"))
    for suffix in (".npy", ".exr"):
        with pytest.raises(ValueError, match=r"bad.*2 of 60 values are infinite or NaN"):
            read_image(tmp_path / f"bad{suffix}")
    with pytest.raises(ValueError, match="2 of 60 values are infinite or NaN"):
        write_image(tmp_path / "new.exr", torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 5), np.float32), "must be H×W×3"),
        (np.ones((4, 5, 4), np.float32), "must be H×W×3"),
        (np.ones((0, 5, 3), np.float32), "no pixels"),
        (np.ones((4, 5, 3), np.int64), "must be uint8, uint16 or floats"),
        (np.ones((4, 5, 3), np.complex64), "must be uint8, uint16 or floats"),
        (np.full((4, 5, 3), 1e300), "infinite or NaN"),
    ],
)
def test_npy_rejects(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        read_image(tmp_path / "a.npy")


def test_small_npy_files_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 5, 3), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(4, 5, 3), }        ", b"(40000, 50000, 3), }"))
    with pytest.raises(ValueError, match=r"a\.npy: must have 24000000128 bytes by its header"):
        read_image(tmp_path / "a.npy")


def test_npy_never_unpickles(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("suffix", "value", "half", "message"),
    [
        (".hdr", -0.1, False, r"\[0, 2\*\*127\)"),
        (".hdr", 3e38, False, r"\[0, 2\*\*127\)"),
        (".tif", 1.001, False, r"\[0, 1\]"),
        (".tiff", -0.001, False, r"\[0, 1\]"),
        (".exr", 70000.0, True, "up to 65504"),
        (".npy", 0.5, True, "half is for .exr"),
    ],
)
def test_values_a_format_cannot_hold_write_nothing(
    tmp_path: Path, suffix: str, value: float, half: bool, message: str
) -> None:
    image = _picture()
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / f"a{suffix}", image, half=half)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_and_missing_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_image(path, _picture(seed=0))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.npy exists; pass overwrite=True"):
        write_image(path, _picture(seed=1))
    assert path.read_bytes() == before
    write_image(path, _picture(seed=1), overwrite=True)
    assert torch.equal(read_image(path), _picture(seed=1))
    with pytest.raises(FileNotFoundError, match=r"folder .*sub does not exist"):
        write_image(tmp_path / "sub" / "a.npy", _picture())


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
def test_a_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, _picture())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(path, _picture(seed=2), overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_write_rejects_shapes_and_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image must have 3 channels"):
        write_image(tmp_path / "a.npy", torch.rand(4, 5, 5))
    with pytest.raises(ValueError, match="image must have 3 axes"):
        write_image(tmp_path / "a.npy", torch.rand(1, 3, 5, 5))
    with pytest.raises(TypeError, match="image must be a floating-point tensor"):
        write_image(tmp_path / "a.npy", torch.ones(3, 5, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="image must have pixels"):
        write_image(tmp_path / "a.npy", torch.rand(3, 0, 5))


@pytest.mark.parametrize(("suffix", "package"), [(".hdr", "cv2"), (".exr", "OpenEXR"), (".tif", "tifffile")])
def test_missing_package_names_the_extra(
    tmp_path: Path, suffix: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / f"a{suffix}", _picture())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[data\]"'):
        read_image(tmp_path / f"a{suffix}")
