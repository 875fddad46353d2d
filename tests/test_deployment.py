"""The container files keep what docs/deployment.md promises; parsed here, without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.checkpoints.locate import WEIGHTS_FOLDER
from app.settings import ENV_PREFIX, Settings

REPOSITORY = Path(__file__).parent.parent
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.proxy.yml")
PROXY = "docker-compose.proxy.yml"
# Each container that a compose file describes or changes.
CONTAINERS = [*((name, "resnet-serve") for name in COMPOSE_FILES), (PROXY, "proxy")]
PROBE = ["resnet-serve", "probe", "--ready"]

VARIABLES = {f"{ENV_PREFIX}{name.upper()}": field for name, field in Settings.model_fields.items()}
# What downloads go through: no settings of the service's own.
OUTBOUND = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
# Read by the proxy alone.
PROXY_ONLY = {"RESNET_PUBLISH_TLS", "RESNET_PROXY_CONNECTIONS", "RESNET_PROXY_HTTP"}
# Read by Compose itself, in ${…}; the service never sees them.
COMPOSE_ONLY = {"RESNET_PUBLISH", "RESNET_MEMORY"} | PROXY_ONLY
# Not passed on: the image's own, what goes with stop_grace_period, and a fallback that containers never take.
FIXED = {
    "RESNET_HOST",
    "RESNET_PORT",
    "RESNET_CACHE_DIR",
    "RESNET_SHUTDOWN_LINGER_SECONDS",
    "RESNET_SHUTDOWN_GRACE_SECONDS",
    "RESNET_WEIGHTS_FALLBACK",
}


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def service(name: str = "docker-compose.yml", container: str = "resnet-serve") -> dict[str, Any]:
    """What a compose file says of a container; each is in its list above."""
    document = yaml.safe_load(text_of(name))
    assert {(name, each) for each in document["services"]} <= set(CONTAINERS)
    return dict(document["services"][container])


def environment(name: str, container: str = "resnet-serve") -> dict[str, str | None]:
    """A container's variables, as Compose reads a list (None: passed on from outside) or a mapping."""
    given = service(name, container).get("environment", {})
    if isinstance(given, dict):
        return given
    return {key: value if equals else None for key, equals, value in (item.partition("=") for item in given)}


@dataclass(frozen=True)
class Instruction:
    """One instruction of the Dockerfile: `COPY`, and its words."""

    name: str
    words: tuple[str, ...]

    @property
    def stage(self) -> str | None:
        """The stage that a COPY takes from; None for the build context."""
        return next((word.removeprefix("--from=") for word in self.words if word.startswith("--from=")), None)

    @property
    def sources(self) -> list[str]:
        """What a COPY or ADD takes, without its options and its target."""
        return [word for word in self.words if not word.startswith("--")][:-1]

    def __str__(self) -> str:
        return " ".join((self.name, *self.words))


def dockerfile_stages(name: str = "Dockerfile") -> list[list[Instruction]]:
    """A Dockerfile's instructions from each FROM on; comments gone, continued lines joined."""
    lines = "\n".join(line for line in text_of(name).splitlines() if not line.lstrip().startswith("#"))
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        if not line.strip():
            continue
        name, *words = line.split()
        if name.upper() == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(Instruction(name.upper(), tuple(words)))
    return stages


def named(stage: list[Instruction], name: str) -> list[Instruction]:
    return [instruction for instruction in stage if instruction.name == name]


def image_environment() -> dict[str, str]:
    """The variables that the final stage sets."""
    return dict(word.split("=", 1) for line in named(dockerfile_stages()[-1], "ENV") for word in line.words)


def seconds(duration: str) -> float:
    """Compose's `30s` or `2m30s`."""
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return float(sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts))


# --- the container's rights


