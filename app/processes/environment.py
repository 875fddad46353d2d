"""The environment variables of a child process: an allow-list, by the child's needs.

A service's environment holds secrets: cloud credentials, tokens, passwords of proxies. A child that reads untrusted
files or bytes needs none of them. A listed name that looks like a secret is left out too (`NVIDIA_API_KEY`). Settings
are sent in messages, not in the environment.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Mapping


class Need(enum.Flag):
    """The needs of a child besides running Python."""

    NOTHING = 0
    COMPUTE = enum.auto()
    """Runs a network or decodes: needs the libraries' settings of threads and CPU features."""
    GPU = enum.auto()
    DOWNLOAD = enum.auto()
    """Uses the network: needs proxies (with their passwords) and certificates."""


# Python, the dynamic loader, the allocator and the locale: without these a child may fail or behave differently.
_RUN = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "TZDIR", "SYSTEMROOT"),
    *("LANG", "LANGUAGE", "LC_*"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "GLIBC_TUNABLES", "MALLOC_*", "MIMALLOC_*", "TCMALLOC_*"),
    *("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE"),
    *("PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONHASHSEED"),
    *("PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONMALLOC", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"),
    # Set by this package.
    "ORT_DISABLE_TELEMETRY",
)
_BY_NEED = {
    Need.COMPUTE: (
        *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "NUMEXPR_*", "VECLIB_*", "ATEN_*", "DNNL_*"),
        *("ONEDNN_*", "ORT_*", "TORCH_*", "TORCHINDUCTOR_*", "PYTORCH_*", "XDG_CACHE_HOME"),
    ),
    Need.GPU: (*("CUDA_*", "NVIDIA_*", "CUBLAS_*", "CUDNN_*", "NCCL_*", "TRITON_*", "HIP_*", "ROCR_*", "HSA_*"),),
    Need.DOWNLOAD: (
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OPENSSL_CONF"),
    ),
}
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# Each thread reserves memory, and a child that reads one file or image needs only one.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LOADER = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
"""Variables without which an interpreter may not start."""


def child_environment(
    needs: Need = Need.NOTHING, more: Mapping[str, str] | None = None, of: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of this process's environment (or of `of`) for a child with these `needs`, and `more`.

    With its PYTHONPATH, all modules that are importable here are importable there, in the same order.
    """
    patterns = [*_RUN, *(name for need, names in _BY_NEED.items() if need in needs for name in names)]
    exact = {name for name in patterns if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in patterns if name.endswith("*"))
    kept = {
        name: value
        for name, value in (os.environ if of is None else of).items()
        if name in exact or (name.startswith(prefixes) and not _SECRET.search(name))
    }
    return kept | {"PYTHONPATH": import_path()} | dict(more or {})


def loader_environment() -> dict[str, str]:
    """The environment of an interpreter that uses the standard library alone."""
    return {name: os.environ[name] for name in LOADER if name in os.environ}


def import_path() -> str:
    """A PYTHONPATH for a child: this process's import path, wherever it comes from."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)
