"""Every setting of the service, in one place: an environment variable `RESNET_NAME` and a flag `--name` each."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import SettingError
from .files import own_temporary_folder
from .resources import available_cpus

if TYPE_CHECKING:
    from .preprocessing import PreprocessingFacts

ENV_PREFIX = "RESNET_"
# The settings that change a fact of the preprocessing each.
PREPROCESSING_FACTS = ("resize", "crop", "interpolation", "resizer", "mean", "std", "scale", "channels")
VALUE_ERROR = "Value error, "
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_USUAL_PORTS = {"http": "80", "https": "443"}
AutoOrCount = Literal["auto"] | Annotated[int, Field(ge=1)]


def _default_cache_dir() -> Path:
    """$XDG_CACHE_HOME, else ~/.cache (XDG base directory specification); a temporary folder where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-serve"
    except RuntimeError:  # neither HOME nor an entry in the list of users, as for a container's --user 12345
        return own_temporary_folder("resnet-serve")


class Settings(BaseSettings):
    """What the service is told at its start; it does not change afterwards."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        # Settings cross to other processes as JSON, where "no limit" would be null otherwise.
        ser_json_inf_nan="constants",
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    weights: str | None = Field(
        None,
        description=(
            "A checkpoint file, a folder with one checkpoint, a torchvision weight name such as IMAGENET1K_V2, "
            "or offline-demo. Unset: the one checkpoint in model_weights/, else IMAGENET1K_V2."
        ),
    )
    weights_fallback: Literal["none", "offline-demo"] = Field(
        "none", description="What to serve, with a warning, where the weights cannot be downloaded."
    )
    architecture: str = Field(
        "auto",
        description="The network: resnet50, another torchvision classifier, or auto to tell it from the checkpoint.",
    )
    stride_in: Literal["auto", "3x3", "1x1"] = Field(
        "auto",
        description=(
            "Of a ResNet-50: the convolution that has a stage's stride, 3x3 (v1.5) or 1x1 (v1, the paper's). "
            "auto: as the checkpoint's family has it."
        ),
    )
    stem: Literal["auto", "symmetric", "same"] = Field(
        "auto", description="Of a ResNet-50: padding of the first convolution, symmetric or TensorFlow's same."
    )
    pool: Literal["auto", "symmetric", "ceil", "valid"] = Field(
        "auto", description="Of a ResNet-50: padding of the first pool, symmetric, at the end (ceil) or none (valid)."
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of a ResNet-50: epsilon of batch normalisation. Unset: as the checkpoint's family has it.",
    )
    preprocessing: str = Field(
        "auto",
        description=(
            "How images are prepared: a preset (torchvision-v1, torchvision-v2, timm, timm-tv2, timm-half, "
            "huggingface, huggingface-torchvision, keras, keras-nearest, keras-v2, keras-v2-nearest, tf-slim), a "
            "torchvision weight name, or auto to tell it from the checkpoint. The settings below change a fact each."
        ),
    )
    resize: str | None = Field(
        None,
        description=(
            "What images are resized to: the short side (256), height x width (256x256: squashed), squash (to the "
            "crop's size) or none (not resized). Unset: as the preprocessing has it."
        ),
    )
    crop: str | None = Field(
        None,
        description=(
            "What is cut out of the centre: a side (224), height x width (224x192), or none (all of what the image is "
            "squashed to). Unset: as the preprocessing has it."
        ),
    )
    interpolation: Literal["auto", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = Field(
        "auto", description="The filter of the resize. auto: as the preprocessing has it."
    )
    resizer: Literal["auto", "pillow", "torchvision", "torchvision-no-antialias"] = Field(
        "auto",
        description=(
            "Whose resize it is: Pillow's, torchvision's of tensors, or that without antialiasing (as OpenCV and "
            "tf.image resize). auto: as the preprocessing has it."
        ),
    )
    mean: str | None = Field(
        None,
        description=(
            "What is taken from each channel: one number or three, separated by commas, in the order of channels and "
            "the range of scale. Unset: as the preprocessing has it."
        ),
    )
    std: str | None = Field(
        None, description="What each channel is then divided by, given as the mean. Unset: as the preprocessing has it."
    )
    scale: Literal["auto", "unit", "levels", "signed"] = Field(
        "auto",
        description=(
            "The range of the pixels that mean and std are of: unit (0 to 1), levels (0 to 255) or signed (-1 to 1). "
            "With it a mean and a std that are unset are 0 and 1. auto: unit, for those that are set."
        ),
    )
    channels: Literal["auto", "rgb", "bgr"] = Field(
        "auto", description="The order in which the network takes the channels. auto: as the preprocessing has it."
    )
    activation: Literal["auto", "softmax", "sigmoid", "none"] = Field(
        "auto",
        description=(
            "What makes probabilities of the network's scores: softmax (one class is right), sigmoid (each class "
            "stands alone), none (they are probabilities already). auto: as the checkpoint says, else softmax, and "
            "sigmoid for one output."
        ),
    )
    labels: Path | None = Field(
        None,
        description="A labels.txt (a name a line) or an index_to_name.json. Unset: looked for beside the checkpoint.",
    )
    onnx_output: str | None = Field(
        None,
        max_length=256,
        description="Of an ONNX file with several outputs: the name of the one with the scores. Unset: it is found.",
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The name answers give the model. Unset: the architecture.",
    )
    min_agreement: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Of a quantized model: the least share of photos on which its first class is float32's.",
    )
    max_checkpoint_bytes: int = Field(1_073_741_824, ge=1, description="Largest checkpoint file that is read.")
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="Where downloads and exports are kept.")
    download_mirror: str | None = Field(
        None,
        description="Base URL of a mirror that holds torchvision's weight files under their own names.",
    )

    backend: Literal["auto", "torch", "onnx", "null"] = Field(
        "auto",
        description=(
            "What runs the network. auto: onnx on the CPU and for an ONNX file, torch on CUDA. "
            "null needs no weights and answers at once, to measure the service alone."
        ),
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (CUDA, else CPU), cpu, cuda or cuda:N."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description=(
            "Number format of the network. auto: on a CUDA card with tensor cores float16, or the next that holds the "
            "network; else float32."
        ),
    )
    compute_threads: AutoOrCount = Field(
        "auto", description="Threads of the network on CPU. auto: the CPUs it may use."
    )
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description=(
            "exact: pixels as the reference transform makes them. fast: large JPEGs are decoded smaller; "
            "pixels and probabilities differ a little."
        ),
    )
    decoder: Literal["threads", "processes", "gpu"] = Field(
        "threads",
        description=(
            "Where images are decoded: in threads, in processes that are killed at the time limit and replaced, or "
            "ordinary JPEGs on the CUDA card and all else in threads (gpu)."
        ),
    )
    decode_threads: AutoOrCount = Field(
        "auto", description="Images decoded at once. auto: the CPUs it may use, as far as decode_memory_bytes holds."
    )
    decode_memory_bytes: AutoOrCount = Field(
        "auto", description="Memory set aside for decoding. auto: half of what the service may use."
    )
    decode_timeout_seconds: float = Field(
        10.0, gt=0, description="How long decoding one image may take; then the answer is image_too_complex."
    )

    max_batch_size: AutoOrCount = Field(
        "auto",
        description="Most images in one batch. auto: the smallest size within 5% of the best measured throughput.",
    )
    max_batch_delay_ms: float = Field(
        0.0,
        ge=0,
        description="How long a free device waits for a batch to fill. 0: a waiting image starts at once.",
    )
    slo_p99_ms: float | None = Field(
        None,
        gt=0,
        description=(
            "What an answer may take from its last body byte, in 99 of 100 cases. The largest batch and each request's "
            "deadline follow from it, and what would be later is refused."
        ),
    )
    max_queue: int = Field(256, ge=1, description="Most images that wait, for decoding and for the device together.")
    max_queue_bytes: int = Field(256_000_000, ge=1, description="Most bytes of pixels that wait for the device.")
    request_timeout_ms: int = Field(
        30_000,
        ge=1,
        description="Deadline of a request from its last body byte; X-Request-Timeout-Ms can only shorten it.",
    )

    model_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description=(
            "How long a batch may take, or ten times what its size usually takes. Then the device counts as hung: what "
            "waits is refused, /healthz fails and the process ends."
        ),
    )

    max_body_bytes: int = Field(10_000_000, ge=1, description="Largest body of POST /predict.")
    max_batch_body_bytes: int = Field(64_000_000, ge=1, description="Largest body of POST /predict/batch.")
    max_images: int = Field(64, ge=1, description="Most images in one POST /predict/batch.")
    max_megapixels_jpeg: float = Field(64, gt=0, description="Largest JPEG that is decoded, in millions of pixels.")
    max_megapixels: float = Field(25, gt=0, description="Largest image of any other format, in millions of pixels.")
    max_side: int = Field(16_384, ge=1, description="Longest side of an image that is decoded, in pixels.")
    max_jpeg_scans: int = Field(64, ge=1, description="Most scans of a progressive JPEG that is decoded.")
    max_jpeg_megapixel_scans: float = Field(
        1_000, gt=0, description="Largest product of a JPEG's megapixels and scans: what decoding it costs."
    )

    header_timeout_seconds: float = Field(
        5.0, gt=0, description="How long a client may take to send a request's headers."
    )
    max_header_bytes: int = Field(32_768, ge=1024, description="Largest head of a request: its first line and headers.")
    max_headers: int = Field(100, ge=1, description="Most headers of a request.")
    body_timeout_seconds: float = Field(
        10.0, gt=0, description="How long a client may take to send a body, and a second more for each body_min_rate."
    )
    body_min_rate: int = Field(15_000, ge=1, description="Bytes of body that buy a client one more second.")
    body_timeout_max_seconds: float = Field(120.0, gt=0, description="How long a client may take to send any body.")
    response_timeout_seconds: float = Field(
        30.0, gt=0, description="How long a client may leave an answer unread before its connection is cut."
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description=(
            "How long a connection may rest between requests. Longer than what keeps it open on the other side, a load "
            "balancer's idle timeout for one, or requests meet a connection that has just been closed."
        ),
    )
    max_connections: AutoOrCount = Field(
        "auto",
        description=(
            "Most connections open at once; past it only /healthz, /readyz and /metrics are answered. auto: what the "
            "limit of open files leaves room for, up to 10,000."
        ),
    )
    max_open_uploads: int = Field(1024, ge=1, description="Most requests whose bodies are on their way at once.")
    max_received_bytes: int = Field(
        256_000_000, ge=1, description="Most bytes of bodies held at once, over all requests that are not answered yet."
    )

    http_workers: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto",
        description=(
            "Processes that take requests and decode images. 1: the whole service is one process; else the model has "
            "one more, of its own. auto: one for every four CPUs, with a GPU for every two, up to 8; 1 where JPEGs are "
            "decoded on the GPU."
        ),
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, separated by commas. Unset: none."
    )
    root_path: str = Field("", pattern=r"^(/.*[^/])?$", description="Path prefix that a reverse proxy strips.")
    forwarded_allow_ips: str = Field(
        "127.0.0.1",
        description="Addresses of proxies whose X-Forwarded-* headers are believed, separated by commas.",
    )
    shutdown_linger_seconds: float = Field(
        2.0,
        ge=0,
        description="How long requests are still taken after SIGTERM, while /readyz already says draining.",
    )
    shutdown_grace_seconds: float = Field(
        15.0,
        ge=0,
        description="How long accepted requests may take to finish after that.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log lines as JSON objects or as text. auto: text on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )

    @property
    def compute_thread_count(self) -> int:
        """Threads of the network on CPU."""
        return available_cpus() if self.compute_threads == "auto" else self.compute_threads

    @property
    def longest_request_seconds(self) -> float:
        """From a request's last body byte to its answer; what would be later is refused."""
        return min(self.request_timeout_ms, self.slo_p99_ms or self.request_timeout_ms) / 1e3

    @property
    def preprocessing_facts(self) -> PreprocessingFacts:
        """What is set of the preprocessing beside the preset."""
        from .preprocessing import PreprocessingFacts  # numpy comes with it, which a health check does without

        given = {name: getattr(self, name) for name in PREPROCESSING_FACTS}
        return PreprocessingFacts.model_validate({name: value for name, value in given.items() if value != "auto"})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment; no .env file is read behind anyone's back."""
        return init_settings, env_settings

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(each) for each in origins)

    @field_validator("resize", "crop", "mean", "std")
    @classmethod
    def _states_a_fact(cls, value: Any, field: ValidationInfo) -> Any:
        if value is not None:
            from .preprocessing import PARSERS

            PARSERS[str(field.field_name)](value)
        return value

    @model_validator(mode="after")
    def _facts_agree(self) -> Settings:
        if all(getattr(self, name) in (None, "auto") for name in PREPROCESSING_FACTS):
            return self
        try:
            _ = self.preprocessing_facts
        except ValidationError as error:
            raise ValueError(named_settings(error.errors()[0]["msg"].removeprefix(VALUE_ERROR)) + ".") from None
        return self

    @model_validator(mode="after")
    def _one_process_decodes_on_a_card(self) -> Settings:
        if self.decoder != "gpu":
            return self
        if self.device == "cpu":
            raise ValueError(
                "RESNET_DECODER gpu needs a CUDA card, and RESNET_DEVICE is cpu: set it to auto or cuda, or "
                "RESNET_DECODER to threads."
            )
        if self.http_workers not in ("auto", 1):
            raise ValueError(
                f"RESNET_DECODER gpu decodes in the process that has the card, and RESNET_HTTP_WORKERS is "
                f"{self.http_workers}: set it to auto or 1, or RESNET_DECODER to threads."
            )
        return self

    @model_validator(mode="after")
    def _null_takes_no_weights(self) -> Settings:
        if self.backend == "null" and self.weights is not None:
            raise ValueError("RESNET_BACKEND null needs no weights: unset RESNET_WEIGHTS or choose another backend.")
        return self


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (those that are not None), else the environment, else the defaults.

    Raises `SettingError` that names each wrong setting and says what it may be.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingError("\n".join(_explain(error))) from None


