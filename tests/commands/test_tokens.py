"""minisd tokens: ids and spellings, weights and chunks, learned words."""

import json

import numpy as np

from minisd import CLIPTokenizer
from minisd.checkpoint import resolve
from tests.checkpoint.torch_bytes import write_zip

PROMPT = "a cat on a blue background"


def test_the_table_is_the_tokenizers(minisd):
    code, out, _ = minisd("tokens", PROMPT)
    table = CLIPTokenizer.from_pretrained(resolve("tiny")).table(PROMPT)
    assert code == 0 and [line.split() for line in out.splitlines()] == [[str(number), token] for number, token in table]
    code, out, _ = minisd("tokens", PROMPT, "--json")
    assert json.loads(out) == {"tokens": [{"id": number, "token": token} for number, token in table], "limit": 77}


def test_too_many_tokens_are_counted(minisd):
    code, out, err = minisd("tokens", "cat " * 80)
    assert code == 0 and len(out.splitlines()) == 82 and "5 tokens too many" in err


def test_weights_and_chunks(minisd):
    code, out, err = minisd("tokens", "a (cat:1.3) BREAK [dog]", "--prompt-weights", "a1111")
    assert (code, err) == (0, "")
    assert [line.split()[::2] for line in out.splitlines()] == [["0", "a</w>"], ["0", "cat</w>"], ["1", "dog</w>"]]
    assert [line.split()[-1] for line in out.splitlines()] == ["1", "1.3", "0.9091"]


def test_a_learned_word(minisd, tmp_path):
    path = write_zip(tmp_path / "w.bin", {"<zz>": np.zeros((2, 128), dtype="float32")})
    code, out, _ = minisd("tokens", "a <zz>", "--embedding", str(path))
    assert code == 0 and [line.split()[1] for line in out.splitlines()][2:4] == ["<zz>", "<zz>_1"]


def test_refusals(minisd):
    assert minisd("tokens", "a cat \udce9")[0] == 2
    code, _, err = minisd("tokens", PROMPT, "--embedding", "none.bin")
    assert code == 2 and "there is no file none.bin" in err
