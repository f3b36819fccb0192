"""A link that is slow and loses packets, for kernels without netem: frames from one TAP device to another and back, later.

python benchmarks/slow_link.py TAP TAP SECONDS LOSS          until it is ended; prints `ready`
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x0002, 0x1000


def tap(name: str) -> int:
    """Make a TAP device, and open it."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_HEADER))
    return handle


def main() -> None:
    """Pass frames on."""
    ends, delay, loss = [tap(name) for name in sys.argv[1:3]], float(sys.argv[3]), float(sys.argv[4])
    chance, waiting, number = random.Random(0), list[tuple[float, int, int, bytes]](), 0
    print("ready", flush=True)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], pause)[0]:
            try:
                for _ in range(64):
                    frame = os.read(end, 65536)
                    if chance.random() >= loss:
                        number += 1
                        other = ends[1 - ends.index(end)]
                        heapq.heappush(waiting, (time.monotonic() + delay, number, other, frame))
            except BlockingIOError:
                continue
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(waiting)
            try:
                os.write(end, frame)
            except OSError:
                continue  # its queue is full, as a switch's may be


if __name__ == "__main__":
    main()
