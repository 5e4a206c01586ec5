"""What a UserError's message may hold."""

from ida_jax.common.errors import UserError


def test_control_characters_of_a_name_are_escaped():
    error = UserError("no face is named 'a\x1b[31m\x00b\u202ec'\nsecond line")
    assert str(error) == r"no face is named 'a\x1b[31m\x00b\u202ec' second line"


def test_letters_of_any_language_stay():
    assert str(UserError("'é 王 ⟨τ⟩' is unknown")) == "'é 王 ⟨τ⟩' is unknown"


def test_the_middle_of_a_very_long_message_is_left_out():
    message = str(UserError("line 1: 'x" + "9" * 5000 + "': expected a number"))
    assert len(message) < 1010
    assert message.startswith("line 1: 'x99")
    assert message.endswith("9': expected a number")
