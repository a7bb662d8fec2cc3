"""JSON Web Tokens: which are let in, with what, and which files of keys are refused in which words."""

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from gateway.auth import jwts
from gateway.auth.credentials import CredentialError
from gateway.auth.jwts import Jwts, load
from gateway.auth.scopes import MAX_SCOPES, ROLES, Principal, role_scopes
from gateway.config import ConfigError, Jwt

NOW = 1_700_000_000.0
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA")
CURVES: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
WRONG_SIGNATURE = "the JWT's signature is wrong"
NO_KEY = "no key for the JWT's alg and kid"
NOT_A_JWT = "not a JWT"
MALFORMED = "the JWT is malformed"


def key(algorithm: str, number: int = 0) -> Any:
    """Return what signs with this algorithm: a secret or a private key; another number is another one."""
    return _key("RS" if algorithm.startswith("RS") else algorithm, number)


@functools.cache
def _key(algorithm: str, number: int) -> Any:
    if algorithm.startswith("HS"):
        return bytes([number]) * (int(algorithm[2:]) // 8)
    if algorithm == "RS":
        return rsa.generate_private_key(65537, 2048)
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate()


def pem(private: Any) -> bytes:
    """Return the public half, or a secret as it is."""
    if isinstance(private, bytes):
        return private
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(private.public_key().public_bytes(serialization.Encoding.PEM, spki))


def private_pem(private: Any) -> bytes:
    none = serialization.NoEncryption()
    return bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))


def config(directory: Path, content: bytes, *algorithms: str, **more: Any) -> Jwt:
    """Write a file of keys and return the configuration that names it; which of the three it is shows in it."""
    file = directory / "keys"
    file.write_bytes(content)
    if content.startswith(b"{"):
        which = "jwks_file"
    else:
        which = "secret_file" if algorithms[0].startswith("HS") else "public_key_file"
    return Jwt(**{which: str(file), "algorithms": algorithms} | more)


