# The image of controller and movers. Build: docker build -t tidemark .
# A digest of your own registry goes in by --build-arg BASE=registry.example/python@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY orchestrator orchestrator
COPY policies policies
# The lock file holds a hash for each package; nothing else gets in.
RUN python -m venv --without-pip /opt/tidemark \
 && pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
 && UV_PROJECT_ENVIRONMENT=/opt/tidemark uv sync --frozen --no-dev --extra s3-lock --no-editable --no-cache --compile-bytecode

FROM ${BASE}
LABEL org.opencontainers.image.title="tidemark" \
      org.opencontainers.image.description="Kubernetes volume backup at the cost of what changed" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/tidemark /opt/tidemark
ENV PATH=/opt/tidemark/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
# Movers are started as root (block devices), without capabilities; the controller never is.
USER 65532:65532
WORKDIR /
ENTRYPOINT ["tidemark"]
CMD ["controller"]
