# One node of a group:  docker build -t dledger .   Everything is set by the environment; see compose.yaml.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dledger dledger
COPY broker_adapter broker_adapter
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN set -eu; \
    for wheel in /wheels/*.whl; do python -m pip install --no-cache-dir "${wheel}[fast]"; done; \
    rm -r /wheels; \
    useradd --uid 10001 --user-group --home-dir /var/lib/dledger --create-home dledger
USER 10001
WORKDIR /var/lib/dledger

# A container's own address is never loopback: without certificates (docs/security.md) a node starts only where the
# network is declared to be trusted, DLEDGER_ALLOW_PLAINTEXT=all.
ENV DLEDGER_STORE_PATH_ROOT_DIR=/var/lib/dledger \
    DLEDGER_BIND_ADDRESS=0.0.0.0 \
    DLEDGER_METRICS_ADDRESS=0.0.0.0 \
    DLEDGER_METRICS_PORT=5557 \
    DLEDGER_LOG_FORMAT=json
VOLUME /var/lib/dledger
EXPOSE 40911 5557

# SIGTERM hands leadership over before the node stops.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5557/livez', timeout=3).read()"]
ENTRYPOINT ["dledger"]
CMD ["start"]
