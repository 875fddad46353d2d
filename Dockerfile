# resnet-serve: one image for CPU and GPU (PyTorch's Linux build carries CUDA; it runs without a card too).
# The weights are not in it: mount them, or let the first start download them into the cache volume.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- build: everything that needs pip, and nothing that stays but the virtual environment
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/resnet-serve
ENV PATH=/opt/resnet-serve/bin:$PATH
WORKDIR /src
# First what changes seldom: the dependencies, by an app that is only its version. A change of code reuses this layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/
RUN pip install -c constraints.txt '.[offline-demo]'
COPY app/ app/
RUN pip install --no-deps --force-reinstall .

# --- run: no compiler, no pip cache, no root
FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 resnet \
 && useradd --uid 10001 --gid resnet --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin resnet \
 && install -d -o resnet -g resnet /var/cache/resnet-serve \
 && install -d /srv/resnet-serve/model_weights
COPY --from=build /opt/resnet-serve /opt/resnet-serve
ENV PATH=/opt/resnet-serve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RESNET_HOST=0.0.0.0 \
    RESNET_CACHE_DIR=/var/cache/resnet-serve
WORKDIR /srv/resnet-serve
USER resnet
EXPOSE 8000
VOLUME /var/cache/resnet-serve
STOPSIGNAL SIGTERM
# Healthy means ready: the model is loaded and warm. A first start may download 100 MB.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["resnet-serve", "probe", "--ready"]
CMD ["resnet-serve", "serve"]
