#!/usr/bin/env python3
"""Preprocessing of a picture into tiles: Tessera against Pillow, in turns, one thread each.

Both sides start from decoded RGB pixels and end with the grid's and the thumbnail's pixels; Pillow's crops are
left out, which favours it. A second table starts from a JPEG file's bytes.

  pip install pillow
  cmake --build build --target resize_bench
  bench/peers/pillow_resize.py --bench build/resize_bench [--repeat 15]
"""
import argparse
import io
import os
import statistics
import subprocess
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
from PIL import Image  # noqa: E402
import PIL  # noqa: E402


def photograph(width, height):
    """A picture with gradients, edges and noise; random pixels alone would flatter nobody's JPEG decoder."""
    noise = Image.effect_noise((width, height), 40)
    ramp = Image.linear_gradient("L").resize((width, height))
    rings = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (Image.blend(ramp, noise, 0.25), Image.blend(rings, noise, 0.25), rings))


class Ours:
    """The bench program as a server: it times itself, so that neither side pays for the pipe."""

    def __init__(self, program):
        self.process = subprocess.Popen([program, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def load(self, jpeg):
        self.process.stdin.write(b"load %d\n" % len(jpeg) + jpeg)
        self.process.stdin.flush()
        columns, rows = map(int, self.process.stdout.readline().split())
        return columns, rows

    def run(self, what):
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def milliseconds(action):
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def row(name, ours, theirs):
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(f"{name:34} {statistics.median(ours):8.2f} {min(ours):8.2f} {statistics.median(theirs):9.2f} "
          f"{min(theirs):8.2f} {100 * ratio:7.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", default="build/resize_bench", help="path of resize_bench")
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    ours = Ours(arguments.bench)
    print(f"Pillow {PIL.__version__}, one thread each, milliseconds, {arguments.repeat} turns")
    print(f"{'':34} {'tessera':>8} {'min':>8} {'Pillow':>9} {'min':>8} {'ratio':>9}")
    for width, height in ((4000, 3000), (3000, 4000), (1792, 1344), (1080, 2400)):
        data = io.BytesIO()
        photograph(width, height).save(data, "JPEG", quality=90)
        jpeg = data.getvalue()
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
        columns, rows = ours.load(jpeg)
        target = (448 * columns, 448 * rows)

        def resize(source):
            source.resize(target)
            if columns * rows > 1:
                source.resize((448, 448))

        figures = {"tile": ([], []), "decode": ([], []), "whole": ([], [])}
        peers = {"tile": lambda: resize(picture),
                 "decode": lambda: Image.open(io.BytesIO(jpeg)).convert("RGB"),
                 "whole": lambda: resize(Image.open(io.BytesIO(jpeg)).convert("RGB"))}
        for _ in range(arguments.repeat):
            for name, (mine, theirs) in figures.items():
                mine.append(ours.run(name))
                theirs.append(milliseconds(peers[name]))
        label = f"{width} x {height} to {columns} x {rows}"
        row(label + ", pixels to tiles", *figures["tile"])
        row(label + ", JPEG to pixels", *figures["decode"])
        row(label + ", JPEG to tiles", *figures["whole"])


if __name__ == "__main__":
    main()
