"""Reading the workflow file, and the file of a second attempt, which act runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from azora_ci.cli.adopt import plan
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.act import workflow_text
from azora_ci.rehearsal.act.runner import Act, RunRequest, dotenv, replaced_actions
from azora_ci.rehearsal.judge.deployment import JOBS
from tests.rehearsal.conftest import ACTOR_SECRET, ROOT, Toy

PINNED = plan.SetupAction("azora/deployer", "1" * 40)
TEMPLATE = (ROOT / ".github" / "workflows" / "deploy-production.yml").read_text(encoding="utf-8")
REAL = plan.pinned(TEMPLATE, PINNED)


def test_the_real_workflow_is_read_as_yaml_reads_it() -> None:
    document = yaml.safe_load(REAL)["jobs"]
    assert list(workflow_text.blocks(REAL)) == list(document) == list(JOBS)
    assert workflow_text.needs(REAL) == {job: definition.get("needs", []) for job, definition in document.items()}
    used = {step["uses"] for definition in document.values() for step in definition["steps"] if "uses" in step}
    actions = {f"{repository}/{folder}@{commit}".replace("/@", "@") for repository, folder, commit in workflow_text.actions(REAL)}
    assert actions == used


def test_every_action_of_the_real_workflow_has_a_local_composite() -> None:
    for name, folder in replaced_actions(REAL).items():
        action = yaml.safe_load((folder / "action.yml").read_text(encoding="utf-8"))
        assert action["runs"]["using"] == "composite", name


def test_local_composites_know_every_input_that_the_workflow_gives() -> None:
    for job in yaml.safe_load(REAL)["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                folder = ROOT / "azora_ci" / "rehearsal" / "actions" / step["uses"].split("@")[0].rsplit("/", 1)[1]
                action = yaml.safe_load((folder / "action.yml").read_text(encoding="utf-8"))
                assert set(step.get("with", {})) <= set(action.get("inputs", {})), step["uses"]


def test_the_local_set_up_offers_what_the_real_one_offers() -> None:
    real = yaml.safe_load((ROOT / ".github" / "actions" / "setup" / "action.yml").read_text(encoding="utf-8"))
    local = yaml.safe_load((ROOT / "azora_ci" / "rehearsal" / "actions" / "setup" / "action.yml").read_text(encoding="utf-8"))
    assert (set(local["inputs"]), set(local["outputs"])) == (set(real["inputs"]), set(real["outputs"]))


def test_an_action_without_a_local_composite_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"somebody/thing has no local composite"):
        replaced_actions(f"uses: somebody/thing@{'0' * 40}")


def results(**unsuccessful: str) -> dict[str, str]:
    return {job: unsuccessful.get(job.replace("-", "_"), "success") for job in JOBS}


@pytest.mark.parametrize(
    ("job_results", "again"),
    [
        (results(), set()),
        (
            results(smoke_tests="failure", deployment_record="skipped"),
            {"smoke-tests", "deployment-record", "manual-rollback", "deployment-failure-handler"},
        ),
        (results(manual_rollback="cancelled"), {"manual-rollback", "deployment-failure-handler"}),
        (results(validate_release="failure"), set(JOBS)),
    ],
)
def test_failed_jobs_and_all_that_depend_on_them_run_again(job_results: dict[str, str], again: set[str]) -> None:
    assert workflow_text.to_run_again(REAL, job_results) == again


TOY = """\
name: Toy
on: { push: {} }
defaults: { run: { shell: bash } }
jobs:
  first:
    runs-on: ubuntu-24.04
    outputs:
      name: ${{ steps.run.outputs.name }}
      digests: ${{ steps.run.outputs.digests }}
    steps:
      - id: run
        run: |
          echo "name=first of $GITHUB_RUN_ATTEMPT" >> "$GITHUB_OUTPUT"
          echo 'digests={"a": "sha256:$HOME `x` \\"q\\""}' >> "$GITHUB_OUTPUT"
  second:
    needs: [first]
    runs-on: ubuntu-24.04
    steps:
      - run: |
          echo "got $NAME and $DIGESTS"
          exit 1
        env: { NAME: "${{ needs.first.outputs.name }}", DIGESTS: "${{ needs.first.outputs.digests }}" }
  third:
    needs: [first, second]
    runs-on: ubuntu-24.04
    steps: [{ run: "true" }]
