"""The local composites keep the contracts of the actions that they replace; run by act, as in a rehearsal."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.record.needs import Need, parse_needs
from azora_ci.rehearsal.act.artifacts import ArtifactError, artifact_id, download, upload
from tests.rehearsal.conftest import Toy

SHA = "0123456789abcdef0123456789abcdef01234567"
HEAD = """\
name: Toy
on: { push: {}, workflow_dispatch: {} }
permissions: {}
defaults: { run: { shell: bash } }
jobs:
"""


def job(name: str, steps: str, *, more: str = "") -> str:
    return f"  {name}:\n    runs-on: ubuntu-24.04\n{more}    steps:\n{steps}\n"


def checkout(ref: str = "", **more: str) -> str:
    arguments = {"ref": ref, **{name.replace("_", "-"): value for name, value in more.items()}}
    inputs = "".join(f"          {name}: '{value}'\n" for name, value in arguments.items())
    return f"      - uses: actions/checkout@{SHA}\n        with:\n{inputs}"


def test_checkout_gives_what_started_the_run_or_the_ref(toy: Toy) -> None:
    show = "      - run: |\n          token=$({ git config --get-regexp extraheader || true; } | wc -l)\n"
    show += '          echo "at=$(git rev-parse HEAD) text=$(cat app.txt) tags=$(git tag | xargs) token=$token"\n'
    text = HEAD + job("started", checkout(persist_credentials="false") + show) + job("older", checkout(toy.first) + show)
    text += job("everything", checkout("main", fetch_depth="0", persist_credentials="false") + show)
    text += job("annotated", checkout("refs/tags/v1.0.0") + "      - run: echo kind=$(git cat-file -t v1.0.0)\n")
    runs = toy.run(text)
    assert {name: run.result for name, run in runs.items()} == dict.fromkeys(("started", "older", "everything", "annotated"), "success")
    assert f"at={toy.second} text=second tags=v1.1.0 token=0" in runs["started"].lines
    assert f"at={toy.first} text=first tags= token=1" in runs["older"].lines
    assert f"at={toy.second} text=second tags=v1.0.0 v1.1.0 token=0" in runs["everything"].lines
    assert sorted(toy.ended) == ["annotated", "everything", "older", "started"]


def test_the_summary_of_a_job_is_what_all_its_steps_wrote_the_failed_one_too(toy: Toy) -> None:
    steps = """\
      - run: printf '### Plan\\n\\n| a | b |\\n' >> "$GITHUB_STEP_SUMMARY"
      - run: |
          echo '**it broke**' >> "$GITHUB_STEP_SUMMARY"
          exit 1
"""
    runs = toy.run(HEAD + job("writer", steps) + job("silent", "      - run: 'true'\n"))
    assert (runs["writer"].result, runs["writer"].summary) == ("failure", "### Plan\n\n| a | b |\n**it broke**\n")
    assert runs["silent"].summary == ""


def test_a_tag_that_started_the_run_becomes_a_lightweight_one(toy: Toy) -> None:
    text = HEAD + job("started", checkout() + "      - run: echo kind=$(git cat-file -t v1.0.0)\n")
    from tests.support.commands import git

    git(toy.repository, "checkout", "--quiet", "v1.0.0")
    assert "kind=commit" in toy.run(text, ref="refs/tags/v1.0.0")["started"].lines


UPLOAD = f"""\
      - run: mkdir -p logs/.secret logs/record && echo a > logs/record/a.json && echo b > logs/.secret/b && echo c > logs/.c
      - uses: actions/upload-artifact@{SHA}
        with: {{ name: logs-1, path: logs }}
      - id: again
        continue-on-error: true
        uses: actions/upload-artifact@{SHA}
        with: {{ name: logs-1, path: logs }}
      - run: echo "again=$AGAIN"
        env: {{ AGAIN: "${{{{ steps.again.outcome }}}}" }}
"""
DOWNLOAD = f"""\
      - uses: actions/download-artifact@{SHA}
        with: {{ pattern: 'logs-*', path: received }}
      - id: missing
        continue-on-error: true
        uses: actions/download-artifact@{SHA}
        with: {{ name: nothing, path: elsewhere }}
      - run: echo "files=$(cd received && find . -type f | sort | xargs) missing=$MISSING"
        env: {{ MISSING: "${{{{ steps.missing.outcome }}}}" }}
