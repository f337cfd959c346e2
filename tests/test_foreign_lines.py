"""What libraries would print by themselves: one line of ours, and nothing of theirs."""

import os

import onnx
import pytest
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from exporters import open_onnx
from gpt2kit import Tokenizer
from gpt2kit.errors import CheckpointError, EngineError
from gpt2kit.panics import explained_panics
from tests.conftest import CONFIG, byte_tokenizer, write_checkpoint
from tests.gpt2kit.cli.support import assert_one_line, process

EXPLODING = [r"(a+)+$", r"(a|aa)+$", r"(a|a)*c", r"(.*a){20}c"]
TEXT = "a" * 60 + "b"


def with_regex(place: str, pattern: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    if place == "pre_tokenizer":
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    elif place == "normalizer":
        inner.normalizer = normalizers.Replace(Regex(pattern), "x")
    else:
        inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(pattern), "x")])
    return inner


@pytest.mark.parametrize("pattern", EXPLODING)
@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer"])
def test_a_regex_that_explodes_is_one_error_and_silent(capfd, place, pattern):
    tokenizer = Tokenizer(with_regex(place, pattern))
    try:
        tokenizer.encode(TEXT)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert "retry-limit-in-match" in str(error)  # noqa: PT017
    else:
        assert pattern == r"(a|a)*c"  # the library finds at once that there is no c
    assert capfd.readouterr() == ("", "")


def test_a_regex_that_explodes_while_decoding_is_one_error_and_silent(capfd):
    tokenizer = Tokenizer(with_regex("decoder", r"(a+)+$"))
    ids = byte_tokenizer().encode(TEXT)
    with pytest.raises(CheckpointError, match="retry-limit-in-match"):
        tokenizer.decode(ids)
    assert capfd.readouterr() == ("", "")


def test_other_errors_pass_and_standard_error_works_again(capfd):
    with pytest.raises(KeyboardInterrupt), explained_panics(quiet=True):
        raise KeyboardInterrupt
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_the_command_prints_one_line_for_a_regex_that_explodes(tmp_path):
    write_checkpoint(tmp_path / "m")
    inner = with_regex("pre_tokenizer", r"(a+)+$")
    (tmp_path / "m" / "tokenizer.json").write_text(inner.to_str())
    done = process("lens", TEXT, "--model", str(tmp_path / "m"), text=True)
    assert_one_line(done.returncode, done.stdout, done.stderr, "the tokenizer fails at this text")


NAMES = [
    "input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
    "past_key_values.1.value", "logits", "present.0.key", "present.2.value",
]  # fmt: skip


@pytest.mark.parametrize("profile", ["portable", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_input_or_output_is_one_error_and_silent(file_of, tmp_path, capfd, profile, name):
    model = onnx.load(file_of(profile))
    for value in (*model.graph.input, *model.graph.output):
        value.name = "renamed" if value.name == name else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if other == name else other for other in names]
    onnx.save(model, tmp_path / "x.onnx")
    capfd.readouterr()
    with pytest.raises(EngineError) as caught:
        open_onnx(tmp_path / "x.onnx", device="cpu").run([1, 2])
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_an_error_while_a_graph_runs_is_one_error_and_silent(file_of, tmp_path, capfd):
    """A Reshape to a size that does not fit: onnxruntime logs it in red, and raises it."""
    model = onnx.load(file_of())
    shape = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [3], [1, 1, CONFIG.vocab_size])
    model.graph.initializer.append(shape)
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Reshape", ["before", "one"], ["logits"]))
    onnx.save(model, tmp_path / "x.onnx")
    capfd.readouterr()
    with pytest.raises(EngineError, match="cannot run it") as caught:
        open_onnx(tmp_path / "x.onnx", device="cpu").run([1, 2])
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
