"""Reads event files of TensorBoard back."""

import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(folder):
    """{(path of the folder of the file, tag): [(step, value), ...]} of all event files, in the order of the files."""
    found = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is: its length, a checksum, its bytes, a checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                key = (path.parent.relative_to(folder).as_posix(), value.tag)
                found.setdefault(key, []).append((event.step, value.simple_value))
    return found
