"""Which of the images that manifests name are built from this repository, and how: by compose files, Skaffold, or folders' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from azora_ci.cli.adopt.compose.dockerfile import Image as Stage
from azora_ci.cli.adopt.compose.dockerfile import image as stage_of
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.kubernetes.manifests import Reader

# Folders that are not called like the application in them: the one above is.
_NAMELESS = frozenset({".docker", "app", "build", "container", "deploy", "docker", "image", "prod", "production", "server", "src"})
_COPY = re.compile(r"^[ \t]*(?:COPY|ADD)[ \t]+(?P<rest>[^\s<][^\n<]*)$", re.IGNORECASE | re.MULTILINE)
_VARIANT = re.compile(r"(?:(?P<before>[\w-]+)\.)?Dockerfile(?:[.-](?P<behind>[\w.-]+))?", re.IGNORECASE)
_PUBLISHED = re.compile(
    r"(?:docker\.io/)?(?:library/)?(?:busybox|alpine|nginx|redis|postgres|mysql|mariadb|mongo|rabbitmq|memcached|httpd|haproxy|traefik|envoy|"
    r"caddy|minio|kafka|zookeeper|elasticsearch|valkey|nats|node|python|ubuntu|debian)"
)

_BESIDE = frozenset({"agent", "cloud-sql-proxy", "envoy", "exporter", "proxy", "proxyv2", "sidecar"})  # images beside an application's


LONGEST = 1000  # characters of an image with its tag and digest


@dataclass(frozen=True)
class Build:
    """How an image is built, relative to the repository. ``source``: how it was found; ``doubt``: what a person has to look at."""

    context: str
    dockerfile: str
    source: str
    doubt: str = ""
    context_doubt: str = ""
    build: Mapping[str, Any] = field(default_factory=dict)
    says: Stage | None = None


def repository_of(image: str) -> str:
    """Return an image's name without its tag and digest; nothing for a text that is too long to be one."""
    if len(image) > LONGEST:
        return ""
    folder, slash, last = image.partition("@")[0].rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Images:
    """What is built from a repository.

    ``known``: image or its last part -> Build, as compose files and Skaffold say; ``folders``: plain name -> Build, of Dockerfiles.
    """

    known: Mapping[str, Build]
    folders: Mapping[str, Build]
    own: Collection[str]  # what images of this repository may be called
    top: Build | None  # of the Dockerfile at the top, or of the only one
    only: bool = False  # there is no other Dockerfile
    prefixes: Collection[str] = ()  # that stand before folders' names in the names of several images

    def of(self, image: str, workload: str, container: str) -> Build | None:
        """Return how the image of a workload's container is built; None for one that is not built here."""
        repository = repository_of(image)
        last = repository.rpartition("/")[2]
        certain = self.known.get(repository) or self.known.get(last) or self.folders.get(_plain(last))
        if certain is not None:
            return certain
        if self.top is not None and _plain(last) in {_plain(name) for name in self.own}:
            return self.top
        if not last or _PUBLISHED.fullmatch(repository):
            return None
        for name in _endings(last):
            if build := self.folders.get(_plain(name)):
                several = repository.removesuffix(name) in self.prefixes
                return build if several else _doubted(build, f"is {image} built from here? Its name ends like this folder's")
        mine = next((build for name in (workload, container) if (build := self.folders.get(_plain(name)))), None)
        if mine is not None and last not in _BESIDE:
            return _doubted(mine, f"is {image} built from here? The folder is called like the workload")
        return None

    def of_run(self, images: Iterable[str]) -> Images:
        """Return it with what all images that run tell together: which prefix several of them have, or that there is one image only, and
        one Dockerfile.
        """
        run = {repository_of(image) for image in images} - {""}
        mine = [repository for repository in run if not _PUBLISHED.fullmatch(repository)]
        if self.top is None or not self.only or len(mine) != 1 or self.of(mine[0], "", "") is not None:
            ending = [next((name for name in _endings(each.rpartition("/")[2]) if _plain(name) in self.folders), "") for each in mine]
            counted = Counter(each.removesuffix(name) for each, name in zip(mine, ending, strict=True) if name)
            return replace(self, prefixes={prefix for prefix, count in counted.items() if count > 1})
        build = _doubted(self.top, f"is {mine[0]} built from here? It is the only image, and this the only Dockerfile")
        return replace(self, known={**self.known, mine[0]: build})


def _doubted(build: Build, doubt: str) -> Build:
    return replace(build, doubt=doubt)


def _endings(name: str) -> Iterator[str]:
    """Yield ``b-c`` and ``c`` of ``a-b-c``, the longest first."""
    parts = re.split(r"[-_.]", name)
    yield from ("-".join(parts[place:]) for place in range(1, len(parts)))


