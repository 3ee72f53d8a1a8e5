"""Settings: which source wins, what is refused, and whether the message says whose fault it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from wsvoice.config import (
    DIAL_SETTINGS,
    RUN_SETTINGS,
    Detection,
    DialConfig,
    RunConfig,
    export_dotenv,
    make_private,
    resolve_account,
    resolve_dial,
    resolve_run,
    state_folder,
    write_private,
)
from wsvoice.errors import ConfigError
from wsvoice.providers import account


def run_config(tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> RunConfig:
    return resolve_run(flags, environ=environ or {}, cwd=tmp_path).config


def dial_config(tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> DialConfig:
    return resolve_dial(flags, environ=environ or {}, cwd=tmp_path).config


def refusal(tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        run_config(tmp_path, environ, **flags)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value


# -- Which source wins --


def test_nothing_given_is_the_dataclass_defaults(tmp_path):
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.config == RunConfig()
    assert set(resolved.origins.values()) == {"default"}
    assert resolve_dial({}, environ={}, cwd=tmp_path).config == DialConfig()


#: Sources, strongest first: how each sets the port, and what it is called.
SOURCES = ["flag", "environment", "dotenv", "pyproject"]


@pytest.mark.parametrize("strongest", range(len(SOURCES)))
def test_the_strongest_source_wins_and_is_remembered(tmp_path, strongest):
    flags: dict[str, object] = {}
    environ: dict[str, str] = {}
    for source in SOURCES[strongest:]:
        if source == "flag":
            flags["port"] = "8001"
        elif source == "environment":
            environ["WSVOICE_PORT"] = "8002"
        elif source == "dotenv":
            (tmp_path / ".env").write_text("WSVOICE_PORT=8003\n")
        else:
            (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\nport = 8004\n")
    resolved = resolve_run(flags, environ=environ, cwd=tmp_path)
    expected = [
        (8001, "flag --port"),
        (8002, "environment WSVOICE_PORT"),
        (8003, ".env WSVOICE_PORT"),
        (8004, "pyproject.toml [tool.wsvoice] port"),
    ]
    assert (resolved.config.port, resolved.origins["port"]) == expected[strongest]
    assert resolved.values["port"] == resolved.config.port


def test_every_option_of_run_can_stand_in_each_source(tmp_path):
    texts = {
        "bot": "other.py",
        "transport": "twilio",
        "proxy": "bot.example.com",
        "number": "+1 555 123 4567",
        "host": "0.0.0.0",
        "port": "8000",
        "max-calls": "3",
        "param": "a=1,b=2",
        "verify": "enforce",
        "stream-auth": "none",
        "record": "recordings",
        "drain-timeout": "2m",
        "metrics-port": "9090",
        "metrics-host": "0.0.0.0",
        "log-level": "debug",
        "log-format": "json",
    }
    expected = RunConfig(
        bot="other.py",
        transport="twilio",
        proxy="bot.example.com",
        number="+15551234567",
        host="0.0.0.0",
        port=8000,
        max_calls=3,
        parameters={"a": "1", "b": "2"},
        verify="enforce",
        stream_auth="none",
        record=Path("recordings"),
        drain_timeout_s=120.0,
        metrics_port=9090,
        metrics_host="0.0.0.0",
        log_level="DEBUG",
        log_format="json",
    )
    assert run_config(tmp_path, **texts) == expected
    environ = {f"WSVOICE_{name.upper().replace('-', '_')}": value for name, value in texts.items()}
    assert run_config(tmp_path, environ) == expected
    dotenv = tmp_path / "dotenv"
    dotenv.mkdir()
    (dotenv / ".env").write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
    assert run_config(dotenv) == expected
    toml = tmp_path / "toml"
    toml.mkdir()
    lines = "".join(f'{name} = "{value}"\n' for name, value in texts.items())
    (toml / "pyproject.toml").write_text(f"[tool.wsvoice]\n{lines}")
    assert run_config(toml) == expected


def test_every_option_of_dial_can_stand_in_each_source(tmp_path):
    texts = {
        "target": "ws://localhost:9000/",
        "transport": "twilio",
        "audio": "one.wav,two.wav",
        "dtmf": "12#w*",
        "from": "+15550100008",
        "to": "+15550100009",
        "param": "a=1",
        "duration": "90s",
        "listen": "500ms",
        "response-timeout": "1.5",
        "record": "call.wav",
        "force-ws": "true",
        "method": "get",
        "caller": "caller.py:other",
        "probe": "yes",
        "quirk": "reorder=0.1,leg-codec=PCMA",
    }
    expected = DialConfig(
        target="ws://localhost:9000/",
        audio=(Path("one.wav"), Path("two.wav")),
        dtmf="12#w*",
        from_number="+15550100008",
        to_number="+15550100009",
        parameters={"a": "1"},
        duration_s=90.0,
        listen_s=0.5,
        response_timeout_s=1.5,
        record=Path("call.wav"),
        force_ws=True,
        method="GET",
        caller="caller.py:other",
        probe=True,
        quirks={"reorder": "0.1", "leg-codec": "PCMA"},
    )
    assert dial_config(tmp_path, **texts) == expected
    environ = {f"WSVOICE_DIAL_{name.upper().replace('-', '_')}": value for name, value in texts.items()}
    assert dial_config(tmp_path, environ) == expected
    lines = "".join(f'{name} = "{value}"\n' for name, value in texts.items() if name != "audio")
    lines += 'audio = ["one.wav", "two.wav"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.wsvoice.dial]\n{lines}")
    resolved = resolve_dial({}, environ={}, cwd=tmp_path)
    assert resolved.config == expected
    assert resolved.origins["audio"] == "pyproject.toml [tool.wsvoice.dial] audio"


def test_quirks_are_pairs(tmp_path):
    with pytest.raises(ConfigError, match="--quirk takes key=value, got 'silent'") as caught:
        dial_config(tmp_path, quirk=["silent"])
    assert caught.value.hint == "for example `--quirk silent=VALUE`"
    with pytest.raises(ConfigError) as caught:
        dial_config(tmp_path, quirk=["reorder"])
    assert caught.value.hint == "for example `--quirk reorder=0.1`"
    assert resolve_dial({}, environ={}, cwd=tmp_path).values["quirk"] == {}


def test_dial_prefers_its_own_variable_and_follows_the_common_one(tmp_path):
    assert dial_config(tmp_path, {"WSVOICE_DTMF": "1"}).dtmf == "1"
    assert dial_config(tmp_path, {"WSVOICE_DTMF": "1", "WSVOICE_DIAL_DTMF": "2"}).dtmf == "2"


def test_dial_does_not_take_the_recordings_folder_of_run_for_its_file(tmp_path):
    assert dial_config(tmp_path, {"WSVOICE_RECORD": "recordings"}).record is None


def test_each_command_reads_its_own_table(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.wsvoice]\nport = 8000\nrecord = "all"\n[tool.wsvoice.dial]\ndtmf = 12\n'
    )
    assert run_config(tmp_path).port == 8000
    config = dial_config(tmp_path)
    assert (config.dtmf, config.record) == ("12", None)


def test_an_empty_variable_takes_back_what_dotenv_says(tmp_path):
    (tmp_path / ".env").write_text("WSVOICE_PROXY=bot.example.com\nTWILIO_AUTH_TOKEN=from-file\n")
    assert run_config(tmp_path).proxy == "bot.example.com"
    config = run_config(tmp_path, {"WSVOICE_PROXY": "", "TWILIO_AUTH_TOKEN": ""})
    assert config.proxy is None
    assert "TWILIO_AUTH_TOKEN" not in config.credentials


def test_flags_that_are_not_given_do_not_count(tmp_path):
    config = run_config(tmp_path, {"WSVOICE_PARAM": "a=1"}, param=[], port=None, verbose=True)
    assert config.parameters == {"a": "1"}
    assert config.port == 7860


# -- .env --


def test_env_file_names_another_file(tmp_path):
    (tmp_path / ".env").write_text("WSVOICE_PORT=8000\n")
    (tmp_path / "prod.env").write_text("WSVOICE_PORT=9000\n")
    resolved = resolve_run({"env_file": "prod.env"}, environ={}, cwd=tmp_path)
    assert resolved.config.port == 9000
    assert resolved.origins["port"] == "prod.env WSVOICE_PORT"
    assert resolved.env_file == tmp_path / "prod.env"
    assert run_config(tmp_path, {"WSVOICE_ENV_FILE": "prod.env"}).port == 9000


def test_an_env_file_that_is_missing_is_refused_only_when_named(tmp_path):
    assert run_config(tmp_path) == RunConfig()
    error = refusal(tmp_path, env_file="nope.env")
    assert error.message.startswith("--env-file names a file that does not exist")


def test_a_virtualenv_called_dotenv_is_no_env_file(tmp_path):
    (tmp_path / ".env").mkdir()
    assert run_config(tmp_path) == RunConfig()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"A=1\nB=\x00\n"])
def test_a_binary_env_file_is_refused_with_its_place(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    error = refusal(tmp_path)
    assert str(tmp_path / ".env") in error.message
    assert "is not a text file" in error.message


def test_dotenv_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfWSVOICE_PORT=8000\n")
    assert run_config(tmp_path).port == 8000


def test_resolving_leaves_the_process_environment_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("ACME_API_KEY", raising=False)
    (tmp_path / ".env").write_text("ACME_API_KEY=secret\n")
    before = dict(os.environ)
    resolve_run({}, environ=os.environ, cwd=tmp_path)
    assert dict(os.environ) == before


def test_exporting_never_overrides_the_shell(tmp_path):
    (tmp_path / ".env").write_text("ACME_API_KEY=file\nACME_REGION=eu\nACME_BARE\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    environ = {"ACME_API_KEY": "shell"}
    export_dotenv(resolved.dotenv, environ)
    assert environ == {"ACME_API_KEY": "shell", "ACME_REGION": "eu"}


def test_credentials_come_from_both_and_the_shell_wins(tmp_path):
    (tmp_path / ".env").write_text("TWILIO_AUTH_TOKEN=file\nTWILIO_ACCOUNT_SID=AC1\nACME_API_KEY=x\n")
    resolved = resolve_run({}, environ={"TWILIO_AUTH_TOKEN": "shell"}, cwd=tmp_path)
    assert resolved.config.credentials == {"TWILIO_AUTH_TOKEN": "shell", "TWILIO_ACCOUNT_SID": "AC1"}


def test_secrets_are_not_in_any_representation(tmp_path):
    (tmp_path / ".env").write_text("TWILIO_AUTH_TOKEN=hush-hush\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.config.credentials["TWILIO_AUTH_TOKEN"] == "hush-hush"
    assert "hush-hush" not in repr(resolved)
    assert "hush-hush" not in repr(resolve_dial({}, environ={}, cwd=tmp_path))


# -- pyproject.toml --


@pytest.mark.parametrize("key", ["prot", "Port", "max_calls"])
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path, key):
    (tmp_path / "pyproject.toml").write_text(f"[tool.wsvoice]\n{key} = 1\n")
    error = refusal(tmp_path)
    assert error.message == f"pyproject.toml [tool.wsvoice] has no setting {key!r}"
    assert error.hint == ("did you mean `max-calls`?" if key == "max_calls" else "did you mean `port`?")


def test_a_key_like_no_other_gets_the_list(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\nzzzzzz = 1\n")
    assert "max-calls" in (refusal(tmp_path).hint or "")


def test_an_unknown_key_of_dial_does_not_concern_run(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice.dial]\nprot = 1\n")
    assert run_config(tmp_path) == RunConfig()
    with pytest.raises(ConfigError, match=r"\[tool\.wsvoice\.dial\] has no setting 'prot'"):
        dial_config(tmp_path)


def test_a_misspelt_table_of_dial_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice.dail]\nlisten = 2\n[tool.wsvoice.param]\na = '1'\n")
    with pytest.raises(ConfigError) as caught:
        resolve_dial({}, environ={}, cwd=tmp_path)
    assert caught.value.message == "pyproject.toml [tool.wsvoice] has no table 'dail'"
    assert caught.value.hint == "did you mean `[tool.wsvoice.dial]`?"


# -- Variables that nobody reads --


@pytest.mark.parametrize("resolve", [resolve_run, resolve_dial])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WSVOICE_PROT", "did you mean WSVOICE_PORT?"),
        ("WSVOICE_MAX-CALLS", "did you mean WSVOICE_MAX_CALLS?"),
        ("wsvoice_port", "did you mean WSVOICE_PORT?"),
        ("WSVOICE_DIAL_TRANSPROT", "did you mean WSVOICE_DIAL_TRANSPORT?"),
        ("WSVOICE_RUN_PORT", "did you mean WSVOICE_PORT?"),
        ("WSVOICE_DIAL_PORT", "did you mean WSVOICE_PORT?"),
        ("WSVOICE_STARTKEY", "did you mean WSVOICE_START_KEY?"),
        ("WSVOICE_QQQQQ", "no setting has that name"),
    ],
)
def test_a_misspelt_variable_is_told_and_does_no_harm(tmp_path, resolve, name, meant):
    assert resolve({}, environ={name: "8000"}, cwd=tmp_path).warnings == (f"{name} is not read: {meant}",)
    (tmp_path / ".env").write_text(f"{name}=8000\n")
    resolved = resolve({}, environ={}, cwd=tmp_path)
    assert resolved.warnings == (f"{name} in .env is not read: {meant}",)
    assert resolved.config == resolve({}, environ={}, cwd=tmp_path / "..").config
    # Once is enough where it stands in both, and an empty variable takes it back.
    assert len(resolve({}, environ={name: "1"}, cwd=tmp_path).warnings) == 1
    assert resolve({}, environ={name: ""}, cwd=tmp_path).warnings == ()


def test_variables_of_every_command_and_of_others_are_known(tmp_path):
    names = ["WSVOICE_START_KEY", "WSVOICE_ENV_FILE", "WSVOICE_DIAL_ENV_FILE", "WSVOICE_DISABLE_PATCHES", "WSVOICES"]
    names += [name for setting in RUN_SETTINGS for name in setting.variables("run")]
    names += [name for setting in DIAL_SETTINGS for name in setting.variables("dial")]
    (tmp_path / "pass.env").write_text("")
    environ = {
        name: {"WSVOICE_ENV_FILE": "pass.env", "WSVOICE_DIAL_ENV_FILE": "pass.env"}.get(name, "") for name in names
    }
    environ |= {"WSVOICE_START_KEY": "k", "WSVOICE_DIAL_LISTEN": "1", "WSVOICE_LISTEN": "1", "WSVOICES": "x"}
    assert resolve_run({}, environ=environ, cwd=tmp_path).warnings == ()
    environ["WSVOICE_PORT"] = "8000"
    assert resolve_dial({}, environ=environ, cwd=tmp_path).warnings == ()


def test_the_default_of_max_calls_is_told_as_a_rule(tmp_path):
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert (resolved.config.max_calls, resolved.values["max-calls"]) == (None, "100 for each worker")
    resolved = resolve_run({"max_calls": "0"}, environ={}, cwd=tmp_path)
    assert (resolved.config.max_calls, resolved.values["max-calls"]) == (0, 0)


def test_test_calls_have_no_limits_that_save_money(tmp_path):
    """Their callers have all the same number; a limit of calls at once that somebody has set is one to be tested."""
    names = ("max-calls-per-number", "max-calls-per-hour", "max-minutes-per-day")
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\n" + "".join(f"{name} = 1\n" for name in names))
    environ = {"WSVOICE_CAUSES": str(tmp_path / "causes")}
    config = run_config(tmp_path, environ)
    assert (config.max_calls, config.max_calls_per_number) == (0, 0)
    assert (config.max_calls_per_hour, config.max_minutes_per_day) == (0, 0)
    assert run_config(tmp_path, {**environ, "WSVOICE_MAX_CALLS": "3"}).max_calls == 3
    config = run_config(tmp_path)
    assert (config.max_calls_per_number, config.max_calls_per_hour, config.max_minutes_per_day) == (1, 1, 1)


def test_a_busy_message_is_a_file_or_a_text(tmp_path):
    assert run_config(tmp_path, busy_message="We are closed.").busy_message == "We are closed."
    assert run_config(tmp_path, busy_message="sounds/busy.WAV").busy_message == Path("sounds/busy.WAV").absolute()


def test_where_causes_go_is_no_setting(tmp_path):
    """It is between `wsvoice dial` and the server that it starts."""
    resolved = resolve_run({}, environ={"WSVOICE_CAUSES": str(tmp_path / "causes")}, cwd=tmp_path)
    assert resolved.config.causes == tmp_path / "causes"
    assert resolved.warnings == ()
    assert "causes" not in resolved.values
    (tmp_path / ".env").write_text("WSVOICE_CAUSES=causes\n")
    assert resolve_run({}, environ={}, cwd=tmp_path).config.causes is None
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\ncauses = 'causes'\n")
    assert "has no setting 'causes'" in refusal(tmp_path).message


def test_malformed_toml_is_refused_with_its_place(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\nport = \n")
    message = refusal(tmp_path).message
    assert str(tmp_path / "pyproject.toml") in message
    assert "line 2" in message


@pytest.mark.parametrize("content", ["tool = 1\n", "[tool]\nwsvoice = 1\n"])
def test_a_table_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "pyproject.toml").write_text(content)
    assert "must be a table" in refusal(tmp_path).message


def test_toml_types_are_taken_as_they_are_meant(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.wsvoice]\ndrain-timeout = 90\n[tool.wsvoice.param]\nlanguage = 'en'\ntries = 3\nstrict = true\n"
    )
    config = run_config(tmp_path)
    assert config.drain_timeout_s == 90.0
    assert config.parameters == {"language": "en", "tries": "3", "strict": "true"}


@pytest.mark.parametrize("value", ["true", "80.5", "[1]", "{ a = 1 }"])
def test_toml_values_of_the_wrong_type_are_refused(tmp_path, value):
    (tmp_path / "pyproject.toml").write_text(f"[tool.wsvoice]\nport = {value}\n")
    assert refusal(tmp_path).message.startswith("pyproject.toml [tool.wsvoice] port takes a port")


# -- The proxy --


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("x.io", "x.io"),
        ("https://x.io", "x.io"),
        ("https://x.io/", "x.io"),
        ("http://x.io", "x.io"),
        ("wss://X.IO/", "x.io"),
        ("WS://x.io", "x.io"),
        ("Bot.Example.COM", "bot.example.com"),
        ("x.io:8443", "x.io:8443"),
        (" x.io ", "x.io"),
        ("a-b.ngrok-free.app", "a-b.ngrok-free.app"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("https://[::1]:8443/", "[::1]:8443"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
    ],
)
def test_the_proxy_is_a_domain_however_it_is_written(tmp_path, given, taken):
    config = run_config(tmp_path, proxy=given)
    assert config.proxy == taken
    assert config.public_url == f"https://{taken}"


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("x.io/voice", "-x takes a domain, not a URL with a path: got 'x.io/voice'", "use `-x x.io`"),
        ("https://x.io/voice", "-x takes a domain, not a URL with a path: got 'https://x.io/voice'", "use `-x x.io`"),
        ("x.io?a=1", "-x takes a domain, not a URL with a query: got 'x.io?a=1'", "use `-x x.io`"),
        ("x.io#a", "-x takes a domain, not a URL with a fragment: got 'x.io#a'", "use `-x x.io`"),
        ("me:pw@x.io", "-x takes a domain, not a URL with a user name: got 'me:pw@x.io'", "use `-x x.io`"),
        ("ftp://x.io", "-x takes a domain, not a ftp:// address: got 'ftp://x.io'", "for example `-x bot.example.com`"),
        ("::1", "-x takes an IPv6 address in brackets, got '::1'", "use `-x [::1]`"),
        (
            "[zz]",
            "-x takes a domain, got '[zz]'",
            "for example `-x bot.example.com`, or `-x bot.example.com:8443`",
        ),
    ],
)
def test_what_is_no_domain_is_refused_with_the_mend(tmp_path, given, message, hint):
    error = refusal(tmp_path, proxy=given)
    assert (error.message, error.hint) == (message, hint)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "  ",
        "https://",
        "/",
        "x y.io",
        "x..io",
        "-x.io",
        "x.io:",
        "x.io:0",
        "x.io:65536",
        "x.io:http",
        "[::1",
        "*",
        "[::1]x",
        "a" * 64,
    ],
)
def test_other_nonsense_is_refused_as_a_proxy(tmp_path, given):
    assert refusal(tmp_path, proxy=given).message.startswith("-x takes a domain")


def test_the_message_names_the_variable_that_is_wrong(tmp_path):
    assert refusal(tmp_path, {"WSVOICE_PROXY": "x.io/voice"}).message.startswith("WSVOICE_PROXY takes a domain")
    (tmp_path / ".env").write_text("WSVOICE_PORT=many\n")
    assert refusal(tmp_path).message == "WSVOICE_PORT in .env takes a port, 0 to 65535, got 'many'"


def test_no_proxy_is_no_public_url():
    assert RunConfig().public_url is None


def test_a_proxy_and_a_tunnel_exclude_each_other(tmp_path):
    error = refusal(tmp_path, proxy="x.io", tunnel="ngrok")
    assert error.message == "-x and --tunnel exclude each other"


def test_of_proxy_and_tunnel_the_stronger_source_is_kept(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nproxy = "x.io"\n')
    config = run_config(tmp_path, tunnel="ngrok")
    assert (config.proxy, config.tunnel) == (None, "ngrok")
    config = run_config(tmp_path, {"WSVOICE_TUNNEL": "ngrok"}, proxy="y.io")
    assert (config.proxy, config.tunnel) == ("y.io", None)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("ngrok", "ngrok"),
        (" Cloudflared ", "cloudflared"),
        ("tailscale funnel {port}", "tailscale funnel {port}"),
        ("ssh -R '80:localhost:{port}' nokey@localhost.run", "ssh -R '80:localhost:{port}' nokey@localhost.run"),
    ],
)
def test_a_tunnel(tmp_path, given, taken):
    assert run_config(tmp_path, tunnel=given).tunnel == taken


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("ngork", "takes ngrok, cloudflared or a command with {port} in it, got 'ngork'", "did you mean `ngrok`?"),
        ("tailscale funnel 7860", "a command with {port} in it", "for example `--tunnel 'tailscale funnel {port}'`"),
        ("ssh -R '80:localhost:{port}", "takes a command, got", "quotation mark"),
    ],
)
def test_a_tunnel_that_is_none(tmp_path, given, message, hint):
    error = refusal(tmp_path, tunnel=given)
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize("given", ["my-bot.ngrok.app", "https://My-Bot.ngrok.app/"])
def test_a_domain_for_the_tunnel(tmp_path, given):
    assert run_config(tmp_path, tunnel="ngrok", tunnel_domain=given).tunnel_domain == "my-bot.ngrok.app"


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            {"tunnel": "ngrok", "tunnel_domain": "x.ngrok.app/voice"},
            "--tunnel-domain takes a domain, not a URL with a path: got 'x.ngrok.app/voice'",
            "use `--tunnel-domain x.ngrok.app`",
        ),
        (
            {"tunnel": "ngrok", "tunnel_domain": "my bot"},
            "--tunnel-domain takes a domain, got 'my bot'",
            "for example `--tunnel-domain bot.ngrok.app`, or `--tunnel-domain bot.ngrok.app:8443`",
        ),
        (
            {"tunnel": "cloudflared", "tunnel_domain": "x.ngrok.app"},
            "--tunnel-domain is for a tunnel of ngrok's",
            "leave --tunnel-domain out",
        ),
        ({"tunnel_domain": "x.ngrok.app"}, "--tunnel-domain is for a tunnel of ngrok's", "add `--tunnel ngrok`"),
    ],
)
def test_a_domain_that_no_tunnel_can_have(tmp_path, flags, message, hint):
    error = refusal(tmp_path, **flags)
    assert (error.message, error.hint) == (message, hint)


def test_a_domain_of_a_weaker_source_waits_for_its_tunnel(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\ntunnel-domain = "x.ngrok.app"\n')
    assert run_config(tmp_path).tunnel_domain is None
    assert run_config(tmp_path, tunnel="cloudflared").tunnel_domain is None
    assert run_config(tmp_path, {"WSVOICE_TUNNEL": "ngrok"}, proxy="y.io").tunnel_domain is None
    assert run_config(tmp_path, {"WSVOICE_TUNNEL": "ngrok"}).tunnel_domain == "x.ngrok.app"


def test_the_token_of_ngrok_is_a_credential(tmp_path):
    (tmp_path / ".env").write_text("NGROK_AUTHTOKEN= 2abc \nNGROK_AUTHTOKN=typo\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.config.credentials["NGROK_AUTHTOKEN"] == "2abc"
    (tmp_path / ".env").write_text("NGROK_AUTH_TOKEN=2abc\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.warnings == ("NGROK_AUTH_TOKEN in .env is not read: did you mean NGROK_AUTHTOKEN?",)


# -- The other values --


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "65536"}, "--port takes a port, 0 to 65535, got '65536'"),
        ({"port": "-1"}, "--port takes a port, 0 to 65535, got '-1'"),
        ({"port": ""}, "--port takes a port, 0 to 65535, got ''"),
        ({"max_calls": "-1"}, "--max-calls takes a whole number from 0 up, got '-1'"),
        ({"max_calls": "two"}, "--max-calls takes a whole number from 0 up, got 'two'"),
        ({"max_calls_per_number": "1.5"}, "--max-calls-per-number takes a whole number from 0 up, got '1.5'"),
        ({"max_minutes_per_day": "1h"}, "--max-minutes-per-day takes a whole number from 0 up, got '1h'"),
        ({"max_call_time": "soon"}, "--max-call-time takes a duration, got 'soon'"),
        ({"busy_message": " "}, "--busy-message takes a sound file, or a text of 1 to 1000 characters, not of 0"),
        (
            {"busy_message": "x" * 1001},
            "--busy-message takes a sound file, or a text of 1 to 1000 characters, not of 1001",
        ),
        ({"verify": "maybe"}, "--verify takes auto, enforce or off, got 'maybe'"),
        ({"stream_auth": "cookie"}, "--stream-auth takes token or none, got 'cookie'"),
        ({"tunnel": "ssh"}, "--tunnel takes ngrok, cloudflared or a command with {port} in it, got 'ssh'"),
        ({"log_level": "LOUD"}, "--log-level takes DEBUG, INFO, WARNING or ERROR, got 'LOUD'"),
        ({"param": ["language"]}, "--param takes key=value, got 'language'"),
        ({"param": ["a b=1"]}, "--param takes names of letters, digits, `_`, `.` and `-`, got 'a b'"),
        ({"param": ["=1"]}, "--param takes names of letters, digits, `_`, `.` and `-`, got ''"),
        ({"drain_timeout": "-5"}, "--drain-timeout takes a duration, got '-5'"),
        ({"drain_timeout": "5 weeks"}, "--drain-timeout takes a duration, got '5 weeks'"),
        ({"drain_timeout": "nan"}, "--drain-timeout takes a duration, got 'nan'"),
        ({"drain_timeout": float("inf")}, "--drain-timeout takes a duration, got inf"),
        ({"host": "http://localhost"}, "--host takes an address to listen on, got 'http://localhost'"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(tmp_path, flags, message):
    assert refusal(tmp_path, **flags).message == message


def test_an_unknown_transport_gets_the_nearest_name(tmp_path):
    error = refusal(tmp_path, transport="twillio")
    assert error.message.startswith("-t takes ")
    assert error.message.endswith("got 'twillio'")
    assert error.hint == "did you mean `twilio`?"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90", 90.0), ("90s", 90.0), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5), ("250ms", 0.25), ("0", 0.0)],
        *[("1h30m", 5400.0), ("1m30s", 90.0), ("1H2m3.5s", 3723.5), ("1s500ms", 1.5)],
    ],
)
def test_durations(tmp_path, text, seconds):
    assert run_config(tmp_path, drain_timeout=text).drain_timeout_s == seconds


@pytest.mark.parametrize("text", ["", "30m1h", "1h30", "1m1m", "h", "1h 30m", "1h-30m"])
def test_what_is_no_duration_gets_examples(tmp_path, text):
    error = refusal(tmp_path, drain_timeout=text)
    assert error.message == f"--drain-timeout takes a duration, got {text!r}"
    assert error.hint == "write seconds, or units: `90`, `90s`, `2m`, `1h30m`"


def test_each_port_that_cannot_be_used_gets_its_own_usual_one(tmp_path):
    assert refusal(tmp_path, port="abc").hint == "7860 is the usual one; 0 takes a free one"
    assert refusal(tmp_path, metrics_port="abc").hint == "9090 is a usual one; 0 takes a free one"


@pytest.mark.parametrize("name", ["duration", "response_timeout"])
def test_waits_that_must_be_longer_than_nothing(tmp_path, name):
    with pytest.raises(ConfigError, match="takes a duration above zero"):
        dial_config(tmp_path, **{name: "0"})


def test_parameters_keep_everything_after_the_first_equals_sign(tmp_path):
    config = run_config(tmp_path, param=["query=a=b,c", "empty=", "x.y-z_1=2"])
    assert config.parameters == {"query": "a=b,c", "empty": "", "x.y-z_1": "2"}


@pytest.mark.parametrize("digits", ["5E", "1,2", "+1", "1 2", "W"])
def test_keys_that_no_phone_has_are_refused(tmp_path, digits):
    with pytest.raises(ConfigError, match="--dtmf takes the keys"):
        dial_config(tmp_path, dtmf=digits)


def test_all_keys_of_a_phone_are_taken(tmp_path):
    assert dial_config(tmp_path, dtmf="0123456789*#ABCDabcdw").dtmf == "0123456789*#ABCDabcdw"


def test_a_switch_can_be_put_off_again(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice.dial]\nforce-ws = true\n")
    assert dial_config(tmp_path).force_ws is True
    assert dial_config(tmp_path, {"WSVOICE_DIAL_FORCE_WS": "off"}).force_ws is False
    with pytest.raises(ConfigError, match="WSVOICE_DIAL_FORCE_WS takes true or false, got 'maybe'"):
        dial_config(tmp_path, {"WSVOICE_DIAL_FORCE_WS": "maybe"})


def test_recordings_go_to_a_folder_and_a_recording_to_a_file(tmp_path):
    file = tmp_path / "file.wav"
    file.touch()
    assert "takes a folder" in refusal(tmp_path, record=str(file)).message
    with pytest.raises(ConfigError, match="--record takes a file"):
        dial_config(tmp_path, record=str(tmp_path))
    assert dial_config(tmp_path, record=str(file)).record == file


# -- What is probably a mistake in .env --


@pytest.mark.parametrize("name", ["TWILIO_AUTHTOKEN", "TWILIO_AUTH_TOKN", "twilio_auth_token"])
def test_a_variable_that_is_nearly_a_credential_gets_a_warning(tmp_path, name):
    meant = "is not read: did you mean TWILIO_AUTH_TOKEN?"
    assert resolve_run({}, environ={name: "abc"}, cwd=tmp_path).warnings == (f"{name} {meant}",)
    (tmp_path / ".env").write_text(f"{name}=abc\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.warnings == (f"{name} in .env {meant}",)
    assert resolved.config.dotenv_place == f".env ({tmp_path / '.env'} was read)"
    assert not resolve_run({}, environ={"TWILIO_AUTH_TOKEN": "s"}, cwd=tmp_path).warnings, "the right one is set"


def test_without_a_dotenv_messages_say_so(tmp_path):
    assert resolve_run({}, environ={}, cwd=tmp_path).config.dotenv_place == f".env (there is none in {tmp_path})"


def test_a_line_of_dotenv_that_is_none_is_named(tmp_path, caplog):
    (tmp_path / ".env").write_text("TWILIO_AUTH_TOKEN=abc\n\n# a note\nPLIVO AUTH ID\nWSVOICE_PORT=8000\n")
    resolved = resolve_run({}, environ={}, cwd=tmp_path)
    assert resolved.warnings == (f".env, line 4, is not read: write NAME=value ({tmp_path / '.env'})",)
    assert (resolved.config.port, resolved.config.credentials) == (8000, {"TWILIO_AUTH_TOKEN": "abc"})
    assert not caplog.records


def test_blanks_around_a_secret_came_with_a_copy(tmp_path):
    (tmp_path / ".env").write_text('PLIVO_AUTH_ID="MA1 "\nPLIVO_AUTH_TOKEN="  "\n')
    config = resolve_run({}, environ={"TWILIO_AUTH_TOKEN": " abc\n"}, cwd=tmp_path).config
    assert config.credentials == {"TWILIO_AUTH_TOKEN": "abc", "PLIVO_AUTH_ID": "MA1"}


@pytest.mark.parametrize("value", ["your_auth_token", "xxxxxxxx", "<token>", "CHANGE_ME", "..."])
def test_a_placeholder_in_place_of_a_secret_gets_a_warning(tmp_path, value):
    warned = resolve_run({}, environ={"TWILIO_AUTH_TOKEN": value}, cwd=tmp_path).warnings
    assert warned == ("TWILIO_AUTH_TOKEN looks like a placeholder: put the real value there",)


# -- A number, an account, and where state is --

TWILIO_NUMBER = {"transport": "twilio", "proxy": "x.io"}


@pytest.mark.parametrize(
    "written", ["+15551234567", "+1 (555) 123-4567", " +1.555.123.4567 ", "+1 555–123–4567", "+1-555/1234567"]
)
def test_a_number_is_taken_as_people_write_it(tmp_path, written):
    assert run_config(tmp_path, number=written, **TWILIO_NUMBER).number == "+15551234567"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("15551234567", "write the plus and the country code: `+15551234567`, if that is what it begins with"),
        ("0049 30 1234567", "write the plus and the country code: `+49301234567`, if that is what it begins with"),
        ("555-1234", "write the plus, the country code and the number: `+15551234567`"),
        ("+44 (0)20 7946 0958", "leave out the (0): `+442079460958`"),
        ("+1555CALLME", "write the plus, the country code and the number: `+15551234567`"),
        ("+1234567890123456", "write the plus, the country code and the number: `+15551234567`"),
        ("", "write the plus, the country code and the number: `+15551234567`"),
        (15551234567, "write the plus and the country code: `+15551234567`, if that is what it begins with"),
    ],
)
def test_a_number_that_is_none_is_refused_with_the_mend(tmp_path, written, hint):
    error = refusal(tmp_path, number=written, **TWILIO_NUMBER)
    assert error.message.startswith("--number takes a ")
    assert error.hint == hint


def test_a_number_needs_its_provider_and_a_public_address(tmp_path):
    error = refusal(tmp_path, number="+15551234567", proxy="x.io")
    assert (error.message, error.hint) == (
        "--number needs to know whose number it is",
        "add its provider: `-t twilio`",
    )
    error = refusal(tmp_path, {"WSVOICE_NUMBER": "+15551234567"}, transport="twilio")
    assert error.message == "WSVOICE_NUMBER needs a public address to point the number at"
    assert error.hint == "add `-x DOMAIN`, or `--tunnel ngrok`"
    assert run_config(tmp_path, number="+15551234567", transport="twilio", tunnel="ngrok").number == "+15551234567"


def test_a_number_is_none_of_a_plain_clients(tmp_path):
    error = refusal(tmp_path, number="+15551234567", transport="websocket", proxy="x.io")
    assert error.message == "--number has no meaning for -t websocket"
    assert run_config(tmp_path, {"WSVOICE_NUMBER": "+15551234567"}, transport="websocket").number is None


def test_the_server_of_a_test_call_leaves_real_numbers_alone(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\nnumber = '+15551234567'\n")
    assert run_config(tmp_path, **TWILIO_NUMBER).number == "+15551234567"
    environ = {"WSVOICE_CAUSES": str(tmp_path / "causes")}
    assert run_config(tmp_path, environ, **TWILIO_NUMBER).number is None
    assert run_config(tmp_path, environ).number is None


def test_state_is_in_the_users_own_folder_or_where_it_is_told(tmp_path):
    assert state_folder({"WSVOICE_STATE_DIR": str(tmp_path / "a")}) == tmp_path / "a"
    usual = state_folder({})
    assert usual.name == "wsvoice"
    assert usual.is_absolute()
    (tmp_path / ".env").write_text(f"WSVOICE_STATE_DIR={tmp_path / 'b'}\n")
    assert run_config(tmp_path).state_folder == tmp_path / "b"
    resolved = resolve_run({}, environ={"WSVOICE_STATE_DIR": str(tmp_path / "c")}, cwd=tmp_path)
    assert resolved.config.state_folder == tmp_path / "c"
    assert resolved.warnings == ()


def test_what_is_kept_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        folder = make_private(tmp_path / "state" / "numbers")
        write_private(folder / "a.json", "one")
        write_private(folder / "a.json", "two")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder, folder / "a.json")] == [0o700, 0o700, 0o600]
    assert (folder / "a.json").read_text() == "two"
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "a.json", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_whose_account_it_is_comes_from_the_settings_of_run(tmp_path):
    (tmp_path / ".env").write_text("WSVOICE_TRANSPORT=telnyx\nTELNYX_API_KEY=KEY\nWSVOICE_NUMBER=+15551234567\n")
    account = resolve_account({}, environ={"WSVOICE_STATE_DIR": str(tmp_path)}, cwd=tmp_path)
    assert (account.transport, account.credentials) == ("telnyx", {"TELNYX_API_KEY": "KEY"})
    assert (account.state_folder, account.warnings) == (tmp_path, ())
    assert resolve_account({"transport": "plivo"}, environ={}, cwd=tmp_path).transport == "plivo"
    assert resolve_account({}, environ={"WSVOICE_TRANSPORT": "websocket"}, cwd=tmp_path).transport is None
    with pytest.raises(ConfigError, match="-t takes twilio, "):
        resolve_account({"transport": "websocket"}, environ={}, cwd=tmp_path)
    (tmp_path / "other.env").write_text("")
    assert resolve_account({"env_file": "other.env"}, environ={}, cwd=tmp_path).credentials == {}


def test_what_is_detected_is_what_accounts_know() -> None:
    # Stated twice, because a command's help is not to wait for the accounts.
    assert get_args(Detection) == get_args(account.Detection)


def test_faults_may_be_noted_and_what_cannot_be_used_left_out(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nmax-calls = "many"\nbogus = 1\nport = 7999\n')
    (tmp_path / ".env").write_text("WSVOICE_VERIFY=perhaps\nWSVOICE_HOST=0.0.0.0\nTWILIO_AUTH_TOKEN=abc\n")
    faults: list[ConfigError] = []
    resolved = resolve_run({}, environ={}, cwd=tmp_path, faults=faults)
    config = resolved.config
    assert (config.port, config.host, config.credentials) == (7999, "0.0.0.0", {"TWILIO_AUTH_TOKEN": "abc"})
    assert (config.max_calls, config.verify) == (RunConfig().max_calls, RunConfig().verify)
    assert resolved.origins["max-calls"] == "default"
    assert len(faults) == 3


@pytest.mark.parametrize("broken", ["[tool.wsvoice\n", "[tool]\nwsvoice = 1\n"])
def test_a_file_that_cannot_be_read_leaves_the_others(tmp_path: Path, broken: str) -> None:
    (tmp_path / "pyproject.toml").write_text(broken)
    faults: list[ConfigError] = []
    resolved = resolve_run(
        {}, environ={"WSVOICE_ENV_FILE": "none.env", "WSVOICE_PORT": "7999"}, cwd=tmp_path, faults=faults
    )
    assert resolved.config.port == 7999
    assert ["pyproject.toml" in each.message for each in faults] == [True, False]


def test_the_server_of_a_test_call_leaves_the_metrics_port_to_the_real_one(tmp_path):
    environ = {"WSVOICE_METRICS_PORT": "9090"}
    assert run_config(tmp_path, environ).metrics_port == 9090
    assert run_config(tmp_path, {**environ, "WSVOICE_CAUSES": str(tmp_path / "causes")}).metrics_port is None


def test_metrics_have_no_meaning_for_a_bot_that_serves_no_calls(tmp_path):
    with pytest.raises(ConfigError, match=r"--metrics-port has no meaning for -t websocket-server"):
        run_config(tmp_path, transport="websocket-server", metrics_port="9090")
