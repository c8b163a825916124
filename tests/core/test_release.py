from __future__ import annotations

import re

import pytest
import semver
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core import release, variables
from azora_ci.core.release import Version

numbers = st.integers(0, 10**9)
identifiers = st.one_of(numbers.map(str), st.from_regex(r"[0-9]*[A-Za-z-][0-9A-Za-z-]{0,8}", fullmatch=True))
prereleases = st.lists(identifiers, min_size=1, max_size=3).map(".".join)


@st.composite
def versions(draw: st.DrawFn) -> str:
    core = f"v{draw(numbers)}.{draw(numbers)}.{draw(numbers)}"
    return core + draw(st.one_of(st.just(""), prereleases.map("-{}".format)))


@given(versions())
def test_every_semantic_version_with_v_is_accepted(text: str) -> None:
    version = Version.parse(text)
    assert str(version) == text
    assert version.tag_ref == f"refs/tags/{text}"
    assert version.is_prerelease == bool(semver.Version.parse(version.bare).prerelease)


@given(st.lists(versions(), min_size=1, max_size=6))
def test_order_is_that_of_semver(texts: list[str]) -> None:
    ordered = [version.bare for version in sorted(map(Version.parse, set(texts)))]
    assert [semver.Version.parse(text) for text in ordered] == sorted(semver.Version.parse(text[1:]) for text in set(texts))


@given(st.text(max_size=20))
def test_whatever_is_accepted_is_a_version_and_nothing_else(text: str) -> None:
    try:
        version = Version.parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert semver.Version.is_valid(version.bare)
        assert re.fullmatch(r"[A-Za-z0-9.-]{1,128}", text)


@given(
    versions(), st.sampled_from(["\n", "\r", " ", "\t", "\0", ";id", "$(id)", "`id`", "|id", "&", "'", '"', "/", "\\", "*", "+build", "٣"])
)
def test_a_version_with_anything_behind_it_is_refused(text: str, tail: str) -> None:
    with pytest.raises(ValueError):
        Version.parse(text + tail)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v1.2", "fewer than three numbers"),
        ("v1", "fewer than three numbers"),
        ("v01.2.3", "leading zero"),
        ("v1.02.3", "leading zero"),
        ("v1.2.03", "leading zero"),
        ("1.2.3", "lacks the leading v"),
        ("v1.2.3+build.5", "build metadata"),
        ("v1.2.3\n", "white space or a newline"),
        (" v1.2.3", "white space or a newline"),
        ("v1.2.3;rm -rf /", "characters that no version has: ' ' '/' ';'"),
        ("v1.2.3$(id)", "characters that no version has"),
        ("v1.2.3-", "is not v<major>"),
        ("v1.2.3-01", "is not v<major>"),
        ("v1.2.3-rc..1", "is not v<major>"),
        ("v1.2.3.4", "is not v<major>"),
        ("V1.2.3", "is not v<major>"),
        ("vNext", "is not v<major>"),
        ("", "is not v<major>"),
        ("v1.2.3-" + "a" * 122, "128 characters"),
    ],
)
def test_each_refusal_has_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Version.parse(text)


def test_the_longest_image_tag_is_accepted() -> None:
    assert len(str(Version.parse("v1.2.3-" + "a" * 121))) == 128


def test_highest_release_passes_over_what_is_no_release() -> None:
    names = ["v1.9.0", "v1.10.0", "v2.0.0-rc1", "nightly", "v3", "1.99.0", "v1.2.3+b", "v" + "9" * 5000 + ".0.0"]
    assert str(release.highest_release(names)) == "v1.10.0"
    assert release.highest_release(["v2.0.0-rc1", "main"]) is None


def test_a_prerelease_is_lower_than_its_release() -> None:
    order = ["v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-beta.2", "v1.0.0-beta.11", "v1.0.0-rc.1", "v1.0.0", "v1.0.1"]
    assert [str(version) for version in sorted(map(Version.parse, reversed(order)))] == order


@given(st.integers(1, 10**12 - 1), st.from_regex(r"[0-9a-f]{40}", fullmatch=True))
def test_a_deployment_id_is_what_settings_accept(seconds: int, sha: str) -> None:
    name = release.new_deployment_id(seconds, sha)
    assert variables.deployment_id(name) == name == f"{seconds}-{sha[:6]}"


@pytest.mark.parametrize(
    ("deployment_id", "attempt", "expected"),
    [("1764000000-abc123", 1, "1764000000-abc123"), ("1764000000-abc123", 2, "1764000000-abc123-attempt-2"), (None, 3, "run-7-attempt-3")],
)
def test_artifact_names_of_later_attempts_differ(deployment_id: str | None, attempt: int, expected: str) -> None:
    assert release.artifact_suffix(deployment_id, "7", attempt) == expected
