"""The files for Kubernetes and Docker, against KubeRay's schemas, Ray's own and this package's, without a cluster."""

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from kuberay_schema import FILES, KEPT, resource
from ray.serve.schema import ServeDeploySchema

from cirray.cli.main import resolve
from cirray.cli.verb import verb
from cirray.serving.config import ServeArgs, ServingSettings, check_open

ROOT = Path(__file__).resolve().parents[2]
KINDS = json.loads(KEPT.read_text())["kinds"]
SERVICE, JOB = (resource(file) for file in FILES)
DOCKERFILE = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text())
LINES = [line.split(" ", 1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


def check(document):
    jsonschema.Draft202012Validator(KINDS[document["kind"]]).validate(document)


def changed(document, path, value):
    copied = copy.deepcopy(document)
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copied


def groups(document):
    cluster = document["spec"].get("rayClusterConfig") or document["spec"]["rayClusterSpec"]
    return [cluster, cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("document", [SERVICE, JOB], ids=FILES)
def test_kuberay_accepts_a_file_and_would_refuse_a_misspelt_one(document):
    check(document)
    name = "rayClusterConfig" if document is SERVICE else "rayClusterSpec"
    worker = ("spec", name, "workerGroupSpecs", 0)
    container = (*worker, "template", "spec", "containers", 0)
    wrong = [
        (("spec", "entrypiont"), "x"), ((*worker, "maxReplica"), 3), ((*worker, "replicas"), "two"),
        ((*container, "image"), 3), ((*container, "volumeMount"), []), (("spec", name, "authOptions", "mode"), "open"),
        ((*container, "env"), [{"nome": "x"}]), ((*worker, "rayStartParams"), {"num-cpus": 0}),
    ]  # fmt: skip
    for path, value in wrong:
        with pytest.raises(jsonschema.ValidationError):
            check(changed(document, path, value))


def test_the_kept_schemas_know_every_field_that_the_files_use():
    """A field that was added after the schemas were kept would be let through unread."""

    def walk(schema, value, path):
        if isinstance(value, dict) and path != "metadata":
            inner = schema.get("properties") or dict.fromkeys(value, schema.get("additionalProperties"))
            assert inner or not value, f"{path}: make tests/fixtures/kuberay.json anew"
            for name, part in value.items():
                walk(inner[name], part, name)
        for item in value if isinstance(value, list) else ():
            walk(schema["items"], item, path)
        assert schema, f"{path}: make tests/fixtures/kuberay.json anew"

    for document in (SERVICE, JOB):
        walk(KINDS[document["kind"]], document, "")


def test_the_service_in_it_is_one_that_serve_and_this_package_take():
    config = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    application = config["applications"][0]
    args = ServeArgs.model_validate(application["args"])
    check_open(args, config["http_options"]["host"])
    deployment = application["deployments"][0]
    settings = ServingSettings.model_validate(deployment["user_config"])
    scaling = deployment["autoscaling_config"]
    assert scaling["min_replicas"] >= 2 and settings.max_batch_size <= deployment["max_ongoing_requests"]
    assert scaling["target_ongoing_requests"] < deployment["max_ongoing_requests"]
    for group in groups(SERVICE)[1:]:
        pod = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        secrets = [volume["name"] for volume in pod["volumes"] if volume.get("secret")]
        assert args.keys == f"{mounts[secrets[0]]}/keys.json"  # the gate of every pod reads it


def test_the_job_is_a_command_line_that_resolves():
    _, name, *words = shlex.split(JOB["spec"]["entrypoint"])
    pairs = zip(words[::2], words[1::2], strict=True)
    config = resolve(
        verb(name).config_class(), [], [f"{flag.removeprefix('--')}={value}" for flag, value in pairs]
    ).config
    assert config.images == "/pictures"
    for group in groups(JOB)[1:]:
        container = group["template"]["spec"]["containers"][0]
        assert {"name": "CIRRAY_ROOT", "value": "s3://BUCKET/gallery"} in container["env"]
        assert container["volumeMounts"][0]["mountPath"] == config.images


@pytest.mark.parametrize("document", [SERVICE, JOB], ids=FILES)
def test_clusters_have_the_tested_ray_a_token_and_an_image_of_the_dockerfile(document):
    cluster, *pods = groups(document)
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"]["mode"] == "token"
    targets = {words.split(" AS ")[1] for name, words in LINES if name == "FROM"}
    for pod in pods:
        name, tag = pod["template"]["spec"]["containers"][0]["image"].split(":")
        assert name == "cirray" and tag in targets


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist_as_they_were_tested():
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in LINES} <= known
    copied = [word for name, words in LINES if name == "COPY" for word in shlex.split(words)[:-1]]
    assert copied and [word for word in copied if not (ROOT / word).exists()] == []
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installs = [words for name, words in LINES if name == "RUN" and "pip install" in words]
    assert len(installs) == 2 and all("--constraint constraints.txt" in words for words in installs)
    for extra in re.findall(r"\.\[([a-z,]+)\]", " ".join(installs)):
        assert set(extra.split(",")) <= project["project"]["optional-dependencies"].keys()
    for path in ("package-dir", "package-data"):
        folders = project["tool"]["setuptools"][path].values() if path == "package-dir" else ()
        assert all(any(folder.startswith(word) for word in copied) for folder in folders)
    entry = next(json.loads(words)[0] for name, words in LINES if name == "ENTRYPOINT")
    assert entry in project["project"]["scripts"]


def test_the_images_do_not_run_as_root_and_each_target_says_who_runs_it():
    starts = [place for place, (name, _) in enumerate(LINES) if name == "FROM"]
    for begin, end in zip(starts[1:], [*starts[2:], len(LINES)], strict=True):
        names = [name for name, _ in LINES[begin:end]]
        assert ["USER", "ray"] in LINES[begin:end] and names.index("USER") > max(
            place for place, name in enumerate(names) if name == "RUN"
        )
