"""The file of tokens: what is refused and in which words, who is let in, and how the file is written."""

import base64
import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import pytest

from gateway.auth import tokens
from gateway.auth.credentials import Credential, CredentialError
from gateway.auth.scopes import ROLES, Principal, role_scopes
from gateway.auth.tokens import Entry, Tokens, add, digest_of, load, revoke
from gateway.config import ConfigError

NOW = 1_700_000_000.0
HUSH = "-hush_hush_hush_hush_hush_hush_hush_hush_43"
"""A token, as somebody may put it where it does not belong."""

TABLES = "a [[token]] for each token"
TOML = "TOML, with a [[token]] for each"
KEYS = "one of name, role, sha256, scopes, expires"
NAME = "a name of 1 to 200 printable characters"
ROLE = '"operator", "node" or "ui"'
SHA256 = "64 hexadecimal digits in lower case, the SHA-256 of the token"
SCOPES = 'an array of "admin", and of "call:", "serve:", "share:", "subscribe:" or "publish:" with a pattern'
EXPIRES = "a time with its offset, such as 2027-01-01T00:00:00Z"


def entry(**values: str | None) -> str:
    """Return a [[token]] that is right, but for these values as TOML has them; None: it is not there."""
    every = {"name": '"kitchen-pi"', "role": '"node"', "sha256": f'"{digest_of("x")}"'} | values
    return "[[token]]\n" + "".join(f"{key} = {value}\n" for key, value in every.items() if value is not None)


# A value that the key must not have, as TOML has it.
WRONG_VALUES = [
    *(("name", NAME, value) for value in ('""', '" a"', '"a\\n"', '"a\\u001b[2J"', f'"{"n" * 201}"', "1", '["a"]')),
    *(("role", ROLE, value) for value in ('""', '"admin"', '"Node"', "5", '["node"]', f'"{HUSH}"')),
    *(("sha256", SHA256, value) for value in ('""', f'"{HUSH}"', f'"{"A" * 64}"', f'"{"a" * 63}"', f'"{"a" * 65}"')),
    *(("sha256", SHA256, value) for value in (f'"{"a" * 64}\\n"', "1", f'["{"a" * 64}"]', f'{{of = "{HUSH}"}}')),
    *(("scopes", SCOPES, value) for value in ('"call:>"', '["*"]', '["call"]', '["call:"]', '["call:>.a"]', "[1]")),
    *(("scopes", SCOPES, value) for value in ('["call:a b"]', f'["admin", "{HUSH}"]', '[["admin"]]', '["Admin"]')),
    *(("scopes", SCOPES, value) for value in ('["call:a\\u001b[2J"]', "true")),
    *(("expires", EXPIRES, value) for value in ('"2027-01-01T00:00:00Z"', "2027-01-01", "12:00:00", "1800000000")),
    *(("expires", EXPIRES, value) for value in ("2027-01-01T00:00:00", f'"{HUSH}"', "[]")),
    # Moments that are in the year 10000, or 0, where they are told in UTC.
    *(("expires", EXPIRES, value) for value in ("9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+01:00")),
    ("expires", EXPIRES, "9999-12-31T23:59:59.999999Z"),
]

