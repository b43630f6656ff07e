import dataclasses
from typing import get_type_hints

import pytest

from medsign_lite.profiles import PROFILES, Profile, coerce, profile


@pytest.mark.parametrize("name", PROFILES)
def test_profile_has_its_name_and_types(name):
    sizes = profile(name)
    assert sizes.name == name
    for field, kind in get_type_hints(Profile).items():
        assert type(getattr(sizes, field)) is kind, field


def test_profiles_grow_from_smoke_to_full():
    sizes = [dataclasses.asdict(profile(name)) for name in ("smoke", "class", "full")]
    for field, kind in get_type_hints(Profile).items():
        if kind is int:
            values = [size[field] for size in sizes]
            assert values == sorted(values), f"{field} does not grow: {values}"


def test_only_paper_needs_the_users_own_checkpoint():
    assert [name for name in PROFILES if profile(name).own_pipeline] == ["paper"]
    assert profile("paper").decoder_learning_rate == 5e-4
    assert profile("paper").decoder_steps * profile("paper").decoder_batch == 2 * 6000


def test_every_field_is_documented():
    for field in dataclasses.fields(Profile):
        assert field.name == "name" or field.name in Profile.__doc__, field.name


def test_profile_overrides_convert_and_none_keeps_the_preset():
    sizes = profile("smoke", prompts="5", guidance="1e1", from_nothing="true", image_size=None)
    assert (sizes.prompts, sizes.guidance, sizes.from_nothing) == (5, 10.0, True)
    assert sizes.image_size == profile("smoke").image_size
    assert profile("smoke", prompts="") == profile("smoke")


def test_profile_refuses_unknown_names_with_the_accepted_ones():
    with pytest.raises(ValueError, match="unknown profile 'quick': expected one of smoke, class"):
        profile("quick")
    with pytest.raises(ValueError, match="unknown parameter promts: accepted are .*prompts"):
        profile("smoke", promts=3)


@pytest.mark.parametrize("sizes", [{"prompts": 0}, {"decoder_steps": -1}, {"guidance": "nan"}])
def test_profile_refuses_impossible_sizes(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} must be at least"):
        profile("smoke", **sizes)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("007", int, 7),
        (3.0, int, 3),
        (" 3 ", int, 3),
        ("1e3", int, 1000),
        (9007199254740993, int, 9007199254740993),
        ("1e-4", float, 1e-4),
        (2, float, 2.0),
        ("True", bool, True),
        (0, bool, False),
        (5, str, "5"),
        ("", str, ""),
    ],
)
def test_coerce_accepts(value, kind, expected):
    result = coerce("x", value, kind)
    assert result == expected and type(result) is kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [(2.5, int), ("two", int), (True, int), ("inf", int), ("x", float), (False, float),
     ("maybe", bool), (2, bool), (None, str), ([1], int)],
)  # fmt: skip
def test_coerce_refuses_and_names_the_parameter(value, kind):
    with pytest.raises(ValueError, match=f"parameter steps must be of type {kind.__name__}, got"):
        coerce("steps", value, kind)
