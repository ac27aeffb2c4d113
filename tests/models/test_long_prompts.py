"""--max-token-length: captions in parts with begin and end tokens of their own, equal to what kohya's trainer makes."""

import json
import warnings

import pytest
import torch

from trainer.builtin import MODEL
from trainer.models import base_model
from trainer.models.text_states import longer_than, text_states

WORDS = " ".join(["zero one two three four five six seven eight nine"] * 30)  # 300 tokens


@pytest.fixture(scope="module")
def clip():
    return base_model.load_text_encoder(base_model.Base(MODEL), torch.float32)


def kohyas(clip, caption, *, max_tokens, clip_skip):
    """Made as sd-scripts describes it (train_network-README, --max_token_length), one token after the other.

    The caption's tokens, cut to max_tokens and filled up with end tokens, are encoded 75 at a time between a begin and
    an end token. The parts are joined without these, but for the very first and the very last one.
    """
    tokenizer, encoder = clip
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids[:max_tokens]
    tokens += [end] * (max_tokens - len(tokens))
    joined = []
    for i in range(0, max_tokens, 75):
        part = torch.tensor([[begin, *tokens[i : i + 75], end]])
        assert part.shape == (1, 77)
        hidden = encoder(part, output_hidden_states=True).hidden_states[-clip_skip]
        states = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)[0]
        joined += ([states[0]] if i == 0 else []) + list(states[1:76]) + ([states[76]] if i + 75 == max_tokens else [])
    return torch.stack(joined)


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("max_tokens", [75, 150, 225])
@pytest.mark.parametrize("words", [0, 10, 75, 76, 149, 150, 151, 240])
def test_states_equal_kohyas(clip, words, max_tokens, clip_skip):
    caption = " ".join(WORDS.split()[:words])
    (found,) = text_states(*clip, [caption], clip_skip, max_tokens=max_tokens)
    wanted = kohyas(clip, caption, max_tokens=max_tokens, clip_skip=clip_skip)
    assert found.shape == (max_tokens + 2, wanted.shape[1])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_more_tokens_are_read(clip):
    short, long = " ".join(WORDS.split()[:75]), " ".join(WORDS.split()[:100])
    for max_tokens, same in ((75, True), (150, False), (225, False)):
        one, two = text_states(*clip, [short, long], 1, max_tokens=max_tokens)
        assert torch.equal(one, two) == same


def test_captions_that_are_cut_are_found_without_a_word_of_the_librarys(clip, caplog, capsys):
    captions = [" ".join(WORDS.split()[:n]) for n in (0, 75, 76, 150, 151, 225, 226, 300)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = {n: len(longer_than(clip[0], captions, n)) for n in (75, 150, 225)}
    assert counts == {75: 6, 150: 4, 225: 2}
    assert longer_than(clip[0], [], 75) == []
    assert not caplog.records and capsys.readouterr() == ("", "")


def test_a_run_says_how_many_captions_are_cut(trainer, digit_folders, tmp_path):
    """And the LoRA, its pictures and a resume know how long its captions were."""
    words = ["--base", "builtin", "--resolution", 64, "--steps", 1, "--batch-unlabeled", 2, "--batch-sensitive", 2]
    words += ["--calibration-samples", 1, "--rank", 2, "--images", 1, "--sample-steps", 1, "--prior", 0.2]
    words += ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"]]
    words += ["--prompt", WORDS, "--output-dir", tmp_path]
    found = trainer(*words, "--name", "short")
    assert found.returncode == 0, found.stderr
    said = found.stdout + found.stderr
    assert "1 of 1 caption have more than 75 tokens, the rest is cut off: “zero one two three" in said
    assert "--max-token-length 150 reads more" in said
    assert "Token indices sequence length" not in said
    found = trainer(*words, "--name", "long", "--max-token-length", 225, "--save-state-every", 1)
    assert found.returncode == 0, found.stderr
    assert "more than 225 tokens, the rest is cut off" in found.stdout + found.stderr
    from trainer.models.lora_file import read_metadata

    metadata = [read_metadata(tmp_path / f"{name}.safetensors") for name in ("short", "long")]
    assert [m["ss_max_token_length"] for m in metadata] == ["75", "225"]
    assert [json.loads(m["pu_config"])["max_token_length"] for m in metadata] == [75, 225]
    pictures = [(tmp_path / name / "samples" / "before.png").read_bytes() for name in ("short", "long")]
    assert pictures[0] != pictures[1]
    resume = ["--resume", "--name", "long", "--output-dir", tmp_path, "--steps", 2]
    refused = trainer(*resume, "--max-token-length", 150)
    assert refused.returncode == 2
    assert "--max-token-length: this run was started with 225, not 150" in refused.stderr
