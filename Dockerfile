# The mirror as an image: Python and an environment with the mirror, not root, on a read-only root:
#   docker run --read-only --tmpfs /tmp -p 5000:5000 -v mirror:/var/cache/mirror \
#       -v mirror-state:/var/lib/mirror container-mirror
# Build behind a company's package index with --build-arg PIP_INDEX_URL=..., and with an extra with
# --build-arg EXTRAS=[tracing].
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ARG EXTRAS
WORKDIR /usr/src/mirror
RUN python -m venv --without-pip /opt/mirror
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY mirror mirror
RUN python -m pip --python /opt/mirror/bin/python install --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --compile -c config/constraints.txt ".${EXTRAS}"

FROM ${BASE}
LABEL org.opencontainers.image.title="mirror" \
      org.opencontainers.image.description="A pull-through cache for container images" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/container-mirror/mirror" \
      org.opencontainers.image.documentation="https://github.com/container-mirror/mirror/blob/main/docs/index.md"
COPY --from=build /opt/mirror /opt/mirror
COPY config/healthcheck.py /opt/mirror/
RUN install -d -o 10001 -g 10001 /var/cache/mirror /var/lib/mirror

# The user's directories are the default places of the cache and of the CA of proxy mode, which a
# file can still change.
ENV PATH=/opt/mirror/bin:${PATH} \
    XDG_CACHE_HOME=/var/cache \
    XDG_STATE_HOME=/var/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /var/cache/mirror /var/lib/mirror
EXPOSE 5000

HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "/opt/mirror/healthcheck.py"]

ENTRYPOINT ["mirror"]
CMD ["serve"]