def discover(reader: Reader, dockerfiles: Sequence[str], composed: Mapping[str, Build], own: Collection[str]) -> Images:
    """Return what is built here. ``dockerfiles``: paths without those of tests; ``composed``: image -> Build of compose files."""
    folders: dict[str, Build] = {}
    for path in sorted(dockerfiles, key=_preference):
        build = of_dockerfile(reader, path, path)
        if build is not None:
            for name in _names(path):
                folders.setdefault(_plain(name) or path, build)
    top = of_dockerfile(reader, "Dockerfile", "the Dockerfile at the top") if "Dockerfile" in dockerfiles else None
    if top is None and len(dockerfiles) == 1:
        top = of_dockerfile(reader, dockerfiles[0], f"{dockerfiles[0]}, the only one")
    return Images(
        {**dict(_of_skaffold(reader)), **composed},
        folders,
        own,
        top,
        len(dockerfiles) == 1,
    )


def _preference(path: str) -> tuple[bool, bool, str]:
    name = PurePosixPath(path).name
    return name != "Dockerfile", "prod" not in name.lower(), path


def _names(path: str) -> Iterator[str]:
    """Yield what the image of a Dockerfile may be called: like its folder, or like its ending."""
    file, folder = PurePosixPath(path).name, PurePosixPath(path).parent
    match = _VARIANT.fullmatch(file)
    for variant in (match["before"], match["behind"]) if match else ():
        if variant and variant.lower() not in {"prod", "production"}:
            yield variant
            return
    while folder.name.lower() in _NAMELESS:
        folder = folder.parent
    yield folder.name


def of_dockerfile(reader: Reader, path: str, source: str, context: str | None = None) -> Build | None:
    """Return how the image of a Dockerfile is built; None for a file that is none. ``context``: where it is known."""
    content = reader.text(path)
    says = stage_of(content, None) if content else None
    if says is None:
        return None
    folder = PurePosixPath(path).parent.as_posix()
    doubt = ""
    if context is None:
        context, doubt = _context(reader, folder, content)
    below = "" if context == "." else f"{context}/"
    if not path.startswith(below):
        context, below, doubt = folder, "" if folder == "." else f"{folder}/", "the folder that its COPY lines start from"
    return Build(context, path.removeprefix(below), source, context_doubt=doubt, says=says)


def _context(reader: Reader, folder: str, content: str) -> tuple[str, str]:
    """Return the folder from which the files are there that COPY takes: the Dockerfile's own or the top, and what is not certain."""
    sources = [source for line in _COPY.finditer(content) for source in _sources(line["rest"])]
    for candidate in dict.fromkeys((folder, ".")):
        if all(_is_there(reader, candidate, source) for source in sources):
            return candidate, ""
    lacking = [sum(not _is_there(reader, candidate, source) for source in sources) for candidate in (folder, ".")]
    return (folder if lacking[0] <= lacking[1] else "."), "the folder that its COPY lines start from"


def _sources(rest: str) -> Iterable[str]:
    words = re.findall(r"[^\s\[\],\"]+", rest)
    if any(word.startswith("--from") for word in words):
        return ()
    return [word.removeprefix("./").rstrip("/") for word in words if not word.startswith("--")][:-1]


def _is_there(reader: Reader, folder: str, source: str) -> bool:
    """Say whether a file or folder is there. A pattern, a variable, an address and what a build may make count as there."""
    if (
        not source
        or source in {".", "*"}
        or re.search(r"[*?$\[]|://", source)
        or source.split("/", maxsplit=1)[0] in {"dist", "build", "target", "out"}
    ):
        return True
    path = source.lstrip("/") if folder == "." else f"{folder}/{source.lstrip('/')}"
    return reader.has(path)


def _of_skaffold(reader: Reader) -> Iterator[tuple[str, Build]]:
    for path in reader.files.named("skaffold.yaml", "skaffold.yml"):
        for document in reader.mappings(str(path), reader.text(str(path))):
            build = document.get("build")
            for artifact in as_list(build.get("artifacts")) if isinstance(build, dict) else ():
                if not isinstance(artifact, dict):
                    continue
                docker = artifact.get("docker")
                file = text(docker.get("dockerfile")) if isinstance(docker, dict) else ""
                place = PurePosixPath(path.parent, text(artifact.get("context")) or ".")
                found = of_dockerfile(reader, (place / (file or "Dockerfile")).as_posix(), str(path), place.as_posix())
                if found is not None:
                    yield repository_of(text(artifact.get("image"))), found
                    yield repository_of(text(artifact.get("image"))).rpartition("/")[2], found
