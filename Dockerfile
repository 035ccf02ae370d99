# Two stages: the first installs the pinned dependencies, the second holds only what serves.
FROM python:3.11-slim AS build
WORKDIR /app
COPY requirements.lock .
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home generation
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
USER generation
VOLUME /data
EXPOSE 50051
# It listens on loopback inside the container until it is told otherwise: set LISTEN_ADDRESS=0.0.0.0:50051 together with
# AUTH_TOKENS_FILE (or ALLOW_UNAUTHENTICATED=true), as README.md shows.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9090/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "service"]
