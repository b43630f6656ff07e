import pytest
import torch

from medsign_lite.curriculum import (
    Curriculum,
    CurriculumConfig,
    NoTakeOff,
    learning_rate_factor,
    random_crops,
)


def feed(curriculum, accuracy, batches, batch=64, bits=4):
    """Batches in which exactly this share of every bit is right."""
    message = torch.ones(batch, bits)
    logits = torch.ones(batch, bits)
    logits[round(accuracy * batch) :] = -1
    for _ in range(batches):
        curriculum.update(logits, message)


def test_curriculum_stays_easy_until_nine_bits_in_ten_are_read():
    curriculum = Curriculum(CurriculumConfig(), bits=4)
    feed(curriculum, 0.85, 500)
    assert curriculum.attack_strength == 0
    assert curriculum.strength == CurriculumConfig().first_strength
    assert curriculum.taken_off


def test_a_curriculum_that_ends_early_says_so(capsys):
    curriculum = Curriculum(CurriculumConfig(), bits=4, attack_strength=0.25)
    curriculum.say_if_unfinished()
    assert "ended at 0.25 of the attacks' strength" in capsys.readouterr().err
    curriculum.attack_strength = 1.0
    curriculum.say_if_unfinished()
    assert not capsys.readouterr().err


def test_curriculum_grows_harder_and_stops_at_the_hardest():
    config = CurriculumConfig(attack_images=6_400, strength_images=12_800)
    curriculum = Curriculum(config, bits=4)
    feed(curriculum, 1.0, 200)
    before = curriculum.attack_strength, curriculum.strength
    feed(curriculum, 1.0, 1)
    assert curriculum.attack_strength == min(1, before[0] + 0.01)
    feed(curriculum, 1.0, 500)
    assert curriculum.attack_strength == 1
    assert curriculum.strength == config.last_strength


def test_curriculum_weakens_the_signal_only_under_full_attacks():
    config = CurriculumConfig(attack_images=6_400, read_well=0.8, read_very_well=0.95)
    curriculum = Curriculum(config, bits=4, accuracy=[1.0] * 4)
    feed(curriculum, 1.0, 99)
    assert curriculum.attack_strength < 1 and curriculum.strength == config.first_strength
    curriculum.accuracy = [0.9] * 4  # well, but not very well
    feed(curriculum, 0.9, 99)
    assert curriculum.attack_strength == 1 and curriculum.strength == config.first_strength
    curriculum.accuracy = [1.0] * 4
    feed(curriculum, 1.0, 1)
    assert curriculum.strength < config.first_strength


def test_curriculum_halves_of_the_fall_are_equal_in_decibels():
    config = CurriculumConfig(first_strength=0.1, last_strength=0.001, strength_images=6_400)
    curriculum = Curriculum(config, bits=1, accuracy=[1.0], attack_strength=1.0)
    feed(curriculum, 1.0, 50, bits=1)
    assert curriculum.strength == pytest.approx(0.01)


def test_curriculum_counts_learnt_bits_one_by_one():
    curriculum = Curriculum(CurriculumConfig(), bits=4, accuracy=[0.95, 0.91, 0.6, 0.5])
    assert curriculum.learnt_bits == 2
    assert curriculum.bit_accuracy == pytest.approx(0.74)


def test_no_take_off_is_noticed_and_says_what_to_try():
    curriculum = Curriculum(CurriculumConfig(patience_images=6_400), bits=4)
    feed(curriculum, 0.5, 99)
    with pytest.raises(NoTakeOff, match=r"is 0.500 after 6400 images.*stronger signal.*smaller"):
        feed(curriculum, 0.5, 1)


def test_a_run_that_took_off_may_fall_back():
    curriculum = Curriculum(CurriculumConfig(patience_images=6_400), bits=4)
    feed(curriculum, 1.0, 50)
    feed(curriculum, 0.5, 500)
    assert curriculum.bit_accuracy < 0.54


def test_curriculum_resumes_from_plain_values():
    config = CurriculumConfig()
    curriculum = Curriculum(config, bits=4)
    feed(curriculum, 0.97, 300)
    assert Curriculum(config, **curriculum.state()) == curriculum


def test_crop_sizes_follow_the_budget():
    config = CurriculumConfig(sizes=(32, 64), size_starts=(0.0, 0.5))
    curriculum = Curriculum(config, bits=4, has_read_well=True)
    assert [curriculum.size(p) for p in (0.0, 0.49, 0.5, 1.0)] == [32, 32, 64, 64]


def test_crops_stay_small_until_they_are_read_well():
    config = CurriculumConfig(sizes=(32, 64), size_starts=(0.0, 0.1), size_latest=0.4)
    curriculum = Curriculum(config, bits=4)
    assert [curriculum.size(p) for p in (0.2, 0.39, 0.4)] == [32, 32, 64]
    feed(curriculum, 1.0, 200)
    assert curriculum.size(0.2) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last_strength": 0.5}, "0 < last_strength <= first_strength"),
        ({"sizes": (32, 64)}, "one start per size"),
        ({"size_starts": (0.1, 0.2, 0.3)}, "the first 0"),
    ],
)
def test_curriculum_config_refuses_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        CurriculumConfig(**changes)


def test_learning_rate_warms_up_and_falls():
    factors = [learning_rate_factor(p, warm_up=0.1, last=0.02) for p in (0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0.5, 1.0, 0.51, 0.02])


def test_random_crops_are_windows_of_the_images():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    seen = set()
    for seed in range(40):
        crop = random_crops(image, 5, generator=torch.Generator().manual_seed(seed))
        assert crop.shape == (2, 3, 5, 5)
        rows = crop[0, 0]
        assert (rows[1:] - rows[:-1] == 8).all()
        assert (rows[:, 1:] - rows[:, :-1]).unique().tolist() in ([1], [-1])
        seen.add(tuple(rows.flatten().tolist()))
    assert len(seen) > 20  # 4 x 4 places, two directions
    same = random_crops(image, 9, generator=torch.Generator())
    assert sorted(same[0, 0].flatten().tolist()) == list(range(64))
