"""Laws of names, addresses, passwords and scopes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.auth import model
from parshall.kernel.ids import is_user_id, new_id


@pytest.mark.parametrize("name", ["abc", "A-b_9", "x" * 30])
def test_a_username_has_three_to_thirty_plain_characters(name: str) -> None:
    model.check_username(name)


@pytest.mark.parametrize("name", ["ab", "x" * 31, "a b c", "abc\n", "a@b", "älex", "abc\x00", "\ud800abc", ""])
def test_any_other_username_is_refused(name: str) -> None:
    with pytest.raises(model.MalformedUsername):
        model.check_username(name)


@pytest.mark.parametrize("email", ["a@example.org", "a.b+c@sub.example.org", "admin@localhost"])
def test_an_address_that_a_browser_takes_is_taken(email: str) -> None:
    model.check_email(email)


@pytest.mark.parametrize(
    "email", ["", "a", "a@", "@b.org", "a b@c.org", "a@b..org", "a@-b.org", "a@b.org\n", "a@b@c", "a@" + "b." * 130]
)
def test_any_other_address_is_refused(email: str) -> None:
    with pytest.raises(model.MalformedEmail):
        model.check_email(email)


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025, "é" * 600, "\ud800" * 8])
def test_a_password_too_short_too_long_or_not_text_is_unfit(password: str) -> None:
    with pytest.raises(model.UnfitPassword):
        model.check_password(password)


@given(st.text())
def test_no_text_names_a_user_in_more_than_one_way(who: str) -> None:
    matches = [is_user_id(who), *(bool(rule.match(who)) for rule in (model._USERNAME, model._EMAIL))]
    assert sum(matches) <= 1
    assert (model.handle(who) is not None) == any(matches) or len(who) > model.EMAIL_CHARS_MAX


@given(st.from_regex(model.USERNAME_PATTERN, fullmatch=True).filter(lambda name: not name.endswith("\n")))
def test_a_username_is_sought_in_lower_case_and_never_as_an_id(name: str) -> None:
    assert model.handle(name) == ("username_key", name.lower())


def test_an_id_is_sought_as_an_id() -> None:
    user_id = new_id()
    assert model.handle(user_id) == ("id", user_id)


def test_a_token_has_the_scopes_asked_for_or_all_and_never_more() -> None:
    held = frozenset({"auth:read", "accounting:settle"})
    assert model.granted_scopes(held, None) == held
    assert model.granted_scopes(held, "auth:read") == {"auth:read"}
    with pytest.raises(model.InvalidScope):
        model.granted_scopes(frozenset({"auth:read"}), "auth:read accounting:settle")


def test_secrets_stay_out_of_what_is_printed() -> None:
    new = model.NewUser(username="alice", email="a@example.org", password="correct horse")
    key = model.SigningKey(kid="k", private_pem="PRIVATE", created_at=0)
    assert "horse" not in repr(new)
    assert "PRIVATE" not in repr(key)
