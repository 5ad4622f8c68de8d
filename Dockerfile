# Two images from one file: `--target api` (the API, `wbar migrate` and `wbar first-key`; no torch in it) and `--target worker`
# (training, ingest and sweeper). torch comes from pip's default index with CUDA in it, and runs without a GPU too. For a
# smaller CPU-only image, name an index that has such builds: `--build-arg PIP_EXTRA_INDEX_URL=…`, or PIP_INDEX_URL for a
# mirror of your own. Both stay in the build stages and are not part of the images.

FROM python:3.12-slim AS base
# The safe path: no Python of these images looks for modules in the folder that it was started in, health checks included.
ENV PATH=/opt/wbar/bin:$PATH PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1
# The folders belong to the user before a volume is mounted on them: an empty named volume takes over their owner.
RUN useradd --uid 10001 --user-group --create-home wbar \
    && install -d -o wbar -g wbar /var/lib/wbar/blobs /var/lib/wbar/scratch

FROM base AS build
RUN python -m venv /opt/wbar
WORKDIR /src
# All that hatchling needs to name the dependencies. They are installed before the source is there, with a hollow wbar that
# the source then replaces: a changed module does not download torch again. Hatchling passes over packages that are not there.
COPY pyproject.toml README.md LICENSE ./
COPY wbar/__init__.py wbar/

FROM build AS build-api
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# By digest: an image that is built again holds what this one holds.
COPY locks/service.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/service.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --force-reinstall . \
    && python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') and 'torch is in the api image')"

FROM base AS api
COPY --from=build-api /opt/wbar /opt/wbar
# By number, so that an orchestrator can see that it is not root.
USER 10001
WORKDIR /home/wbar
# Inside a container the loopback address is reached from inside only.
ENV WBAR_HOST=0.0.0.0
EXPOSE 8000
CMD ["wbar", "serve"]

FROM build AS build-worker
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir ".[worker]"
COPY . .
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM base AS worker
COPY --from=build-worker /opt/wbar /opt/wbar
USER 10001
WORKDIR /home/wbar
# What NVIDIA's container runtime mounts of the driver, where there is one.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["wbar", "worker"]