def member(algorithm: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """Return a key as a JSON Web Key; of a private one the public half."""
    private = key(algorithm, number)
    kind: Any = jwt.get_algorithm_by_name(algorithm)
    return {**kind.to_jwk(private if isinstance(private, bytes) else private.public_key(), as_dict=True), **more}


def key_set(*members: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": members}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Return claims that are right, but for these; None: it is not there."""
    every = {"sub": "kitchen-pi", "role": "node", "exp": NOW + 60} | changes
    return {name: value for name, value in every.items() if value is not None}


def signed(algorithm: str = "HS256", number: int = 0, kid: str | None = None, **changes: Any) -> str:
    header = None if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key(algorithm, number), algorithm=algorithm, headers=header)


def encoded(content: object) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def forged(header: object, payload: object, secret: bytes | None = None) -> str:
    """Put a JWT together that no library would make; signed with HS256, or not at all."""
    head = encoded(header) + b"." + encoded(payload)
    return (head + b"." + (b"" if secret is None else encoded(hmac.digest(secret, head, "sha256")))).decode()


def refusal(authenticator: Jwts, token: str, now: float = NOW) -> str:
    with pytest.raises(CredentialError) as refused:
        authenticator.verify(token, now)
    assert len(token) < 20 or token not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def plain(tmp_path: Path) -> Jwts:
    """With one secret for HS256, and no more asked for."""
    return load(config(tmp_path, key("HS256"), "HS256"))


# Signatures


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_takes_its_own_key_s_signature_alone(algorithm: str, tmp_path: Path) -> None:
    settings = config(tmp_path, pem(key(algorithm)), algorithm)
    authenticator = load(settings)
    token = signed(algorithm)
    credential = authenticator.verify(token, NOW)
    assert credential.principal == Principal("kitchen-pi", "node", role_scopes("node", "kitchen-pi"), NOW + 60)
    assert authenticator.asks
    assert token not in repr(credential) + repr(vars(authenticator)), "the credential itself is kept nowhere"
    head, payload, signature = token.split(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    for wrong in (
        f"{head}.{payload}.{flipped}",
        f"{head}.{payload}.",
        f"{head}.{encoded(claims(role='operator')).decode()}.{signature}",
        signed(algorithm, number=1),
    ):
        assert refusal(load(settings), wrong) == WRONG_SIGNATURE
        assert refusal(authenticator, wrong) == WRONG_SIGNATURE, "though it remembers one that was right"


@pytest.mark.parametrize("kind", ["file", "key set"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_that_is_not_configured_is_refused(algorithm: str, kind: str, tmp_path: Path) -> None:
    """Also where the key would do: RS512 with the key of RS256."""
    configured = {"H": "HS256", "R": "RS256", "E": "ES256"}[algorithm[0]]
    if algorithm == configured:
        configured = "HS384" if algorithm == "HS256" else "EdDSA"
    content = pem(key(configured)) if kind == "file" else key_set(member(configured), member(algorithm))
    if algorithm.startswith("HS") and configured == "HS256" and kind == "key set":
        content = key_set({"kty": "oct", "k": encoded(key(algorithm)).decode()})
    authenticator = load(config(tmp_path, content, configured))
    assert refusal(authenticator, signed(algorithm)) == NO_KEY


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, ["HS256"], "hs256", "HS256 "])
def test_a_jwt_that_says_it_needs_no_signature_is_refused(name: object, plain: Jwts) -> None:
    for secret in (None, key("HS256")):
        assert refusal(plain, forged({"typ": "JWT", "alg": name}, claims(), secret)) == NO_KEY
    assert refusal(plain, forged({"typ": "JWT"}, claims(), key("HS256"))) == NO_KEY


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_the_public_key_is_never_taken_for_a_secret(algorithm: str, tmp_path: Path) -> None:
    """RFC 8725 section 2.1; everybody has the public key."""
    public = key(algorithm).public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    known = [pem(key(algorithm)), pem(key(algorithm)).strip(), public.public_bytes(serialization.Encoding.DER, spki)]
    both = key_set(member(algorithm), member("HS256"))
    for content, algorithms in ((pem(key(algorithm)), (algorithm,)), (both, (algorithm, "HS256"))):
        authenticator = load(config(tmp_path, content, *algorithms))
        for secret in known:
            for claimed in ("HS256", algorithm):
                token = forged({"alg": claimed}, claims(), secret)
                assert refusal(authenticator, token) in (NO_KEY, WRONG_SIGNATURE)


# Claims


# A claim, the reason, and the values that it must not have.
WRONG_VALUES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("exp", "the JWT's exp is no number of seconds", ("1", True, [], 1e12, float("nan"), float("inf"), 10**400)),
    ("nbf", "the JWT's nbf is no number of seconds", ("1", False, {}, float("nan"), 10**400, -(10**400))),
    ("role", "the JWT's role is not operator, node or ui", ("", "admin", "Node", 5, ["node"], {})),
    ("sub", "the JWT's sub is no name", ("", " a", "a\n", "\x1b[2J", "a\0", "n" * 201)),
    ("sub", MALFORMED, (5, ["a"])),
    ("scope", "the JWT's scope is no string", (["admin"], 5, {}, True)),
]
WRONG_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"exp": NOW}, "the JWT has expired"),
    ({"exp": NOW - 3600}, "the JWT has expired"),
    ({"exp": 0}, "the JWT has expired"),
    ({"nbf": NOW + 0.5}, "the JWT is not valid yet"),
    ({"nbf": NOW + 3600, "exp": NOW + 7200}, "the JWT is not valid yet"),
    ({"exp": None}, "the JWT has no exp"),
    ({"sub": None}, "the JWT has no sub"),
    ({"role": None}, "the JWT has no role"),
    ({"aud": "anybody"}, "the JWT's aud is not ours"),
    *(({name: value}, why) for name, why, values in WRONG_VALUES for value in values),
]


@pytest.mark.parametrize(("changes", "why"), WRONG_CLAIMS)
def test_wrong_claims_are_refused_and_the_reason_named(changes: dict[str, Any], why: str, plain: Jwts) -> None:
    assert refusal(plain, forged({"alg": "HS256"}, claims(**changes), key("HS256"))) == why


def test_claims_are_not_looked_at_before_the_signature(plain: Jwts) -> None:
    for changes, _ in WRONG_CLAIMS:
        assert refusal(plain, forged({"alg": "HS256"}, claims(**changes), b"somebody else's")) == WRONG_SIGNATURE