def _origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454): scheme, host in small letters, and the port unless it is the usual one.

    Raises `ValueError` where it is none and would match no page.
    """
    if text in ("*", "null"):
        return text
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        raise ValueError(
            f"{text!r} is no origin: an origin is a scheme, a host and perhaps a port, without a path or a slash at "
            "the end, such as https://www.example.com or http://localhost:3000; * allows all"
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and _USUAL_PORTS.get(scheme) != port else "")


def named_settings(text: str) -> str:
    """An error of `preprocessing`, with the settings' names for those of the facts."""
    return re.sub(r"`(\w+)`", lambda match: f"{ENV_PREFIX}{match[1].upper()}", text)


def unknown_variables() -> list[str]:
    """A line for each RESNET_ variable in the environment that is no setting, with the nearest one that is.

    A warning and no error: Kubernetes adds RESNET_SERVICE_HOST and its like beside a service named "resnet".
    """
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for name in sorted(key.removeprefix(ENV_PREFIX) for key in os.environ if key.startswith(ENV_PREFIX)):
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f" Did you mean {ENV_PREFIX}{close[0]}?" if close else ""
            lines.append(f"{ENV_PREFIX}{name} is not a setting and is ignored.{hint}")
    return lines


def _explain(error: ValidationError) -> list[str]:
    """A line for each wrong setting: its names, what it was given, what it may be."""
    lines: list[str] = []
    faults: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors():
        if not item["loc"]:
            lines.append(item["msg"].removeprefix(VALUE_ERROR))
            continue
        _, reasons = faults.setdefault(str(item["loc"][0]), (item["input"], []))
        reason = item["msg"].removeprefix(VALUE_ERROR)
        reasons.append(reason[0].lower() + reason[1:])
    for name, (given, reasons) in faults.items():
        names = f"{ENV_PREFIX}{name.upper()} (--{name.replace('_', '-')})"
        lines.append(f"{names} cannot be {given!r}: {' or '.join(reasons)}. {Settings.model_fields[name].description}")
    return lines
