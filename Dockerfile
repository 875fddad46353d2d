# resnet-serve: one image for CPU and GPU (PyTorch's Linux build carries CUDA; it runs without a card too).
# The weights are not in it: mount them, or let the first start download them into the cache volume.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- dependencies: some GB, in one layer here and in the final image; a change of the code reuses both
FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/resnet-serve
ENV PATH=/opt/resnet-serve/bin:$PATH
WORKDIR /src
# A stand-in for the service: its version, and empty files for those that pyproject.toml names.
COPY pyproject.toml constraints.txt ./
COPY app/__init__.py app/
RUN touch README.md LICENSE resnet_serve.py \
 && pip install -c constraints.txt pip \
 && HATCH_BUILD_NO_HOOKS=true pip install -c constraints.txt --build-constraint constraints.txt '.[offline-demo,keras]' \
 && pip uninstall --yes resnet-serve

# --- build: the service itself, in a folder of its own; the compiler, for app/images/resample.c, stays behind.
# An image without the compiled resize would only be slower, and nobody would see why: then the build fails.
FROM dependencies AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY README.md LICENSE hatch_build.py resnet_serve.py ./
COPY app/ app/
RUN pip install --no-deps --build-constraint constraints.txt --prefix /opt/service . \
 && ls /opt/service/lib/python3*/site-packages/app/images/resample-*.so

# --- run: no compiler, no pip cache, no root
FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 resnet \
 && useradd --uid 10001 --gid resnet --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin resnet \
 && install -d -o resnet -g resnet /var/cache/resnet-serve \
 && install -d /srv/resnet-serve/model_weights
COPY --from=dependencies /opt/resnet-serve /opt/resnet-serve
COPY --from=build /opt/service /opt/resnet-serve
ENV PATH=/opt/resnet-serve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RESNET_HOST=0.0.0.0 \
    RESNET_CACHE_DIR=/var/cache/resnet-serve
WORKDIR /srv/resnet-serve
# By number: Kubernetes' runAsNonRoot cannot tell it from a name.
USER 10001:10001
EXPOSE 8000
VOLUME /var/cache/resnet-serve
STOPSIGNAL SIGTERM
# Healthy means ready: the model is loaded and warm. A first start may download 100 MB.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["resnet-serve", "probe", "--ready"]
CMD ["resnet-serve", "serve"]
