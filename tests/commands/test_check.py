"""`python -m gateway check`."""

from pathlib import Path

import pytest

from tests.support.command import Ended, run


def test_all_is_well(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\nport = 9000\n")
    said = "all is well; serve would listen on 127.0.0.1:9000, auth.mode is none\n"
    assert run("check", "--config", str(file)) == Ended(0, f"{file}: {said}", "")
    assert run("--config", str(file), "check") == Ended(0, f"{file}: {said}", ""), "the option may stand first"
    assert run("check", environ={"GATEWAY_CONFIG": str(file)}) == Ended(0, f"{file}: {said}", "")


def test_without_a_file() -> None:
    ended = run("check", "--host", "::1", environ={"GATEWAY_SERVER__PORT": "1"})
    said = "no file, the defaults: all is well; serve would listen on [::1]:1, auth.mode is none\n"
    assert ended == Ended(0, said, "")


def test_several_addresses() -> None:
    ended = run("check", "--host", "127.0.0.1,::1")
    assert "serve would listen on 127.0.0.1:8765 and [::1]:8765, auth" in ended.stdout


def test_a_cluster_is_named_and_not_asked() -> None:
    ended = run("check", environ={"GATEWAY_CLUSTER__NATS": "nats://127.0.0.1:1", "GATEWAY_CLUSTER__NAME": "home"})
    assert (ended.status, ended.stderr) == (0, "")
    assert "listen on 127.0.0.1:8765, in the cluster home, auth.mode is none" in ended.stdout


def test_the_example_is_well() -> None:
    assert run("check", "--config", "conf/gateway.toml").status == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nport = 70000\n", "server.port: "),
        ("[server]\nprot = 1\n", 'did you mean "port"?'),
        ("[server\n", "line 1, column "),
        ("[auth]\nmode = 'token'\ntokens_file = '/nowhere.toml'\n", "auth.tokens_file: "),
        ("[methods]\nmodules = ['no_such_module']\n", "methods.modules: "),
        ("[server]\nhost = '0.0.0.0'\n", "server.host: "),
        ("[cluster]\nnats = ['nats://a']\ntoken_file = '/nowhere'\n", "cluster.token_file: cannot be read: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    ended = run("check", "--config", str(file))
    assert (ended.status, ended.stdout) == (2, "")
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["extra"], ["--json"], ["--config"], ["--url", "ws://a/ws"]])
def test_wrong_usage(arguments: list[str]) -> None:
    ended = run("check", *arguments)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