"""


def test_a_second_attempt_carries_results_and_outputs_over(toy: Toy) -> None:
    first = toy.run(TOY)
    assert {job: run.result for job, run in first.items()} == {"first": "success", "second": "failure", "third": "skipped"}
    again = workflow_text.to_run_again(TOY, {job: run.result for job, run in first.items()})
    text = workflow_text.second_attempt(TOY, again, {job: run.outputs for job, run in first.items()})
    assert workflow_text.blocks(text)["second"] == workflow_text.blocks(TOY)["second"]
    second = toy.run(text.replace("exit 1", "exit 0"))
    assert {job: run.result for job, run in second.items()} == dict.fromkeys(("first", "second", "third"), "success")
    printed = [line for line in first["second"].lines if line.startswith("got ")]
    assert printed and printed == [line for line in second["second"].lines if line.startswith("got ")]
    assert second["first"].outputs == first["first"].outputs


def test_a_workflow_that_act_cannot_read_is_an_error(toy: Toy) -> None:
    with pytest.raises(NotTrueError, match="act ran no job"):
        toy.run(TOY.replace("needs: [first]\n", "needs: [nobody]\n"))


def test_a_job_that_act_gives_up_in_is_an_error(toy: Toy) -> None:
    twice = TOY.replace('env: { NAME: "', 'env: { NAME: "x", NAME: "')
    with pytest.raises(NotTrueError, match="in the middle of second"):
        toy.run(twice)


def test_no_secret_is_on_the_command_line(toy: Toy, tmp_path: Path) -> None:
    toy.run(TOY)
    log = (tmp_path / "processes.log").read_text(encoding="utf-8")
    command = next(line for line in log.splitlines() if " --secret-file " in line)
    assert "p4ss" not in command and "--secret " not in command


def test_values_with_quotes_survive_the_file() -> None:
    assert dotenv({"A": 'say "x" $HOME', "B": "it's"}) == 'A=\'say "x" $HOME\'\nB="it\'s"\n'


def test_two_actions_of_one_repository_lie_in_one_local_copy(tmp_path):
    commit = "1" * 40
    workflow = tmp_path / "workflow.yml"
    workflow.write_text("".join(f"      - uses: azora/deployer/.github/actions/{name}@{commit}\n" for name in ("setup", "toolchain")))
    act = Act(tmp_path / "act", Processes(JobLog(Actions(), Clock())), Clock(), progress=lambda _job, _run: None)
    act.folder.mkdir()
    request = RunRequest("push", {}, tmp_path, workflow, {}, {}, {})
    written = act._write(request, replaced_actions(workflow.read_text()))
    assert list(written) == [f"azora/deployer@{commit}"]
    found = sorted(path.parent.name for path in written[f"azora/deployer@{commit}"].rglob("action.yml"))
    assert found == ["setup", "toolchain"]


CALLED = """\
name: Called
on: { workflow_call: { inputs: { version: { type: string } }, secrets: { PASSWORD: {}, OTHER: {} } } }
defaults: { run: { shell: bash } }
jobs:
  first:
    runs-on: ubuntu-24.04
    steps:
      - uses: azora/deployer/.github/actions/setup@1111111111111111111111111111111111111111
      - run: echo "version $VERSION, password of ${#PASSWORD} characters, other '$OTHER'"
        env: { VERSION: "${{ inputs.version }}", PASSWORD: "${{ secrets.PASSWORD }}", OTHER: "${{ secrets.OTHER }}" }
  second:
    needs: [first]
    if: always() && needs.first.result == 'success'
    runs-on: ubuntu-24.04
    steps: [{ run: "true" }]
"""
CALLER = """\
name: Caller
on: { push: {} }
permissions: {}
jobs:
  production:
    permissions: { contents: read }
    uses: azora/deployer/.github/workflows/called.yml@1111111111111111111111111111111111111111
    with: { version: v1.1.0 }
    secrets: { PASSWORD: "${{ secrets.PASSWORD }}" }
"""


def test_a_called_workflow_runs_with_what_its_caller_hands_over(toy: Toy) -> None:
    jobs = toy.run(CALLER, published=CALLED)
    assert {job: run.result for job, run in jobs.items()} == {"first": "success", "second": "success"}
    (printed,) = [line for line in jobs["first"].lines if line.startswith("version ")]
    assert printed == f"version v1.1.0, password of {len(ACTOR_SECRET)} characters, other ''"
    assert workflow_text.called(CALLER) == (f"azora/deployer@{'1' * 40}", ".github/workflows/called.yml")
    with pytest.raises(ValueError, match="calls no other"):
        workflow_text.called(CALLED)
