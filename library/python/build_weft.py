#!/usr/bin/env python3
"""Builds the wheel of the Python package: the shared library by CMake, packed beside the sources.

    library/python/build_weft.py DIR      writes the wheel to DIR and prints its path

`pip install .` calls the functions below (PEP 517). Nothing is needed beside Python, CMake, Ninja
and what the library itself is built of. WEFT_LIBRARY names a library that is packed as it is;
CMAKE_ARGS are handed to CMake, as "-DWEFT_MARCH=x86-64-v3" for other machines than this one.
"""
import base64
import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "library" / "python" / "weft"


def version():
    return re.search(r"project\(weft VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]


def tag():
    """Any Python 3 of this system and processor: the library is loaded, not linked."""
    return "py3-none-" + re.sub(r"[-.]", "_", sysconfig.get_platform())


def built_library():
    """The shared library, built now unless WEFT_LIBRARY names one."""
    named = os.environ.get("WEFT_LIBRARY")
    if named:
        return pathlib.Path(named)
    folder = ROOT / "build" / "wheel"
    options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    for command in (["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
                     "-DCMAKE_BUILD_TYPE=Release", *options],
                    ["cmake", "--build", str(folder), "--target", "libweft"]):
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, check=False)
        except OSError as error:
            raise SystemExit(f"{command[0]}: {error.strerror}; ./weft lists what is needed")
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout}")
    return folder / "libweft.so"


def metadata():
    return (f"Metadata-Version: 2.1\nName: weft\nVersion: {version()}\n"
            "Summary: Efficient-attention operations, forward and backward, on numpy arrays and "
            "torch tensors\nRequires-Python: >=3.9\n")


def write_wheel(folder, files):
    """A wheel of `files` (bytes by name), complete or not there at all."""
    info = f"weft-{version()}.dist-info"
    files = dict(files)
    files[f"{info}/METADATA"] = metadata().encode()
    files[f"{info}/WHEEL"] = (f"Wheel-Version: 1.0\nGenerator: build_weft\n"
                              f"Root-Is-Purelib: false\nTag: {tag()}\n").encode()
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = pathlib.Path(folder) / f"weft-{version()}-{tag()}.whl"
    unfinished = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, data in sorted(files.items()):
                entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))  # the same bytes every time
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                wheel.writestr(entry, data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {f"weft/{path.name}": path.read_bytes() for path in sorted(PACKAGE.glob("*.py"))}
    files["weft/libweft.so"] = built_library().read_bytes()
    return write_wheel(wheel_directory, files).name


def get_requires_for_build_wheel(config_settings=None):
    return []

if __name__ == "__main__":
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: build_weft.py DIR    DIR is a folder that exists")
    print(pathlib.Path(sys.argv[1]) / build_wheel(sys.argv[1]))