def test_the_container_has_no_rights_to_lose() -> None:
    """Compose gives the service a read-only root, no capability and no way to gain one."""
    given = service()
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize(("name", "container"), CONTAINERS)
def test_no_compose_file_gives_rights_back(name: str, container: str) -> None:
    """No compose file adds a capability, a device, a host namespace or another user."""
    loosening = {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode", "user", "group_add"}
    assert not loosening & service(name, container).keys()


def test_tmp_is_bounded_and_nothing_runs_from_it() -> None:
    """/tmp is the only tmpfs: of a fixed size, and without programs, setuid files and devices."""
    (mount,) = service()["tmpfs"]
    path, _, options = mount.partition(":")
    assert path == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert re.search(r"\bsize=\d+m\b", options)


def test_memory_processes_and_logs_are_bounded() -> None:
    """Memory has a default limit, threads one that fits a machine of 512 CPUs, and the logs rotate."""
    given = service()
    assert re.fullmatch(r"\$\{RESNET_MEMORY:-\d+g\}", given["mem_limit"])
    assert 3 * 512 <= given["pids_limit"] <= 4096
    assert given["logging"]["driver"] == "local"


def test_checkpoints_are_mounted_read_only_and_only_the_cache_is_writable() -> None:
    """model_weights is mounted read-only where the service looks for it; its one writable volume is the cache."""
    (workdir,) = named(dockerfile_stages()[-1], "WORKDIR")
    weights = f"{workdir.words[0]}/{WEIGHTS_FOLDER}"
    cache = image_environment()["RESNET_CACHE_DIR"]
    assert service()["volumes"] == [f"./model_weights:{weights}:ro", f"cache:{cache}"]
    assert list(yaml.safe_load(text_of("docker-compose.yml"))["volumes"]) == ["cache"]
    assert [line.words for line in named(dockerfile_stages()[-1], "VOLUME")] == [(cache,)]


# --- health and stopping


def test_healthy_means_ready() -> None:
    """Compose and the image ask `resnet-serve probe --ready`, with the same times."""
    given = service()["healthcheck"]
    assert given["test"] == ["CMD", *PROBE]
    (check,) = named(dockerfile_stages()[-1], "HEALTHCHECK")
    assert str(check).endswith('CMD ["' + '", "'.join(PROBE) + '"]')
    options = dict(word.removeprefix("--").split("=") for word in check.words if word.startswith("--"))
    assert options == {
        "interval": given["interval"],
        "timeout": given["timeout"],
        "start-period": given["start_period"],
        "retries": str(given["retries"]),
    }


def test_the_probe_gives_up_before_its_health_check_does() -> None:
    """The health check waits longer than the probe's own 3 s, so that the probe can say what it met."""
    assert seconds(service()["healthcheck"]["timeout"]) > 3


def test_the_engine_waits_longer_than_the_service_takes_to_stop() -> None:
    """stop_grace_period is longer than all that the service allows itself after SIGTERM, which is what stops it."""
    settings = Settings()
    allowed = settings.shutdown_linger_seconds + settings.shutdown_grace_seconds
    assert seconds(service()["stop_grace_period"]) >= allowed + 5
    assert "stop_signal" not in service()
    assert [line.words for line in named(dockerfile_stages()[-1], "STOPSIGNAL")] == [("SIGTERM",)]


def test_a_container_ends_when_it_is_told_to_while_it_starts() -> None:
    """The service is not the first process of its container, to which SIGTERM is lost before its handler is there."""
    assert service()["init"] is True


def test_the_service_comes_back_until_someone_stops_it() -> None:
    """The container is started again after a crash and after a reboot."""
    assert service()["restart"] == "unless-stopped"


def test_the_service_receives_its_signals_itself() -> None:
    """The image's command is an exec-form CMD: no shell stands between the engine and the service."""
    (command,) = named(dockerfile_stages()[-1], "CMD")
    assert str(command) == 'CMD ["resnet-serve", "serve"]'
    assert not {"command", "entrypoint"} & service().keys()


# --- settings


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_every_variable_of_the_compose_files_is_a_setting(name: str) -> None:
    """A variable that Compose hands the service is one that the service knows."""
    assert environment(name).keys() <= VARIABLES.keys() | OUTBOUND


def test_compose_passes_on_every_setting_that_is_not_fixed() -> None:
    """Settings, in their order, and proxies can be given in the shell or in .env, but for what the container fixes."""
    given = environment("docker-compose.yml")
    assert [name for name in given if name not in OUTBOUND] == [name for name in VARIABLES if name not in FIXED]
    assert given.keys() >= OUTBOUND
    assert set(given.values()) == {None}


def test_variables_of_compose_itself_are_documented() -> None:
    """What the compose files interpolate is no setting, and docs/deployment.md has a row with its default."""
    used = {pair for name in COMPOSE_FILES for pair in re.findall(r"\$\{(RESNET_\w+):-([^}]*)\}", text_of(name))}
    assert {name for name, _ in used} == COMPOSE_ONLY
    assert not COMPOSE_ONLY & VARIABLES.keys()
    rows = re.findall(r"^\| `(RESNET_\w+)` \| `([^`]+)` \|", text_of("docs/deployment.md"), re.MULTILINE)
    assert set(rows) == used


def test_every_variable_in_the_image_is_a_setting() -> None:
    """The image sets only variables that the service knows, and listens where a container can be reached."""
    given = {name: value for name, value in image_environment().items() if name.startswith(ENV_PREFIX)}
    assert given.keys() <= VARIABLES.keys()
    assert given["RESNET_HOST"] == "0.0.0.0"


def test_every_variable_in_the_document_exists() -> None:
    """docs/deployment.md names no variable that neither the service nor Compose knows."""
    named_there = set(re.findall(r"RESNET_[A-Z_]*[A-Z]\b", text_of("docs/deployment.md"))) - {"RESNET_SHUTDOWN"}
    assert named_there <= VARIABLES.keys() | COMPOSE_ONLY
    assert named_there >= COMPOSE_ONLY | {"RESNET_ROOT_PATH", "RESNET_FORWARDED_ALLOW_IPS", "RESNET_DOWNLOAD_MIRROR"}


def test_the_published_port_is_the_one_it_listens_on() -> None:
    """Compose publishes the service's default port, and so does the image."""
    port = str(VARIABLES["RESNET_PORT"].default)
    (published,) = service()["ports"]
    assert published == f"${{RESNET_PUBLISH:-{port}}}:{port}"
    assert [line.words for line in named(dockerfile_stages()[-1], "EXPOSE")] == [(port,)]


@pytest.mark.parametrize("name", [*COMPOSE_FILES, "Dockerfile"])
def test_a_container_never_serves_another_model_in_place_of_yours(name: str) -> None:
    """Nothing in a container falls back to the offline demo."""
    assert "WEIGHTS_FALLBACK" not in text_of(name)
    assert "offline-demo" not in str(environment(name) if name in COMPOSE_FILES else image_environment())


# --- the GPU overlay


def test_the_gpu_overlay_adds_a_gpu_and_nothing_else() -> None:
    """The overlay reserves one NVIDIA GPU and insists on it; what it does not name stays as it was."""
    given = service("docker-compose.gpu.yml")
    assert given.keys() == {"environment", "deploy"}
    assert given["environment"] == {"RESNET_DEVICE": "cuda"}
    (device,) = given["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


# --- the proxy overlay


def test_the_proxy_has_no_rights_to_lose() -> None:
    """The proxy is held as the service is: read-only root, no capability, bounded memory, processes, tmpfs and logs."""
    given, base = service(PROXY, "proxy"), service()
    for key in ("read_only", "cap_drop", "security_opt", "logging", "restart"):
        assert given[key] == base[key]
    (mount,) = given["tmpfs"]
    path, _, options = mount.partition(":")
    assert path == "/tmp"
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    # A tmpfs counts towards the container's memory.
    assert "size=512m" in options.split(",")
    assert given["mem_limit"] == "1g"
    assert given["pids_limit"] <= 64
    assert given["volumes"] == ["./proxy/tls:/etc/nginx/tls:ro"]


def test_the_proxy_takes_the_port_and_the_service_has_none() -> None:
    """The service is on an internal network alone, of which Docker publishes nothing; the proxy is on both networks."""
    overlay = yaml.safe_load(text_of(PROXY))
    assert overlay["networks"] == {"inside": {"internal": True}}
    assert service(PROXY).keys() == {"networks", "environment"}
    assert service(PROXY)["networks"] == ["inside"]
    assert service(PROXY, "proxy")["networks"] == ["default", "inside"]
    http, https = service(PROXY, "proxy")["ports"]
    # Where the service's port is published after all, the two cannot both have it, and `up` fails.
    assert http.rpartition(":")[0] == service()["ports"][0].rpartition(":")[0]
    assert https == "${RESNET_PUBLISH_TLS:-8443}:8443"
    (exposed,) = named(dockerfile_stages("proxy/Dockerfile")[-1], "EXPOSE")
    assert exposed.words == tuple(each.rpartition(":")[2] for each in (http, https))


def test_the_service_believes_the_proxy() -> None:
    """Behind the proxy X-Forwarded-For is believed: nobody else can reach the service."""
    assert environment(PROXY) == {"RESNET_FORWARDED_ALLOW_IPS": "*"}


def test_the_proxy_has_the_services_limits() -> None:
    """What its script reads is what Compose hands it: settings of the service as they are, and its own."""
    given = environment(PROXY, "proxy")
    script = text_of("proxy/start.sh")
    assert given.keys() == set(re.findall(r"\$\(value (RESNET_\w+) ", script))
    assert {name for name, value in given.items() if value is not None} == PROXY_ONLY
    assert given.keys() - PROXY_ONLY <= VARIABLES.keys() - FIXED
    for name, default in re.findall(r"\$\(value (RESNET_\w+) (\S+) ", script):
        if name in PROXY_ONLY:
            assert given[name] == f"${{{name}:-{default}}}"


def test_the_proxys_image_runs_as_a_user_of_its_own() -> None:
    """Its USER is a number, neither root's nor the service's, and its base can be chosen as the service's can."""
    (stage,) = dockerfile_stages("proxy/Dockerfile")
    (user,) = named(stage, "USER")
    uid, _, gid = user.words[0].partition(":")
    assert 0 not in (int(uid), int(gid))
    assert user.words != named(dockerfile_stages()[-1], "USER")[0].words
    assert not {"RUN", "COPY"} & {instruction.name for instruction in stage[stage.index(user) :]}
    assert str(stage[0]) == "FROM ${DEBIAN_IMAGE}"
    assert "--no-install-recommends nginx" in " ".join(str(line) for line in named(stage, "RUN"))
    assert f"user {uid}" in text_of("proxy/tls/README.md")


def test_the_proxys_build_context_is_an_allow_list() -> None:
    """Only what its Dockerfile copies can get into the image: no key."""
    lines = [line for line in text_of("proxy/.dockerignore").splitlines() if not line.startswith("#")]
    (copy,) = named(dockerfile_stages("proxy/Dockerfile")[-1], "COPY")
    assert lines == ["*", *(f"!{name}" for name in copy.sources)]


def test_no_key_gets_into_git() -> None:
    """.gitignore shuts out the folder of certificates, but for what says how it is used."""
    lines = text_of(".gitignore").splitlines()
    assert lines.index("/proxy/tls/*") < lines.index("!/proxy/tls/README.md")


def test_the_proxy_stops_gracefully_and_in_time() -> None:
    """SIGQUIT, which nginx and the image take as well, and more time than nginx allows itself."""
    given = service(PROXY, "proxy")
    (signal,) = named(dockerfile_stages("proxy/Dockerfile")[-1], "STOPSIGNAL")
    assert signal.words == (given["stop_signal"],) == ("SIGQUIT",)
    (allowed,) = re.findall(r"worker_shutdown_timeout (\S+);", text_of("proxy/nginx.conf"))
    assert seconds(given["stop_grace_period"]) >= seconds(allowed) + 5
    (command,) = named(dockerfile_stages("proxy/Dockerfile")[-1], "CMD")
    assert str(command) == 'CMD ["/opt/proxy/start.sh"]'
    assert re.search(r"^exec nginx ", text_of("proxy/start.sh"), re.MULTILINE)


def test_the_proxy_starts_after_the_service_and_is_probed() -> None:
    """Compose starts it when the service is ready; its health check is the image's."""
    given = service(PROXY, "proxy")
    assert given["depends_on"] == {"resnet-serve": {"condition": "service_healthy"}}
    (check,) = named(dockerfile_stages("proxy/Dockerfile")[-1], "HEALTHCHECK")
    assert check.words[-2:] == ("CMD", '["/opt/proxy/probe.sh"]')
    assert given["healthcheck"]["test"] == ["CMD", "/opt/proxy/probe.sh"]
    options = dict(word.removeprefix("--").split("=") for word in check.words if word.startswith("--"))
    assert options == {
        name.replace("_", "-"): str(value) for name, value in given["healthcheck"].items() if name != "test"
    }
    for script in ("start.sh", "probe.sh"):
        assert os.access(REPOSITORY / "proxy" / script, os.X_OK)


def test_the_document_says_what_the_proxy_is_for() -> None:
    """docs/deployment.md has the command, and says what the proxy protects from and what it does not."""
    text = text_of("docs/deployment.md").partition("## With a proxy of its own")[2].partition("\n## ")[0]
    assert f"docker compose -f docker-compose.yml -f {PROXY} up -d" in text
    assert "It protects" in text
    assert "It does not protect" in text
    assert "512 MB" in text


# --- the image


def test_the_image_runs_as_a_user_without_rights() -> None:
    """The final stage's one USER is a number other than 0, which Kubernetes' runAsNonRoot can tell."""
    stage = dockerfile_stages()[-1]
    (user,) = named(stage, "USER")
    uid, _, gid = user.words[0].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    # What needs root comes before it.
    assert not {"RUN", "COPY"} & {instruction.name for instruction in stage[stage.index(user) :]}


def test_the_final_stage_installs_nothing() -> None:
    """What the final stage has beyond its base comes out of the build stages: no compiler, no installer's work."""
    commands = " ".join(str(line) for line in named(dockerfile_stages()[-1], "RUN"))
    assert not re.search(r"\b(apt|apt-get|pip|gcc|g\+\+|make|curl|wget)\b", commands)
    copies = named(dockerfile_stages()[-1], "COPY")
    assert [copy.stage for copy in copies] == ["dependencies", "build"]


def test_no_weights_are_in_the_image() -> None:
    """Only the code and what its packaging names is copied from the build context, and nothing is downloaded there."""
    instructions = [instruction for stage in dockerfile_stages() for instruction in stage]
    assert not named(instructions, "ADD")
    copied = {source for copy in named(instructions, "COPY") if copy.stage is None for source in copy.sources}
    packaging = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "hatch_build.py", "resnet_serve.py"}
    assert copied == {*packaging, "app/", "app/__init__.py"}
    commands = " ".join(str(line) for line in named(instructions, "RUN"))
    assert not re.search(r"resnet-serve download|\.pth|\.safetensors|torch\.hub", commands)


def test_a_change_of_the_code_reuses_the_dependencies() -> None:
    """The stage that installs PyTorch sees nothing that changes with the code, and its result is a layer of its own."""
    first = dockerfile_stages()[0]
    assert first[0].words[-2:] == ("AS", "dependencies")
    assert [copy.sources for copy in named(first, "COPY")] == [
        ["pyproject.toml", "constraints.txt"],
        ["app/__init__.py"],
    ]
    installs = [str(line) for line in named(first, "RUN") if "offline-demo" in str(line)]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    later = [
        str(line) for stage in dockerfile_stages()[1:] for line in named(stage, "RUN") if "pip install" in str(line)
    ]
    assert later
    assert all("--no-deps" in line for line in later)


def test_the_build_context_is_an_allow_list() -> None:
    """.dockerignore shuts out everything, then lets in exactly what the Dockerfile copies."""
    lines = [line for line in text_of(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    instructions = [instruction for stage in dockerfile_stages() for instruction in stage]
    copied = {source for copy in named(instructions, "COPY") if copy.stage is None for source in copy.sources}
    assert let_in == {source for source in copied if source != "app/__init__.py"}
    assert "**/__pycache__" in lines


# --- the document


def test_the_document_lists_every_hardening() -> None:
    """docs/deployment.md says what each restriction of the compose file is for."""
    text = text_of("docs/deployment.md").partition("## What the container may not do")[2].partition("\n## ")[0]
    listed = " ".join(re.findall(r"^\| (.+?) \| .+ \|$", text, re.MULTILINE))
    for key in ("read_only", "cap_drop", "mem_limit", "pids_limit", "logging", "tmpfs"):
        assert key in service()
        assert key in listed
    assert service()["security_opt"][0].partition(":")[0] in listed
    assert str(named(dockerfile_stages()[-1], "USER")[0]) in listed


def test_the_kubernetes_example_agrees_with_the_image() -> None:
    """The example's probes, paths and times are the service's own, and it has no more rights than under Compose."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text_of("docs/deployment.md"), re.MULTILINE | re.DOTALL)
    pod = yaml.safe_load(block)["spec"]
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": VARIABLES["RESNET_PORT"].default}]
    assert pod["terminationGracePeriodSeconds"] == seconds(service()["stop_grace_period"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert str(pod["securityContext"]["fsGroup"]) in named(dockerfile_stages()[-1], "USER")[0].words[0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {volume.split(":")[1] for volume in service()["volumes"]} | {"/tmp"}


@pytest.mark.parametrize("overlay", [(), ("docker-compose.gpu.yml",), (PROXY,)], ids=["cpu", "gpu", "proxy"])
def test_compose_accepts_the_files(overlay: tuple[str, ...], tmp_path: Path) -> None:
    """Compose itself reads the file, alone and with the overlay; it needs no engine for that."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            break
    else:
        pytest.skip("Compose is not installed")
    # A developer's own .env stays out of it.
    no_settings = tmp_path / "empty.env"
    no_settings.touch()
    files = [argument for name in ("docker-compose.yml", *overlay) for argument in ("-f", name)]
    run = subprocess.run(
        [*command, "--env-file", str(no_settings), *files, "config"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    resolved = yaml.safe_load(run.stdout)["services"]["resnet-serve"]
    assert resolved["read_only"] is True
    assert resolved["environment"].get("RESNET_DEVICE") == ("cuda" if "docker-compose.gpu.yml" in overlay else None)
