# The image of controller and movers. Build: docker build -t tidemark .
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY orchestrator orchestrator
COPY policies policies
# The lock file holds a hash for each package; nothing else gets in.
RUN python -m venv /opt/tidemark \
 && pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
 && UV_PROJECT_ENVIRONMENT=/opt/tidemark uv sync --frozen --no-dev --no-editable --compile-bytecode

FROM python:3.11-slim
COPY --from=build /opt/tidemark /opt/tidemark
ENV PATH=/opt/tidemark/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Movers are started as root (block devices), without capabilities; the controller never is.
USER 65532:65532
ENTRYPOINT ["tidemark"]
CMD ["controller"]
