"""Charts and kustomizations whose results would be far larger than they are: each ends at once, in little memory, and is noted."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

import pytest

from azora_ci.cli.adopt.kubernetes import kustomize
from azora_ci.cli.adopt.kubernetes.helm.evaluation import Templates
from azora_ci.cli.adopt.kubernetes.helm.syntax import TemplateError, parse
from azora_ci.cli.adopt.kubernetes.images import _COPY, repository_of
from azora_ci.cli.adopt.kubernetes.manifests import Reader
from azora_ci.cli.adopt.kubernetes.routes import Route, public
from azora_ci.cli.adopt.repository import Files
from tests.cli.adopt.kubernetes.test_adopted import deployment, write


def doubled(name: str, times: int, step: str) -> str:
    return "".join(f"{{{{${name} = {step}}}}}" for _ in range(times))


TEXT = '{{$a := "aaaaaaaaaaaaaaaa"}}' + doubled("a", 14, "print $a $a")
LIST = "{{$l := list 1 2 3 4}}" + doubled("l", 16, "concat $l $l")
DEEP = "{{$d := list 1}}" + doubled("d", 30, "list $d $d")
BOMBS = {
    "replace": TEXT + '{{replace "a" $a $a}}',
    "concat": "{{$l := list 1 2}}" + doubled("l", 40, "concat $l $l"),
    "lists in lists, printed": DEEP + "{{$d}}",
    "lists in lists, measured": "{{$d := list 1}}"
    + doubled("d", 17, "list $d $d")
    + '{{range list 1 2 3 4 5 6 7 8}}{{contains "x" $d}}{{end}}',
    "lists in lists, compared": DEEP + DEEP.replace("$d", "$e") + "{{eq $d $e}}",
    "print": TEXT + "{{print" + " $a" * 900 + "}}",
    "join": LIST + TEXT + "{{join $a $l}}",
    "toYaml": LIST + TEXT + "{{$m := list}}{{range $l}}{{$m = concat $m (list $a)}}{{end}}{{toYaml (list" + " $a" * 900 + ")}}",
    "indent": '{{$n := "\\n\\n\\n\\n"}}' + doubled("n", 16, "print $n $n") + "{{indent 100 $n}}",
    "a name of a mapping": DEEP + '{{$x := dict $d "x"}}{{toYaml (dict "k" $d)}}',
    "turns of nothing": LIST + "{{range $l}}{{range $l}}{{range $l}}{{end}}{{end}}{{end}}",
    "trimAll": '{{trimAll "' + "".join(map(chr, range(0x4E00, 0x5E00))) + '" "' + "\u5dff" * 4000 + '"}}',
    "tpl of nothing": '{{$t := "{{}}{{}}{{}}{{}}"}}'
    + doubled("t", 14, "print $t $t")
    + "{{range list"
    + " 1" * 4000
    + "}}{{tpl $t .}}{{end}}",
}


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Fail a test that takes more than 20 s of the processor, tracing included, or 200 MB."""
    tracemalloc.start()
    start = time.process_time()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 20
    assert peak < 200 * 1024 * 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_is_refused_before_it_grows(template):
    with pytest.raises(TemplateError):
        Templates().render(parse(template), {})


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "image", ["app@build/thing", ":" * 100_000 + "/", "a-" * 100_000, "@" * 100_000 + "/"], ids=["at a folder", "colons", "dashes", "ats"]
)
def test_an_image_of_any_form_is_read(tmp_path, image):
    files = {"k/kustomization.yaml": "resources: [a.yaml]\nimages: [{name: app, newName: other}]\n", "k/a.yaml": deployment("a", image)}
    built = kustomize.build(reader(write(tmp_path, files)), "k")
    assert len(built) == 1
    assert len(repository_of(image)) <= 1000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("line", ["namePrefix: %s", "nameSuffix: %s", "images: [{name: img, newName: %s}]"])
def test_names_of_kustomize_are_no_longer_than_names_may_be(tmp_path, line):
    several = "---\n".join(deployment(f"a{number}", "img") for number in range(200))
    kustomization = f"resources: [a.yaml]\n{line % ('x' * 300_000)}\n"
    found = kustomize.build(reader(write(tmp_path, {"k/kustomization.yaml": kustomization, "k/a.yaml": several})), "k")
    assert found
    assert all(len(str(manifest.document)) < 5000 for manifest in found)


@pytest.mark.timeout(300)
def test_patches_that_copy_without_end_are_noted(tmp_path):
    value = ", ".join(["1"] * 20_000)
    patch = f"patches: [{{target: {{kind: Deployment}}, patch: '[{{op: add, path: /x, value: [{value}]}}]'}}]\n"
    several = "---\n".join(deployment(f"a{number}", "img") for number in range(200))
    read = reader(write(tmp_path, {"k/kustomization.yaml": f"resources: [a.yaml]\n{patch}", "k/a.yaml": several}))
    kustomize.build(read, "k")
    assert "builds of Kustomize copy too much" in read.notes.values()


@pytest.mark.timeout(300)
def test_patterns_take_no_square_of_time():
    assert not _COPY.search("COPY" + " " * 200_000 + "<")
    assert public([Route("a", "*" * 100_000 + "\n", "/", "x")]) is None


def reader(folder):
    """Return a reader of all files of a folder."""
    paths = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return Reader(Files(folder, paths), paths)