def test_a_jwt_is_right_from_nbf_until_exp(plain: Jwts) -> None:
    token = signed(nbf=NOW, exp=NOW + 1)
    assert refusal(plain, token, NOW - 0.001) == "the JWT is not valid yet"
    assert plain.verify(token, NOW).principal.expires_at == NOW + 1
    assert plain.verify(token, NOW + 0.999).principal.expires_at == NOW + 1
    assert refusal(plain, token, NOW + 1) == "the JWT has expired", "though it was right and is remembered"
    assert plain.verify(signed(exp=int(NOW) + 1, iat=NOW + 9, jti="a"), NOW).principal.expires_at == NOW + 1


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("serve:camera.*", ("serve:camera.*",)),
        ("openid admin profile call:a.> email", ("admin", "call:a.>")),
        ("  call:a   publish:b\t", ("call:a", "publish:b")),
        ("", ()),
        ("openid", ()),
        ("* >", ()),
        ("call: call:>.a CALL:a ADMIN call", ()),
    ],
)
def test_of_the_scope_claim_only_the_gateway_s_own_count(scope: str, scopes: tuple[str, ...], plain: Jwts) -> None:
    assert plain.verify(signed(scope=scope), NOW).principal.scopes == scopes


def test_a_jwt_has_a_thousand_scopes_at_most(plain: Jwts) -> None:
    scopes = [f"call:a{number}" for number in range(MAX_SCOPES)]
    assert plain.verify(signed(scope=" ".join(scopes)), NOW).principal.scopes == tuple(scopes)
    assert refusal(plain, signed(scope=" ".join([*scopes, "x"]))) == "the JWT has more than 1000 scopes"


@pytest.mark.parametrize("role", ROLES)
def test_without_the_claim_scopes_are_the_role_s(role: str, plain: Jwts) -> None:
    principal = plain.verify(signed(role=role, sub="ü" * 200), NOW).principal
    assert principal == Principal("ü" * 200, role, role_scopes(role, "ü" * 200), NOW + 60)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://id.example", "aud": "gateway"}, None),
        ({"iss": "https://id.example", "aud": ["other", "gateway"]}, None),
        ({"aud": "gateway"}, "the JWT has no iss"),
        ({"iss": "https://id.example/", "aud": "gateway"}, "the JWT's iss is not ours"),
        ({"iss": "evil", "aud": "gateway"}, "the JWT's iss is not ours"),
        ({"iss": "https://id.example"}, "the JWT has no aud"),
        ({"iss": "https://id.example", "aud": "gateway2"}, "the JWT's aud is not ours"),
        ({"iss": "https://id.example", "aud": ["other"]}, "the JWT's aud is not ours"),
        ({"iss": "https://id.example", "aud": []}, "the JWT has no aud"),
    ],
)
def test_issuer_and_audience_are_the_configured_ones(changes: dict[str, Any], why: str | None, tmp_path: Path) -> None:
    wanted = {"issuer": "https://id.example", "audience": "gateway"}
    authenticator = load(config(tmp_path, key("HS256"), "HS256", **wanted))
    token = signed(**changes)
    if why is None:
        assert authenticator.verify(token, NOW).principal.name == "kitchen-pi"
    else:
        assert refusal(authenticator, token) == why