"""


def test_artifacts_travel_without_hidden_files_and_names_are_taken_once(toy: Toy) -> None:
    runs = toy.run(HEAD + job("writer", UPLOAD) + job("reader", DOWNLOAD, more="    needs: [writer]\n"))
    assert "again=failure" in runs["writer"].lines
    assert any("already exists on the workflow run" in line for line in runs["writer"].lines)
    assert "files=./record/a.json missing=failure" in runs["reader"].lines
    assert [path.relative_to(toy.artifacts).as_posix() for path in toy.artifacts.rglob("*") if path.is_file()] == ["logs-1/record/a.json"]


SETUP = f"""\
      - uses: Azora-OS/azora-ci/.github/actions/setup@{SHA}
      - id: aws
        uses: aws-actions/configure-aws-credentials@{SHA}
        with:
          role-to-assume: arn:aws:iam::123456789012:role/deploy
          aws-region: eu-central-1
          output-credentials: true
          output-env-credentials: false
      - run: |
          test -f "$AZORA_CI/scripts/database_backup.py" && "$AZORA_PYTHON" -c 'import azora_ci'
          test "$KEY" = AKIAREHEARSAL && test "$SECRET" = s3-secret-of-the-role && test -z "${{AWS_ACCESS_KEY_ID:-}}"
          echo "shown: $SECRET and $PASSWORD in $COLOUR, attempt $GITHUB_RUN_ATTEMPT of $GITHUB_RUN_ID at $GITHUB_API_URL"
        env:
          KEY: ${{{{ steps.aws.outputs.aws-access-key-id }}}}
          SECRET: ${{{{ steps.aws.outputs.aws-secret-access-key }}}}
          PASSWORD: ${{{{ secrets.PASSWORD }}}}
          COLOUR: ${{{{ vars.COLOUR }}}}
      - continue-on-error: true
        id: nobody
        uses: aws-actions/configure-aws-credentials@{SHA}
        with: {{ role-to-assume: 'somebody', aws-region: eu-central-1 }}
      - run: echo "nobody=$OUTCOME"
        env: {{ OUTCOME: "${{{{ steps.nobody.outcome }}}}" }}
"""


def test_set_up_and_role_hand_over_what_the_real_ones_do(toy: Toy) -> None:
    run = toy.run(HEAD + job("only", SETUP))["only"]
    assert run.result == "success", run.lines
    assert "shown: *** and *** in blue, attempt 2 of 4711 at http://127.0.0.1:9" in run.lines
    assert "nobody=failure" in run.lines
    log = (toy.folder / "act" / "act.log").read_text(encoding="utf-8")
    assert "s3-secret-of-the-role" not in log.replace("aws-secret-access-key", "")
    assert not (toy.folder / "act" / "secrets.env").exists()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    for name in ("logs/a.txt", "logs/deep/b.txt", "other/c.txt", "other/d.log"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("paths", "stored"),
    [
        ("logs", ["a.txt", "deep/b.txt"]),
        ("logs/", ["a.txt", "deep/b.txt"]),
        ("logs/a.txt", ["a.txt"]),
        ("logs/**/*.txt", ["a.txt", "deep/b.txt"]),
        ("logs\nother", ["logs/a.txt", "logs/deep/b.txt", "other/c.txt", "other/d.log"]),
        ("logs\nother\n!other/*.log", ["logs/a.txt", "logs/deep/b.txt", "other/c.txt"]),
    ],
)
def test_several_paths_keep_what_is_below_their_common_folder(workspace: Path, tmp_path: Path, paths: str, stored: list[str]) -> None:
    assert [path.as_posix() for path in upload(tmp_path / "store", "x", paths, root=workspace)] == stored


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a*", 'a"', "a\\b"])
def test_names_that_github_refuses_are_refused(workspace: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="not valid"):
        upload(tmp_path / "store", name, "logs", root=workspace)


def test_nothing_to_upload_leaves_the_name_free(workspace: Path, tmp_path: Path) -> None:
    assert upload(tmp_path / "store", "x", "nowhere", root=workspace) == []
    with pytest.raises(ArtifactError, match="no files were found"):
        upload(tmp_path / "store", "x", "nowhere", root=workspace, if_none="error")
    assert upload(tmp_path / "store", "x", "logs/a.txt", root=workspace) == [Path("a.txt")]


def test_download_by_pattern_and_merged(workspace: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    upload(store, "logs-1", "logs", root=workspace)
    upload(store, "other-1", "other", root=workspace)
    assert download(store, tmp_path / "none", pattern="x-*") == []
    assert download(store, tmp_path / "all", pattern="{logs,other}-1") == ["logs-1", "other-1"]
    assert (tmp_path / "all" / "other-1" / "d.log").exists()
    download(store, tmp_path / "merged", merge=True)
    assert (tmp_path / "merged" / "d.log").exists() and (tmp_path / "merged" / "deep" / "b.txt").exists()


BY_ID = f"""\
      - uses: actions/download-artifact@{SHA}
        with:
          artifact-ids: >-
            ${{{{ needs.first.outputs.artifact-id }}}},
            ${{{{ needs.second.outputs.artifact-id }}}},
            ${{{{ needs.skipped.outputs.artifact-id }}}},
          path: ${{{{ runner.temp }}}}/${{{{ env.RECEIVED }}}}
      - uses: actions/download-artifact@{SHA}
        with: {{ artifact-ids: "${{{{ needs.first.outputs.artifact-id }}}},", path: alone }}
      - id: none
        continue-on-error: true
        uses: actions/download-artifact@{SHA}
        with: {{ artifact-ids: "${{{{ needs.skipped.outputs.artifact-id }}}},", path: none }}
      - run: |
          echo "several=$(cd "$RUNNER_TEMP/received" && find . -type f | sort | xargs) alone=$(cd alone && find . -type f) none=$NONE"
          echo "needs=$NEEDS"
        env:
          NONE: ${{{{ steps.none.outcome }}}}
          NEEDS: ${{{{ toJSON(needs) }}}}
