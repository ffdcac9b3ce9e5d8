"""The page of a comparison: one tree, coloured, without scripts, and nothing in a name can break out of it."""

import math
import re
from html.parser import HTMLParser

from minisd.compare import Diff, Row
from minisd.compare_html import colour, page, used


def row(name, verdict="ok", l2=1e-7, call=0, **more):
    return Row(name, call, "conv2d", (1, 2), verdict, l2=l2, allowed=1e-6, max_abs=1e-6, worst=(0, 1), ours=1.0, ref=2.0, cosine=1.0, ulp=3.0, **more)


RESULT = Diff("free running", [row("unet.conv_in"), row("unet.mid.a"), row("unet.mid.a", call=1), row("unet.mid.b", "DIFFERS", 1e-3), row("vae.x/probs", ratio=0.5)])


class Balance(HTMLParser):
    """Fails where an element is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text: str) -> Balance:
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_the_tree_shows_every_row_once():
    text = page(RESULT)
    shown = "".join(parsed(text).text)
    assert text.startswith("<!doctype html>") and shown.count("1×2 ·") == len(RESULT.rows)
    assert "First divergence: unet.mid.b" in shown and "a step 1" in shown and "r 0.50" in shown
    assert "<script" not in text and "http" not in text and "src=" not in text


def test_only_what_holds_the_wrong_layer_is_open():
    opened = re.findall(r"<details( open)?><summary><span[^>]*></span>(?:<span[^>]*>)?([\w.]+)", page(RESULT))
    assert opened == [(" open", "unet"), (" open", "mid"), ("", "vae"), ("", "x")]


def test_names_are_text():
    text = page(Diff("free running", [row("unet.<script>alert(1)</script>&amp", "SHAPE", math.nan, note="<b>")]))
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;" in text
    parsed(text)


def test_colours_go_from_green_to_red():
    hues = [float(re.match(r"hsl\((\d+) ", colour(share))[1]) for share in (0.0, 0.01, 0.1, 1.0, 5.0, 10.0, 1e9, math.inf)]
    assert hues[:2] == [120.0, 120.0] and hues[-3:] == [0.0, 0.0, 0.0] and hues == sorted(hues, reverse=True)
    assert used(row("a", l2=5e-7)) == 0.5 and used(row("a", "NAN")) == math.inf and used(row("a", l2=math.inf)) == math.inf
