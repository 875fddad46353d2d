"""The environment of a child process: what it needs to run, by kind, and nothing else.

A service's environment holds secrets: cloud credentials, tokens, proxies' passwords, and what else an operator puts
there. A child that reads strangers' files or bytes needs none of them. So this is an allow-list, and a name on it that
looks like a secret's is left out all the same (`NVIDIA_API_KEY`). Settings are no part of it: they are sent.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Mapping


class Need(enum.Flag):
    """What a child does beside running Python."""

    NOTHING = 0
    COMPUTE = enum.auto()
    """Runs a network, or decodes: how many threads the libraries start, and what they use of the CPU."""
    GPU = enum.auto()
    DOWNLOAD = enum.auto()
    """Reaches the network: proxies, with their passwords, and certificates."""


# Python, the dynamic loader, the allocator and the locale: without these a child may not start, or starts otherwise.
_RUN = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "TZDIR", "SYSTEMROOT"),
    *("LANG", "LANGUAGE", "LC_*"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "GLIBC_TUNABLES", "MALLOC_*", "MIMALLOC_*", "TCMALLOC_*"),
    *("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE"),
    *("PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONHASHSEED"),
    *("PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONMALLOC", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"),
    # Set by this package: nothing is reported to anybody.
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
# One thread: each reserves memory of its own, and a child that reads one file has no use for them.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LOADER = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
"""What an interpreter may need to start at all."""


def child_environment(
    needs: Need = Need.NOTHING, more: Mapping[str, str] | None = None, of: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a child that `needs` these gets of this process's environment (or `of` another), and `more`.

    What can be imported here can be imported there, in the same order.
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
    """For a script that imports the standard library alone, and gets nothing else."""
    return {name: os.environ[name] for name in LOADER if name in os.environ}


def import_path() -> str:
    """A PYTHONPATH for a child: what can be imported here can be imported there, however this process found it."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)
