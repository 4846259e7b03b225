"""Helm, kubectl and the schemas of Kubernetes, for the tests of deploy/.

Reads a list of requests from standard input and writes the list of answers, both as JSON. A request
names its `command`, one of the functions below, and its arguments. Runs in the environment of
.ci/python-tools. Called by tests/deploy/kubernetes.rs.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

# The package reads its schemas, of megabytes, again for each object.
schemas = kubernetes_validate.utils
schemas.schema_contents = functools.cache(schemas.schema_contents)


class Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping, of which YAML libraries keep only one."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            # A merge key is not a key of the mapping.
            if keys.count(key) > 1 and key != "<<":
                raise ValueError(f"the key {key} occurs twice, in line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def objects(text):
    return [document for document in yaml.load_all(text, Loader=Loader) if document]


def render(chart, values, name="indexer", namespace="metaflow"):
    """The rendered files of a chart, and the objects in them; or why the values are refused."""
    with helm_python.Chart.load(chart) as loaded:
        try:
            files = loaded.render(values, name=name, namespace=namespace)
        except (helm_python.HelmValuesError, helm_python.HelmRenderError) as error:
            return {"refused": str(error)}
    manifests = {name: text for name, text in files.items() if name.endswith(".yaml")}
    return {
        "files": files,
        "objects": [found for text in manifests.values() for found in objects(text)],
    }


def lint(chart, values):
    """The findings of Helm's linter that are warnings or errors."""
    report = helm_python.lint(chart, values, strict=True)
    assert report["total_charts_linted"] == 1
    findings = [finding for finding in report["messages"] if finding["severity"] >= 2]
    return [f"{finding['path']}: {finding['error']}" for finding in findings]


def package(chart, destination):
    """The files of the packaged chart that are not templates."""
    archive = helm_python.package(chart, destination=destination)
    with helm_python.Chart.load(archive) as loaded:
        return {file["name"]: file["data"] for file in loaded.files}


def defaults(chart):
    """The default values."""
    with helm_python.Chart.load(chart) as loaded:
        return loaded.values


def kubectl(*arguments):
    program = Path(sys.executable).parent / "kubectl"
    outcome = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return objects(outcome.stdout)


def kustomize(directory):
    """The objects of an overlay."""
    return kubectl("kustomize", directory)


def patch(file, patch_file):
    """An object after a strategic merge patch."""
    arguments = ["--local", "-f", file, "--type", "strategic", "--patch-file", patch_file]
    (patched,) = kubectl("patch", *arguments, "-o", "yaml")
    return patched


def validate(object, version):
    """Why a version of Kubernetes refuses an object; `unknown kind` for a custom resource."""
    try:
        kubernetes_validate.validate(object, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return "unknown kind"
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def main():
    commands = [render, lint, package, defaults, kustomize, patch, validate]
    known = {command.__name__: command for command in commands}
    answers = []
    for request in json.load(sys.stdin):
        command = known[request.pop("command")]
        answers.append(command(**request))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