"""


def keeper(name: str, *, ending: str = "true") -> str:
    outputs = "    outputs: { artifact-id: '${{ steps.keep.outputs.artifact-id }}', sum: '${{ steps.run.outputs.sum }}' }\n"
    steps = f"""\
      - id: run
        run: |
          mkdir -p "$RUNNER_TEMP/logs" && echo {name} > "$RUNNER_TEMP/logs/{name}.txt" && echo sum={name}-1 >> "$GITHUB_OUTPUT"
          {ending}
      - id: keep
        if: always()
        uses: actions/upload-artifact@{SHA}
        with: {{ name: {name}-logs, path: "${{{{ runner.temp }}}}/logs" }}
"""
    return job(name, steps, more=outputs)


def test_an_artifact_is_fetched_by_the_id_that_its_job_gave(toy: Toy) -> None:
    skipped = job("skipped", "      - run: 'true'\n", more="    if: github.actor == 'nobody'\n    outputs: { artifact-id: '1' }\n")
    needs = "    needs: [first, second, skipped]\n    if: always()\n    env: { RECEIVED: received }\n"
    runs = toy.run(HEAD + keeper("first") + keeper("second", ending="exit 1") + skipped + job("reader", BY_ID, more=needs))
    assert (runs["first"].result, runs["second"].result, runs["reader"].result) == ("success", "failure", "success"), runs["reader"].lines
    assert "several=./first-logs/first.txt ./second-logs/second.txt alone=./first.txt none=failure" in runs["reader"].lines
    assert runs["first"].outputs == {"sum": "first-1", "artifact-id": str(artifact_id("first-logs"))}
    text = "\n".join(runs["reader"].lines)
    given = parse_needs(text[text.index("needs={") + 6 : text.rindex("}") + 1])
    assert given["first"] == Need("success", runs["first"].outputs)
    assert given["second"] == Need("failure", runs["second"].outputs)
    assert given["skipped"].result == "skipped"


def test_the_id_of_a_skipped_job_is_left_out_though_act_does_not_evaluate_it(tmp_path: Path):
    (tmp_path / "store" / "logs").mkdir(parents=True)
    ids = f"{artifact_id('logs')}, ${{{{ steps.keep.outputs.artifact-id }}}},"
    assert download(tmp_path / "store", tmp_path / "received", ids=ids) == ["logs"]
