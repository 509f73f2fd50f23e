"""What a user can mend is told in one line; everything else is a bug, and the user's own frames are named."""

import pytest

from vlaprune.control import Control
from vlaprune.errors import UserError, is_user_error, own_frames
from vlaprune.policy import Policy


def caught(call):
    with pytest.raises(Exception) as info:
        call()
    return info.value


def raiser(error):
    def call():
        raise error

    return call


def test_a_user_error_is_mendable_wherever_it_was_raised():
    assert is_user_error(caught(raiser(UserError("keep=2; use a share below 1"))))


@pytest.mark.parametrize("error", [ValueError("v"), RuntimeError("r"), TypeError("t"), KeyError("k"), ImportError("i")])
def test_what_other_code_raises_is_a_bug_and_its_file_is_named(error):
    got = caught(raiser(error))
    assert not is_user_error(got)
    assert [f.filename for f in own_frames(got)][-1] == __file__


def test_what_the_package_refuses_is_mendable():
    assert is_user_error(caught(lambda: Control(gripper="pinch")))
    assert is_user_error(caught(lambda: Policy(None, None, slots=0)))


def test_an_operation_that_fails_within_the_package_is_a_bug():
    error = caught(lambda: Policy(None, None, slots="two"))
    assert isinstance(error, TypeError) and not is_user_error(error)
