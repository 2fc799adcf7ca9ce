#!/usr/bin/env python3
"""Reads the event file of a run with TensorBoard's own reader, and compares it with metrics.jsonl,
number by number, and the steps with their order.

    weft train RECIPE --set log.tensorboard=true
    tests/oracles/event_file.py RUN
    weft plot RUN --tensorboard --out FOLDER
    tests/oracles/event_file.py RUN FOLDER/NAME

Needs the Python package tensorboard. No part of the build or of the tests.
"""
import json
import pathlib
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run, events = pathlib.Path(sys.argv[1]), sys.argv[-1]
reader = EventAccumulator(events, size_guidance={"scalars": 0})
reader.Reload()
for tag in reader.Tags()["scalars"]:
    steps = [e.step for e in reader.Scalars(tag)]
    assert steps == sorted(set(steps)), f"{tag}: a step comes twice"
got = {(tag, e.step): e.value for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)}
expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    for key, value in row.items():
        if key not in ("step", "tokens") and isinstance(value, (int, float)):
            expected[key, row["step"]] = float(numpy.float32(value))
assert got == expected, set(got.items()) ^ set(expected.items())
print(f"{len(got)} numbers of {len(reader.Tags()['scalars'])} metrics are the same")
