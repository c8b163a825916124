"""Charts are rendered as Helm renders them, as far as files say it, and without end by no chart."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.files import walk
from azora_ci.cli.adopt.kubernetes.helm import chart
from azora_ci.cli.adopt.kubernetes.helm.evaluation import Templates
from azora_ci.cli.adopt.kubernetes.helm.syntax import TemplateError, parse
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader
from azora_ci.cli.adopt.repository import Files

VALUES = {"image": {"repository": "acme/shop", "tag": ""}, "ports": [80, 81], "env": {"A": "1", "B": "2"}, "off": False, "name": "x"}
HELPERS = """\
{{- define "full" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end -}}
"""
NOBODYS = chart.Release()


def printed(text: str) -> str:
    root = {"Values": VALUES, "Chart": {"Name": "shop", "AppVersion": "1.2"}, "Release": {"Name": "prod", "Namespace": ""}}
    templates, helpers = Templates(), parse(HELPERS)
    templates.add(helpers)
    blocks = parse(text)
    templates.add(blocks)
    return templates.render(blocks, root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}", "acme/shop:1.2"),
        ("a\n  {{- if .Values.off }}\nno\n  {{- else if eq .Values.name `x` }}\nyes\n  {{- else }}\nnone\n  {{- end }}\nz", "a\nyes\nz"),
        ("{{ range $place, $port := .Values.ports }}{{ $place }}={{ $port }};{{ end }}", "0=80;1=81;"),
        ("{{ range $key, $value := .Values.env }}{{ $key }}{{ $value }}{{ $.Chart.Name }} {{ end }}", "A1shop B2shop "),
        ("{{ range .Values.none }}x{{ else }}none{{ end }}", "none"),
        ("{{ with .Values.image }}{{ .repository }}{{ end }}{{ with .Values.none }}x{{ else }}{{ .Chart.Name }}{{ end }}", "acme/shopshop"),
        ('{{ include "full" . | quote }}', '"prod-shop"'),
        ('{{ $name := include "full" . }}{{ $name }}{{/* a }} comment */}}', "prod-shop"),
        ("e:\n{{ toYaml .Values.env | indent 2 }}", "e:\n  A: '1'\n  B: '2'"),
        ('{{ tpl "{{ .Values.name }}" . }}', "x"),
        ("{{ if and .Values.name (not .Values.off) (or .Values.none (ne 1 2)) }}yes{{ end }}", "yes"),
        ('{{ (index .Values.ports 1) }}{{ (dict "a" 1).a }}{{ ternary "y" "n" true }}', "811y"),
        ('{{ if .Capabilities.APIVersions.Has "x/v1" }}x{{ end }}{{ unheardOf 1 2 }}{{ .Values.a.b.c }}', ""),
        ('{{ define "own" }}o{{ . }}{{ end }}{{ template "own" 3 }}', "o3"),
    ],
)
def test_a_template_prints_what_helm_prints(text, expected):
    assert printed(text) == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        '{{ define "a" }}{{ include "a" . }}{{ end }}{{ include "a" . }}',
        '{{ define "a" }}{{ include "a" . }}{{ include "a" . }}{{ end }}{{ include "a" . }}',
        "{{ if true }}" * 100 + "{{ end }}" * 100,
        "{{ " + "(" * 5000 + " }}",
        '{{ $a := "xxxxxxxxxxxxxxxx" }}' + '{{ $a = printf "%s%s" $a $a }}' * 40,
        "{{ range $.Values.ports }}" * 30 + "x" + "{{ end }}" * 30,
        "{{ if true }}",
        "{{ .Values.name",
        '{{ tpl "{{ tpl .Values.name . }}" . }}{{ ! }}',
    ],
)
def test_what_has_no_end_or_grows_without_one_is_refused_in_time(text):
    with pytest.raises(TemplateError):
        printed(text)


def rendered(folder: Path, files: dict[str, str], release: chart.Release = NOBODYS) -> tuple[list[Manifest], Reader]:
    for name, content in {"chart/Chart.yaml": "name: shop\nversion: 1.0.0\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    paths = walk(folder)
    reader = Reader(Files(folder, paths), paths)
    assert chart.charts(reader) == ["chart"]
    return chart.render(reader, "chart", release), reader


DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {}}}\nspec: {{replicas: {{{{ .Values.replicas }}}}}}\n"


def test_a_name_that_is_made_of_an_unknown_release_is_a_guess(tmp_path):
    files = {
        "chart/values.yaml": "replicas: 1\n",
        "chart/templates/_helpers.tpl": HELPERS,
        "chart/templates/a.yaml": DEPLOYMENT.format('{{ include "full" . }}'),
        "chart/templates/b.yaml": DEPLOYMENT.format("fixed"),
    }
    manifests, _ = rendered(tmp_path, files)
    assert [(manifest.name, bool(manifest.guessed)) for manifest in manifests] == [("shop", True), ("fixed", False)]
    manifests, _ = rendered(tmp_path, files, chart.Release("live"))
    assert [(manifest.name, bool(manifest.guessed)) for manifest in manifests] == [("live-shop", False), ("fixed", False)]


def test_values_of_production_are_over_the_charts_own(tmp_path):
    files = {
        "chart/values.yaml": "replicas: 1\n",
        "chart/values-prod.yaml": "replicas: 5\n",
        "chart/templates/a.yaml": DEPLOYMENT.format("a"),
    }
    _, reader = rendered(tmp_path, files)
    assert chart.values_files(reader, "chart") == ("chart/values-prod.yaml",)
    manifests, _ = rendered(tmp_path, files, chart.Release(values=("chart/values-prod.yaml",)))
    assert manifests[0].document["spec"]["replicas"] == 5


def test_a_template_that_is_not_read_is_noted_and_the_others_are(tmp_path):
    manifests, reader = rendered(
        tmp_path,
        {
            "chart/templates/a.yaml": "{{ if }",
            "chart/templates/b.yaml": "a: [",
            "chart/templates/c.yaml": "kind: Service\nmetadata: {name: c}\n",
        },
    )
    assert [manifest.name for manifest in manifests] == ["c"]
    assert set(reader.notes) == {"chart/templates/a.yaml", "chart/templates/b.yaml"}
