from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tenancy import keys


def test_a_key_is_known_by_its_digest_and_shows_itself_nowhere() -> None:
    key = keys.mint()
    assert keys.id_of(key.text) == key.id
    assert keys.same(key.digest, key.text)
    assert key.text not in repr(key)
    assert key.text.encode() not in key.digest


def test_no_two_keys_are_alike() -> None:
    minted = [keys.mint() for _ in range(500)]
    assert len({key.text for key in minted}) == len({key.id for key in minted}) == 500
    assert min(len(key.text.split("_", 2)[2]) for key in minted) >= 43, "32 random bytes"


def test_a_key_that_differs_in_one_character_is_another() -> None:
    key = keys.mint()
    for at in range(len(key.text)):
        changed = key.text[:at] + ("x" if key.text[at] != "x" else "y") + key.text[at + 1 :]
        assert not keys.same(key.digest, changed)


@pytest.mark.parametrize("text", ["", "glr_", "glr__x", "glr_0123456789ab", "glr_0123456789ab_", "sk-0123", "glr_a_b"])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert keys.id_of(text) is None


@given(st.text())
def test_any_text_can_be_asked_for_its_id(text: str) -> None:
    assert keys.id_of(text) is None or text.startswith("glr_")