HEAD, SECRET = {"alg": "HS256"}, bytes(32)
NOT_OBJECTS: list[object] = [[], None, 5, "a", b"", b"{", b"\xff", b"[" * 100_000]
WRONG_HEADERS: list[dict[str, Any]] = [{"crit": ["x"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"kid": 5}]
MALFORMED_TOKENS: list[tuple[str, str]] = [
    *((text, NOT_A_JWT) for text in ("", ".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "\udcff")),
    *((text, NOT_A_JWT) for text in ("\ud83d", "x" * 100_000, "." * 100_000, "Bearer a.b.c", "a b.c.d", "\0.\0.\0")),
    *((forged(header, claims(), SECRET), NOT_A_JWT) for header in NOT_OBJECTS),
    *((forged(HEAD | extra, claims(), SECRET), NOT_A_JWT) for extra in WRONG_HEADERS),
    *((forged(HEAD, payload, SECRET), MALFORMED) for payload in NOT_OBJECTS),
    (forged(HEAD, b'{"exp": ' + b"9" * 5000 + b"}", SECRET), MALFORMED),
]


@pytest.mark.parametrize("crit", [["x"], ["exp", "b64"], ["x5t", "x"], [], "x", [5], None], ids=ascii)
def test_a_critical_header_that_is_not_known_is_refused(crit: object, plain: Jwts) -> None:
    """RFC 7515 section 4.1.11: whoever does not understand all of them must not take the JWT."""
    header = {"alg": "HS256", "x": 1, "exp": 2, "x5t": "a", "b64": True}
    assert plain.verify(forged(header, claims(), SECRET), NOW).principal.name == "kitchen-pi"
    assert refusal(plain, forged(header | {"crit": crit}, claims(), SECRET)) == NOT_A_JWT


@pytest.mark.parametrize(("token", "why"), MALFORMED_TOKENS, ids=lambda value: ascii(value)[:60])
def test_what_is_no_jwt_is_refused(token: str, why: str, plain: Jwts) -> None:
    assert key("HS256") == SECRET
    assert refusal(plain, token) == why


# Key sets


def test_the_kid_chooses_the_key(tmp_path: Path) -> None:
    keys = key_set(member("ES256", 0, kid="old"), member("ES256", 1, kid="new"), member("EdDSA", kid="other"))
    authenticator = load(config(tmp_path, keys, "ES256", "EdDSA"))
    old, new = (authenticator.verify(signed("ES256", n, kid), NOW) for n, kid in ((0, "old"), (1, "new")))
    assert old.principal == new.principal
    assert old.voucher != new.voucher
    assert authenticator.verify(signed("ES256", 1), NOW) == new, "without a kid each key is tried"
    assert authenticator.verify(signed("EdDSA"), NOW).principal == old.principal
    assert refusal(authenticator, signed("ES256", 1, "old")) == WRONG_SIGNATURE
    assert refusal(authenticator, signed("ES256", 2)) == WRONG_SIGNATURE
    for kid in ("", "OLD", "none", "other"):
        assert refusal(authenticator, signed("ES256", 0, kid)) == NO_KEY


def test_a_key_without_kid_is_tried_for_any(tmp_path: Path) -> None:
    authenticator = load(config(tmp_path, key_set(member("RS256")), "RS256"))
    assert authenticator.verify(signed("RS256", kid="whatever"), NOW).principal.name == "kitchen-pi"


def test_of_many_keys_that_fit_the_kid_has_to_choose(tmp_path: Path) -> None:
    """Each key costs a signature, so four are tried and no more, whatever the JWT says."""
    members = [member("EdDSA", number, kid=f"key-{number}") for number in range(5)]
    few = load(config(tmp_path, key_set(*members[:4]), "EdDSA"))
    assert few.verify(signed("EdDSA", 3), NOW).principal.name == "kitchen-pi"
    many = load(config(tmp_path, key_set(*members), "EdDSA"))
    assert refusal(many, signed("EdDSA", 0)) == "more than 4 keys for the JWT's alg and kid"
    assert many.verify(signed("EdDSA", 4, "key-4"), NOW).principal.name == "kitchen-pi"
    assert refusal(many, signed("EdDSA", 4, "key-3")) == WRONG_SIGNATURE


def test_what_was_verified_before_is_known_until_it_expires(plain: Jwts) -> None:
    token = signed(exp=NOW + 1)
    assert plain.known(token, NOW) is None
    assert plain.known(token, NOW) is None, "to ask is not to verify"
    credential = plain.verify(token, NOW)
    assert plain.known(token, NOW) == credential
    assert plain.known(token, NOW + 1) is None
    wrong = signed(number=1)
    assert refusal(plain, wrong) == WRONG_SIGNATURE
    assert plain.known(wrong, NOW) is None


UNUSABLE = [
    member("RS256", use="enc"),
    member("RS256", alg="RS512"),
    member("RS256", alg="PS256"),
    member("RS256", kid=5),
    member("RS256", n="AQAB"),
    member("RS256", n=5),
    member("RS256", kty=["RSA"]),
    member("ES256"),
    {},
    {"kty": "RSA"},
    {
        "kty": "OKP",
        "crv": "Ed448",
        "x": encoded(ed448.Ed448PrivateKey.generate().public_key().public_bytes_raw()).decode(),
    },
    {"kty": "oct", "k": encoded(b"short").decode()},
    {"kty": "oct", "k": encoded(bytes(32)).decode(), "alg": "HS512"},
]


@pytest.mark.parametrize("useless", UNUSABLE, ids=range(len(UNUSABLE)))
def test_a_key_that_is_not_for_this_is_left_out(useless: dict[str, Any], tmp_path: Path) -> None:
    algorithms = ("RS256", "HS256")
    with pytest.raises(ConfigError, match=r"has no key for RS256, HS256; a key of auth\.jwt\.algorithms$"):
        load(config(tmp_path, key_set(useless), *algorithms))
    authenticator = load(config(tmp_path, key_set(useless, member("RS256", 1)), *algorithms))
    assert authenticator.verify(signed("RS256", 1), NOW).principal.name == "kitchen-pi"
    assert refusal(authenticator, signed("RS256", 0)) == WRONG_SIGNATURE


# Files


ECHOED = key("HS256") + b"\r\n"
RSA_1024 = pem(rsa.generate_private_key(65537, 1024))
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
NO_PUBLIC_KEY = "holds no public key; a PEM file that begins with BEGIN PUBLIC KEY"
NO_SET = 'is no JSON Web Key Set; {"keys": [{"kty": …}]} (RFC 7517)'
FITTING = "an RSA key of 2048 bits, P-256, P-384, P-521 or Ed25519, and its algorithm in auth.jwt.algorithms"
HALF = "is a private key; its public half alone"

WRONG_FILES: list[tuple[bytes, tuple[str, ...], str]] = [
    (b"", ("HS256",), "auth.jwt.secret_file: a secret of 0 bytes; at least 32 for HS256"),
    (b"x" * 31 + b"\n", ("HS256",), "auth.jwt.secret_file: a secret of 31 bytes; at least 32 for HS256"),
    (b"x" * 47, ("HS384",), "auth.jwt.secret_file: a secret of 47 bytes; at least 48 for HS384"),
    (b"x" * 63, ("HS256", "HS512"), "auth.jwt.secret_file: a secret of 63 bytes; at least 64 for HS512"),
    (b"x" * 63, ("HS512", "HS256"), "auth.jwt.secret_file: a secret of 63 bytes; at least 64 for HS512"),
    (b"", ("RS256",), f"auth.jwt.public_key_file: {NO_PUBLIC_KEY}"),
    (b"no PEM\n", ("EdDSA",), f"auth.jwt.public_key_file: {NO_PUBLIC_KEY}"),
    (CERTIFICATE, ("RS256",), f"auth.jwt.public_key_file: {NO_PUBLIC_KEY}"),
    (private_pem(key("RS256")), ("RS256",), f"auth.jwt.public_key_file: {NO_PUBLIC_KEY}"),
    (private_pem(key("EdDSA")), ("EdDSA",), f"auth.jwt.public_key_file: {NO_PUBLIC_KEY}"),
    (RSA_1024, ("RS256", "RS512"), f"auth.jwt.public_key_file: a key for none of RS256, RS512; {FITTING}"),
    (pem(key("ES384")), ("ES256",), f"auth.jwt.public_key_file: a key for none of ES256; {FITTING}"),
    (pem(key("RS256")), ("EdDSA",), f"auth.jwt.public_key_file: a key for none of EdDSA; {FITTING}"),
    (b"{", ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (b"{}", ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (b'{"keys": {}}', ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (b'{"keys": [5]}', ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (b'{"keys": "\xff"}', ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (b'{"keys": ' + b"[" * 100_000, ("RS256",), f"auth.jwt.jwks_file: {NO_SET}"),
    (key_set(), ("RS256",), "auth.jwt.jwks_file: has no key for RS256; a key of auth.jwt.algorithms"),
    (key_set(member("RS256"), member("RS256", d="AQAB")), ("RS256",), f"keys[1]: {HALF}"),
    (key_set(member("EdDSA", d="AQAB", use="enc")), ("RS256",), f"keys[0]: {HALF}"),
]


# Keys are new each time, and a test has the same name each time.
@pytest.mark.parametrize(("content", "algorithms", "line"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_a_wrong_file_earns_one_line(content: bytes, algorithms: tuple[str, ...], line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(config(tmp_path, content, *algorithms))
    assert str(refused.value) == f"{tmp_path / 'keys'}: {line}"


def test_a_public_key_is_no_secret(tmp_path: Path) -> None:
    """Everybody has it, and no JWT would ever be right."""
    for content in (pem(key("RS256")), private_pem(key("ES256")), CERTIFICATE * 2):
        with pytest.raises(ConfigError, match=r"/keys: auth\.jwt\.secret_file: ") as refused:
            load(config(tmp_path, content, "HS256"))
        assert "PEM" in str(refused.value)


@pytest.mark.parametrize("which", ["secret_file", "public_key_file", "jwks_file"])
def test_a_file_that_cannot_be_read_names_its_setting(which: str, tmp_path: Path) -> None:
    for file, why in ((tmp_path / "nowhere", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as refused:
            load(msgspec.structs.replace(Jwt(algorithms=("HS256",)), **{which: str(file)}))
        line = f"{file}: auth.jwt.{which}: cannot be read: {why}; the path of a readable file"
        assert str(refused.value) == line


def test_a_secret_may_end_with_a_newline(tmp_path: Path) -> None:
    assert load(config(tmp_path, ECHOED, "HS256")).verify(signed(), NOW).principal.name == "kitchen-pi"


# Memory, and keys that are taken out


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the tokens whose signature has been verified, in order."""
    seen: list[str] = []
    decode: Callable[..., Any] = jwt.decode

    def noting(token: str, *arguments: Any, **options: Any) -> Any:
        seen.append(token)
        return decode(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", noting)
    return seen


def test_so_many_right_tokens_are_remembered_and_no_more(
    plain: Jwts, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwts, "REMEMBERED", 3)
    made = [signed(sub=f"n{number}") for number in range(4)]
    first = [plain.verify(token, NOW) for token in made[:3]]
    assert [plain.verify(token, NOW) for token in made[:3]] == first
    assert decoded == made[:3], "a token that is remembered costs no second signature"
    plain.verify(made[3], NOW)
    assert [plain.verify(token, NOW) for token in made[1:3]] == first[1:]
    assert decoded == made
    plain.verify(made[0], NOW)
    assert decoded == [*made, made[0]], "the oldest made room"


def test_a_wrong_token_is_verified_each_time(plain: Jwts, decoded: list[str]) -> None:
    wrong = [signed(number=1), signed(exp=NOW), signed(nbf=NOW + 1)]
    for token in wrong * 2:
        refusal(plain, token)
    assert decoded == wrong * 2
    assert plain.verify(wrong[2], NOW + 1).principal.name == "kitchen-pi", "nor is it wrong for ever"


def test_a_credential_stands_as_long_as_its_key(tmp_path: Path) -> None:
    def of(*members: Mapping[str, Any]) -> Jwts:
        return load(config(tmp_path, key_set(*members), "RS256", "EdDSA"))

    before = of(member("RS256", 0, kid="a"), member("EdDSA", kid="b"))
    token = signed("RS256")
    ours, others = before.verify(token, NOW), before.verify(signed("EdDSA"), NOW)
    same_key = of(member("RS256", 0, kid="renamed"), member("RS256", 1))
    assert (same_key.renewed(ours), same_key.renewed(others)) == (ours, None)
    taken_out = of(member("RS256", 1, kid="a"), member("EdDSA", kid="b"))
    assert (taken_out.renewed(ours), taken_out.renewed(others)) == (None, others)
    assert refusal(taken_out, token) == WRONG_SIGNATURE, "what was remembered went with the key"


def test_a_new_secret_revokes_what_the_old_one_signed(plain: Jwts, tmp_path: Path) -> None:
    credential = plain.verify(signed(), NOW)
    assert load(config(tmp_path, ECHOED, "HS256")).renewed(credential) == credential
    assert load(config(tmp_path, key("HS256", 1), "HS256")).renewed(credential) is None
    assert key("HS256") not in credential.voucher
    assert credential.voucher == hashlib.sha256(key("HS256")).digest()
