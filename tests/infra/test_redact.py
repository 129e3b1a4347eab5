"""No password is in a text that is shown, wherever it stood; a text without one is shown as it is."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infra.redact import check_uri, redacted, redacted_address, redacted_command, redacted_values
from infra.tracking.config import TrackingConfig

MARK = "hunter2"
printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)
passwords = st.builds(lambda before, after: before + MARK + after, printable, printable)
"""Any printable characters around a mark of which nothing may be seen."""
words = st.text("abcdefghij0123456789", min_size=1, max_size=8)
schemes = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql", "redis", "s3"])
KEYS = (
    *("password", "sslpassword", "passwd", "pwd", "token", "access_token", "api_key", "apikey", "X-Amz-Signature"),
    *("sig", "client_secret", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "x-secret-key", "AccountKey"),
    "db.password",
)
keys = st.sampled_from(KEYS)


@given(schemes, words, passwords, words, words)
def test_the_password_of_a_url_in_a_text(scheme: str, user: str, password: str, host: str, path: str) -> None:
    for secret in (password, quote(password, safe="")):
        url = f"{scheme}://{user}:{secret}@{host}:5432/{path}"
        for text in (
            url,
            f"cannot reach {url}: refused",
            f"s3://bucket/x::{url}",
            f"a='{url}'",
            json.dumps({"a": url}),
        ):
            assert MARK not in redacted(text)
        shown = redacted(f"{scheme}://{user}:{quote(secret, safe='')}@{host}:5432/{path}")
        assert shown == f"{scheme}://{host}:5432/{path}"


@given(schemes, words, st.builds(lambda one, other: f"{one} {MARK} {other}", printable, printable))
def test_the_password_of_a_configured_url_may_hold_blanks(scheme: str, user: str, password: str) -> None:
    url = f"{scheme}://{user}:{password}@host/db"
    assert MARK not in redacted_address(url)
    assert MARK not in json.dumps(redacted_values({"a": [url]}))
    assert MARK not in redacted_command(["--tracking.uri", url, f"--storage={url}"])


@given(schemes, keys, passwords)
def test_the_password_of_a_query(scheme: str, key: str, password: str) -> None:
    url = f"{scheme}://host/db?{urlencode({'user': 'me', key: password, 'sslmode': 'require'})}"
    assert redacted(url) == f"{scheme}://host/db?user=me&{key}=***&sslmode=require"
    assume("&" not in password)  # there it ends
    assert MARK not in redacted(f"{scheme}://host/db?user=me&{key}={password}&sslmode=require")
    assert MARK not in redacted(f"cannot open {scheme}://host/db?{key}={password}")


@given(keys, passwords)
def test_what_stands_under_a_secrets_key(key: str, password: str) -> None:
    assume("&" not in password)
    texts = [f"run --{key}={password} now", f"{key}={password} run", json.dumps({key: password, "a": 1})]
    texts += [repr({key: password}), f"a: b\n{key}: {password}\nc: d", json.dumps({"a": {key: password}})]
    for text in texts:
        assert MARK not in redacted(text)
    values = {"a": [{key: password}], "b": f"--{key}={password}"}
    assert MARK not in json.dumps(redacted_values(values))
    for arguments in ([f"--{key}", password], [f"--{key}={password} and more"]):
        assert MARK not in redacted_command([*arguments, "--name", "x"])


hosts = st.builds(lambda scheme, host, path: f"{scheme}://{host}/{path}", schemes, words, words)
plain = st.lists(
    st.one_of(
        words,
        hosts,
        st.just("me@example.org"),
        st.just("s3://bucket/{000..003}.tar::s3://other/a@2.tar"),
        st.just("http://127.0.0.1:5000/#/experiments/1/runs/2?page=3"),
        st.just("RAY_AUTH_TOKEN_PATH=/etc/token"),
        st.just("RAY_AUTH_MODE=token"),
        st.just("the token: give the cluster's"),
        st.just('{"batch_size": 24, "key": "a"}'),
        st.builds(lambda one, other: f"--{one} {other}", words, words),
    )
)


@given(plain)
def test_a_text_without_secrets_is_as_it_was(parts: list[str]) -> None:
    text = " ".join(parts)
    assert redacted(text) == text


@given(schemes.filter(lambda scheme: scheme not in ("s3", "redis")), words, passwords, words)
def test_a_uri_is_refused_or_certain(scheme: str, user: str, password: str, host: str) -> None:
    """What is taken has its password where the redaction takes it out; what is refused is not shown."""
    uri = f"{scheme}://{user}:{password}@{host}/db"
    said = ""
    try:
        shown = redacted(TrackingConfig(uri=uri).uri)
    except ValueError as error:
        shown, said = f"{scheme}://{host}/db", str(error)
    assert shown == f"{scheme}://{host}/db"
    assert MARK not in said
    assert TrackingConfig(uri=f"{scheme}://{user}:{quote(password, safe='')}@{host}/db").uri


@pytest.mark.parametrize(
    "uri", ["postgresql://u:ab/cd@host", "http://u:12/cd@host", "http://u:p@q@host", "http://[u", "http://u:p w@host"]
)
def test_a_uri_that_can_be_read_in_two_ways_is_refused_with_the_cure(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^tracking.uri \(\w+://...\) can't be read .*percent-encode.*%40"):
        check_uri("tracking.uri", uri)
