"""What a part has found so far: on disk after each measurement, so that nothing is lost when it is stopped."""

import json
import os
import time
from pathlib import Path


class Skip(Exception):
    """This part cannot be measured here; the message says why."""


class Record:
    """`result` is what a part has found, `quick` whether the short form is asked for, `each` ends with the part's time."""

    def __init__(self, path: Path, seconds: float, quick: bool):
        self.path, self.quick, self.end, self.result = path, quick, time.monotonic() + seconds, {}

    def put(self, key: str, value):
        self.result[key] = value
        self.write("partial", "stopped")
        print(f"  {key}", flush=True)

    def write(self, status: str, reason: str = ""):
        write_json(self.path, {"status": status, "reason": reason, "result": self.result})

    def each(self, items):
        """The items, until the time is over; those that are left out then are named under "not reached"."""
        items = list(items)
        for i, item in enumerate(items):
            if time.monotonic() > self.end:
                self.result["not reached"] = [" ".join(map(str, x)) if isinstance(x, tuple) else str(x) for x in items[i:]]
                return
            yield item


def write_json(path: Path, data: dict):
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
