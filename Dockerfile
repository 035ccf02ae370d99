# Two stages: the first installs the pinned dependencies, the second contains only what serves.
# docs/kubernetes.md says how to pin the base image by its digest.
ARG PYTHON_IMAGE=python:3.11.15-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
COPY requirements.lock .
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 generation \
    && useradd --uid 10001 --gid 10001 --home-dir /data --create-home generation
COPY --from=build /venv /venv
WORKDIR /app
COPY generated generated
COPY providers providers
COPY storage storage
COPY service service
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATABASE_URL=sqlite:////data/generation.db \
    LOG_FORMAT=json
# In numbers: with runAsNonRoot, Kubernetes refuses a user whose number it does not know.
USER 10001:10001
VOLUME /data
EXPOSE 50051
# Inside the container it listens on loopback by default: set LISTEN_ADDRESS=0.0.0.0:50051 together with AUTH_TOKENS_FILE (or
# ALLOW_UNAUTHENTICATED=true), as docs/settings.md shows.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-m", "service.ready"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "service"]
