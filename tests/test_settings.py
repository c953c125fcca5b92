"""Settings: the paper's defaults, validation, and the codes for the kernels."""

import copy
import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixmix import mixing
from pixmix.mixing import MIXINGS
from pixmix.operations import OPERATIONS
from pixmix.settings import (
    MAX_SEVERITY,
    MIN_BETA,
    MIN_LEVEL,
    PixMixSettings,
)


def test_the_defaults_are_the_papers_for_cifar() -> None:
    settings = PixMixSettings()
    assert (settings.k, settings.beta, settings.severity) == (4, 3, 3)
    assert not settings.all_ops
    assert settings.geometric
    assert settings.mixings == ("add", "multiply")


def test_the_papers_settings_for_imagenet_are_accepted() -> None:
    settings = PixMixSettings(k=4, beta=4, severity=1)
    assert (settings.k, settings.beta, settings.severity) == (4, 4, 1)


def test_the_operations_depend_on_all_ops_and_geometric() -> None:
    def names(**changes: bool) -> list[str]:
        codes = PixMixSettings(**changes).operation_codes  # type: ignore[arg-type]
        assert codes.dtype == np.int32
        return [OPERATIONS[code].name for code in codes]

    geometric = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    assert names() == [row.name for row in OPERATIONS if row.standard]
    assert names(all_ops=True) == [row.name for row in OPERATIONS]
    assert names(geometric=False) == ["autocontrast", "equalize", "posterize", "solarize"]
    assert names(geometric=False, all_ops=True) == [
        row.name for row in OPERATIONS if row.name not in geometric
    ]


def test_codes_are_the_positions_of_the_mixings() -> None:
    for code, name in enumerate(MIXINGS):
        assert getattr(mixing, name.upper()) == code
        assert PixMixSettings(mixings=(name,)).mixing_codes.tolist() == [code]


@given(st.lists(st.sampled_from(MIXINGS), min_size=1, max_size=9))
def test_codes_keep_order_and_repetitions(names: list[str]) -> None:
    codes = PixMixSettings(mixings=tuple(names)).mixing_codes
    assert codes.dtype == np.int32
    assert [MIXINGS[code] for code in codes] == names


@given(
    k=st.integers(0, 1000),
    beta=st.one_of(st.floats(MIN_BETA, allow_infinity=False), st.integers(1, 100)),
    severity=st.floats(MIN_LEVEL, MAX_SEVERITY),
    all_ops=st.booleans(),
    geometric=st.booleans(),
)
def test_valid_values_are_stored_unchanged(
    k: int, beta: float, severity: float, all_ops: bool, geometric: bool
) -> None:
    settings = PixMixSettings(
        k=k, beta=beta, severity=severity, all_ops=all_ops, geometric=geometric
    )
    kept = (k, beta, severity, all_ops, geometric, ("add", "multiply"))
    assert dataclasses.astuple(settings) == kept


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": -1}, ValueError, "k is -1; pass an integer of 0 or more"),
        ({"k": 2.0}, TypeError, "k is 2.0; pass an integer"),
        ({"k": True}, TypeError, "k is True; pass"),
        ({"k": "4"}, TypeError, "k is '4'; pass"),
        ({"k": None}, TypeError, "k is None; pass"),
        ({"beta": 0}, ValueError, "beta is 0; pass a number of 0.001 or more"),
        ({"beta": 0.00099}, ValueError, "beta is 0.00099; pass a number of 0.001 or more"),
        ({"beta": 1e-39}, ValueError, "beta is 1e-39; pass"),
        ({"beta": -0.5}, ValueError, "beta is -0.5; pass"),
        ({"beta": math.inf}, ValueError, "beta is inf; pass"),
        ({"beta": math.nan}, ValueError, "beta is nan; pass"),
        ({"beta": "3"}, TypeError, "beta is '3'; pass a number"),
        ({"beta": None}, TypeError, "beta is None; pass a number"),
        ({"beta": True}, TypeError, "beta is True; pass a number"),
        ({"beta": 1 + 2j}, TypeError, r"beta is \(1\+2j\); pass a number"),
        ({"severity": 0.0999}, ValueError, "severity is 0.0999; pass a number from 0.1 to 10 "),
        ({"severity": 10.001}, ValueError, "severity is 10.001; pass"),
        ({"severity": -1}, ValueError, "severity is -1; pass"),
        ({"severity": math.nan}, ValueError, "severity is nan; pass"),
        ({"severity": None}, TypeError, "severity is None; pass a number"),
        ({"severity": [3]}, TypeError, r"severity is \[3\]; pass a number"),
        ({"all_ops": "no"}, TypeError, "all_ops is 'no'; pass True or False"),
        ({"all_ops": 1}, TypeError, "all_ops is 1; pass True or False"),
        ({"geometric": None}, TypeError, "geometric is None; pass True or False"),
        ({"mixings": ()}, ValueError, r"mixings is \(\); pass one or more of add, "),
        ({"mixings": 5}, TypeError, "mixings is 5; pass names"),
        (
            {"mixings": ("add", "blend")},
            ValueError,
            "mixings is .*'blend'.*; pass one or more of add",
        ),
        ({"mixings": ("ADD",)}, ValueError, "mixings is .*'ADD'"),
        ({"mixings": (0,)}, ValueError, r"mixings is \(0,\)"),
    ],
)
def test_invalid_values_are_rejected_with_value_rule_and_remedy(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        PixMixSettings(**arguments)
    assert "\n" not in str(caught.value)


def test_numpy_numbers_are_stored_as_plain_numbers() -> None:
    settings = PixMixSettings(k=np.int64(2), beta=np.float32(2.5), severity=np.uint8(3))
    assert settings == PixMixSettings(k=2, beta=2.5, severity=3)
    assert repr(settings) == repr(PixMixSettings(k=2, beta=2.5, severity=3.0))
    assert [type(each) for each in dataclasses.astuple(settings)[:3]] == [int, float, float]


def test_settings_are_frozen_and_keyword_only() -> None:
    settings = PixMixSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.k = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        PixMixSettings(4)  # type: ignore[misc]
    with pytest.raises(ValueError, match="k is -1"):
        dataclasses.replace(settings, k=-1)


def test_settings_with_equal_values_are_equal() -> None:
    settings, other = PixMixSettings(k=2), PixMixSettings(k=2, beta=3)
    assert settings.mixing_codes is settings.mixing_codes
    assert settings == other
    assert hash(settings) == hash(other)
    assert settings != PixMixSettings(k=3)
    assert repr(settings) == repr(PixMixSettings(k=2))


def test_settings_can_be_pickled_and_copied() -> None:
    settings = PixMixSettings(k=2, mixings=("multiply", "add"))
    codes = settings.mixing_codes.tolist()
    for same in (pickle.loads(pickle.dumps(settings)), copy.deepcopy(settings)):
        assert same == settings
        assert same.mixing_codes.tolist() == codes


def test_any_sequence_of_mixings_is_stored_as_a_tuple() -> None:
    assert PixMixSettings(mixings=["add"]).mixings == ("add",)
    assert PixMixSettings(mixings="multiply").mixings == ("multiply",)
    assert hash(PixMixSettings(mixings=["add"])) == hash(PixMixSettings(mixings=("add",)))
