"""Who connects, and which host keys are trusted: users, private keys with and without a passphrase, pinned, recorded and revoked keys."""

from __future__ import annotations

import subprocess

import pytest

from azora_ci.clients.ssh.credentials import AUTHORITY, Credentials
from azora_ci.clients.ssh.host_keys import HostKey, hashed_line
from azora_ci.core import settings
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import normal_key, user_name
from azora_ci.core.variables import Secret, load

KEY = Secret("-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n")
MINE, OTHER = HostKey("ssh-ed25519", "AAAA"), HostKey("ssh-rsa", "BBBB")
LINE = "web1.example ssh-ed25519 AAAA\n"


def trusts(name, key=MINE, marker="", **parts):
    return Credentials("deploy", KEY, **parts).trusts(name, key, marker)


@pytest.mark.parametrize("name", ["deploy", "a", "web_1.deploy-2", "user@domain.example"])
def test_names_of_users(name):
    assert user_name(name) == name


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", 'a"b', "a\nProxyCommand x", "a%h", "$HOME", "machine$", "a;b"])
def test_what_is_no_name_of_a_user_is_refused(name):
    with pytest.raises(ValueError):
        user_name(name)


@pytest.mark.parametrize(
    "options", [("-t", "ed25519"), ("-t", "rsa", "-b", "2048"), ("-t", "rsa", "-b", "2048", "-m", "PEM"), ("-t", "ecdsa", "-m", "PKCS8")]
)
@pytest.mark.parametrize("passphrase", ["", "hunter2"])
def test_a_key_with_a_passphrase_is_refused_with_what_to_do(tmp_path, options, passphrase):
    subprocess.run(["ssh-keygen", "-q", *options, "-N", passphrase, "-f", tmp_path / "key"], check=True, timeout=60)
    text = (tmp_path / "key").read_text()
    if not passphrase:
        assert normal_key(text.replace("\n", "\r\n")) == text
        return
    with pytest.raises(BadInputError, match="PROD_KEY has a passphrase") as caught:
        load(settings.ProductionHosts, {"PROD_KEY": text})
    assert "ssh-keygen -t ed25519 -N ''" in caught.value.next_step
    assert text not in caught.value.message()


def test_what_is_pinned_is_trusted_and_nothing_else(tmp_path):
    assert trusts("web1.example", known_hosts=LINE)
    assert not trusts("web1.example", OTHER, known_hosts=LINE)
    assert not trusts("web2.example", known_hosts=LINE)
    assert not trusts("web2.example", known_hosts=LINE, accept_new=True)
    assert trusts("web1.example", known_hosts=hashed_line("web1.example", MINE, bytes(20)))


def test_a_name_without_a_port_holds_for_every_port_that_has_no_key_of_its_own():
    assert trusts("[web1.example]:2222", known_hosts=LINE)
    assert not trusts("[web1.example]:2222", known_hosts=LINE + "[web1.example]:2222 ssh-rsa BBBB\n")
    assert not trusts("web1.example", known_hosts="[web1.example]:2222 ssh-ed25519 AAAA\n")


def test_a_revoked_key_is_not_trusted():
    assert not trusts("web1.example", known_hosts=f"{LINE}@revoked * ssh-ed25519 AAAA\n")
    assert not trusts("web1.example", known_hosts=None, recorded="@revoked * ssh-ed25519 AAAA\n", accept_new=True)


def test_an_authority_vouches_for_the_hosts_that_it_is_pinned_for():
    line = "@cert-authority *.example ssh-ed25519 AAAA\n"
    assert trusts("web1.example", marker=AUTHORITY, known_hosts=line)
    assert not trusts("web1.other", marker=AUTHORITY, known_hosts=line)
    assert not trusts("web1.example", known_hosts=line)
    assert not trusts("web1.example", marker=AUTHORITY, known_hosts=LINE)
    assert not trusts("web1.example", marker=AUTHORITY, known_hosts=f"{line}@revoked * ssh-ed25519 AAAA\n")


def test_the_types_of_known_keys_come_first():
    credentials = Credentials("deploy", KEY, known_hosts="web1.example ssh-rsa BBBB\n@cert-authority web2.example ssh-ed25519 AAAA\n")
    assert credentials.key_types("web1.example").startswith("rsa-sha2-512,ssh-ed25519,")
    assert credentials.key_types("web2.example").startswith("*-cert-v01@openssh.com,ssh-ed25519,")


def test_a_host_of_which_no_key_is_known_is_refused_where_others_are_recorded():
    credentials = Credentials("deploy", KEY, known_hosts=None, recorded=LINE)
    assert credentials.key_types("web1.example")
    with pytest.raises(BadInputError, match="No host key is pinned"):
        credentials.key_types("web2.example")


def test_accepting_does_not_override_what_is_recorded_or_was_accepted():
    credentials = Credentials("deploy", KEY, known_hosts=None, recorded=LINE, accept_new=True)
    assert not credentials.trusts("web1.example", OTHER)
    assert credentials.trusts("web2.example", OTHER)
    credentials.note("web2.example", OTHER)
    assert credentials.trusts("web2.example", OTHER)
    assert not credentials.trusts("web2.example", MINE)