# A file's text, the key that is named, and what would be right.
WRONG_FILES = [
    *((entry(**{key: value}), f"token[0].{key}", right) for key, right, value in WRONG_VALUES),
    (entry(name=None), "token[0].name", NAME),
    (entry(role=None), "token[0].role", ROLE),
    (entry(sha256=None), "token[0].sha256", SHA256),
    (entry(token=f'"{HUSH}"'), "token[0].token", KEYS),
    (entry(Name='"a"'), "token[0].Name", KEYS),
    (entry() + entry(name='"b"'), "token[1].sha256", "one that no other token has"),
    (entry() + entry(sha256=f'"{"0" * 64}"'), "token[1].name", "one that no other token has"),
    (entry() + entry(name='"b"', sha256=f'"{HUSH}"'), "token[1].sha256", SHA256),
    (f'token = "{HUSH}"', "token", TABLES),
    (f'token = ["{HUSH}"]', "token", TABLES),
    (f'[token]\nname = "{HUSH}"', "token", TABLES),
    (f'[[tokens]]\nname = "{HUSH}"', "tokens", TABLES),
    (f'sha256 = "{HUSH}"\n{entry()}', "sha256", TABLES),
    (f"token = {HUSH}", "line 1, column 9", TOML),
    (f'[[token]]\nname = "{HUSH}', f"line 2, column {len(HUSH) + 9}", TOML),
    (entry(name='"a"\nname = "b"'), "line 3, column 11", TOML),
    ("a = " + "[" * 5000, "the setting", "TOML in UTF-8, with a [[token]] for each"),
    ("\ufeff" + entry(), "line 1, column 1", 'the same file, saved as "UTF-8" and not "UTF-8 with BOM"'),
    ("# \udcff", "the setting", "TOML in UTF-8, with a [[token]] for each"),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tokens.toml")


def put(path: str, text: str) -> str:
    Path(path).write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as refused:
        act()
    line = str(refused.value)
    assert line.isprintable(), "one line, and nothing that drives a terminal"
    assert HUSH not in line
    return line


# Reading


@pytest.mark.parametrize(("text", "key", "right"), WRONG_FILES)
def test_a_wrong_file_earns_one_line_with_file_key_and_what_would_be_right(
    text: str, key: str, right: str, path: str
) -> None:
    put(path, text)
    line = refusal(lambda: load(path, "the setting"))
    assert line.startswith(f"{path}: {key}: ")
    assert line.endswith(f"; {right}")
    assert len(line) > len(f"{path}: {key}: ; {right}"), "it says what is wrong, too"


@pytest.mark.parametrize(("where", "why"), [("nowhere.toml", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_names_the_setting_that_leads_to_it(where: str, why: str, tmp_path: Path) -> None:
    file = str(tmp_path / where)
    end = f"cannot be read: {why}; the path of a readable TOML file of tokens"
    assert refusal(lambda: load(file)) == f"{file}: auth.tokens_file: {end}"
    assert refusal(lambda: load(file, "--file")) == f"{file}: --file: {end}"


def test_the_contract_s_example_is_read(path: str) -> None:
    put(path, entry(scopes='["serve:camera.*"]', expires="2027-01-01T00:00:00Z"))
    moment = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert load(path) == [Entry(Principal("kitchen-pi", "node", ("serve:camera.*",), moment), digest_of("x"))]
    put(path, entry(expires="2027-01-01T02:00:00+02:00", scopes="[]"))
    assert load(path)[0].principal == Principal("kitchen-pi", "node", (), moment), "no scope at all is not the role's"


@pytest.mark.parametrize("role", ROLES)
def test_without_scopes_and_expiry_it_has_the_role_s_for_ever(role: str, path: str) -> None:
    put(path, entry(role=f'"{role}"', name=f'"{"ü" * 200}"'))
    assert load(path)[0].principal == Principal("ü" * 200, role, role_scopes(role, "ü" * 200), None)


def test_a_file_without_tokens_lets_nobody_in(path: str) -> None:
    assert load(put(path, "# none yet\n")) == []
    assert load(put(path, "token = []\n")) == []


# Verifying


def held(
    token: str, name: str = "pi", role: str = "node", scopes: tuple[str, ...] = (), ends: float | None = None
) -> Entry:
    return Entry(Principal(name, role, scopes, ends), digest_of(token))


def test_a_right_token_gives_its_principal_and_no_more() -> None:
    known = Tokens([held("first"), held("second", "tv", "ui", ("call:>",), NOW + 1)])
    assert known.asks
    assert known.verify("first", NOW).principal == Principal("pi", "node", ())
    credential = known.verify("second", NOW)
    assert credential.principal == Principal("tv", "ui", ("call:>",), NOW + 1)
    assert "second" not in repr(credential) + repr(vars(known)), "the token itself is kept nowhere"


STRANGE = [
    "",
    "firs",
    "first ",
    "first\n",
    "First",
    "first\0",
    "é",
    "\udcff",
    "\ud83d",
    "x" * 1_000_000,
    digest_of("first"),
]


@pytest.mark.parametrize("token", STRANGE, ids=lambda token: ascii(token)[:20])
def test_any_other_token_is_unknown(token: str) -> None:
    for known in (Tokens([held("first")]), Tokens([])):
        with pytest.raises(CredentialError, match=r"^unknown token$"):
            known.verify(token, NOW)


def test_a_token_ends_with_the_moment_of_its_expiry() -> None:
    known = Tokens([held("first", ends=NOW)])
    assert known.verify("first", NOW - 0.001).principal.expires_at == NOW
    for now in (NOW, NOW + 1e9):
        with pytest.raises(CredentialError, match=r"^the token of pi has expired$"):
            known.verify("first", now)


@pytest.mark.parametrize(
    ("file", "renewed"),
    [
        ([held("first")], Principal("pi", "node", ())),
        ([held("first", scopes=("admin",))], Principal("pi", "node", ("admin",))),
        ([held("first", role="ui", ends=NOW)], Principal("pi", "ui", (), NOW)),
        ([], None),
        ([held("second")], None),
        ([held("first", "somebody-else")], None),
        ([held("first", "somebody-else"), held("second", "pi")], None),
    ],
    ids=["same", "other scopes", "other role and expiry", "gone", "other token", "other name", "names exchanged"],
)
def test_a_credential_is_renewed_as_the_file_has_it_now(file: list[Entry], renewed: Principal | None) -> None:
    before = Tokens([held("first")]).verify("first", NOW)
    after = Tokens(file).renewed(before)
    assert (after and after.principal) == renewed
    assert renewed is None or after == Credential(renewed, before.voucher), "and may be renewed again"


# Writing


def test_an_added_token_is_in_the_file_as_its_digest_alone(path: str, tmp_path: Path) -> None:
    moment = datetime(2027, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    token = add(path, "kitchen-pi", "node", ("serve:camera.*",), moment)
    plain = add(path, 'a "quoted" \\ [name]', "ui", None, None)
    assert load(path) == [
        Entry(Principal("kitchen-pi", "node", ("serve:camera.*",), moment.timestamp()), digest_of(token)),
        Entry(Principal('a "quoted" \\ [name]', "ui", role_scopes("ui", "tv")), digest_of(plain)),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["tokens.toml"], "nothing else is left there"
    text = Path(path).read_text()
    assert token not in text and plain not in text
    assert "scopes" not in text.partition("quoted")[2], "the role's own are not written down"
    assert Tokens(load(path)).verify(token, NOW).principal.name == "kitchen-pi"


def test_a_token_has_256_random_bits(path: str) -> None:
    made = [add(path, f"n{number}", "node", None, None) for number in range(64)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in made)
    bits = [int.from_bytes(base64.urlsafe_b64decode(token + "=")) for token in made]
    assert len({len(base64.urlsafe_b64decode(token + "=")) for token in made} ^ {32}) == 0
    # That one of 256 bits is the same in 64 tokens by chance does not happen.
    assert reduce(or_, bits) == 2**256 - 1
    assert reduce(and_, bits) == 0


def test_a_revoked_token_is_gone_and_the_others_stay(path: str) -> None:
    made = {name: add(path, name, "node", None, None) for name in ("a", "b", "c")}
    for name in ("b", "a", "c"):
        revoke(path, name)
        with pytest.raises(CredentialError):
            Tokens(load(path)).verify(made.pop(name), NOW)
        for token in made.values():
            Tokens(load(path)).verify(token, NOW)
    again = add(path, "b", "ui", None, None)
    assert Tokens(load(path)).verify(again, NOW).principal.role == "ui"


KITCHEN = entry(name='"pi"  # über dem Herd')
WALL = "# the one on the wall\n" + entry(name='"tv"', sha256=f'"{"0" * 64}"') + "# the end\n"
COMMENTED = f"# Who may come in.\n\n# the one in the kitchen\n{KITCHEN}\n{WALL}"


def test_adding_leaves_all_that_is_in_the_file_as_it_is(path: str) -> None:
    for text in (COMMENTED, COMMENTED.replace("\n", "\r\n")):
        put(path, text)
        add(path, "new", "ui", ("call:>",), None)
        assert Path(path).read_bytes().decode().startswith(text)
        assert [known.principal.name for known in load(path)] == ["pi", "tv", "new"]


def test_revoking_leaves_the_other_tokens_and_their_comments(path: str) -> None:
    revoke(put(path, COMMENTED), "tv")
    text = Path(path).read_text()
    assert text.startswith(COMMENTED.partition(WALL)[0].rstrip())
    assert "0" * 64 not in text
    revoke(put(path, COMMENTED), "pi")
    text = Path(path).read_text()
    assert text.startswith("# Who may come in.\n")
    assert WALL in text
    assert "Herd" not in text


@pytest.mark.parametrize("text", ["token = []\n", f'token = [{{name = "a", role = "ui", sha256 = "{"0" * 64}"}}]\n'])
def test_a_file_that_has_its_tokens_in_one_array_is_written_too(text: str, path: str) -> None:
    before = load(put(path, text))
    token = add(path, "new", "node", ("admin",), None)
    assert load(path) == [*before, Entry(Principal("new", "node", ("admin",)), digest_of(token))]
    revoke(path, "new")
    assert load(path) == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_mode(mode: int, path: str) -> None:
    os.chmod(put(path, COMMENTED), mode)
    add(path, "new", "node", None, None)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    revoke(path, "new")
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_a_new_file_is_its_owner_s_alone(path: str) -> None:
    before = os.umask(0)
    try:
        add(path, "a", "node", None, None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize("text", [COMMENTED, None], ids=["a file", "no file yet"])
def test_a_link_stays_and_what_it_stands_for_is_written(text: str | None, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "data").mkdir()
    link, real = tmp_path / "etc" / "tokens.toml", tmp_path / "data" / "real.toml"
    link.symlink_to(Path("../data/real.toml"))
    if text is not None:
        put(str(real), text)
    token = add(str(link), "new", "node", None, None)
    assert link.readlink() == Path("../data/real.toml")
    assert Tokens(load(str(real))).verify(token, NOW).principal.name == "new"
    revoke(str(link), "new")
    assert link.is_symlink()
    assert "new" not in real.read_text()


def test_links_in_a_circle_are_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="ymbolic link") as failed:
        add(str(tmp_path / "a"), "new", "node", None, None)
    assert failed.value.errno == errno.ELOOP


WRONG_EDITS: list[tuple[str, Callable[[str], object], str]] = [
    (COMMENTED, lambda path: add(path, "pi", "node", None, None), "token.name"),
    (COMMENTED, lambda path: add(path, " new", "node", None, None), "token[2].name"),
    (COMMENTED, lambda path: add(path, "new\n", "node", None, None), "token[2].name"),
    (COMMENTED, lambda path: add(path, "new", "admin", None, None), "token[2].role"),
    (COMMENTED, lambda path: add(path, "new", "node", ("*",), None), "token[2].scopes"),
    (COMMENTED, lambda path: add(path, "new", "node", ("call:\udcff",), None), "token[2].scopes"),
    (COMMENTED, lambda path: add(path, "new", "node", None, datetime.fromisoformat("2027-01-01")), "token[2].expires"),
    (COMMENTED, lambda path: revoke(path, "nobody"), "token.name"),
    ("", lambda path: revoke(path, "nobody"), "token.name"),
    (entry(role=f'"{HUSH}"'), lambda path: add(path, "new", "node", None, None), "token[0].role"),
    (entry(role=f'"{HUSH}"'), lambda path: revoke(path, "kitchen-pi"), "token[0].role"),
    (f"token = {HUSH}", lambda path: add(path, "new", "node", None, None), "line 1, column 9"),
    ("# \udcff", lambda path: add(path, "new", "node", None, None), "auth.tokens_file"),
]


@pytest.mark.parametrize(("text", "edit", "key"), WRONG_EDITS)
def test_a_refused_edit_leaves_the_file_as_it_was(
    text: str, edit: Callable[[str], object], key: str, path: str, tmp_path: Path
) -> None:
    before = os.stat(put(path, text))
    assert refusal(lambda: edit(path)).startswith(f"{path}: {key}: ")
    assert Path(path).read_bytes() == text.encode("utf-8", "surrogateescape")
    assert os.stat(path).st_ino == before.st_ino
    assert os.listdir(tmp_path) == ["tokens.toml"]


@pytest.mark.parametrize("name", ["fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_the_file_as_it_was(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    put(path, COMMENTED)
    monkeypatch.setattr(os, name, fail)
    for edit in (partial(add, path, "new", "node", None, None), partial(revoke, path, "pi")):
        with pytest.raises(OSError, match="No space left"):
            edit()
        assert Path(path).read_text() == COMMENTED
        assert os.listdir(tmp_path) == ["tokens.toml"]


def test_nothing_to_revoke_makes_no_file(path: str) -> None:
    refusal(lambda: revoke(path, "nobody"))
    assert not os.path.exists(path)


# More than one at a time


def test_the_file_is_replaced_as_a_whole(path: str) -> None:
    with open(put(path, COMMENTED), encoding="utf-8") as opened:
        add(path, "new", "node", None, None)
        assert opened.read() == COMMENTED, "who has it open reads the old one to its end"
    assert len(load(path)) == 3


@contextmanager
def observing(path: str) -> Iterator[list[Any]]:
    """Read the file all the time; the list has how many tokens were in it each time, or what went wrong."""
    seen: list[Any] = []
    over = threading.Event()

    def observe() -> None:
        while not over.is_set():
            try:
                seen.append(len(load(path)))
            except ConfigError as error:
                seen.append(str(error))

    observer = threading.Thread(target=observe)
    observer.start()
    try:
        yield seen
    finally:
        over.set()
        observer.join()


def test_who_reads_all_the_time_never_sees_a_broken_or_empty_file(path: str) -> None:
    put(path, COMMENTED)
    with observing(path) as seen:
        for number in range(15):
            add(path, f"n{number}", "node", None, None)
        for number in range(15):
            revoke(path, f"n{number}")
    assert set(seen) <= set(range(2, 18)), "never one without the two that were there before"
    assert len(set(seen)) > 3, "it has looked while they were written"


def test_of_several_writers_at_once_nothing_is_lost(path: str) -> None:
    writers, each = 4, 5
    made: dict[str, str] = {}
    ready = threading.Barrier(writers)

    def write(writer: int) -> None:
        ready.wait()
        for number in range(each):
            name = f"{writer}.{number}"
            made[name] = add(path, name, "node", None, None)
        revoke(path, f"{writer}.0")
        del made[f"{writer}.0"]

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = Tokens(load(path))
    assert {known.verify(token, NOW).principal.name for token in made.values()} == set(made)
    assert len(load(path)) == len(made) == writers * (each - 1)


def test_digests_are_those_of_everybody_s_tools() -> None:
    """`printf x | sha256sum`"""
    assert digest_of("x") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert tokens.TOKEN_BYTES * 8 == 256
