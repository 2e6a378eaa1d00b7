"""Which of a machine's Ray clusters is meant; that it is reached is tested in tests/e2e."""

import socket

import pytest

from deployments.attaching import attach
from deployments.progress import StartError


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def running(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set(addresses))


def test_of_several_none_is_taken_and_each_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    running(monkeypatch, "10.0.0.1:2", "10.0.0.1:1")
    with pytest.raises(StartError, match=r"RAY_ADDRESS .*: 10\.0\.0\.1:1 or 10\.0\.0\.1:2$"):
        attach()


@pytest.mark.parametrize("told", ["argument", "environment"])
def test_one_that_is_told_and_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        if told == "environment":
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(StartError, match=rf"^no system is running at {address}$"):
            attach(address if told == "argument" else None)


@pytest.mark.parametrize("told", [None, "auto"])
def test_rays_word_for_any_is_no_address(monkeypatch: pytest.MonkeyPatch, told: str | None) -> None:
    running(monkeypatch, "10.0.0.1:2", "10.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(StartError, match="RAY_ADDRESS has to say"):
        attach(told)


@pytest.mark.parametrize("address", ["head:port", "127.0.0.1:123456", "nobody.invalid:6379"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(StartError, match=f"^no system is running at {address}$"):
        attach(address)
