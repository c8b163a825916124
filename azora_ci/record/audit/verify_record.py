"""Verify deployment records without the software that wrote them: with Python 3.10 alone, and openssl for signatures.

A record is proved by its SHA-256, got elsewhere (it stands on the page of the run), by a signature of your public key, in
RECORD.json.sig.json beside it, or by a proved record that names it as the one before. Exit codes: 0 all are proved, 1 not true, 2 neither.
"""

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

UNPROVED = "nothing proves it: give its --sha256, the --public-key of its signature beside it, or the record that was written after it"


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def form(data: bytes) -> tuple[dict[str, Any], str | None]:
    """Return (record, why its form is wrong). Records are canonical JSON: sorted keys, no spaces, one newline."""
    try:
        record = json.loads(data.decode())
        canonical = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except (ValueError, RecursionError) as error:
        return {}, f"it is no JSON document: {error}"
    if not isinstance(record, dict) or not {"deployment_id", "environment", "previous_record_sha256"} <= record.keys():
        return {}, "it is no record of a deployment or a rollback"
    return record, None if canonical == data else "its bytes are not canonical JSON"


def signature_problem(envelope: bytes, data: bytes, record: dict[str, Any], key: Path) -> str | None:
    """Return why an envelope (DSSE around an in-toto statement) does not show that this key signed the record; None: it does."""
    try:
        content = json.loads(envelope)
        payload, kind = base64.b64decode(content["payload"]), content["payloadType"].encode()
        signature, (subject,) = base64.b64decode(content["signatures"][0]["sig"]), json.loads(payload)["subject"]
        if subject["digest"]["sha256"] != sha256(data) or f"/{record['environment']}/{record['deployment_id']}/" not in subject["name"]:
            return "its signature is of another document"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"its signature cannot be read: {error!r}"
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(signature)
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        command = ["openssl", "dgst", "-sha256", "-verify", str(key), "-signature", file.name]
        is_valid = subprocess.run(command, input=message, capture_output=True, check=False).returncode == 0
    return None if is_valid else f"its signature is not of {key}"


def named(record: dict[str, Any]) -> dict[str, list[str]]:
    """Return SHA-256 -> the end of the URL of each record that a record names."""
    deployed = found if isinstance(found := record.get("deployment_record"), dict) else {}
    links = [(record["previous_record_sha256"], record.get("previous_record_location")), (deployed.get("sha256"), deployed.get("location"))]
    return {str(digest): str(url).split("/")[-3:] for digest, url in links if digest}


def verify(files: dict[Path, bytes], trusted: list[str], key: Path | None) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return what proves each file, and what is wrong with each. ``trusted``: SHA-256 that are known from elsewhere."""
    records, hashes = {path: form(data)[0] for path, data in files.items()}, {path: sha256(data) for path, data in files.items()}
    wrong = {path: problem for path, data in files.items() if (problem := form(data)[1])}
    proofs = {path: "it has a SHA-256 that you gave" for path in files if hashes[path] in trusted}
    for path, data in files.items():
        signature = path.with_name(f"{path.name}.sig.json")
        if key and path not in wrong and signature.exists():
            problem = signature_problem(signature.read_bytes(), data, records[path], key)
            (wrong if problem else proofs)[path] = problem or f"signed by {key}"
    links = {path: named(record) for path, record in records.items() if path not in wrong}
    proved = [path for path in links if path in proofs]
    for by in proved:  # grows: what a proved record names is proved
        more = [path for path in links if path not in proofs and hashes[path] in links[by]]
        proofs.update(dict.fromkeys(more, f"{by} names it"))
        proved += more
    others = sorted((path for path in links if path not in proofs), key=lambda path: str(records[path].get("timestamp")), reverse=True)
    for by in [*proved, *others]:
        for digest, place in ({} if by in wrong else links[by]).items():
            for path in others:
                name = path.name if "kind" in records[path] else f"{records[path].get('run_attempt')}.json"
                if place == [records[path]["environment"], records[path]["deployment_id"], name] and hashes[path] != digest:
                    wrong[path] = f"{by} names it with SHA-256 {digest}{'' if by in proofs else ': one of the two was changed'}"
    return proofs, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD.json")
    parser.add_argument("--sha256", action="append", default=[], metavar="HEX")
    parser.add_argument("--public-key", type=Path, metavar="KEY")
    options = parser.parse_args()
    given = {path: path.read_bytes() for path in options.records}
    shown, refuted = verify(given, options.sha256, options.public_key)
    for each in given:
        print(f"✗ {each}: {refuted[each]}" if each in refuted else f"✓ {each}: {shown[each]}" if each in shown else f"? {each}: {UNPROVED}")
    if lost := set(options.sha256) - set(map(sha256, given.values())):
        print(f"✗ no file has the SHA-256 {', '.join(sorted(lost))}")
    sys.exit(1 if refuted or lost else 0 if len(shown) == len(given) else 2)
