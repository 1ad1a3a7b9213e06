"""The figures of the ninth tutorial: a small language model."""

import re

import numpy as np
import pytest
from tutorial import assert_pictures, tutorial


def quick():
    return tutorial("09", quick=True)


def probabilities(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def loss_of(variables):
    """The held-out loss of the trained model, from its logits, in NumPy."""
    x, y = variables["held_out"]
    logits = variables["trainer"].predict(variables["state"], x, batch_size=50)
    guesses = np.take_along_axis(probabilities(logits), y[..., None], axis=-1)
    return -np.log(guesses).mean()


def test_leaves_pictures_only_where_it_says():
    assert_pictures("09", quick())
    assert len(list(quick().folder.rglob("*.png"))) == 6


def test_says_that_it_is_quick():
    printed, variables, _ = quick()
    said = "Quick: 3 epochs instead of 12, width 32 instead of 64, 2 blocks instead of 3.\n"
    assert printed.startswith(said)
    model = variables["model"]
    assert len(variables["history"].epochs["loss"]) == 3
    assert model.characters.weight.shape[1] == 32 and len(model.blocks) == 2


def test_the_held_out_text_is_prose_that_is_not_trained_on():
    _, variables, _ = quick()
    train, held_out = variables["train_text"].split("\n"), variables["held_out_text"].split("\n")
    assert len(variables["train_text"]) > 80_000 and len(variables["held_out_text"]) > 8_000
    assert not set(train) & set(held_out)
    assert all(text.isascii() and text[0].isupper() and text[-1] in ".:" for text in train)
    assert variables["decode"](variables["encode"](variables["held_out_text"])) == "\n".join(
        held_out
    )


def test_counts_pairs_and_prints_their_loss():
    printed, variables, _ = quick()
    train, held_out = variables["train_text"], variables["held_out_text"]
    characters = sorted(set(train + held_out))
    found = re.escape(f"{variables['bigram_loss']:.2f}")
    assert re.search(rf"^pairs +{found} +", printed, re.MULTILINE)
    pairs = [train[i : i + 2] for i in range(len(train) - 1)]
    total = 0.0
    for pair in (held_out[i : i + 2] for i in range(len(held_out) - 1)):
        count = variables["counts"][characters.index(pair[0]), characters.index(pair[1])]
        total -= np.log(count / variables["counts"][characters.index(pair[0])].sum())
    assert variables["bigram_loss"] == pytest.approx(total / (len(held_out) - 1))
    for pair in ("th", "e ", "zz", "qu"):
        count = variables["counts"][characters.index(pair[0]), characters.index(pair[1])]
        assert count == pytest.approx(pairs.count(pair) + 0.1)
    assert re.search(r"^after q: 'u' 0\.[89]", printed, re.MULTILINE)
    assert variables["alike_loss"] == pytest.approx(np.log(len(characters)))
    assert 2.2 < variables["bigram_loss"] < 2.7 < variables["single_loss"] < 3.4


def test_attention_by_hand_finds_the_letter_that_followed():
    printed, variables, _ = quick()
    short, weights, masked = (variables[name] for name in ("short", "weights", "masked_weights"))
    for look in (weights, masked):
        np.testing.assert_allclose(look.sum(axis=1), 1)
    for i, character in enumerate(short):
        # The largest weights are where the same character stood before.
        matches = [j for j in range(1, len(short)) if short[j - 1] == character]
        assert matches and set(np.flatnonzero(weights[i] > 0.2)) == set(matches)
        before = [j for j in matches if j <= i]
        expected = np.full(i + 1, 1 / (i + 1))
        if before:
            powers = np.ones(i + 1)
            powers[before] = np.exp(5)
            expected = powers / powers.sum()
        np.testing.assert_allclose(masked[i, : i + 1], expected)
        assert not masked[i, i + 1 :].any()
    assert "the last t finds: ['5: w']" in printed
    assert "the last t, with the mask: w\n" in printed
    assert "MultiheadAttention agrees: True" in printed


def test_answers_are_the_text_one_character_later():
    _, variables, _ = quick()
    for name in ("train", "held_out"):
        x, y = variables[name]
        text = variables[f"{name}_text"]
        count = (len(text) - 1) // 64
        assert x.shape == y.shape == (count, 64)
        assert variables["decode"](x.ravel()) == text[: 64 * count]
        assert variables["decode"](y.ravel()) == text[1 : 64 * count + 1]


def test_an_untrained_model_is_about_as_wrong_as_a_guess():
    _, variables, _ = quick()
    assert abs(variables["loss_before"] - variables["alike_loss"]) < 0.5


def test_the_rate_rises_and_falls_with_the_run():
    _, variables, _ = quick()
    assert variables["steps"] == int(variables["state"].step)
    schedule, steps = variables["schedule"], variables["steps"]
    assert schedule(0) == 0 and schedule(100) == pytest.approx(variables["RATE"])
    assert schedule((100 + steps) // 2) == pytest.approx(variables["RATE"] / 2, rel=0.01)
    assert schedule(steps) == pytest.approx(0, abs=1e-8)


def test_learns_more_than_pairs_in_three_epochs():
    _, variables, _ = quick()
    assert variables["loss_after"] == pytest.approx(loss_of(variables), rel=1e-4)
    assert variables["loss_after"] < variables["bigram_loss"] - 0.05
    assert variables["by_position"].mean() == pytest.approx(variables["loss_after"], rel=1e-4)
    assert variables["shares"]["after training"] > variables["shares"]["pairs"]
    assert variables["sample_before"] != variables["sample_after"]


def test_writes_the_same_again_and_the_likeliest_near_temperature_0():
    _, variables, _ = quick()
    write, state = variables["write"], variables["state"]
    assert write(state.model, "The ", 300) == variables["sample_after"]
    # At a temperature near 0, each character is the likeliest one.
    text = write(state.model, "The ", 5, temperature=1e-4)
    for length in range(4, 9):
        window = np.zeros((1, 64), np.int32)
        window[0, :length] = variables["encode"](text[:length])
        logits = variables["trainer"].predict(state, window)[0, length - 1]
        assert variables["characters"][int(np.argmax(logits))] == text[length]


def test_the_exercises_find_what_the_text_says():
    printed, variables, _ = quick()
    assert variables["by_temperature"][0.2] > variables["by_temperature"][1.5]
    assert "positions that change: 40 to 64\n" in printed
    # Counting from seven characters, worked out again for some places.
    train, held_out = variables["train_text"], variables["held_out_text"]

    def occurrences(text, within):
        return len(re.findall(f"(?={re.escape(text)})", within))

    for place in range(0, len(held_out) - 7, 700):
        guess = 1 / len(variables["characters"])
        for n in range(8):
            context, character = held_out[place + 7 - n : place + 7], held_out[place + 7]
            count = occurrences(context + character, train[7 - n :])
            total = occurrences(context, train[7 - n : -1]) if n else len(train) - 7
            guess = (count + 5 * guess) / (total + 5)
        assert variables["guesses"][place] == pytest.approx(guess)
    counted = variables["counted_losses"]
    assert len(counted) == 8
    assert counted[1] == pytest.approx(variables["bigram_loss"], abs=0.05)
    assert 3 < int(np.argmin(counted)) < 7  # more than about five do not help


@pytest.mark.long
def test_a_minute_of_training_makes_words():
    printed, variables, _ = tutorial("09")
    assert "Quick" not in printed
    assert variables["loss_after"] == pytest.approx(loss_of(variables), rel=1e-4)
    assert variables["loss_after"] < 1.6 < variables["bigram_loss"]
    by_position = variables["by_position"]
    assert by_position[0] > variables["bigram_loss"]
    assert by_position[5:10].mean() < by_position[0] - 1
    assert abs(by_position[10:30].mean() - by_position[30:].mean()) < 0.2  # flat
    assert variables["shares"]["after training"] > 0.7 > 3 * variables["shares"]["pairs"]
    counted = variables["counted_losses"]
    assert min(counted) < variables["loss_after"] < counted[3]
