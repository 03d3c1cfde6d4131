"""Errors keep their class and their words over any transport."""

from __future__ import annotations

import logging

import pytest

from kvstore.core import errors
from kvstore.testing.transport_conformance import ERRORS
from kvstore.transports.status import from_status, to_status


@pytest.mark.parametrize("error_type", ERRORS)
def test_every_error_of_the_tree_round_trips(error_type):
    error = from_status(*to_status(error_type("a: b")))
    assert type(error) is error_type
    assert str(error) == "a: b"


def test_a_subclass_made_elsewhere_arrives_as_the_nearest_known_class():
    class LocalError(errors.LeaseExpiredError):
        pass

    assert type(from_status(*to_status(LocalError("x")))) is errors.LeaseExpiredError


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (3, errors.InvalidArgumentError),
        (4, errors.DeadlineExceededError),
        (8, errors.ResourceExhaustedError),
        (12, errors.ProtocolError),
        (14, errors.UnavailableError),
        (99, errors.KVStoreError),
    ],
)
def test_a_peer_that_names_no_class_is_understood_by_its_code(code, expected):
    error = from_status(code, "SystemExit: words of another program")
    assert type(error) is expected
    assert "another program" in str(error)


def test_a_defect_is_logged_and_tells_the_peer_no_details(caplog):
    with caplog.at_level(logging.ERROR):
        code, message = to_status(KeyError("secret"))
    assert code == 13
    assert "secret" not in message
    assert "secret" in caplog.text
