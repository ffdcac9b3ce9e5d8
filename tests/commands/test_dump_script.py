"""`minisd dump-script`: what it prints is a program, whatever the prompt holds. tests/reference/test_dump_script.py runs it."""

import ast

import pytest

from minisd.commands.dump_script import program


def assignments(text: str) -> dict:
    """The constants of the program by name."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(node.targets[0].elts, node.value.elts):
                if isinstance(value, (ast.Constant, ast.Dict)) and isinstance(name, ast.Name):
                    found[name.id] = ast.literal_eval(value)
    return found


@pytest.mark.parametrize("prompt", ["a cat", "'\"\"\"\n@SEED@ {x} \\", "ein Füchslein 🦊", "@MODEL@"])
def test_a_prompt_arrives_as_it_is(prompt):
    found = assignments(program(prompt, model="org/name", negative=prompt, seed=2**64 - 1, steps=3, cfg_scale=1.5, width=64))
    assert (found["PROMPT"], found["NEGATIVE"], found["MODEL"]) == (prompt, prompt, "org/name")
    assert (found["SEED"], found["STEPS"], found["GUIDANCE"], found["SIZE"]) == (2**64 - 1, 3, 1.5, {"width": 64})


def test_the_command_prints_it(minisd):
    code, out, _ = minisd("dump-script", "a cat", "--dtype", "float64", "-m", "org/name")
    assert code == 0 and out == program("a cat", model="org/name", dtype="float64") and "torch.float64" in out
    assert len(out.splitlines()) < 70 and "@" not in out.replace("@{call}", "")
    assert assignments(minisd("dump-script")[1])["MODEL"].endswith("weights")


@pytest.mark.parametrize("args", [("-s", "-1"), ("--steps", "0"), ("--dtype", "float16")])
def test_refusals(minisd, args):
    assert minisd("dump-script", *args)[0] == 2
